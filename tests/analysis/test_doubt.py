"""What isn't known matters only where the answers lead to different ends."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpx.analysis.asked import Marks, marks
from kpx.analysis.packet import Fate, Host, Origin, Outcome, Packet
from kpx.analysis.simulate import Simulator, tables_of_save
from kpx.family import Family
from kpx.netfilter.save import parse_save
from tests.analysis import doubtful

HOST = Host(("192.0.2.10",))
TO_SERVICE = Packet("198.51.100.7", "10.96.0.50", "tcp", 80, 40_000)
ENDPOINT = Outcome(Fate.TRANSLATED, "10.244.0.5:8080")


def simulator(text: str, host: Host = HOST) -> Simulator:
    tables, policies = tables_of_save(parse_save(text))
    return Simulator(tables, Family.IPV4, host, policies)


@pytest.mark.parametrize(
    "text", [doubtful.DOCKER, doubtful.EKS, doubtful.OPENSHIFT], ids=["docker", "eks", "openshift"]
)
@pytest.mark.parametrize("origin", [Origin.POD, Origin.OUTSIDE])
@pytest.mark.parametrize("host", [HOST, Host(None, ["10.244.0.5", "10.96.0.50"])], ids=["known", "not known"])
def test_a_healthy_node_has_no_unknown_outcome(text: str, origin: Origin, host: Host) -> None:
    """No interface is named, and none needs to be: neither for outcomes nor for the ways to them."""
    source = "10.244.0.9" if origin is Origin.POD else "198.51.100.7"
    packet = replace(TO_SERVICE, source=source, origin=origin)
    assert simulator(text, host).outcomes(packet) == {ENDPOINT: 1}
    assert [path.outcome for path in simulator(text, host).paths(packet)] == [ENDPOINT]


def test_a_node_port_in_front_of_which_docker_returns_its_own() -> None:
    """From docker0 the chain DOCKER returns at once; from elsewhere none of its rules is for this port."""
    assert simulator(doubtful.DOCKER).outcomes(
        replace(TO_SERVICE, destination="192.0.2.10", destination_port=30080)
    ) == {ENDPOINT: 1}


def test_what_depends_on_the_interface_is_said_to() -> None:
    packet = replace(TO_SERVICE, destination="192.0.2.10", destination_port=8080)
    (unknown,) = simulator(doubtful.DOCKER).outcomes(packet)
    assert (unknown.fate, unknown.detail) == (Fate.UNKNOWN, "nat DOCKER: -i docker0 -j RETURN")
    (path,) = simulator(doubtful.DOCKER).paths(packet)
    assert path.steps[-1].rule == "-i docker0 -j RETURN"
    named = simulator(doubtful.DOCKER).outcomes(replace(packet, in_interface="docker0"))
    assert {one.fate for one in named} == {Fate.UNTOUCHED}


def test_one_question_has_one_answer() -> None:
    """Who comes in through eth0 doesn't come in through cni0; who is on a list is on it wherever that is asked."""
    text = "*filter\n:FORWARD ACCEPT [0:0]\n:A - [0:0]\n"
    for rules, fates in (
        ("-i eth0 -j A\n-A FORWARD ! -i eth0 -j DROP\n-A A -j DROP", {Fate.DROPPED}),
        ("-i eth0 -j A\n-A A -i cni0 -j DROP", {Fate.UNTOUCHED}),
        ("-i eth+ -j A\n-A A -i cni0 -j DROP\n-A A -i cni+ -j DROP", {Fate.UNTOUCHED}),
        ("! -i eth+ -j A\n-A A -i eth0 -j DROP", {Fate.UNTOUCHED}),
        ("-i eth0 -j A\n-A A ! -i eth+ -j DROP", {Fate.UNTOUCHED}),
        ("-m set --match-set x src -j A\n-A FORWARD -m set --match-set x src -j DROP\n-A A -j RETURN", {Fate.UNKNOWN}),
        ("-m set --match-set x src -j A\n-A A -m set --match-set x src -j RETURN\n-A A -j DROP", {Fate.UNTOUCHED}),
        ("-m limit --limit 1/sec -j A\n-A A -m limit --limit 1/sec -j RETURN\n-A A -j DROP", {Fate.UNKNOWN}),
    ):  # fmt: skip
        found = simulator(f"{text}-A FORWARD {rules}\nCOMMIT\n").outcomes(TO_SERVICE)
        assert {one.fate for one in found} == fates, rules


def test_the_share_that_is_certain_is_told() -> None:
    text = """*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -m statistic --mode random --probability 0.5 -j DROP
-A FORWARD -m set --match-set x src -j DROP
COMMIT
"""
    found = simulator(text).outcomes(TO_SERVICE)
    assert {one.fate: share for one, share in found.items()} == {
        Fate.DROPPED: Fraction(1, 2),
        Fate.UNKNOWN: Fraction(1, 2),
    }


def test_many_things_that_are_not_known_are_no_guess() -> None:
    """More than can be tried one with another: still what is certain is told, and nothing else."""
    some = "".join(
        f"-A FORWARD -m set --match-set s{n} src -j MARK --set-xmark {1 << n:#x}/{1 << n:#x}\n" for n in range(30)
    )
    ask = "-A FORWARD -m mark --mark 0x0/0xffffffff -j DROP\n"
    for rules, fates in ((some + ask, {Fate.UNKNOWN}), (some, {Fate.UNTOUCHED})):
        found = simulator(f"*filter\n:FORWARD ACCEPT [0:0]\n{rules}COMMIT\n").outcomes(TO_SERVICE)
        assert {one.fate for one in found} == fates
        assert sum(found.values()) == 1


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ((), Marks(0, 0)),
        (("-m mark --mark 0x4000/0x4000 -j DROP",), Marks(0x4000, 0)),
        (("-m mark ! --mark 0x1 -j DROP",), Marks(0xFFFFFFFF, 0)),
        (("-j MARK --set-xmark 0x80/0x80", "-j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80"), Marks(0, 0)),
        (("-m mark --mark 0x1/0x1", "-j CONNMARK --restore-mark --nfmask 0x3 --ctmask 0x3"), Marks(1, 1)),
        (("-m connmark --mark 0x2/0x2", "-j CONNMARK --save-mark --nfmask 0x3 --ctmask 0x3"), Marks(2, 2)),
        (("-m mark --mark=4 -j DROP",), Marks(0xFFFFFFFF, 0xFFFFFFFF)),
    ],
)
def test_the_bits_of_marks_that_rules_ask_for(rules: tuple[str, ...], found: Marks) -> None:
    assert marks({"mangle": {"PREROUTING": rules}}) == found


def worlds(text: str, packet: Packet) -> Iterator[Mapping[Outcome, Fraction]]:
    """What becomes of the packet by each interface, and for each answer of the matches that nobody here knows."""
    for name in (*doubtful.NAMES, "other0"):
        for mine in (True, False):
            for yours in (True, False):
                told = text
                for of, holds in (("mine", mine), ("yours", yours)):
                    match = f"-m set --match-set {of} src"
                    told = told.replace(match, "-m mark --mark 0x0/0x0" if holds else "-m mark ! --mark 0x0/0x0")
                yield simulator(told).outcomes(replace(packet, in_interface=name))


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(("10.96.0.50", "192.0.2.10")))
def test_what_is_certain_is_so_in_every_world(chance: random.Random, destination: str) -> None:
    """And where every world agrees, it is certain."""
    text, packet = doubtful.rules(chance), replace(TO_SERVICE, destination=destination)
    found = simulator(text).outcomes(packet)
    possible = list(worlds(text, packet))
    assert sum(found.values()) == 1
    for outcome, share in found.items():
        if outcome.fate is not Fate.UNKNOWN:
            assert share <= min(one.get(outcome, Fraction(0)) for one in possible), outcome
    if all(one == possible[0] for one in possible):
        assert found == possible[0]


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_whose_the_address_is_matters_only_where_it_does(chance: random.Random) -> None:
    text, packet = doubtful.rules(chance), replace(TO_SERVICE, in_interface="eth0")
    found = simulator(text, Host(None, ["10.244.0.5", "10.244.0.6"])).outcomes(packet)
    assert sum(found.values()) == 1
    possible = [simulator(text, host).outcomes(packet) for host in (Host(("10.96.0.50",)), Host(()))]
    for outcome, share in found.items():
        if outcome.fate is not Fate.UNKNOWN:
            assert share <= min(one.get(outcome, Fraction(0)) for one in possible), outcome
    if possible[0] == possible[1] and all(one.fate is not Fate.UNKNOWN for one in possible[0]):
        assert found == possible[0]


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_paths_and_outcomes_tell_the_same(chance: random.Random) -> None:
    some = simulator(doubtful.rules(chance))
    shares: dict[Outcome, Fraction] = {}
    for path in some.paths(TO_SERVICE):
        shares[path.outcome] = shares.get(path.outcome, Fraction(0)) + path.probability
    assert shares == dict(some.outcomes(TO_SERVICE))
