"""Differences as operators read them: per Service, what is missing, extra or changed. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kpx.netfilter.names import CHOICES
from kpx.netfilter.rule import comment_of, target_of
from kpx.netfilter.ruleset import TableName
from kpx.reconcile.edit import Edit, Step
from kpx.reconcile.owners import Owners
from kpx.shape import SHAPE

Kind = Literal["missing", "extra", "changed", "moved"]

FRAME = "(all Services)"
"""Stands for the owner of rules that belong to no Service in particular."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One rule that is not as desired.

    A moved rule is there and should be, at another place among others. A chain that should be there and is empty, or is
    there and should not be, is told by an empty rule on both sides.
    """

    __pydantic_config__ = SHAPE

    kind: Kind
    table: TableName
    chain: str
    live: Annotated[str, Field(description="the rule that is there, behind -A CHAIN; empty if it is missing")] = ""
    desired: Annotated[str, Field(description="the rule that should be there; empty if it is extra")] = ""
    times: Annotated[int, Field(description="how many equal rules this is said of")] = 1

    def lines(self) -> tuple[str, ...]:
        """For people to read: one line, or three if both rules have to be shown."""
        where = f"{self.kind:<8}{self.table} {self.chain}"
        if self.kind == "changed":
            return (where, f"    live  {self.live}", f"    want  {self.desired}")
        often = f"  ({self.times} times)" if self.times > 1 else ""
        return (f"{where}  {self.live or self.desired or '(the chain itself)'}{often}",)


def differences(edits: Sequence[Edit], owners: Owners) -> Mapping[str, Sequence[Difference]]:
    """What `edits` would change, by service port (`namespace/name:port`), sorted; `FRAME` comes first."""
    found: dict[str, list[Difference]] = defaultdict(list)
    for edit in edits:
        for one in _of_edit(edit):
            found[owners.of(edit.chain, one.desired or one.live) or FRAME].append(one)
    return {owner: found[owner] for owner in sorted(found)}


def _of_edit(edit: Edit) -> Iterator[Difference]:
    gone, come = list(edit.removed), [one.rule for one in edit.added]
    for rule in list(come) if edit.step is Step.CREATE else ():  # what a chain made anew holds as before
        if rule in gone:
            gone.remove(rule)
            come.remove(rule)
    for rule in list(come):
        if rule in gone:
            gone.remove(rule)
            come.remove(rule)
            yield Difference("moved", edit.table, edit.chain, rule, rule)
    for rule in list(come):
        twin = next((old for old in gone if _same_purpose(edit.chain, old, rule)), None)
        if twin is not None:
            gone.remove(twin)
            come.remove(rule)
            yield Difference("changed", edit.table, edit.chain, twin, rule)
    for rule, times in Counter(gone).items():
        yield Difference("extra", edit.table, edit.chain, live=rule, times=times)
    for rule, times in Counter(come).items():
        yield Difference("missing", edit.table, edit.chain, desired=rule, times=times)
    if not (edit.removed or edit.added):
        kind: Kind = "extra" if edit.step is Step.DELETE else "missing"
        yield Difference(kind, edit.table, edit.chain)


def _same_purpose(chain: str, old: str, new: str) -> bool:
    """Whether one rule took the other's place: same comment, same target and, if it chooses one, same endpoint."""
    chooses = chain.startswith(CHOICES)
    return (_aim(old, chooses), comment_of(old)) == (_aim(new, chooses), comment_of(new))


def _aim(rule: str, chooses: bool) -> str | None:
    target = target_of(rule)
    return rule.rpartition(" -j ")[2] if chooses and target == "DNAT" else target
