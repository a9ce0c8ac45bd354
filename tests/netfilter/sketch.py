"""Random rules as people and programs write them: each kind that kpx makes, and kinds that others make."""

import random
from dataclasses import dataclass

from kpx.family import Family
from kpx.netfilter.rule import quote


@dataclass(frozen=True)
class Sketch:
    """A rule in parts, so that they can be put in any order."""

    head: tuple[str, ...]
    groups: tuple[str, ...]
    target: str

    def text(self) -> str:
        return " ".join(part for part in (*self.head, *self.groups, self.target) if part)

    def shuffled(self, chance: random.Random) -> "Sketch":
        """The same rule with head and groups in another order."""
        head, groups = list(self.head), list(self.groups)
        chance.shuffle(head)
        chance.shuffle(groups)
        return Sketch(tuple(head), tuple(groups), self.target)


def sketch(chance: random.Random, family: Family, table: str = "filter") -> Sketch:
    """A rule that the kernel takes in a chain of its own in `table`."""
    protocol = chance.choice(["", "", "tcp", "udp", "sctp"])
    head = [*_sides(chance, family), *_protocol(chance, protocol)]
    groups = [make(chance, family) for make in chance.sample(GROUPS, chance.choice([0, 1, 1, 2, 3]))]
    if protocol and chance.random() < 0.7:
        groups.append(_ports(chance, protocol))
    targets = NAT_TARGETS if table == "nat" else FILTER_TARGETS
    return Sketch(tuple(head), tuple(groups), chance.choice(targets)(chance, family, protocol))


# ---- the head ----


def address(chance: random.Random, family: Family) -> str:
    if family is Family.IPV4:
        return f"10.{chance.randrange(256)}.{chance.randrange(4)}.{chance.randrange(256)}"
    form = chance.choice(["fd00::{:x}", "FD00:0:0:{:x}::1", "fd00:10:96::{:X}", "fd00:0::{:x}:0:1"])
    return form.format(chance.randrange(1, 0x10000))


def network(chance: random.Random, family: Family) -> str:
    bits = chance.choice([0, 1, 8, 12, 16, 24, 30, 32]) * (1 if family is Family.IPV4 else 4)
    spelled = [f"/{bits}", f"/{bits}", ""]
    if family is Family.IPV4 and bits:
        spelled.append("/" + ".".join(str((0xFFFFFFFF << (32 - bits) >> s) & 255) for s in (24, 16, 8, 0)))
    return address(chance, family) + chance.choice(spelled)


def _sides(chance: random.Random, family: Family) -> list[str]:
    parts = []
    for option in ("-s", "-d"):
        if chance.random() < 0.4:
            value = network(chance, family)
            parts.append(f"{_perhaps_not(chance) if not value.endswith('/0') else ''}{option} {value}")
    names = ["eth0", "cni+", "br-1a", "lo"]
    chosen = [option for option in ("-i", "-o") if chance.random() < 0.15]
    return parts + [f"{_perhaps_not(chance)}{option} {chance.choice(names)}" for option in chosen]


def _protocol(chance: random.Random, protocol: str) -> list[str]:
    number = {"tcp": "6", "udp": "17", "sctp": "132"}
    if not protocol:
        return [] if chance.random() < 0.8 else ["-p " + chance.choice(["all", "47", "gre", "50", "ah", "103"])]
    return ["-p " + chance.choice([protocol, protocol, protocol.upper(), number[protocol]])]


def _perhaps_not(chance: random.Random) -> str:
    return chance.choice(["", "", "! "])


# ---- matches ----


def _ports(chance: random.Random, protocol: str) -> str:
    first, last = sorted((chance.randrange(1, 65535), chance.randrange(1, 65535)))
    port = chance.choice(
        [f"{first}", f"{first}:{last}", f":{last}", f"{first}:", f"{first}:{first}", "0", ":0", "65535"]
    )
    group = chance.choice([f"-m {protocol} ", f"-m {protocol} ", ""])
    if protocol == "tcp" and chance.random() < 0.2:
        return f"-m tcp {chance.choice(['--syn', '! --syn', '--tcp-flags ALL SYN,ACK', '--tcp-flags SYN,RST SYN'])}"
    if chance.random() < 0.2:
        return f"-m multiport {chance.choice(['--dports', '--destination-ports'])} {first},{first % 9 + 1},80:81"
    return f"{group}{_perhaps_not(chance)}{chance.choice(['--dport', '--destination-port', '--sport'])} {port}"


def _comment(chance: random.Random, family: Family) -> str:
    texts = [
        "shop/web:http", "shop/web:http -> 10.0.0.1:80", "kubernetes service portals", "plain", "a_b-c", "-j DROP",
        'with "quotes"', "it's", "back\\slash", "--dport 80 -j ACCEPT", "!", "ünï → ☃", "tab\there", "#hash", "a,b;c",
    ]  # fmt: skip
    return f"-m comment --comment {quote(chance.choice(texts))}"


def _number(chance: random.Random) -> str:
    value = chance.choice([0, 1, 5, 0x4000, 0xFF00, 0xFFFFFFFF, 1 << chance.randrange(32)])
    return chance.choice([str(value), f"{value:#x}", f"0x{value:08X}"])


def _mark(chance: random.Random, family: Family) -> str:
    mask = chance.choice(["", f"/{_number(chance)}"])
    return f"-m {chance.choice(['mark', 'connmark'])} {_perhaps_not(chance)}--mark {_number(chance)}{mask}"


def _conntrack(chance: random.Random, family: Family) -> str:
    states = ["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"]
    if chance.random() < 0.3:
        return f"-m state {_perhaps_not(chance)}--state {_some(chance, states)}"
    if chance.random() < 0.2:
        return f"-m conntrack --ctproto tcp --ctorigdst {address(chance, family)} --ctorigdstport 80:80"
    return f"-m conntrack {_perhaps_not(chance)}--ctstate {_some(chance, [*states, 'SNAT', 'DNAT'])}"


def _addrtype(chance: random.Random, family: Family) -> str:
    kinds = _some(chance, ["LOCAL", "UNICAST", "MULTICAST"])
    return f"-m addrtype {_perhaps_not(chance)}--{chance.choice(['src', 'dst'])}-type {kinds}"


def _statistic(chance: random.Random, family: Family) -> str:
    if chance.random() < 0.3:
        every = chance.randrange(2, 9)
        return f"-m statistic --mode nth --every {every} --packet {chance.randrange(every)}"
    probability = chance.choice([f"{1 / chance.randrange(1, 5000):.11f}", f"{chance.random():.5f}", "1", "0.5"])
    return f"-m statistic --mode random --probability {probability}"


def _recent(chance: random.Random, family: Family) -> str:
    options = [chance.choice(["--set", "--rcheck --seconds 10800 --reap", "--update --hitcount 3", "--remove"])]
    options += chance.sample(["--name KUBE-SEP-A", "--rsource"], chance.randrange(3))
    chance.shuffle(options)
    return "-m recent " + " ".join(options)


def _unknown(chance: random.Random, family: Family) -> str:
    """Of modules that kpx knows nothing of, in the spelling that is printed."""
    return chance.choice(
        [
            "-m limit --limit 10/sec", "-m limit --limit 5/min --limit-burst 9", "-m length --length 10:20",
            "-m pkttype --pkt-type multicast", "-m mac --mac-source 00:11:22:aa:bb:cc", "-m cpu --cpu 1",
            '-m u32 --u32 "0x6&0xff=0x1"', "-m dscp --dscp 0x04", '-m string --string "a b" --algo bm',
        ]
    )  # fmt: skip


GROUPS = [_comment, _comment, _mark, _conntrack, _addrtype, _statistic, _recent, _unknown]


def _some(chance: random.Random, words: list[str]) -> str:
    return ",".join(chance.sample(words, chance.randrange(1, len(words))))


# ---- targets ----


def _verdict(chance: random.Random, family: Family, protocol: str) -> str:
    return "-j DROP" if chance.random() < 0.2 else _jump(chance, family, protocol)


def _jump(chance: random.Random, family: Family, protocol: str) -> str:
    return chance.choice(["-j ACCEPT", "-j RETURN", "-j KUBE-A", "-g KUBE-A", ""])


def _set_mark(chance: random.Random, family: Family, protocol: str) -> str:
    option = chance.choice(["--set-xmark", "--set-mark", "--or-mark", "--xor-mark", "--and-mark"])
    mask = f"/{_number(chance)}" if option.startswith("--set") and chance.random() < 0.6 else ""
    return f"-j {chance.choice(['MARK', 'CONNMARK'])} {option} {_number(chance)}{mask}"


def _reject(chance: random.Random, family: Family, protocol: str) -> str:
    four = ["icmp-port-unreachable", "port-unreach", "icmp-host-unreachable", "admin-prohib"]
    six = ["icmp6-port-unreachable", "port-unreach", "icmp6-adm-prohibited", "no-route"]
    options = [f" --reject-with {name}" for name in (four if family is Family.IPV4 else six)]
    return "-j REJECT" + chance.choice(["", *options])


def _nat(chance: random.Random, family: Family, protocol: str) -> str:
    host = address(chance, family)
    if protocol and chance.random() < 0.8:
        host = f"[{host}]:8080" if family is Family.IPV6 else f"{host}:8080"
    return chance.choice(
        [
            f"-j DNAT --to-destination {host}", f"-j DNAT --to-destination {host} --random --persistent",
            f"-j SNAT --to-source {host} --random-fully", "-j MASQUERADE", "-j MASQUERADE --random-fully",
        ]
    )  # fmt: skip


FILTER_TARGETS = [_verdict, _verdict, _set_mark, _reject]
NAT_TARGETS = [_jump, _set_mark, _nat, _nat]
