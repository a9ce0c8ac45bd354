"""From one layout to another in the smallest steps: whatever is written so far, packets meet what they should."""

from collections.abc import Iterator
from itertools import permutations

import pytest

import kpx
from kpx.analysis.equivalence import compare
from kpx.analysis.simulate import Tables, tables_of
from kpx.family import Family
from kpx.netfilter.restore import Transaction
from kpx.netfilter.rule import target_of
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.save import Saved, SavedChain, SavedTable
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from tests.compiler.layouts import Input
from tests.compiler.towns import CONFIG
from tests.kernel import FAMILIES
from tests.manifests import endpoint_slice, service

State = dict[str, dict[str, list[str]]]
POLICIES = {("filter", "FORWARD"): "DROP"}
BUILT_IN = {"INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"}


def compiled(layout: kpx.Layout, family: Family) -> Ruleset:
    """Two Services, one of them with so many endpoints that they are put into groups, one with affinity."""
    pod, vip = ("10.244.{}.{}", "10.96.0.{}") if family is Family.IPV4 else ("fd00:244::{}:{}", "fd00:10:96::{}")
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30_080}]
    objects = [
        service("web", vip.format(1), ports=ports, type="NodePort", externalTrafficPolicy="Local"),
        endpoint_slice("web", [pod.format(0, number) for number in range(1, 19)], "node-0"),
        service("cart", vip.format(2), sessionAffinity="ClientIP"),
        endpoint_slice("cart", [pod.format(1, number) for number in range(1, 3)]),
    ]
    some = Input.of(objects, CONFIG, family)
    return kpx.compile(some.objects, some.config, family=family, layout=layout)


def saved(ruleset: Ruleset) -> Saved:
    """What the kernel says when it holds a ruleset."""
    return {
        name: SavedTable(
            {
                chain: SavedChain("ACCEPT" if chain in BUILT_IN else None, 0, 0, rules, None)
                for chain, rules in chains.items()
            }
        )
        for name, chains in tables_of(ruleset).items()
    }


def steps(start: Ruleset, wanted: Ruleset) -> Iterator[Tables]:
    """The tables after each transaction, where one names two chains at most."""
    state: State = {
        table: {chain: list(rules) for chain, rules in chains.items()} for table, chains in tables_of(start).items()
    }
    for one in transactions(make_plan(wanted, saved(start)).edits, 2):
        carry_out(state[one.table], one)
        yield {table: {chain: tuple(rules) for chain, rules in chains.items()} for table, chains in state.items()}


def carry_out(table: dict[str, list[str]], one: Transaction) -> None:
    for chain in one.declare:
        table[chain] = []
    for line in one.lines:
        action, chain, *rest = line.split(" ", 2)
        if action == "-A":
            table[chain].append(rest[0])
        elif action == "-D":
            table[chain].remove(rest[0])
        elif action == "-I":
            place, rule = rest[0].split(" ", 1)
            table[chain].insert(int(place) - 1, rule)
        else:
            assert action == "-X"
            assert not any(target_of(rule) == chain for rules in table.values() for rule in rules)
            del table[chain]


@pytest.mark.parametrize(("start", "wanted"), list(permutations(kpx.Layout, 2)))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_is_equivalent(start: kpx.Layout, wanted: kpx.Layout, family: Family) -> None:
    one, other = compiled(start, family), compiled(wanted, family)
    every = list(steps(one, other))
    assert len(every) > (10 if kpx.Layout.COMPACT in (start, wanted) else 1)
    assert every[-1] == tables_of(other)
    for tables in every:
        assert not compare((tables_of(one), POLICIES), (tables, POLICIES), family).divergences
