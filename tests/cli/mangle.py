"""Input that nobody means: real dumps, manifests, configurations and packets with something wrong in them."""

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from tests.api.samples import NODE, SERVICE, SLICE
from tests.kernel import case_path
from tests.manifests import endpoint_slice, node, service

_TEXT = """
-A -I -j -g ! -m --comment " \\ ' *nat *raw :A COMMIT [1:2] \x00
tcp udp mark recent statistic addrtype conntrack physdev set connmark multiport
--dport --dports --mark 0x1/0x1 --set-xmark --probability 0.5 nan inf -1 1e400
--rcheck --set --seconds --name --ctstate NEW,DNAT --dst-type LOCAL --tcp-flags ALL
DNAT REJECT MASQUERADE CONNMARK --restore-mark --nfmask CT --notrack REDIRECT SNAT
--to-destination --to-source --to-ports 10.0.0.1:80 [::1]:80 1.2.3.4-5.6.7.8 : / 10.0.0.0/33
99999999999999999999 ٣ \udcff é \x1b[31m KUBE-SERVICES KUBE-POSTROUTING PREROUTING FORWARD POSTROUTING
--every --packet --mode nth random 0 --src-range --physdev-in --uid-owner --nfacct-name
bpf --bytecode hashlimit --sport 65535: 80:79 0:65535 --mask fd00::1 ::/0 KUBE-SEP-AAAAAAAAAAAAAAAA
"""
DUMP_WORDS = (*_TEXT.split(), "4,32 0 0 12", "9" * 5000, "0x" + "f" * 5000, "1" * 5000 + ":2", "A" * 40_000, "")

NUMBERS = (0, -1, 1, 65_535, 65_536, 1 << 31, 1 << 63, 1 << 64, 10**400, 0.5, 1e308, float("nan"), float("inf"))
TEXTS = (
    "", " ", "web", "shop/web", "\x00", "\x1b[31m", "\n", "a\n-A INPUT -j ACCEPT", '"', "\ud800", "é",
    "x" * 70_000, "-1", "0",
    "65536", "9" * 5000, "10.96.1.10", "10.96.1.10/24", "fd00::1", "::ffff:10.0.0.1", "10.0.0.0/8", "0.0.0.0/0",
    "fe80::1%eth0",
    "None", "TCP", "tcp", "SCTP", "ClusterIP", "ExternalName", "NodePort", "Local", "IPv6", "null", "true", "~",
    "2024-01-01",
    "5m", "-5s", "9" * 30 + "h", "List", "Service", "*", "../..", "%s", "{}",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *TEXTS,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"a": {"b": ["c"]}},
)


_FIGURES = ("", "0", "00", "33", "129", "65536", "4294967296", "9" * 20, "9" * 5000, "٣", "-1", "0x1", "1e9")


def _renumbered(pick: random.Random, word: str) -> str:
    """A word with another number in the place of one of its numbers."""
    numbers = list(re.finditer("[0-9]+", word))
    if not numbers:
        return word
    old = pick.choice(numbers)
    return word[: old.start()] + pick.choice(_FIGURES) + word[old.end() :]


def words_mangled(pick: random.Random, text: str, words: tuple[str, ...], changes: int) -> str:
    """A text with a few words or lines dropped, doubled, swapped or replaced."""
    lines = text.split("\n")
    for _ in range(changes):
        at, other = pick.randrange(len(lines)), pick.randrange(len(lines))
        found = lines[at].split(" ")
        place = pick.randrange(len(found))
        match pick.randrange(7):
            case 0:
                found[place] = pick.choice(words)
            case 1:
                found.insert(place, pick.choice(words))
            case 2:
                del found[place]
            case 3:
                lines.insert(other, lines[at])
            case 4:
                lines[other], found = lines[at], lines[other].split(" ")
            case 5:
                found = [*found[:place], *lines[other].split(" ")[place:]]
            case 6:
                found[place] = _renumbered(pick, found[place])
        lines[at] = " ".join(found)
    return "\n".join(lines)


def dump(pick: random.Random) -> bytes:
    """A real dump, mangled; now and then with counters."""
    names = sorted(path.name for path in case_path("").iterdir() if path.is_dir())
    text = (case_path(pick.choice(names)) / "ipv4.save").read_text()
    if pick.random() < 0.3:
        text = "\n".join(f"[{pick.randrange(99)}:0] {line}" if line[:2] == "-A" else line for line in text.split("\n"))
    text = words_mangled(pick, text, DUMP_WORDS, pick.choice([1, 2, 5, 20]))
    return _bytes_mangled(pick, text.encode(errors="surrogateescape"))


def _bytes_mangled(pick: random.Random, data: bytes) -> bytes:
    """Now and then a byte is changed, or the end is missing."""
    match pick.randrange(8):
        case 0:
            at = pick.randrange(len(data) + 1)
            return data[:at] + bytes([pick.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[: pick.randrange(len(data) + 1)]
    return data


# ---- objects ----

CONFIG = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "mode": "iptables",
    "bindAddress": "0.0.0.0",
    "clusterCIDR": "10.244.0.0/16",
    "hostnameOverride": "node-0",
    "iptables": {"masqueradeAll": False, "masqueradeBit": 14, "syncPeriod": "30s", "minSyncPeriod": "1s"},
    "conntrack": {"maxPerCore": 32_768, "min": 131_072, "tcpEstablishedTimeout": "24h0m0s"},
    "detectLocalMode": "ClusterCIDR",
    "nodePortAddresses": ["10.0.0.0/8"],
    "featureGates": {"A": True},
}
OBJECTS = [
    SERVICE,
    SLICE,
    NODE,
    node(),
    service("web", "10.96.0.1"),
    endpoint_slice("web", ["10.244.0.1", "10.244.0.2"]),
]


def objects(pick: random.Random) -> bytes:
    """Manifests with values of other types, too much of something, or a text that is hardly YAML or JSON."""
    some: list[Any] = [_copy(one) for one in pick.sample(OBJECTS, pick.randrange(1, len(OBJECTS)))]
    for _ in range(pick.choice([1, 1, 2, 8])):
        _change(pick, some)
    return _written(pick, some)


def config(pick: random.Random) -> bytes:
    """A KubeProxyConfiguration treated alike."""
    one = [_copy(CONFIG)]
    for _ in range(pick.choice([1, 1, 2, 8])):
        _change(pick, one)
    return _written(pick, one)


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _change(pick: random.Random, root: list[Any]) -> None:
    """Replace, wrap, double or drop one value somewhere in a tree, or add one."""
    holder, key = pick.choice(list(_places(root)) or [(root, 0)])
    if not holder:
        return
    match pick.randrange(6):
        case 0 | 1:
            holder[key] = pick.choice(VALUES)
        case 2:
            holder[key] = pick.choice([[holder[key]], {"a": holder[key]}, str(holder[key]), [holder[key]] * 300])
        case 3:
            del holder[key]
        case 4 if isinstance(holder, dict):
            holder[pick.choice(TEXTS)] = pick.choice(VALUES)
        case _:
            other, place = pick.choice(list(_places(root)))
            holder[key] = _copy_any(other[place])


def _copy_any(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_any(one) for key, one in value.items()}
    return [_copy_any(one) for one in value] if isinstance(value, list) else value


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _written(pick: random.Random, some: list[Any]) -> bytes:
    lists: Callable[[Any], Any] = lambda items: {"apiVersion": "v1", "kind": "List", "items": items}  # noqa: E731
    match pick.randrange(8):
        case 0:
            text = json.dumps(lists(some))
        case 1:
            text = json.dumps(lists([lists(some), *some]))
        case 2:
            text = "\n".join(json.dumps(one) for one in some)
        case 3:
            text = words_mangled(pick, json.dumps(lists(some), indent=1), YAML_WORDS, pick.choice([1, 3]))
        case 4 | 5:
            text = words_mangled(pick, _yaml(some), YAML_WORDS, pick.choice([1, 3, 9]))
        case 6:
            text = pick.choice(BOMBS)()
        case _:
            text = _yaml(some)
    return _bytes_mangled(pick, text.encode(errors="surrogatepass"))


def _yaml(some: list[Any]) -> str:
    try:
        return yaml.safe_dump_all(some, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        return json.dumps(some[0])


YAML_WORDS = (
    "---", "...", "&a", "*a", "<<:", "!!set", "!!bool", "!!binary", "!!python/object:os.system", "?", "-", "- -",
    ":", "{", "}",
    "[", "]", "|", ">", "#", "%YAML 9.9", "'", '"', "\t", "\x00", "\x85", "kind: Service", "kind: List",
    "items: {}", "name:",
    ".inf", ".nan", "0x1F", "0o17", "1_000", "190:20:30", "1e400", "9" * 5000, "yes", "~", "=", "2001-12-14", "@",
    "`", "é", "",
)  # fmt: skip
BOMBS: tuple[Callable[[], str], ...] = (
    lambda: "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12)),
    lambda: "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9) if n else '{x: 1}'}]}}\n" for n in range(12)),
    lambda: "&a [*a]",
    lambda: "kind: Service\nmetadata: &m\n  labels: *m\n",
    lambda: "[" * 60_000,
    lambda: '{"a":' * 60_000,
    lambda: "{" * 60_000 + "}" * 60_000,
    lambda: "- " * 20_000,
    lambda: "a: " + "&x " * 20_000,
    lambda: '{"kind": "Service", "apiVersion": "v1", "metadata": ' + '{"labels": ' * 500 + "{}" + "}" * 501,
    lambda: json.dumps({"kind": "List", "items": [[]] * 2_000}),
    lambda: '{"kind": "Service", "kind": "Node", "apiVersion": "v1", "metadata": {"name": "a", "name": "b"}}',
    lambda: "kind: Service\nkind: Node\napiVersion: v1\nmetadata: {name: a, name: b}\n",
    lambda: "a: 1" + "0" * 200_000,
    lambda: '{"a": 1' + "0" * 200_000 + "}",
    lambda: "? " * 3_000,
)  # fmt: skip


# ---- the command line ----

FLOWS = (
    "tcp 192.0.2.9 -> 10.96.1.10:80",
    "tcp 10.244.0.9:5000 -> 203.0.113.10:443",
    "udp 10.200.0.2 -> 10.200.0.2:30080",
    "icmp 10.1.1.1 -> 10.200.0.2",
    "tcp 127.0.0.1 -> 127.0.0.1:30080",
    "tcp fd00::1 -> [fd00::2]:80",
)
QUESTIONS = ("shop/web", "10.96.1.10", "30080", "KUBE-SERVICES", "10.244.1.10")
_FLOW_WORDS = (
    "tcp", "udp", "TCP", "6", "256", "-1", "icmp", "icmpv6", "sctp", "->", "→", "to", "-", "--", "", "10.0.0.1",
    "10.0.0.1:80",
    "10.0.0.1:99999", "10.0.0.01", "10.0.0.1:", ":80", "[::1]:80", "[::1", "::1", "::1%lo", "fe80::1", "٣",
    "\x1b[31m", "é",
    "\udcff", "0x10", "10.0.0.1/8", "shop/web", "1" * 5000, "a" * 300, "\n", "[10.0.0.1]:80", "[::]:0",
    "::ffff:1.2.3.4",
)  # fmt: skip


def packet(pick: random.Random) -> str:
    """How one might write a packet, or not."""
    return words_mangled(pick, pick.choice(FLOWS), _FLOW_WORDS, pick.choice([1, 2, 4])).replace("\x00", "")


def question(pick: random.Random) -> str:
    """What one might ask for, or not."""
    letters = list(pick.choice([*QUESTIONS, *_FLOW_WORDS, *TEXTS[:20]]))
    for _ in range(pick.choice([0, 1, 3])):
        letters.insert(
            pick.randrange(len(letters) + 1), pick.choice([*"/:[]%*-.0 \x1b\n", "٣", "\udcff", "KUBE-", "::", "shop"])
        )
    return "".join(letters).replace("\x00", "")
