"""Edits from fragments: what changes in the kernel when single service ports do. Pure, and no larger than they are.

The kernel is taken to hold what the old fragments say; if it doesn't, a command is refused, and a full plan
(`kpx.reconcile.plan`) has to follow.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from kpx.compiler.dispatch import ChainChange, Look
from kpx.compiler.tree import Change
from kpx.family import Family
from kpx.netfilter.ruleset import Rules, TableName
from kpx.reconcile.edit import Edit, Placed, Step, change_ordered, change_unordered, create


def own_chain_edits(changes: Iterable[Change], family: Family) -> Iterator[Edit]:
    """What becomes of the chains that service ports have for themselves."""
    for before, after in changes:
        yield from _chain_edits(before.chains if before else {}, after.chains if after else {}, family)


def linear_dispatch_edits(changes: Iterable[Change]) -> Iterator[Edit]:
    """What becomes of dispatch chains in layout `classic`: rules come and go, and no chain is looked at as a whole."""
    gone: dict[tuple[TableName, str], dict[str, None]] = defaultdict(dict)
    come: dict[tuple[TableName, str], dict[str, None]] = defaultdict(dict)
    for before, after in changes:
        for entry in before.entries if before else ():
            gone[entry.table, entry.chain] |= dict.fromkeys(entry.rules)
        for entry in after.entries if after else ():
            come[entry.table, entry.chain] |= dict.fromkeys(entry.rules)
    for table, chain in sorted(gone.keys() | come.keys()):
        removed, added = gone[table, chain], come[table, chain]
        yield Edit(
            table,
            chain,
            Step.CHANGE,
            tuple(rule for rule in removed if rule not in added),
            # In front, the last one first: a rule that only counts comes to stand before the one that it counts for.
            tuple(Placed(rule, 1) for rule in reversed(added) if rule not in removed),
            separable=True,
        )


def tree_dispatch_edits(changes: Mapping[TableName, Iterable[ChainChange]], family: Family) -> Iterator[Edit]:
    """What becomes of dispatch chains in layout `tree`, whose chains are all short."""
    for table, of_table in changes.items():
        for change in of_table:
            yield _look_edit(table, change.chain, change.before, change.after, family)


def _look_edit(table: TableName, chain: str, before: Look | None, after: Look | None, family: Family) -> Edit:
    if after is None:
        return Edit(table, chain, Step.DELETE, before.rules if before else ())
    if before is None:
        return create(table, chain, after.rules, separable=after.free is not None)
    if after.free is None and before.free is None:
        return change_ordered(table, chain, before.rules, after.rules, family)
    if after.free is None:  # the order begins to count: nobody knows in which one the kernel has the rules
        return replace(create(table, chain, after.rules), removed=before.rules)
    return change_unordered(table, chain, before.rules, after.rules, after.free, family)


def _chain_edits(before: Mapping[str, Rules], after: Mapping[str, Rules], family: Family) -> Iterator[Edit]:
    for chain, rules in after.items():
        if chain not in before:
            yield create("nat", chain, rules)
        elif before[chain] != rules:
            yield change_ordered("nat", chain, before[chain], rules, family)
    for chain, rules in before.items():
        if chain not in after:
            yield Edit("nat", chain, Step.DELETE, rules)
