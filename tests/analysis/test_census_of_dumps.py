"""Forty dumps, all packets of interest: no certain answer is wrong, and few are unknown. The kernel is the judge.

Packets are asked about as they are, by the interface they come in by too, and with the node's addresses unknown.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from kpx.analysis.packet import Fate, Host, Origin, Outcome, Packet
from kpx.analysis.setting import setting_of
from kpx.analysis.simulate import Simulator, tables_of_save, translated_to
from kpx.family import Family
from kpx.netfilter.pasted import read_dump
from tests.analysis.arena import OWN, Seen, seen_as
from tests.analysis.census.dumps import DUMPS, NODE, Census
from tests.analysis.census.node import GATEWAY, Node
from tests.analysis.census.packets import packets
from tests.cli.inprocess import run
from tests.kernel import needs_kernel
from tests.manifests import endpoint_slice, service, write

REPEATED = 12
"""Connections where chance decides."""

MOST_UNKNOWN = {"as it is": 0.16, "with its interface": 0.12, "at an unknown node": 0.43}
"""It was 0.34, 0.19 and 0.58 before both answers to what isn't known were followed to their ends."""

PLAIN = [one for one in DUMPS if one.plain]


def simulator(one: Census, known: bool = True) -> Simulator:
    (read,) = read_dump(one.text.encode())
    tables, policies = tables_of_save(read.saved)
    host = Host([OWN, NODE, GATEWAY]) if known else Host(None, elsewhere=translated_to(tables))
    return Simulator(tables, Family.IPV4, host, policies, read.unread)


def named(one: Census, packet: Packet) -> Packet:
    """The packet with the interface that it comes in by."""
    come = {Origin.POD: one.pods, Origin.OUTSIDE: "eth0"}.get(packet.origin)
    return replace(packet, in_interface=come, bridged=False)


def answers(one: Census, asked: Sequence[Packet]) -> Iterator[tuple[str, Packet, Mapping[Outcome, Fraction]]]:
    """What is said of each packet, by how much is known of it."""
    known, guess = simulator(one), simulator(one, known=False)
    for packet in asked:
        yield "as it is", packet, known.outcomes(packet)
        yield "with its interface", packet, known.outcomes(named(one, packet))
        if packet.origin is not Origin.NODE:
            yield "at an unknown node", packet, guess.outcomes(packet)


def wrong(held: Simulator, said: Mapping[Outcome, Fraction], packet: Packet, seen: Iterable[Seen]) -> bool:
    """Whether what was seen is none of what was said to be possible. A rejection is seen only if it gets out."""
    possible = {seen_as(outcome, packet) for outcome in said if outcome.fate is not Fate.UNKNOWN}
    if any(outcome.fate is Fate.REJECTED for outcome in said):
        answer = Packet(NODE, packet.source, "icmp", origin=Origin.NODE, state="RELATED")
        possible |= {("dropped", "", False)} if {one.fate for one in held.outcomes(answer)} == {Fate.DROPPED} else set()
    open_ = any(outcome.fate is Fate.UNKNOWN for outcome in said)
    return not open_ and not set(seen) <= possible


def test_there_are_forty_dumps_of_eight_kinds() -> None:
    assert len(DUMPS) >= 40
    assert len({one.cluster for one in DUMPS}) >= 8
    assert len(PLAIN) >= 35
    assert len({one.name for one in DUMPS}) == len(DUMPS)


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("one", PLAIN, ids=lambda one: one.name)
def test_no_certain_answer_is_wrong(one: Census) -> None:
    """The dump is loaded, and every packet sent; what is seen must be what was said, unless that was unknown."""
    held = simulator(one)
    asked = list(packets())
    chancy = [len(held.outcomes(packet)) > 1 for packet in asked]
    with Node(one.pods) as node:
        node.host.run(["iptables-nft-restore"], stdin=one.text)
        sent = [packet for packet, often in zip(asked, chancy, strict=True) for _ in range(REPEATED if often else 1)]
        ends: dict[Packet, Counter[Seen]] = {packet: Counter() for packet in asked}
        for packet, seen in zip(sent, node.outcomes_of(sent), strict=True):
            ends[packet].update(seen)
    faults = [
        f"{how}: {packet.protocol} {packet.source} -> {packet.destination}:{packet.destination_port} "
        f"from {packet.origin}: said {sorted(map(str, said))}, seen {dict(ends[packet])}"
        for how, packet, said in answers(one, asked)
        if wrong(held, said, packet, ends[packet])
    ]
    assert not faults, "\n".join(faults)
    assert {kind for seen in ends.values() for kind, _, _ in seen} >= {"arrived"}


def unknown_shares() -> Mapping[str, Fraction]:
    """How many of all answers are unknown, by how much is known of packets."""
    sums: Counter[str] = Counter()
    shares: dict[str, Fraction] = {}
    for one in DUMPS:
        for how, _, said in answers(one, list(packets())):
            sums[how] += 1
            open_ = sum((share for outcome, share in said.items() if outcome.fate is Fate.UNKNOWN), Fraction(0))
            shares[how] = shares.get(how, Fraction(0)) + open_
    return {how: share / sums[how] for how, share in shares.items()}


def test_few_answers_are_unknown() -> None:
    for how, share in unknown_shares().items():
        assert share <= MOST_UNKNOWN[how], (how, float(share))


@pytest.mark.parametrize("one", DUMPS, ids=lambda one: one.name)
def test_the_setting_is_recognised(one: Census) -> None:
    """The version by its shape, the programs beside it, and the pods' interfaces."""
    found = setting_of(simulator(one).tables)
    words = str(found)
    assert re.search(EXPECTED[one.cluster], words, re.IGNORECASE), words
    if one.cluster != "ipvs":
        assert found.proxy.startswith("kube-proxy 1.")
    version = re.search(r"-(1\.\d+)$", one.name)
    if version:
        assert is_within(version[1], found.proxy), words
    if found.pods:
        assert any(one.pods.startswith(name.removesuffix("+")) for name in found.pods)


EXPECTED = {
    "bare": "written by kube-proxy",
    "docker": "docker",
    "flannel": "flannel|1.8 or older",
    "k3s": "kube-router.*k3s.*flannel",
    "calico": r"Calico.*pods come in by cali\*",
    "cilium": r"Cilium.*pods come in by lxc\*",
    "eks": r"AWS VPC CNI.*pods come in by eni\*",
    "openshift": "OpenShift SDN.*pods come in by tun0",
    "firewalld": "firewalld",
    "ufw": "ufw",
    "istio": "Istio",
    "ipvs": "IPVS mode",
}


def is_within(version: str, words: str) -> bool:
    """Whether versions in words, such as `1.18 to 1.21`, take in one."""
    minor = int(version.partition(".")[2])
    told = [int(one) for one in re.findall(r"1\.(\d+)", words)]
    low, high = (0, told[0]) if "or older" in words else (told[0], told[-1])
    return low <= minor <= high


def test_node_local_dns_is_told() -> None:
    for one in DUMPS:
        cached = "node-local-dns" in one.name
        assert (setting_of(simulator(one).tables).local_dns == ("10.96.0.10", "169.254.20.10")) is cached


@pytest.mark.parametrize(("layout", "words"), [("tree", "kpx"), ("compact", "kpx"), ("classic", "or kpx")])
def test_our_own_rules_are_known(layout: str, words: str, tmp_path: Path) -> None:
    """Of a cluster that is large enough for trees."""
    objects = [service(f"s{n}", f"10.96.{n // 200}.{n % 200 + 1}") for n in range(300)]
    slices = [endpoint_slice(f"s{n}", ["10.244.1.5", "10.244.1.6"]) for n in range(300)]
    path = write(tmp_path / "objects.json", [*objects, *slices])
    (read,) = read_dump(run("render", "-f", str(path), "--node", "node-0", "--layout", layout).stdout.encode())
    assert words in setting_of(tables_of_save(read.saved)[0]).proxy


def test_a_pod_comes_in_as_its_setting_tells(tmp_path: Path) -> None:
    """On Calico through cali*, so that rules for other interfaces don't ask; --interface says otherwise."""
    (one,) = [one for one in DUMPS if one.name == "eks-1.28"]
    (tmp_path / "eks.save").write_text(one.text)
    flow = ("tcp 10.244.0.9 -> 10.96.0.50:80", "--from", "pod", "--rules", str(tmp_path / "eks.save"), "--json")
    for words, expected in (((), "eni+"), (("--interface", "eth0"), "eth0")):
        found = json.loads(run("trace", *flow, "--node-address", NODE, *words).stdout)
        assert found["packet"]["in_interface"] == expected
        assert "AWS VPC CNI" in found["packet"]["about"]["setting"]
    shown = run("trace", *flow[:-1], "--node-address", NODE).stdout
    assert "pods come in by eni*" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ("cali+", True),
        ("ca+", True),
        ("cali12ab", None),
        ("cali1+", None),
        ("eth0", False),
        ("eth+", False),
        ("lo", False),
    ],
)
def test_an_interface_of_which_the_start_is_known(rule: str, answer: bool | None) -> None:
    tables = {"filter": {"FORWARD": (f"-i {rule} -j DROP",)}}
    packet = Packet("10.244.0.9", "10.244.1.5", "tcp", 80, origin=Origin.POD, in_interface="cali+")
    (outcome,) = Simulator(tables, Family.IPV4, Host([NODE])).outcomes(packet)
    assert outcome.fate is {True: Fate.DROPPED, False: Fate.UNTOUCHED, None: Fate.UNKNOWN}[answer]
