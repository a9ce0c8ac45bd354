"""Where odd DNAT rules send packets: what the simulator says, and what a kernel does."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from kpx.analysis.packet import Fate, Host, Origin, Outcome, Packet
from kpx.analysis.simulate import Simulator
from kpx.family import Family
from kpx.netfilter.destination import Destination, oddities
from kpx.netfilter.rule import parse_rule
from tests.analysis.arena import OWN, Arena, seen_as
from tests.kernel import needs_kernel

TO_SERVICE = Packet("198.51.100.7", "10.96.0.50", "tcp", 80, None, in_interface="eth0")
FROM_NODE = replace(TO_SERVICE, source=OWN, origin=Origin.NODE, in_interface=None)

WHERE = {
    ":0": ("10.96.0.50:0", "10.96.0.50:0"),
    ":8080": ("10.96.0.50:8080", "10.96.0.50:8080"),
    ":0 --persistent": ("10.96.0.50:0", "10.96.0.50:0"),
    "10.244.0.5": ("10.244.0.5:80", "10.244.0.5:80"),
    "10.244.0.5:0": ("10.244.0.5:0", "10.244.0.5:0"),
    "10.244.0.5:8080 --random": ("10.244.0.5:8080", "10.244.0.5:8080"),
    "10.244.0.5:8080 --persistent": ("10.244.0.5:8080", "10.244.0.5:8080"),
    "10.244.0.5:8080 --random --persistent": ("10.244.0.5:8080", "10.244.0.5:8080"),
    "10.244.0.5 --random": ("10.244.0.5:80", "10.244.0.5:80"),
    "0.0.0.0": ("", "0.0.0.0:80"),
    "0.0.0.0:8080": ("", "0.0.0.0:8080"),
    "0.0.0.0:0 --persistent": ("", "0.0.0.0:0"),
}
"""By the value of --to-destination: where packets arrive from outside, and where from the node; empty: nowhere."""


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as one:
        yield one


def simulator(to: str) -> Simulator:
    rules = (f"-p tcp -m tcp -j DNAT --to-destination {to}",)
    return Simulator({"nat": {"PREROUTING": rules, "OUTPUT": rules}}, Family.IPV4, Host((OWN,)))


@pytest.mark.parametrize(("to", "where"), WHERE.items())
@pytest.mark.parametrize("origin", [Origin.OUTSIDE, Origin.NODE])
def test_where_odd_rules_send_packets(to: str, where: tuple[str, str], origin: Origin) -> None:
    place = where[origin is Origin.NODE]
    expected = Outcome(Fate.TRANSLATED, place) if place else Outcome(Fate.DROPPED)
    packet = FROM_NODE if origin is Origin.NODE else TO_SERVICE
    assert simulator(to).outcomes(packet) == {expected: 1}


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("to", WHERE)
def test_and_the_kernel_does(to: str, arena: Arena) -> None:
    some = simulator(to)
    arena.load(some.tables, {})
    for packet in (TO_SERVICE, FROM_NODE):
        (outcome,) = some.outcomes(packet)
        expected = seen_as(outcome, packet)
        with arena.prepared((OWN,), {}, packet):
            assert set(arena.outcomes(packet, {expected: 1.0}, 8)) == {expected}


@pytest.mark.parametrize(
    "to",
    ["", " --persistent", " --to-destination 10.1.1.1 --to-destination 10.1.1.2", " --to-destination 10.1.1.1-10.1.1.9",
     " --to-destination 10.1.1.1:80-90 --random"],
)  # fmt: skip
def test_what_a_rule_does_not_say_is_not_guessed(to: str) -> None:
    rule = f"-p tcp -m tcp -j DNAT{to}"
    (outcome,) = Simulator({"nat": {"PREROUTING": (rule,)}}, Family.IPV4, Host((OWN,))).outcomes(TO_SERVICE)
    assert (outcome.fate, outcome.detail) == (Fate.UNKNOWN, f"nat PREROUTING: {rule}")


def test_nowhere_of_ipv6_is_not_guessed() -> None:
    rules = ("-p tcp -m tcp -j DNAT --to-destination [::]:80",)
    packet = Packet("2001:db8::7", "fd00:96::50", "tcp", 80)
    (outcome,) = Simulator({"nat": {"PREROUTING": rules}}, Family.IPV6, Host(())).outcomes(packet)
    assert outcome.fate is Fate.UNKNOWN


@pytest.mark.parametrize(
    ("value", "address", "port"),
    [
        ("10.0.0.1:80", "10.0.0.1", "80"),
        ("10.0.0.1", "10.0.0.1", ""),
        (":80", "", "80"),
        ("[fd00::1]:80", "fd00::1", "80"),
        ("fd00::1", "fd00::1", ""),
        ("[fd00::1]", "fd00::1", ""),
    ],
)
def test_destinations(value: str, address: str, port: str) -> None:
    assert Destination.parsed(value) == Destination(address, port)


@pytest.mark.parametrize("to", ["10.244.0.5:8080", "[fd00::5]:8080", "fd00::5", "10.244.0.5"])
def test_what_is_not_odd(to: str) -> None:
    assert oddities(parse_rule(f"-p tcp -m tcp -j DNAT --to-destination {to}").target_options) == ()
