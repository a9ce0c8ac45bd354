"""A dispatch chain followed entry by entry, with entries of all kinds made up."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.compiler.dispatch import DEFAULT, Dispatch, Look, Thresholds
from kpx.compiler.fragment import Entry
from kpx.compiler.prefix_tree import Shape
from kpx.compiler.space import PROTOCOLS
from kpx.family import Family
from kpx.model.service import ServicePortName
from kpx.netfilter.rule import target_of

TINY = Thresholds(linear=4, shape=Shape(leaf=3, crowd=4, inline=2, height=3))
LAST = ("-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",)

addresses = st.sampled_from(["", "", *(f"10.96.{high}.{low}" for high in (0, 1, 128) for low in (1, 2, 3, 64))])
entries = st.builds(
    lambda address, protocol, port: entry(address, protocol, port),
    addresses,
    st.sampled_from(PROTOCOLS[:2]),
    st.sampled_from([80, 81, 30_000, 30_001, 30_512]),
)
owners = st.builds(ServicePortName, st.just("ns"), st.sampled_from("abc"), st.just(""), st.just("tcp"))
items = st.tuples(owners, st.integers(0, 1), entries)
Item = tuple[ServicePortName, int, Entry]


def entry(address: str, protocol: str, port: int) -> Entry:
    where = f"-d {address}/{Family.of(address).host_bits} " if address else ""
    rule = f"{where}-p {protocol} -m {protocol} --dport {port} -j DROP"
    return Entry("filter", "KUBE-EXTERNAL-SERVICES", address, protocol, port, rule)


def dispatch(of: Sequence[Item] = (), thresholds: Thresholds = TINY) -> Dispatch:
    made = Dispatch("KUBE-MAIN", "KPX-M-", Family.IPV4, thresholds, LAST, mixed=True)
    for owner, place, one in of:
        made.add(owner, place, one)
    return made


@given(st.lists(st.lists(items, min_size=1, max_size=4), max_size=40))
def test_changes_lead_from_one_look_to_the_next(steps: list[list[Item]]) -> None:
    """Each step adds what is missing of its items and removes what is there of them."""
    followed = dispatch()
    chains: dict[str, Look] = dict(followed.chains())
    held: set[Item] = set()
    for step in steps:
        followed.follow()
        for item in step:
            (followed.remove if item in held else followed.add)(*item)
            held ^= {item}
        for change in followed.changes():
            assert chains.get(change.chain) == change.before != change.after
            if change.after is None:
                del chains[change.chain]
            else:
                targets = {target_of(rule) or "" for rule in change.after.rules}
                assert {name for name in targets if name.startswith("KPX-")} <= chains.keys()
                chains[change.chain] = change.after
        assert chains == dict(followed.chains())
        assert chains == dict(dispatch(sorted(held, key=str)).chains())


@given(st.sets(items, max_size=60))
def test_the_last_rules_stay_last_and_every_entry_is_found(held: set[Item]) -> None:
    chains = dict(dispatch([*held]).chains())
    assert chains["KUBE-MAIN"].rules[-len(LAST) :] == LAST
    rules = [rule for look in chains.values() for rule in look.rules]
    assert {one.rule for _, _, one in held} <= set(rules)
    assert len(chains) == len({target for rule in rules if (target := target_of(rule) or "").startswith("KPX-")}) + 1


def test_a_change_among_many_entries_looks_at_few_chains() -> None:
    pick = random.Random(5)
    many = [
        (ServicePortName("ns", f"svc-{number}", "", "tcp"), 0, entry(f"10.96.{vip >> 8}.{vip & 255}", "tcp", 80))
        for number, vip in enumerate(pick.sample(range(1 << 16), 5000))
    ]
    followed = dispatch(many[:-100], DEFAULT)
    for item in many[-100:]:
        followed.follow()
        followed.add(*item)
        assert followed._before is not None
        assert len(followed._before) <= 24
        assert len(list(followed.changes())) <= 10


@pytest.mark.parametrize(
    ("address", "family", "chains"),
    [
        ("10.96.7.{}", Family.IPV4, {"KPX-M-10.96.7.0-26", "KPX-M-10.96.7.0-29", "KPX-M-10.96.7.8-29"}),
        ("fd00:10:96::7{:02x}", Family.IPV6, {"KPX-M-fd00-10-96--700-122", "KPX-M-fd00-10-96--700-125"}),
        # a name that would be too long
        ("2001:db8:aaaa:bbbb:cccc:dddd:eeee:{:x}", Family.IPV6, {"KPX-M-3DNY6LZMGMKXVSHY"}),
    ],
)
def test_chains_are_called_by_what_leads_to_them(address: str, family: Family, chains: set[str]) -> None:
    made = Dispatch("KUBE-MAIN", "KPX-M-", family, DEFAULT)
    for number in range(1, 25):
        made.add(ServicePortName("ns", "web", str(number), "tcp"), 0, entry(address.format(number), "tcp", 80))
    names = {name for name, _ in made.chains()}
    assert all(len(name) <= 28 for name in names)
    assert chains <= names, names


def test_node_ports_are_called_by_their_range() -> None:
    made = Dispatch("KUBE-MAIN", "KPX-M-", Family.IPV4, DEFAULT)
    for number in range(40):
        made.add(
            ServicePortName("ns", "web", str(number), "tcp"),
            0,
            entry("", "tcp" if number < 30 else "udp", 30_000 + number),
        )
    chains = {name: look.rules for name, look in made.chains()}
    assert chains["KUBE-MAIN"] == (
        "-p tcp -m tcp --dport 29696:30207 -j KPX-M-tcp-29696-30207",
        "-p udp -m udp --dport 30016:30079 -j KPX-M-udp-30016-30079",
    )
    assert "-p tcp -m tcp --dport 29952:30015 -g KPX-M-tcp-29952-30015" in chains["KPX-M-tcp-29696-30207"]
