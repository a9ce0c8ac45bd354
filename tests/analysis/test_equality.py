"""The layouts `tree` and `classic` do the same to every packet."""

import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpx
from kpx.analysis.packet import Fate, Host, Outcome, Packet
from kpx.analysis.simulate import Path, Simulator, tables_of, tables_of_save
from kpx.compiler import tree
from kpx.compiler.dispatch import DEFAULT
from kpx.family import Family
from kpx.netfilter.ruleset import Rules, Ruleset, Table
from kpx.netfilter.save import parse_save
from kpx.sources import manifests
from tests.analysis.probes import destinations, from_everywhere
from tests.compiler.clusters import Manifest, clusters, configs
from tests.compiler.layouts import Input
from tests.compiler.towns import CONFIG, NODE_ADDRESSES, UNTOLD_ADDRESS, rivals, town
from tests.kernel import FAMILIES, case_path
from tests.manifests import endpoint_slice
from tests.manifests import service as one_service

HOST = Host((*NODE_ADDRESSES, UNTOLD_ADDRESS))
STEP = Fraction(1, 1 << 31)
CASES = sorted(path.name for path in case_path("").iterdir() if path.is_dir())


def simulator(ruleset: Ruleset) -> Simulator:
    return Simulator(tables_of(ruleset), ruleset.family, HOST)


def difference(one: Simulator, other: Simulator, packet: Packet, known: Mapping[str, float] | None = None) -> str:
    """What a packet meets under one ruleset and not under the other; empty if it is the same.

    Shares of n endpoints may differ by n steps: kube-proxy's are as far off 1/n.
    """
    left, right = one.outcomes(packet, known), other.outcomes(packet, known)
    assert sum(left.values()) == sum(right.values()) == 1
    assert all(outcome.fate is not Fate.UNKNOWN for outcome in left)
    near = len(left) * STEP if len(left) > 2 else 0
    same = left.keys() == right.keys() and all(abs(left[outcome] - right[outcome]) <= near for outcome in left)
    return "" if same else f"{packet}\n{shown(left)}\n{shown(right)}"


def shown(outcomes: Mapping[Outcome, Fraction]) -> str:
    return "  " + ", ".join(f"{float(share):.3f} {outcome}" for outcome, share in sorted(outcomes.items()))


def assert_same(
    classic: Ruleset, other: Ruleset, packets: Iterable[Packet], known: Mapping[str, float] | None = None
) -> None:
    one, two = simulator(classic), simulator(other)
    different = [found for packet in packets if (found := difference(one, two, packet, known))]
    assert not different, f"{len(different)} packets, such as\n{different[0]}"


def packets(classic: Ruleset, other: Ruleset) -> list[Packet]:
    family = classic.family
    return [packet for one in destinations(classic, other) for packet in from_everywhere(one, family)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters(), configs, st.sampled_from(FAMILIES))
def test_small_clusters_with_trees_from_the_first_entries_on(
    objects: list[Manifest], config: Manifest, family: Family
) -> None:
    some = Input.of(objects, config, family)
    classic, low = some.classic(), some.tree()
    sent = packets(classic, low)
    assert_same(classic, low, sent)
    for known in known_clients(classic):
        assert_same(classic, low, random.Random(7).sample(sent, min(len(sent), 150)), known)


def known_clients(classic: Ruleset) -> list[Mapping[str, float]]:
    """The lists of xt_recent that clients are on: the first and the last of all, each alone."""
    rules = (rule for chain in classic.tables["nat"].chains.values() for rule in chain)
    names = sorted({name for rule in rules for name in re.findall(r"--set --name (\S+)", rule)})
    return [{name: 1.0} for name in dict.fromkeys(names[:1] + names[-1:])]


def test_node_ports_that_meet_addresses() -> None:
    some = Input.of(rivals(), CONFIG, Family.IPV4)
    classic, low = some.classic(), some.tree()
    own = Packet("198.51.100.7", UNTOLD_ADDRESS, "tcp", 0, in_interface="eth0")
    met = [min(simulator(classic).outcomes(replace(own, destination_port=port))) for port in (31_000, 32_000)]
    assert [one.fate for one in met] == [Fate.DROPPED, Fate.REJECTED]
    assert_same(classic, low, packets(classic, low))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_conformance_cases(name: str, family: Family) -> None:
    """kube-proxy's own dump is the other side here."""
    case = case_path(name)
    config, _ = kpx.parse_config((case / "config.yaml").read_bytes())
    some = Input(manifests.load([str(case / "cluster.yaml")]).objects, config, family)
    classic, low = some.classic(), some.tree()
    tables, policies = tables_of_save(parse_save((case / f"{family}.save").read_text()))
    one, two = Simulator(tables, family, HOST, policies), simulator(low)
    sent = packets(classic, low)
    different = [
        found
        for known in (None, *known_clients(classic))
        for packet in sent
        if (found := difference(one, two, packet, known))
    ]
    assert not different, f"{len(different)} packets, such as\n{different[0]}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_large_cluster(family: Family) -> None:
    some = Input.of(town(2000), CONFIG, family)
    classic, large = some.classic(), some.tree(DEFAULT, tree.choose)
    assert len(large.tables["nat"].chains["KUBE-SERVICES"]) < 60
    pick = random.Random(3)
    chosen = [one for where in pick.sample(destinations(classic, large), 250) for one in from_everywhere(where, family)]
    assert_same(classic, large, chosen)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("services", [250, 1000])
def test_packets_pass_few_rules_whether_for_a_service_or_not(services: int, family: Family) -> None:
    """In all chains of both tables, on the longest of their ways: O(log n), where `classic` has O(n)."""
    some = Input.of(town(services), CONFIG, family)
    classic, large = some.classic(), some.tree(DEFAULT, tree.choose)
    chosen = random.Random(6).sample(destinations(classic, large), 100)
    sent = [packet for where in chosen for packet in from_everywhere(where, family)]
    after = simulator(large)
    ways = [after.paths(packet) for packet in sent]
    longest = {
        is_service: max(
            path.examined
            for some in ways
            if any(path.outcome.fate is not Fate.UNTOUCHED for path in some) is is_service
            for path in some
        )
        for is_service in (True, False)
    }
    bound = 20 * math.log2(services)
    assert max(longest.values()) <= bound, longest
    before = simulator(classic)
    assert max(path.examined for packet in sent[:60] for path in before.paths(packet)) > 2 * bound


@pytest.mark.parametrize(
    ("objects", "family"), [(town(60, seed=1), Family.IPV4), (town(60, seed=1), Family.IPV6), (rivals(), Family.IPV4)]
)
def test_order_does_not_count_where_it_is_said_not_to(objects: list[Manifest], family: Family) -> None:
    some = Input.of(objects, CONFIG, family)
    classic, low = some.classic(), some.tree()
    other = shuffled(low)
    assert other != low
    every = packets(classic, low)
    assert_same(low, other, random.Random(4).sample(every, min(len(every), 1500)))


def shuffled(ruleset: Ruleset) -> Ruleset:
    """With the rules that may stand in any order in another one."""
    pick = random.Random(5)

    def chain(table: Table, name: str) -> Rules:
        rules, free = table.chains[name], table.unordered.get(name, 0)
        return (*pick.sample(rules[:free], free), *rules[free:])

    tables = {
        name: replace(table, chains={one: chain(table, one) for one in table.chains})
        for name, table in ruleset.tables.items()
    }
    return Ruleset(ruleset.family, tables)


# -- affinity ------------------------------------------------------------------------------------------


PODS = [f"10.244.{number}.1" for number in range(1, 81)]
SECONDS = 600


def sticky() -> Input:
    affinity = {"clientIP": {"timeoutSeconds": SECONDS}}
    service = one_service("web", "10.96.0.1", sessionAffinity="ClientIP", sessionAffinityConfig=affinity)
    return Input.of([service, endpoint_slice("web", PODS)], CONFIG, Family.IPV4)


@pytest.fixture(scope="module")
def layouts() -> tuple[Simulator, Simulator]:
    some = sticky()
    return simulator(some.classic()), simulator(some.tree(DEFAULT, tree.choose))


CLIENT = Packet("198.51.100.7", "10.96.0.1", "tcp", 80, 40_000)


def lists_of(path: Path) -> set[str]:
    """The lists of xt_recent that a packet puts its sender on."""
    names = [re.findall(r"--set --name (\S+)", step.rule) for step in path.steps]
    return {name for found in names for name in found}


def test_a_known_client_stays_where_it_is(layouts: tuple[Simulator, Simulator]) -> None:
    """For each endpoint, whatever the lists of groups say, until its time is over."""
    classic, large = layouts
    fresh = large.paths(CLIENT)
    assert len(fresh) == len(PODS)
    groups = {name for path in fresh for name in lists_of(path) if name.startswith("KPX-")}
    assert len(groups) > 1
    for path in fresh[::5]:
        (own,) = [name for name in lists_of(path) if name.startswith("KUBE-")]
        for others in (set(), lists_of(path), groups):
            young = {name: float(SECONDS) for name in {own, *others}}
            assert large.outcomes(CLIENT, young) == classic.outcomes(CLIENT, young) == {path.outcome: 1}
            old = dict.fromkeys(young, SECONDS + 1.0)
            assert not difference(classic, large, CLIENT, old)
            assert len(large.outcomes(CLIENT, old)) == len(PODS)


def test_every_connection_renews_what_is_known_of_its_client(layouts: tuple[Simulator, Simulator]) -> None:
    for one in layouts:
        for path in one.paths(CLIENT):
            noted = lists_of(path)
            for known in (noted, {name for name in noted if name.startswith("KUBE-")}):
                (again,) = one.paths(CLIENT, dict.fromkeys(known, 1.0))
                assert lists_of(again) == noted


def test_a_client_whom_two_endpoints_know_stays_with_one_of_them(layouts: tuple[Simulator, Simulator]) -> None:
    _, large = layouts
    first, second, *_ = large.paths(CLIENT)
    known = dict.fromkeys(lists_of(first) | lists_of(second), 1.0)
    ((outcome, share),) = large.outcomes(CLIENT, known).items()
    assert share == 1
    assert outcome in (first.outcome, second.outcome)


def test_a_client_whom_its_group_knows_is_found_soon(layouts: tuple[Simulator, Simulator]) -> None:
    def asked(one: Simulator) -> int:
        known = [dict.fromkeys(lists_of(path), 1.0) for path in one.paths(CLIENT)]
        return sum(one.paths(CLIENT, some)[0].examined for some in known)

    classic, large = map(asked, layouts)
    assert large < classic
