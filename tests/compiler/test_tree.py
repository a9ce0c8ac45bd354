"""The layout `tree`: `classic` where that is short, a function of the fragments alone, changed little by a change."""

import random
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpx
from kpx.compiler import tree
from kpx.compiler.choice import linear
from kpx.compiler.compile import Layout
from kpx.compiler.dispatch import DEFAULT, Look, Thresholds
from kpx.compiler.fragment import Fragment
from kpx.family import Family
from kpx.netfilter.owners import is_own_chain
from kpx.netfilter.restore import payload
from kpx.netfilter.rule import target_of
from kpx.netfilter.ruleset import TABLES, Ruleset, TableName
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from kpx.sources.manifests import load
from tests import manifests
from tests.compiler.clusters import Manifest, clusters, configs
from tests.compiler.layouts import FEW, LOW, Input
from tests.compiler.towns import CONFIG, rivals, town
from tests.kernel import BACKENDS, FAMILIES, Namespace, case_path, needs_kernel

families = st.sampled_from(FAMILIES)
inputs = st.builds(Input.of, clusters(annotated=False), configs, families)
SHORT = Thresholds(linear=1000, shape=DEFAULT.shape)

Looks = dict[tuple[TableName, str], Look]


def looks(ruleset: Ruleset) -> Looks:
    return {
        (name, chain): Look(rules, table.unordered.get(chain))
        for name, table in ruleset.tables.items()
        for chain, rules in table.chains.items()
    }


def text_of(ruleset: Ruleset) -> str:
    return payload(transactions(make_plan(ruleset, {}).edits))


@settings(max_examples=40)
@given(inputs)
def test_short_chains_are_those_of_classic(some: Input) -> None:
    short = some.tree(SHORT, linear)
    assert short == some.classic()
    assert text_of(short) == text_of(some.classic())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", sorted(path.name for path in case_path("").iterdir() if path.is_dir()))
def test_small_clusters_are_as_in_classic(case: str, family: Family) -> None:
    loaded = load([str(case_path(case) / "cluster.yaml")])
    config, _ = kpx.parse_config((case_path(case) / "config.yaml").read_bytes())
    classic, tree_ = (
        kpx.compile(loaded.objects, config, node_name="node-0", family=family, layout=layout)
        for layout in (Layout.CLASSIC, Layout.TREE)
    )
    assert text_of(tree_) == text_of(classic)


@settings(max_examples=40)
@given(inputs)
def test_every_rule_of_classic_is_there_once(some: Input) -> None:
    before, after = some.classic(), tree.join(some.fragments(), some.settings, LOW)
    for name in TABLES:
        want = [rule for rules in before.tables[name].chains.values() for rule in rules]
        have = [rule for rules in after.tables[name].chains.values() for rule in rules if "KPX-" not in rule]
        assert sorted(have) == sorted(want)


@settings(max_examples=40)
@given(inputs)
def test_chains_come_after_those_they_lead_to_with_short_names(some: Input) -> None:
    for table in some.tree().tables.values():
        before: set[str] = set()
        for chain, rules in table.chains.items():
            assert len(chain) <= 28
            targets = {target_of(rule) or "" for rule in rules}
            assert {target for target in targets if target.startswith(("KUBE-", "KPX-"))} <= before
            before.add(chain)


@settings(max_examples=40)
@given(inputs, st.randoms())
def test_the_order_of_fragments_does_not_matter(some: Input, random: random.Random) -> None:
    fragments = some.fragments(FEW)
    random.shuffle(fragments)
    assert looks(tree.join(fragments, some.settings, LOW)) == looks(some.tree())


def by_name(fragments: Iterable[Fragment]) -> dict[object, Fragment]:
    return {fragment.name: fragment for fragment in fragments}


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(inputs, st.lists(clusters(), min_size=1, max_size=3), configs)
def test_updates_lead_to_what_a_fresh_start_leads_to(
    some: Input, later: list[list[Manifest]], config: Manifest
) -> None:
    """And what they report, carried out on the chains before, gives the chains after."""
    current = by_name(some.fragments(FEW))
    forest = tree.Forest(some.settings, LOW)
    for fragment in current.values():
        forest.add(fragment)
    chains = looks(forest.ruleset({}))
    for step in later:
        following = by_name(Input.of(step, config, some.family).fragments(FEW))
        pairs = [(current.get(name), following.get(name)) for name in current.keys() | following.keys()]
        for table, changes in forest.update(pairs).items():
            for one in changes:
                assert chains.get((table, one.chain)) == one.before != one.after
                if one.after is None:
                    del chains[table, one.chain]
                else:
                    targets = {target_of(rule) or "" for rule in one.after.rules}
                    assert {(table, name) for name in targets if name.startswith("KPX-")} <= chains.keys()
                    chains[table, one.chain] = one.after
        current = following
        assert chains == looks(forest.ruleset({}))
    fresh = tree.Forest(some.settings, LOW)
    for fragment in current.values():
        fresh.add(fragment)
    assert chains == looks(fresh.ruleset({}))


# -- at size -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def large(request: pytest.FixtureRequest) -> Input:
    return Input.of(town(2000), CONFIG, request.param)


def test_one_service_changes_a_bounded_number_of_rules(large: Input) -> None:
    fragments = large.fragments()
    forest = tree.Forest(large.settings)
    for fragment in fragments:
        forest.add(fragment)
    for fragment in random.Random(2).sample(fragments, 200):
        for pair in ((fragment, None), (None, fragment)):
            changes = [one for some in forest.update([pair]).values() for one in some]
            before = [rule for one in changes if one.before for rule in one.before.rules]
            after = [rule for one in changes if one.after for rule in one.after.rules]
            # An entry can split a bucket or make two into one: nine entries move, at most eight chains come or go.
            assert len(set(before) ^ set(after)) <= 8 * len(fragment.entries)
            assert sum((one.before is None) != (one.after is None) for one in changes) <= 9 * len(fragment.entries)


def test_dispatch_chains_are_short(large: Input) -> None:
    for table in large.tree(DEFAULT).tables.values():
        lengths = {chain: len(rules) for chain, rules in table.chains.items() if not is_own_chain(chain)}
        assert all(lengths[chain] <= 30 for chain in lengths if chain.startswith("KUBE-"))
        crowded = [chain for chain, length in lengths.items() if length > 16 and chain.startswith("KPX-")]
        for chain in crowded:  # many ports of one address
            assert len({rule.split(" -p ")[0] for rule in table.chains[chain]}) == 1
        assert max(lengths.values()) <= 64


def depth(chains: Mapping[str, tuple[str, ...]], chain: str) -> int:
    targets = {target_of(rule) or "" for rule in chains[chain]} & chains.keys()
    return 1 + max((depth(chains, target) for target in targets), default=0)


NASTY = {203 << 24 | 1 << bit | low for bit in range(24) for low in range(9)}
"""Addresses that share as many first bits with each other as can be: the worst for a tree of prefixes."""


def nasty_services() -> list[Manifest]:
    """Load balancers and many ports at addresses that make high trees, with many endpoints."""
    ports = [{"name": f"p{bit}", "port": 1 << bit, "targetPort": 80} for bit in range(16)]
    ports += [{"name": f"q{low}", "port": 40_000 + low, "targetPort": 80} for low in range(60)]
    services = [
        manifests.service(
            f"web-{number}",
            f"10.0.{number >> 8}.{number & 255}",
            type="LoadBalancer",
            ports=[{**port, "nodePort": 30_000 + n} for n, port in enumerate(ports)] if number == 0 else ports[:1],
            loadBalancerSourceRanges=["192.0.2.0/24"],
            allocateLoadBalancerNodePorts=False,
        )
        | {"status": {"loadBalancer": {"ingress": [{"ip": str(IPv4Address(address))}]}}}
        for number, address in enumerate(sorted(NASTY))
    ]
    pods = [f"10.244.{n >> 7}.{(n & 127) + 1}" for n in range(600)]
    slices = [manifests.endpoint_slice(f"web-{number}", pods[:1]) for number in range(len(NASTY))]
    for one in slices:
        one["ports"] = [{"name": port["name"], "port": 80} for port in ports]
    many = manifests.endpoint_slice("web-0", pods)
    many["metadata"]["name"], many["ports"] = "many", [{"name": "p3", "port": 80}]
    return [*services, *slices, many]


def test_no_packet_passes_more_chains_than_nftables_allows() -> None:
    some = Input.of(nasty_services(), CONFIG, Family.IPV4)
    nat = some.tree(DEFAULT, tree.choose).tables["nat"].chains
    assert depth(nat, "KUBE-SERVICES") == 14  # as high as the shape allows


# -- node ports among addresses ------------------------------------------------------------------------


@pytest.mark.parametrize("thresholds", [LOW, SHORT])
def test_the_first_service_wins_where_a_node_port_and_an_address_meet(thresholds: Thresholds) -> None:
    some = Input.of(rivals(), CONFIG, Family.IPV4)
    table = some.tree(thresholds).tables["filter"]
    order: dict[int, list[str]] = {31_000: [], 32_000: []}

    def descend(chain: str) -> None:
        for rule in table.chains[chain]:
            target = target_of(rule) or ""
            if target in table.chains:
                descend(target)
            for port, found in order.items():
                if rule.endswith(("DROP", "REJECT --reject-with icmp-port-unreachable")) and f"dport {port} " in rule:
                    found.append(target)

    descend("KUBE-EXTERNAL-SERVICES")
    assert order[31_000][0] == "DROP"
    assert order[32_000][0] == "REJECT"
    assert "KUBE-EXTERNAL-SERVICES" not in table.unordered


# -- the kernel ----------------------------------------------------------------------------------------


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_takes_every_tree_and_prints_it_back(backend: Backend) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(clusters(), clusters(), configs, families)
    def check(first: list[Manifest], second: list[Manifest], config: Manifest, family: Family) -> None:
        with Namespace() as namespace:
            one, other = (Input.of(some, config, family).tree() for some in (first, second))
            namespace.restore(backend, family, text_of(one))
            live = parse_save(namespace.save(backend, family))
            assert not make_plan(one, live)
            namespace.restore(backend, family, payload(transactions(make_plan(other, live).edits)))
            after = parse_save(namespace.save(backend, family))
            assert not make_plan(other, after)
            left = {chain for table in after.values() for chain in table.chains if chain.startswith("KPX-")}
            assert left <= {chain for table in other.tables.values() for chain in table.chains}

    check()


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_takes_a_large_tree(backend: Backend, family: Family) -> None:
    ruleset = kpx.compile(
        Input.of(town(300), CONFIG, family).objects, node_name="node-0", family=family, layout=Layout.TREE
    )
    with Namespace() as namespace:
        namespace.restore(backend, family, text_of(ruleset))
        assert not make_plan(ruleset, parse_save(namespace.save(backend, family)))


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_takes_the_highest_tree(backend: Backend) -> None:
    ruleset = Input.of(nasty_services(), CONFIG, Family.IPV4).tree(DEFAULT, tree.choose)
    with Namespace() as namespace:
        edits = make_plan(ruleset, {}).edits
        namespace.restore(backend, Family.IPV4, payload(transactions(edits, 0 if backend is Backend.LEGACY else 250)))
        assert not make_plan(ruleset, parse_save(namespace.save(backend, Family.IPV4)))
