"""How packets leave rules, changed in which way; rules and tables one after the other."""

from collections.abc import Hashable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from kpx.analysis.equivalence import fields
from kpx.analysis.equivalence.diagram import Diagram, bit_of, zipped
from kpx.analysis.equivalence.fields import HOMES, TO_ITSELF, Fields

MASQUERADE = "masquerade"


class Change(NamedTuple):
    """What rules have done to a packet so far.

    `to` is where it is translated to: address, and port if one was given. Of its mark the bits `clear` were taken and
    then the bits `flip` flipped. `source` says what its source was replaced by: `masquerade`, or addresses. `noted` are
    the lists that its sender was put on, in order. `met` are the rules with unknown targets that it has passed.
    """

    to: tuple[int, int | None] | None = None
    clear: int = 0
    flip: int = 0
    source: str = ""
    tracked: bool = True
    noted: tuple[str, ...] = ()
    met: tuple[str, ...] = ()

    def then(self, later: "Change") -> "Change":
        """Both, one after the other."""
        if later == NOTHING:
            return self
        to = later.to or self.to
        if later.to and later.to[1] is None and self.to:
            to = (later.to[0], self.to[1])
        return Change(
            to,
            self.clear | later.clear,
            (self.flip & ~later.clear) ^ later.flip,
            later.source or self.source,
            self.tracked and later.tracked,
            (*(one for one in self.noted if one not in later.noted), *later.noted),
            self.met + later.met,
        )


NOTHING = Change()


class Kind(StrEnum):
    """How a packet leaves rules: to the next rule, back from the chain, out of the table, or for good."""

    ON = "on"
    BACK = "back"
    ACCEPT = "accept"
    END = "end"


class Exit(NamedTuple):
    """One way to leave rules. `why` says what becomes of a packet whose way ends."""

    kind: Kind
    change: Change = NOTHING
    why: str = ""


ON = Exit(Kind.ON)

_TRAITS = {kind: 1 << 57 + place for place, kind in enumerate(Kind)}


_CHANGED = 64
"""From this bit on, traits tell of which variables packets that go on have other values than before."""


def trait(end: Hashable) -> int:
    """The bits that tell diagrams with exits of some kind, and with those that change a variable."""
    if not isinstance(end, Exit):
        return 0
    return _TRAITS[end.kind] | (_changed(end.change) << _CHANGED if end.kind is Kind.ON else 0)


def _changed(change: Change) -> int:
    """The bits of the variables that a change gives other values (`Exits.then`)."""
    bits = 0
    if change.clear or change.flip or change.met:
        bits |= bit_of(fields.MARK)
    if change.to:
        bits |= bit_of(fields.TRANSLATED) | bit_of(fields.DESTINATION) | bit_of(fields.DESTINATION_LOCAL)
        bits |= bit_of(fields.PORT)
    if change.source:
        bits |= (
            bit_of(fields.REPLACED) | bit_of(fields.SOURCE) | bit_of(fields.SOURCE_LOCAL) | bit_of(fields.FIRST_HASH)
        )
    if not change.tracked:
        bits |= bit_of(fields.STATE)
    if change.noted:
        bits |= bit_of(fields.HOME) | bit_of(fields.AGE)
    if change.to or change.source or change.noted or change.met:
        bits |= bit_of(fields.FIRST_NAMED)
    return bits


def has(one: Diagram, kind: Kind) -> bool:
    """Whether some packet leaves like this."""
    return bool(one.traits & _TRAITS[kind])


class Exits:
    """Computes with diagrams whose ends are exits."""

    def __init__(self, fields_: Fields) -> None:
        self.fields, self.diagrams = fields_, fields_.diagrams
        self.on = self.diagrams.sure(ON)
        self._thens: dict[tuple[Change, Diagram], Diagram] = {}

    def forget(self) -> None:
        """Give back the memory of what was computed."""
        self._thens.clear()
        self.diagrams.forget()

    def sequence(self, parts: Sequence[Diagram]) -> Diagram:
        """What rules, or tables, do one after the other.

        They are joined in pairs, and these in pairs: so n rules that have little in common cost n log n.
        """
        if not parts:
            return self.on
        if len(parts) == 1:
            return parts[0]
        middle = len(parts) // 2
        return self._join(self.sequence(parts[:middle]), self.sequence(parts[middle:]), {})

    def _join(self, one: Diagram, next_: Diagram, memo: dict[tuple[Diagram, Diagram], Diagram]) -> Diagram:
        if one is self.on:
            return next_
        if next_ is self.on or not has(one, Kind.ON):
            return one
        key = (one, next_)
        found = memo.get(key)
        if found is None:
            if one.kids:
                var = min(one.var, next_.var)
                if one.traits >> _CHANGED & bit_of(var):
                    # What comes next doesn't see the value that the packet had.
                    kids = [self._join(kid, next_, memo) for kid in one.kids]
                    found = self.diagrams.case(one.var, one.cuts, kids)
                else:
                    cuts, kids = [], []
                    for start, (left, right) in zipped(var, key):
                        cuts.append(start)
                        kids.append(self._join(left, right, memo))
                    found = self.diagrams.node(var, cuts, kids)
            else:
                found = self._behind(one, next_, memo)
            memo[key] = found
        return found

    def _behind(self, leaf: Diagram, next_: Diagram, memo: dict[tuple[Diagram, Diagram], Diagram]) -> Diagram:
        """What becomes of packets that leave a leaf, where those that go on meet `next_`."""

        def follow(end: Hashable) -> Diagram:
            if isinstance(end, Diagram):
                return self._join(end, next_, memo)
            if isinstance(end, Exit) and end.kind is Kind.ON:
                return self.then(end.change, next_)
            return self.diagrams.sure(end)

        return self.diagrams.remixed(leaf, follow) if len(leaf.ends) > 1 else follow(*leaf.ends)

    def then(self, change: Change, next_: Diagram) -> Diagram:
        """What rules do to packets that were changed before, in terms of the packets as they were."""
        if change == NOTHING:
            return next_
        return self._then(change, self._fixed(change), next_)

    def _then(self, change: Change, fixed: Mapping[int, int], part: Diagram) -> Diagram:
        key = (change, part)
        found = self._thens.get(key)
        if found is None:
            if not part.kids:
                found = self.diagrams.remixed(part, lambda end: self._after(change, fixed, end))
            elif part.var in fixed:
                found = self._then(change, fixed, part.at(fixed[part.var]))
            elif change.to and (test := self._test_of(change, part.var)):
                yes, no = (self._then(change, fixed, part.at(value)) for value in (1, 0))
                found = self.diagrams.pick(test, yes, no)
            else:
                kids = [self._then(change, fixed, kid) for kid in part.kids]
                var, flipped = self._renamed(change, part.var)
                found = self.diagrams.case(var, part.cuts, kids[::-1] if flipped else kids)
            self._thens[key] = found
        return found

    def _after(self, change: Change, fixed: Mapping[int, int], end: Hashable) -> Diagram:
        if isinstance(end, Diagram):
            return self._then(change, fixed, end)
        return self.diagrams.sure(end._replace(change=change.then(end.change)) if isinstance(end, Exit) else end)

    def fixed(self, one: Diagram, values: Mapping[int, int]) -> Diagram:
        """What becomes of packets of which the values of some variables are known."""
        memo: dict[Diagram, Diagram] = {}
        bits = 0
        for var in values:
            bits |= bit_of(var)

        def go(part: Diagram) -> Diagram:
            if not part.traits & bits:
                return part
            found = memo.get(part)
            if found is None:
                if part.var in values:
                    found = go(part.at(values[part.var]))
                elif not part.kids:
                    found = self.diagrams.remixed(
                        part, lambda end: go(end) if isinstance(end, Diagram) else self.diagrams.sure(end)
                    )
                else:
                    found = self.diagrams.node(part.var, part.cuts, [go(kid) for kid in part.kids])
                memo[part] = found
            return found

        return go(one)

    def _test_of(self, change: Change, var: int) -> Diagram | None:
        """What a variable with the values 0 and 1 asks of a translated packet as it was before; None for others."""
        assert change.to
        address, port = change.to
        if self.fields.name(var) == TO_ITSELF:
            source = self.fields.named("source", change.source) if change.source else fields.SOURCE
            return self.fields.between(source, address, address)
        if var != fields.TRANSLATED:
            return None
        # Conntrack doesn't call it a translation where the packet goes there anyway.
        same = self.fields.between(fields.DESTINATION, address, address)
        if port is not None:
            same_port = self.fields.between(fields.PORT, port, port)
            same = self.diagrams.pick(same, same_port, self.diagrams.false)
        return self.diagrams.pick(same, self.fields.holds(fields.TRANSLATED), self.diagrams.true)

    def _fixed(self, change: Change) -> dict[int, int]:
        """The variables whose values are known of a packet that was changed."""
        fixed = {fields.MARK + bit: change.flip >> bit & 1 for bit in range(32) if change.clear >> bit & 1}
        if change.to:
            fixed[fields.DESTINATION] = change.to[0]
            if change.to[1] is not None:
                fixed[fields.PORT] = change.to[1]
        if change.source:
            fixed[fields.REPLACED] = 1
        if change.source.startswith(MASQUERADE):
            fixed[fields.SOURCE_LOCAL] = 1
        if not change.tracked:
            fixed[fields.STATE] = fields.UNTRACKED
        for name in change.noted:
            if name.startswith(HOMES):
                fixed |= {fields.HOME: self.fields.home(name), fields.AGE: 0}
            else:
                fixed[self.fields.named("list", name)] = 0
        return fixed

    def _renamed(self, change: Change, var: int) -> tuple[int, bool]:
        """The variable that stands for one of a changed packet, and whether its values 0 and 1 are exchanged."""
        name = self.fields.named
        of_mark = fields.MARK <= var < fields.MARK + 32
        flipped = of_mark and bool(change.flip >> (var - fields.MARK) & 1)
        if var == fields.DESTINATION_LOCAL and change.to:
            return name("local", change.to[0]), False
        if var == fields.SOURCE and change.source:
            return name("source", change.source), False
        if var == fields.SOURCE_LOCAL and change.source:
            return name("source local", change.source), False
        if of_mark and change.met:
            return name("unknown", f"bit {var - fields.MARK} of the mark", *change.met), flipped
        own = self.fields.name(var)
        if own[:1] == ("hash",) and change.source:
            return name("hash of a new source", change.source, *own[1:]), False
        if own == TO_ITSELF and change.source:
            return name("from what it was given as source", change.source), False
        if own[:1] == ("unknown",) and (change.to or change.source or change.met):
            return name(*own, change.to, change.source, change.met), False
        return var, flipped
