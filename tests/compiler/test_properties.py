"""What holds for every cluster: properties of compiled rulesets, and what the kernel makes of them."""

import json
import math
import re
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpx
from kpx.api import Object, parse_object
from kpx.compiler.compile import Layout, compile_fragment
from kpx.compiler.settings import settings_for
from kpx.family import Family
from kpx.model.cluster import cluster_of
from kpx.model.node import node_view
from kpx.model.policy import select
from kpx.netfilter.restore import payload
from kpx.netfilter.rule import target_of
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from tests.compiler.clusters import Manifest, clusters, configs
from tests.kernel import BACKENDS, FAMILIES, Namespace, needs_kernel

families = st.sampled_from(FAMILIES)
STEPS = 1 << 31


def parsed(manifests: list[Manifest]) -> list[Object]:
    return [parse_object(one["kind"], one) for one in manifests]


def config_of(manifest: Manifest) -> kpx.KubeProxyConfiguration:
    return kpx.parse_config(json.dumps(manifest).encode())[0]


def text_of(ruleset: kpx.Ruleset) -> str:
    return payload(transactions(make_plan(ruleset, {}).edits))


@given(clusters(), configs, families, st.randoms())
def test_the_order_of_objects_does_not_matter(
    manifests: list[Manifest], config: Manifest, family: Family, random: object
) -> None:
    objects = parsed(manifests)
    expected = text_of(kpx.compile(objects, config_of(config), family=family))
    random.shuffle(objects)  # type: ignore[attr-defined]
    assert text_of(kpx.compile(objects, config_of(config), family=family)) == expected


@given(clusters(), configs, families)
def test_every_jump_leads_to_a_chain_that_comes_before(
    manifests: list[Manifest], config: Manifest, family: Family
) -> None:
    ruleset = kpx.compile(parsed(manifests), config_of(config), family=family)
    for table in ruleset.tables.values():
        before: set[str] = set()
        for chain, rules in table.chains.items():
            assert len(chain) <= 28
            targets = {target_of(rule) for rule in rules if (target_of(rule) or "").startswith("KUBE-")}
            assert targets <= before
            before.add(chain)
        assert {target_of(rule) for rules in table.jumps.values() for rule in rules} <= before


@given(clusters(annotated=False), configs, families)
def test_endpoints_of_a_chain_are_equally_likely(manifests: list[Manifest], config: Manifest, family: Family) -> None:
    ruleset = kpx.compile(parsed(manifests), config_of(config), family=family)
    for chain, rules in ruleset.tables["nat"].chains.items():
        if chain.startswith(("KUBE-SVC-", "KUBE-SVL-")):
            shares = distribution(rules)
            assert sum(shares.values()) == 1
            for share in shares.values():
                assert math.isclose(share, 1 / len(shares), abs_tol=len(shares) / STEPS)


def distribution(rules: tuple[str, ...]) -> dict[str, Fraction]:
    """The share of each endpoint chain among fresh clients, from the kernel's view of the probabilities."""
    left, shares = Fraction(1), {}
    for rule in rules:
        target = target_of(rule) or ""
        if not target.startswith("KUBE-SEP-") or "--rcheck" in rule:
            continue
        match = re.search(r"--probability (\S+)", rule)
        chance = Fraction(round(float(match[1]) * STEPS), STEPS) if match else Fraction(1)
        shares[target] = left * chance
        left -= shares[target]
    return shares


@given(clusters(), configs, families)
def test_a_service_port_compiles_alone_to_what_it_is_in_the_whole(
    manifests: list[Manifest], config: Manifest, family: Family
) -> None:
    objects = parsed(manifests)
    # In the other layout the entries of a long chain stand below it.
    whole = kpx.compile(objects, config_of(config), family=family, layout=Layout.CLASSIC)
    node = next((one for one in objects if isinstance(one, kpx.api.Node)), None)
    view = node_view("node-0", family, node)
    cluster = cluster_of(objects, family, "node-0")
    for name, port in cluster.ports.items():
        selection = select(cluster.endpoints.get(name, ()), port, view)
        fragment = compile_fragment(port, selection, settings_for(config_of(config), view), Layout.CLASSIC)
        for chain, rules in fragment.chains.items():
            assert whole.tables["nat"].chains[chain] == rules
        for entry in fragment.entries:
            assert entry.rule in whole.tables[entry.table].chains[entry.chain]


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_takes_every_ruleset_and_prints_it_back(backend: Backend) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(clusters(), clusters(), configs, families)
    def check(first: list[Manifest], second: list[Manifest], config: Manifest, family: Family) -> None:
        with Namespace() as namespace:
            one, other = (kpx.compile(parsed(some), config_of(config), family=family) for some in (first, second))
            namespace.restore(backend, family, text_of(one))
            live = parse_save(namespace.save(backend, family))
            assert not make_plan(one, live)
            plan = make_plan(other, live)
            namespace.restore(backend, family, payload(transactions(plan.edits)))
            after = parse_save(namespace.save(backend, family))
            assert not make_plan(other, after)
            extra = [chain for table in after.values() for chain in table.chains if chain.startswith("KUBE-S")]
            assert set(extra) <= {chain for table in other.tables.values() for chain in table.chains}

    check()


def test_large_clusters_go_without_comments_on_endpoints() -> None:
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "big"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }  # fmt: skip

    def slice_of(count: int) -> Manifest:
        return {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "big-a", "labels": {"kubernetes.io/service-name": "big"}},
            "ports": [{"port": 80}],
            "endpoints": [{"addresses": [f"10.1.{n // 250}.{n % 250 + 1}"]} for n in range(count)],
        }  # fmt: skip

    def commented(count: int) -> set[bool]:
        nat = kpx.compile(parsed([service, slice_of(count)]), node_name="n", layout=kpx.Layout.CLASSIC).tables["nat"]
        chains = {name: rules for name, rules in nat.chains.items() if name.startswith(("KUBE-SVC-", "KUBE-SEP-"))}
        assert len(chains) == count + 1
        return {"--comment" in rule for rules in chains.values() for rule in rules}

    assert commented(1000) == {True}
    assert commented(1001) == {False}
