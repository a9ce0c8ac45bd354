"""From edits to transactions: an order in which every intermediate state routes correctly. Pure.

1. filter: what is added. A rule there that refuses a Service's address harms no packet that nat translates.
2. nat: new chains, bottom-up; nobody jumps to them yet.
3. nat: changed chains, then the chains that dispatch and the jumps: the switch-over.
4. nat: what is removed from KUBE-POSTROUTING, then stale chains; nobody jumps to them any more.
5. filter: what is removed.

Where the nat part is small, 2 to 4 are one transaction. KUBE-POSTROUTING comes first among the changed chains where it
gets rules, and last where it only loses some: the layout `compact` has there, and in KUBE-FORWARD, what others have in
each endpoint's chain, and no packet may find neither.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from kpx.netfilter.names import ours
from kpx.netfilter.restore import Transaction
from kpx.reconcile.edit import Edit, Step, create

NFT_CHAINS = 250
"""How many chains a transaction may name on nft.

The tools keep the chains that a transaction names in a list and walk it for every line, so one large
transaction costs the square of its size: 164 s for 60,000 chains, against 6 s in pieces of 250.
"""


def transactions(edits: Iterable[Edit], chains: int = NFT_CHAINS) -> Iterator[Transaction]:
    """Put edits into transactions that name at most `chains` chains each (0: no bound); made as they are asked for."""
    every = tuple(edits)
    filter_ = [edit for edit in every if edit.table == "filter"]
    nat = [edit for edit in every if edit.table == "nat"]
    early, late = _split(filter_) if nat else (filter_, [])
    return (_transaction(batch) for some in (early, nat, late) for batch in _batches(some, chains))


def harmless(edits: Iterable[Edit]) -> tuple[list[Edit], list[Edit]]:
    """What may be written before all edits are known, chains of the nat table that nobody jumps to yet; and the rest.

    The chains that they jump to have to be among them, or there already.
    """
    new: list[Edit] = []
    rest: list[Edit] = []
    for edit in edits:
        is_new = edit.table == "nat" and edit.step is Step.CREATE and not edit.removed
        (new if is_new else rest).append(edit)
    return new, rest


def _split(edits: Iterable[Edit]) -> tuple[list[Edit], list[Edit]]:
    """What to do before the nat table changes, and after: rules that stand alone come early and go late."""
    early: list[Edit] = []
    late: list[Edit] = []
    for edit in edits:
        if edit.separable and edit.step is Step.CHANGE:
            early.append(edit.additions())
            late.append(edit.removals())
        elif edit.step is Step.DELETE or _only_loses(edit):
            late.append(edit)
        else:
            early.append(edit)
    return list(filter(None, early)), list(filter(None, late))


def _batches(edits: Iterable[Edit], chains: int) -> Iterator[Sequence[Edit]]:
    ordered = sorted(edits, key=_phase)
    if not chains or len(ordered) <= chains:
        if ordered:
            yield ordered
        return
    for phase, group in groupby(ordered, key=_phase):
        some = list(group)
        if phase == _DELETE and len(some) > chains:
            # A transaction empties the chains that it deletes, but stale chains of different ones may refer to
            # each other: so all are emptied before the first goes.
            yield from _cut([create(edit.table, edit.chain, ()) for edit in some], chains)
        yield from _cut(some, chains)


def _cut(edits: Sequence[Edit], length: int) -> Iterator[Sequence[Edit]]:
    for start in range(0, len(edits), length):
        yield edits[start : start + length]


_DELETE = 4


def _phase(edit: Edit) -> int:
    if edit.step is Step.CREATE:
        return 0
    if edit.step is Step.DELETE:
        return _DELETE
    if _only_loses(edit):
        return 3
    return 2 if edit.separable or not ours(edit.chain) else 1


_BEHIND = {("nat", "KUBE-POSTROUTING"), ("filter", "KUBE-FORWARD")}
"""Chains that all packets pass behind those of their Service."""


def _only_loses(edit: Edit) -> bool:
    """Whether rules go from a chain that is passed behind those of Services, and none come."""
    return (edit.table, edit.chain) in _BEHIND and edit.step is Step.CHANGE and not edit.added


def _transaction(edits: Sequence[Edit]) -> Transaction:
    return Transaction(
        table=edits[0].table,
        declare=tuple(edit.chain for edit in edits if edit.step is not Step.CHANGE),
        lines=tuple(line for edit in edits for line in edit.lines()),
    )
