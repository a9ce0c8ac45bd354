"""The kernel is the judge: rules in which something is in the way, and what becomes of real packets among them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from kpx.analysis.packet import Fate, Host, Origin, Outcome, Packet
from kpx.analysis.simulate import Simulator, tables_of_save
from kpx.family import Family
from kpx.netfilter.save import parse_save
from tests.analysis import doubtful
from tests.analysis.arena import OWN, Arena, Seen, seen_as
from tests.cases.test_diagnosis import BROKEN, IN_THE_WAY, LEFT_ALONE, STOPS, TO_WEB, changed, dump, placed
from tests.kernel import needs_kernel

pytestmark = [pytest.mark.kernel, needs_kernel]


def case(name: str) -> Callable[[], str]:
    def read() -> str:
        with open(dump(name)) as file:
            return file.read()

    return read


TEXTS: dict[str, Callable[[], str]] = {
    **{f"in the way: {name}": lambda one=one: placed(*one[:3]) for name, one in IN_THE_WAY.items()},  # type: ignore[misc]
    **{f"left alone: {name}": lambda one=one: placed(*one) for name, one in LEFT_ALONE.items()},  # type: ignore[misc]
    **{f"stops: {name}": make for name, (make, _) in STOPS.items()},
    **{
        f"broken: {name}": lambda to=to: changed((TO_WEB, rf"\1{to}"))  # type: ignore[misc]
        for name, (to, _) in BROKEN.items()
        if name not in ("none", "only options", "several", "a range")  # iptables takes none of these; or chance chooses
    },
    "node: docker": lambda: doubtful.DOCKER,
    "node: EKS": lambda: doubtful.EKS,
    "node: OpenShift": lambda: doubtful.OPENSHIFT,
    **{f"case: {name}": case(name) for name in ("firewall-lost-mark", "forward-drop", "nodelocaldns")},
}
EMPTY = {"raw": ("PREROUTING", "OUTPUT"), "mangle": ("FORWARD",), "nat": ("PREROUTING",), "filter": ("FORWARD",)}
"""Tables that rules don't have are none; those of the text before must not stay."""

OUTSIDE = Packet("198.51.100.7", "10.96.0.50", "tcp", 80, in_interface="eth0", out_interface="eth0", bridged=False)
PACKETS = (
    OUTSIDE,
    replace(OUTSIDE, source="10.244.0.9", origin=Origin.POD),
    replace(OUTSIDE, source="10.244.0.5", origin=Origin.POD),
    replace(OUTSIDE, destination=OWN, destination_port=30080),
    replace(OUTSIDE, destination="10.96.0.10", destination_port=53, protocol="udp"),
    replace(OUTSIDE, source=OWN, origin=Origin.NODE, in_interface=None),
)


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as one:
        yield one


@pytest.mark.parametrize("name", TEXTS)
def test_what_becomes_of_packets(name: str, arena: Arena) -> None:
    """Each outcome that is told happens, and no other does."""
    text = re.sub(" -m nfacct --nfacct-name  [a-z_]*", "", TEXTS[name]()).replace("192.0.2.10", OWN)
    tables, policies = tables_of_save(parse_save(text))
    whole = {table: tables.get(table) or dict.fromkeys(chains, ()) for table, chains in EMPTY.items()}
    simulator = Simulator(tables, Family.IPV4, Host((OWN,)), policies)
    for packet in PACKETS:
        outcomes = simulator.outcomes(packet)
        assert all(one.fate is not Fate.UNKNOWN for one in outcomes)
        expected: dict[Seen, float] = {}
        for one, share in outcomes.items():
            expected[seen(one, packet)] = expected.get(seen(one, packet), 0) + float(share)
        arena.load(whole, policies)
        with arena.prepared((OWN,), {}, packet):
            assert arena.outcomes(packet, expected, 24).keys() == expected.keys(), packet


def seen(outcome: Outcome, packet: Packet) -> Seen:
    return seen_as(outcome, packet)
