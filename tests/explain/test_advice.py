"""Every advice of `explain`, followed: the cause is gone, and who else uses the node meets what he met before.

What an advice tells to change of objects is changed here, what it tells to do with rules is done to them.
"""

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import kpx
from kpx.analysis.packet import Host, Origin, Packet
from kpx.analysis.simulate import Simulator, tables_of
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.explain import causes, deviations, explain, rules_alone, stopped
from kpx.explain.report import Explanation
from kpx.family import Family
from tests.analysis.advised import TO_OTHERS, applied, met, probes, simulator
from tests.cli.inprocess import run
from tests.explain.broken import (
    BROKEN,
    DNS_LABEL,
    NODE_PORT,
    PODS,
    Broken,
    endpoint,
    labelled,
    load_balancer,
    slices,
    web,
)
from tests.explain.broken import (
    CONFIG as USUAL,
)
from tests.explain.test_explain import explained
from tests.kernel import needs_kernel
from tests.manifests import Manifest, endpoint_slice, node, service

CASES = Path(__file__).parents[1] / "cases"
CLUSTER, CONFIG = CASES / "cluster.yaml", CASES / "config.yaml"
SOUND = [node(), web(), slices()]


@dataclass(frozen=True)
class Mended:
    """A broken cluster once somebody has done as told: its objects, and the configuration where that had to change."""

    objects: Sequence[Manifest]
    config: Manifest = field(default_factory=dict)
    options: tuple[str, ...] = ()


MENDED = {
    "scaled to zero": Mended(SOUND),
    "no slices at all": Mended(SOUND),
    "neither selector nor slices": Mended([node(), web(selector={}), slices()]),
    "slices without endpoints": Mended([node(), web(selector={}), slices()]),
    "slice with a typo in its label": Mended([node(), web(), labelled({DNS_LABEL: "web"}, slices())]),
    "slice in another namespace": Mended(SOUND),
    "probes fail": Mended(SOUND),
    "everything terminates": Mended(SOUND),
    "only draining pods are left": Mended([node(), web(), slices(endpoints=[endpoint(PODS[0])])]),
    "targetPort that no container has": Mended(
        [node(), web(ports=[{"name": "http", "port": 80, "targetPort": 8080}]), slices()]
    ),
    "ports called differently": Mended(SOUND),
    "an unnamed port in the slice": Mended(SOUND),
    "UDP on one side only": Mended(SOUND),
    "pods of the other family": Mended([node(), web(clusterIP="fd00:96::10"), endpoint_slice("web", ["fd00:244::11"])]),
    "externalTrafficPolicy Local without a pod here": Mended([node(), web(type="NodePort", ports=NODE_PORT), slices()]),
    "internalTrafficPolicy Local without a pod here": Mended(
        [node(), web(internalTrafficPolicy="Local"), slices(endpoints=[endpoint(PODS[0], "node-0")])]
    ),
    "a node that nobody knows": Mended([web(internalTrafficPolicy="Local"), slices()], options=("--node", "node-1")),
    "node ports on no address": Mended(
        [node(), web(type="NodePort", ports=NODE_PORT), slices()], {"nodePortAddresses": ["10.200.0.0/16"]}
    ),
    "two Services with one VIP": Mended([*SOUND, service("shop", "10.96.0.12"), endpoint_slice("shop", PODS)]),
    "two Services with one node port": Mended(
        [
            node(),
            web(type="NodePort", ports=NODE_PORT),
            slices(),
            service("admin", "10.96.0.11", type="NodePort", ports=[NODE_PORT[0] | {"nodePort": 30081}]),
        ]
    ),
    "headless": Mended(SOUND),
    "ExternalName": Mended(SOUND),
    "left to another proxy": Mended(SOUND),
    "a broken Service": Mended(SOUND),
    "a broken EndpointSlice": Mended(SOUND),
    "a load balancer without address": Mended([node(), load_balancer([{"ip": "203.0.113.9"}]), slices()]),
    "source ranges of the other family": Mended(
        [
            node(),
            load_balancer([{"ip": "203.0.113.9"}], loadBalancerSourceRanges=["2001:db8::/64", "198.51.100.0/24"]),
            slices(),
        ]
    ),
    "a source range of everybody": Mended(
        [node(), load_balancer([{"ip": "203.0.113.9"}], loadBalancerSourceRanges=["10.0.0.0/8"]), slices()]
    ),
}
"""By the name of the broken cluster."""

ZONELESS = node() | {"metadata": {"name": "node-0"}}
HINTED = slices(endpoints=[endpoint(PODS[1]) | {"hints": {"forZones": [{"name": "zone-a"}]}}])
MORE = [
    Broken(
        "source ranges that an external IP undoes",
        [
            node(),
            load_balancer(
                [{"ip": "203.0.113.9"}], externalIPs=["203.0.113.9"], loadBalancerSourceRanges=["198.51.100.0/24"]
            ),
            slices(),
        ],
        "ranges-undone",
        [],
    ),
    Broken("an external IP that is a node's", [node(), web(externalIPs=["10.200.0.2"]), slices()], "own-address", []),
    Broken(
        "an annotation that can't be read",
        [node(), web() | {"metadata": web()["metadata"] | {"annotations": {"kpx.dev/balance": "fair"}}}, slices()],
        "annotation",
        [],
    ),
    Broken("hints, and a node without a zone", [ZONELESS, web(), HINTED], "hints-ignored", []),
    Broken(
        "node ports on a node that no object tells of",
        [web(type="NodePort", ports=NODE_PORT), slices()],
        "unknown-host",
        [],
    ),
]
MENDED |= {
    "source ranges that an external IP undoes": Mended(
        [node(), load_balancer([{"ip": "203.0.113.9"}], loadBalancerSourceRanges=["198.51.100.0/24"]), slices()]
    ),
    "an external IP that is a node's": Mended([node(), web(type="NodePort", ports=NODE_PORT), slices()]),
    "an annotation that can't be read": Mended(
        [
            node(),
            web() | {"metadata": web()["metadata"] | {"annotations": {"kpx.dev/balance": "round-robin"}}},
            slices(),
        ]
    ),
    "hints, and a node without a zone": Mended([node(), web(), HINTED]),
    "node ports on a node that no object tells of": Mended([node(), web(type="NodePort", ports=NODE_PORT), slices()]),
}
BYSTANDER = [service("bystander", "10.96.0.99"), endpoint_slice("bystander", ["10.244.0.99", "10.244.1.99"])]
OF_OBJECTS = [case for case in (*BROKEN, *MORE) if case.rules is None and case.name != "hints for other zones only"]
"""Where this node's zone is known, hints for others need nothing done."""


@pytest.mark.parametrize("case", OF_OBJECTS, ids=[case.name for case in OF_OBJECTS])
def test_what_objects_lack(case: Broken, tmp_path: Path) -> None:
    before = explained(tmp_path, case.asked, case.objects, case.config)
    assert [one for one in before.every_finding if one.code == case.cause and one.advice]
    mended = MENDED[case.name]
    after = explained(tmp_path, "shop/web", mended.objects, mended.config, *mended.options)
    assert [one for one in after.every_finding if one.code == case.cause] == []
    assert bystander(case.objects, case.config) == bystander(mended.objects, mended.config)


def bystander(objects: Sequence[Manifest], config: Manifest) -> list[object]:
    """What becomes of packets for another Service, and for none, where these objects have rules besides."""
    every: list[kpx.Object] = []
    for one in (*objects, *BYSTANDER):
        try:
            every.append(kpx.parse_object(one["kind"], one))
        except kpx.InputError:
            continue
    parsed, _ = kpx.parse_config(json.dumps(USUAL | config).encode())
    found, _ = compile_sound(every, parsed, Target("node-0", Family.IPV4, Layout.CLASSIC))
    some = Simulator(tables_of(found), Family.IPV4, Host(("10.200.0.2",)))
    places = (("tcp", "10.96.0.99", 80), ("tcp", "10.244.0.99", 8080), ("tcp", "10.200.0.2", 22))
    return [dict(some.outcomes(packet)) for packet in probes(places)]


# ---- what is to be done to rules ----


def dump() -> str:
    text = re.sub(" -m nfacct --nfacct-name  [a-z_]*", "", (CASES / "nfacct" / "kube-proxy.save").read_text())
    return "".join(line for line in text.splitlines(True) if "-d 127.0.0.0/8 -p" not in line)


def told(text: str, *options: str) -> Explanation:
    given = options or ("--node-address", "192.0.2.10")
    done = run("explain", "shop/web", "--rules", "-", "--json", *given, stdin=text.encode())
    assert done.status == 0, done.complaint
    return Explanation.model_validate_json(done.stdout)


def codes(found: Explanation) -> set[str]:
    return {one.code for one in found.every_finding}


def changed(pattern: str, replacement: str) -> str:
    text, count = re.subn(pattern, replacement, dump(), count=1, flags=re.MULTILINE)
    assert count, pattern
    return text


def first(table: str, hook: str, rule: str) -> str:
    if f"*{table}\n" not in dump():
        return f"*{table}\n:{hook} ACCEPT [0:0]\n-A {hook} {rule}\nCOMMIT\n{dump()}"
    before, start, after = dump().partition(f"*{table}\n")
    chains, rest = re.split("^(?=-A |COMMIT)", after, maxsplit=1, flags=re.MULTILINE)
    return f"{before}{start}{chains}-A {hook} {rule}\n{rest}"


def rewritten(text: str) -> str:
    return applied(text, CLUSTER, CONFIG)


def deleted(line: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert line in text
        return text.replace(line, "", 1)

    return change


def replaced(line: str, other: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert line in text
        return text.replace(line, other, 1)

    return change


def moved(rule: str, jump: str) -> Callable[[str], str]:
    """The rule right behind a jump."""

    def change(text: str) -> str:
        assert rule in text
        return text.replace(rule, "", 1).replace(jump, jump + rule, 1)

    return change


def accepted(text: str) -> str:
    """At the end of FORWARD, as the advice has it."""
    at = text.index("-A OUTPUT", text.index("*filter"))
    return text[:at] + "-A FORWARD -s 10.244.0.0/16 -j ACCEPT\n-A FORWARD -d 10.244.0.0/16 -j ACCEPT\n" + text[at:]


RETURNS = "-A KUBE-SERVICES -j RETURN\n"
SEP = "KUBE-SEP-2QFQVMZDRZXAQWB2"

TAKER = "-d 10.96.0.0/16 -p tcp -j DNAT --to-destination 10.9.9.9:80"
TOOK = f"-A PREROUTING {TAKER}\n"
BEHIND = '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING\n'
JUMP = '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n'

OF_RULES: list[tuple[str, Callable[[], str], Callable[[str], str]]] = [
    ("refused-at-end", lambda: changed(r"^(\*filter\n(?::.*\n)*?):FORWARD ACCEPT", r"\1:FORWARD DROP"), accepted),
    ("lost-match", lambda: changed("^-A KUBE-FIREWALL .*\n", r"\g<0>-A KUBE-FIREWALL -j DROP\n"),
     deleted("-A KUBE-FIREWALL -j DROP\n")),
    ("refused", lambda: first("filter", "FORWARD", "-s 198.51.100.0/24 -j DROP"),
     replaced("-s 198.51.100.0/24 -j DROP", "-s 198.51.100.0/24 -m conntrack ! --ctstate DNAT -j DROP")),
    ("refused", lambda: changed("^-A KUBE-FORWARD ", r"-A KUBE-FORWARD -d 10.244.0.5/32 -j DROP\n\g<0>"),
     deleted("-A KUBE-FORWARD -d 10.244.0.5/32 -j DROP\n")),
    ("untracked", lambda: first("raw", "PREROUTING", "-d 10.96.0.0/16 -j NOTRACK"),
     replaced("-A PREROUTING -d 10.96.0.0/16 -j NOTRACK\n", "")),
    ("taken", lambda: changed("^-A KUBE-SERVICES -d 10.96.0.10/32 -p udp", rf"{RETURNS}\g<0>"), deleted(RETURNS)),
    ("taken", lambda: first("nat", "PREROUTING", "-s 10.244.0.0/16 -j ACCEPT"),
     replaced(f"-A PREROUTING -s 10.244.0.0/16 -j ACCEPT\n{JUMP}",
              f"{JUMP}-A PREROUTING -s 10.244.0.0/16 -j ACCEPT\n")),
    ("node-port-closed", lambda: changed("^-A KUBE-SERVICES .*KUBE-NODEPORTS\n", ""), rewritten),
    ("unmasqueraded", lambda: changed("^-A KUBE-POSTROUTING .*MASQUERADE.*\n", ""), rewritten),
    ("unmasqueraded", lambda: first("nat", "POSTROUTING", "-s 10.244.0.0/16 -j ACCEPT"),
     moved("-A POSTROUTING -s 10.244.0.0/16 -j ACCEPT\n", BEHIND)),
    ("sent-elsewhere", lambda: first("nat", "PREROUTING", TAKER), replaced(f"{TOOK}{JUMP}", f"{JUMP}{TOOK}")),
    ("broken-translation", lambda: changed(f"^(-A {SEP} .*) --to-dest.*$", r"\1 --to-destination 0.0.0.0"), rewritten),
    ("broken-translation", lambda: changed(f"^(-A {SEP} .*) --to-dest.*$", r"\1 --to-destination :0"), rewritten),
    ("not-led", lambda: changed("^-A PREROUTING .*KUBE-SERVICES\n", ""), rewritten),
    ("not-connected", lambda: changed("^-A PREROUTING .*KUBE-SERVICES\n", ""), rewritten),
    ("not-led", lambda: re.sub("^-A KUBE-SVC-67NZLRHBNDSAWJRO .*\n", "", dump(), flags=re.MULTILINE), rewritten),
    ("missing-chain", lambda: re.sub(f"^(-A |:){SEP} .*\n", "", dump(), flags=re.MULTILINE), rewritten),
]  # fmt: skip


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize(("code", "make", "mend"), OF_RULES, ids=[code for code, _, _ in OF_RULES])
def test_what_is_wrong_with_rules(code: str, make: Callable[[], str], mend: Callable[[str], str]) -> None:
    text = make()
    assert code in codes(told(text))
    after = mend(text)
    assert code not in codes(told(after))
    now, before, sound = simulator(after), simulator(text), simulator(dump())
    for packet in probes(TO_OTHERS):
        assert met(now, packet) in (met(before, packet), met(sound, packet)), packet


@pytest.mark.kernel
@needs_kernel
def test_drift_is_put_right_by_apply(tmp_path: Path) -> None:
    text = re.sub("^-A KUBE-SVC-67NZLRHBNDSAWJRO .*\n", "", dump(), flags=re.MULTILINE)
    objects = ("-f", str(CLUSTER), "--config", str(CONFIG))
    assert {"rules-differ", "packets-differ"} <= codes(told(text, *objects))
    assert codes(told(rewritten(text), *objects)) == set()


def test_a_trace_tells_of_packets_that_differ() -> None:
    objects = ("-f", str(CLUSTER), "--config", str(CONFIG))
    text = first("filter", "FORWARD", "-s 10.244.0.0/16 -j DROP")
    found = told(text, *objects)
    assert "packets-differ" in codes(found)
    (use,) = [u for p in found.ports for w in p.ways for u in w.uses if w.kind == "cluster IP" and u.sender == "pods"]
    done = run("trace", use.packet, "--from", use.origin, "--rules", "-", *objects, stdin=text.encode())
    assert "-s 10.244.0.0/16 -j DROP" in done.stdout or "FORWARD 1" in done.stdout
    assert "dropped" in done.stdout


def test_the_nodes_address_tells_of_its_node_port() -> None:
    assert "unknown-host" in codes(told(dump(), "--family", "ipv4"))
    assert codes(told(dump())) == set()


def test_an_interface_tells_what_was_not_known() -> None:
    text = first("filter", "FORWARD", "-i docker0 -d 10.244.0.0/16 -j DROP")
    found = told(text)
    assert codes(found) == {"not-known"}
    assert not any(one.wrong for one in found.every_finding)
    packet = ("trace", "tcp 10.244.255.254 -> 10.96.0.50:80", "--from", "pod", "--rules", "-")
    assert "unknown" in run(*packet, stdin=text.encode()).stdout
    assert "unknown" not in run(*packet, "--interface", "cni0", stdin=text.encode()).stdout


def test_a_cache_that_is_not_there_leaves_no_rules() -> None:
    """Its rules gone, the Service's endpoints answer."""
    text = (CASES / "nodelocaldns" / "dump.save").read_text()
    gone = "".join(line for line in text.splitlines(True) if "NodeLocal DNS Cache" not in line)
    query = Packet("10.244.0.9", "10.96.0.10", "udp", 53, 40_000, Origin.POD)
    assert {one.fate for one in simulator(text).outcomes(query)} == {"untouched"}
    assert {one.fate for one in simulator(gone).outcomes(query)} == {"translated"}
    options = ("--rules", "-", "--node-address", "192.0.2.10")
    assert "NodeLocal" not in run("explain", "kube-system/kube-dns", *options, stdin=gone.encode()).stdout


@pytest.mark.parametrize(
    ("refusal", "code"),
    [("has no endpoints", "none-ready"), ("has no local endpoints", "no-local-endpoint")],
)
def test_what_rules_refuse_manifests_explain(refusal: str, code: str) -> None:
    case = {"none-ready": "no-endpoints", "no-local-endpoint": "nodeport-local-without-local-endpoint"}[code]
    folder = CASES.parent / "conformance" / "cases" / case
    asked = "shop/empty" if code == "none-ready" else "shop/web"
    rules = ("--rules", str(folder / "ipv4.save"))
    alone = run("explain", asked, *rules).stdout
    assert refusal in " ".join(alone.split())
    objects = ("-f", str(folder / "cluster.yaml"), "--config", str(folder / "config.yaml"))
    assert len(run("explain", asked, *rules, *objects).stdout) > 0
    found = Explanation.model_validate_json(
        run("explain", asked, *rules, *objects, "--json", "--family", "ipv4").stdout
    )
    assert any(one.code in ("no-pods", "empty-slices", "no-slices", "no-selector", "none-ready", code)
               for one in found.every_finding)  # fmt: skip


# ---- none is left out ----


def test_every_advice_is_followed() -> None:
    """A code that `explain` knows is provoked, and its advice followed, here."""
    texts = [inspect.getsource(one) for one in (causes, deviations, explain, rules_alone, stopped)]
    known = {found for text in texts for found in re.findall(r'code="([a-z-]+)"', text)}
    known |= set(stopped._CODES.values()) | {"node-port-taken"}
    followed = {case.cause for case in OF_OBJECTS} | {code for code, _, _ in OF_RULES}
    followed |= {"rules-differ", "packets-differ", "unknown-host", "not-known", "node-local-dns"}
    silent = {"load-balancer-proxies", "refused-by-policy"}
    assert known == followed | silent


def test_what_needs_nothing_done_says_nothing(tmp_path: Path) -> None:
    balancer: Any = load_balancer([{"hostname": "lb.example.org"}])
    found = explained(tmp_path, "shop/web", [node(), balancer, slices()])
    assert [(one.code, one.advice) for one in found.every_finding if one.code == "load-balancer-proxies"] == [
        ("load-balancer-proxies", "")
    ]
