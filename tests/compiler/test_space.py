"""Prefixes of keys as matches: exactly the packets whose key has the prefix."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.analysis.chain import KernelRule
from kpx.analysis.packet import Host, Packet, number, text
from kpx.analysis.state import Scene, State
from kpx.compiler.prefix_tree import Prefix
from kpx.compiler.space import PROTOCOLS, Space, without_address
from kpx.family import Family
from tests.kernel import FAMILIES

ports = st.sampled_from([0, 1, 80, 8191, 8192, 30_000, 32_767, 32_768, 65_535]) | st.integers(0, 65_535)


def matches(rule: str, address: str, protocol: str, port: int) -> bool | None:
    family = Family.of(address)
    packet = Packet(address, address, protocol, port)
    scene = Scene(packet, Host(), "nat", "PREROUTING", "", "", {})
    ((truth, _, _),) = KernelRule(rule, family).ask(State(0, number(address), port, 0), Fraction(1), scene, ())
    return truth


@given(st.data(), st.sampled_from([*FAMILIES, None]), ports, st.sampled_from(PROTOCOLS))
def test_a_prefix_matches_what_has_it(data: st.DataObject, kind: Family | None, port: int, protocol: str) -> None:
    family, space = kind or Family.IPV4, Space(kind)
    high = (1 << family.host_bits) - 1
    value = data.draw(st.integers(0, high))
    key = space.key(text(value, family) if kind else "", protocol, port)
    width = space.levels[-1]
    length = data.draw(st.sampled_from(space.levels[1:]))
    rule = space.match(Prefix(key >> (width - length), length))
    # Keys that differ from this one in one bit: in the prefix or behind it.
    for bit in range(width):
        other = key ^ 1 << bit
        if (without_address(other) >> 16) < len(PROTOCOLS):
            where = text(other >> 18 if kind else value, family)
            found = matches(rule, where, PROTOCOLS[without_address(other) >> 16], other & 0xFFFF)
            assert found == (other >> (width - length) == key >> (width - length))
    assert matches(rule, text(value, family), protocol, port) is True


@pytest.mark.parametrize(
    ("kind", "address", "length", "match", "label"),
    [
        (Family.IPV4, "10.96.5.6", 20, "-d 10.96.0.0/20", "10.96.0.0-20"),
        (Family.IPV4, "10.96.5.6", 32, "-d 10.96.5.6/32", "10.96.5.6-32"),
        (Family.IPV4, "10.96.5.6", 34, "-d 10.96.5.6/32 -p udp", "10.96.5.6-udp"),
        (
            Family.IPV4,
            "10.96.5.6",
            44,
            "-d 10.96.5.6/32 -p udp -m udp --dport 30016:30079",
            "10.96.5.6-udp-30016-30079",
        ),
        (Family.IPV6, "fd00:10::6", 116, "-d fd00:10::/116", "fd00-10---116"),
        (None, "", 2, "-p udp", "udp"),
        (None, "", 9, "-p udp -m udp --dport 29696:30207", "udp-29696-30207"),
    ],
)
def test_spelling(kind: Family | None, address: str, length: int, match: str, label: str) -> None:
    space = Space(kind)
    key = space.key(address, "udp", 30_030)
    prefix = Prefix(key >> (space.levels[-1] - length), length)
    assert space.match(prefix) == match
    assert space.label(prefix) == (label if len(label) <= 22 else space.label(prefix))
    assert len(space.label(prefix)) <= 22


@pytest.mark.parametrize("kind", [*FAMILIES, None])
def test_levels_end_where_a_part_of_the_key_ends(kind: Family | None) -> None:
    bits = kind.host_bits if kind else 0
    space = Space(kind)
    assert {0, bits, bits + 2, bits + 18} <= set(space.levels)
    assert list(space.levels) == sorted(space.levels)
    assert max(b - a for a, b in zip(space.levels, space.levels[1:], strict=False)) <= 3
