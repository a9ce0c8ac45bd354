"""Are two sets of tables equivalent: does every packet meet the same, with the same probabilities?

Both sides become decision diagrams over the same variables; they are walked side by side, over every class of packets
that any constant in any rule tells apart. Where both are one and the same diagram, they are equal for every packet
below, and nothing has to be looked at: that is what makes it fast, not leaving anything out.

What counts as the same. Where a packet arrives (address and port), whether and by what its source is replaced, how it
is rejected, that it is dropped; and the lists of clients (xt_recent) that its sender is put on, if both sides ask for
them: so what follows of one connection for the next one is the same too. Not names and order of chains, comments,
counters, what is logged, and the mark that a packet leaves with.

Probabilities. The kernel keeps a rule's probability in steps of 2^-31. kube-proxy gives n endpoints their shares by
1/n, 1/(n-1), … 1/2, each written with ten digits: off by less than 0.61 steps by rounding to digits and to steps, which
makes shares that are off 1/n by less than one step, for any n (the errors of rules further ahead weigh less, the share
of what they pass on being smaller). So do kpx's trees. Two ways to spread clients evenly thus differ by less than two
steps for each endpoint. That is what is tolerated: two steps for each way in which a packet can be translated. One
million connections in a day would tell a difference of that size after a few thousand years.

Programs (`-m bpf`) that look at nothing but the source make a number of it, and compare that with a bound: numbers of
the same program are the same on both sides, so that only bounds have to be compared. Of a difference that depends on
them a source is looked for whose numbers show it; where none is found soon, it counts as one that isn't known.

What isn't known. A match of an unknown module counts as the same on both sides if it reads the same in the same table,
asked of the same packet; one that also depends on other packets (`limit` and such) and a target that isn't known only
if the whole rule is the same in the chain of the same name. A difference that depends on such a match isn't called one.

Of endpoints of one Service at most one knows a client (`-m recent`, lists `KUBE-SEP-…`): a client is put on the list
of the one that it is sent to, and goes there until it expires.
"""

import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from kpx.analysis.equivalence import fields
from kpx.analysis.equivalence.chains import Chains, Shared
from kpx.analysis.equivalence.diagram import LEAF, STEP, UNIT, Diagram, Diagrams, variables, zipped
from kpx.analysis.equivalence.exits import Change, Exit, Exits, Kind, trait
from kpx.analysis.equivalence.fields import HOMES, TO_ITSELF, Fields
from kpx.analysis.equivalence.rules import Rules
from kpx.analysis.equivalence.ways import Way, Ways
from kpx.analysis.simulate import Policies, Tables
from kpx.family import Family

TOLERANCE = 2 * STEP
"""By how much the weights of one way of translation may differ; see above."""

_ROUNDING = 1 << 64
"""More than what is lost in rounding products, and nothing beside a step."""


class End(NamedTuple):
    """What finally becomes of a packet. `why` is empty for one that arrives, and where it does is `to`, if translated.

    `noted` are lists that its sender is put on, `met` the rules with unknown targets that it passed.
    """

    why: str = ""
    to: tuple[int, int | None] | None = None
    source: str = ""
    noted: tuple[str, ...] = ()
    met: tuple[str, ...] = ()


Box = Mapping[int, tuple[int, int]]
"""A class of packets: for each variable that was asked for, the first and last value. Others may have any."""


Mix = dict[Diagram, tuple[int, int]]
"""What can become of a packet, each with its weight and in how many ways it comes about. None is a leaf of chance."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A class of packets that meet different ends, and what they meet on either side."""

    sent: bool
    box: Box
    sides: tuple["Mix", "Mix"]


@dataclass(slots=True)
class Compared:
    """The result. `divergences` are some of them, none only if there are none. `unknown` are matches of unknown modules
    and targets that both sides agree on.
    """

    fields: Fields
    divergences: list[Divergence] = field(default_factory=list)
    unknown: tuple[str, ...] = ()


Side = tuple[Tables, Policies]

_ENOUGH = 60
"""How many divergences to collect before choosing the plainest one."""


def compare(one: Side, other: Side, family: Family) -> Compared:
    """Compare two sets of tables of one family."""
    with deep():
        return _Comparison(one, other, family).run()


@contextmanager
def deep() -> Iterator[None]:
    """Diagrams of long chains are deep, and walked recursively."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 200_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class _EnoughError(Exception):
    """Raised to end the search."""


class _Comparison:
    def __init__(self, one: Side, other: Side, family: Family) -> None:
        names = {name for tables, _ in (one, other) for name in interfaces(tables)}
        diagrams = Diagrams(trait, sum(rule_count(tables) for tables, _ in (one, other)))
        self.fields = Fields(diagrams, family, names)
        self.exits = Exits(self.fields)
        rules, shared = Rules(self.exits), Shared()
        self.sides = [Chains(tables, policies, rules, shared) for tables, policies in (one, other)]
        self.compared = Compared(self.fields)

    def run(self) -> Compared:
        pairs = {
            (sent, translatable): tuple(
                ways.sent() if sent else ways.received()
                for ways in (Ways(chains, self.fields, translatable) for chains in self.sides)
            )
            for sent in (False, True)
            for translatable in (True, False)
        }
        self.exits.forget()
        asked = self.sides[0].asked & self.sides[1].asked
        used: set[int] = set()
        with suppress(_EnoughError):
            for (sent, translatable), (left, right) in pairs.items():
                for start in (_NEW, _EXPECTED) if translatable else (_KNOWN,):
                    _Walk(self, sent, start, (left, right), asked).run()
                used |= {var for way in (left, right) for part in (way.first, way.behind) for var in variables(part)}
        self.compared.unknown = tuple(sorted({name for name in map(self._unknown, used) if name}))
        return self.compared

    def _unknown(self, var: int) -> str:
        name = self.fields.name(var)
        return str(name[-1]) if name[:1] == ("unknown",) else ""


def rule_count(tables: Tables) -> int:
    """How many rules there are."""
    return sum(len(rules) for table in tables.values() for rules in table.values())


def interfaces(tables: Tables) -> Iterator[str]:
    """The interfaces that rules ask for."""
    for table in tables.values():
        for rules in table.values():
            for rule in rules:
                if "-i " in rule or "-o " in rule:
                    words = rule.split(" ")
                    yield from (name for option, name in pairwise(words) if option in ("-i", "-o"))


_Start = Mapping[int, int]
"""What is known of packets before they come in, by variable."""

_NEW: _Start = {fields.STATE: fields.NEW, fields.TRANSLATED: 0, fields.REPLACED: 0}
_EXPECTED: _Start = {fields.STATE: fields.RELATED, fields.TRANSLATED: 0, fields.REPLACED: 0}
_KNOWN: _Start = {}
"""Packets that begin a connection, also one that conntrack has expected, and those that don't."""


class _Walk:
    """Walks both sides of one way, for packets of which `start` is known."""

    def __init__(
        self, comparison: _Comparison, sent: bool, start: _Start, ways: Sequence[Way], asked: set[str]
    ) -> None:
        self.exits, self.diagrams = comparison.exits, comparison.exits.diagrams
        self.compared, self.sent, self.ways, self.asked = comparison.compared, sent, ways, asked
        self._start = start
        self._behind: tuple[dict[Change, Diagram], dict[Change, Diagram]] = ({}, {})
        self._finals: tuple[dict[Diagram, Diagram], dict[Diagram, Diagram]] = ({}, {})
        self._same: set[tuple[Diagram, Diagram]] = set()
        self._box: dict[int, tuple[int, int]] = {}
        if start is _KNOWN:
            self._box[fields.STATE] = (1, len(fields.STATES) - 1)
        elif start is _EXPECTED:
            self._box[fields.STATE] = (fields.RELATED, fields.RELATED)
        # Where a packet has no interface on one side, the rules have been told so; here they have one.
        self._box[fields.IN] = self._box[fields.OUT] = (1, comparison.fields.size(fields.IN) - 1)

    def run(self) -> None:
        """Find divergences."""
        left, right = (self.exits.fixed(way.first, self._start) for way in self.ways)
        # Of packets as they are when they get there: whether they were translated, say, is known only then.
        self._equal_behind = self.ways[0].behind is self.ways[1].behind
        self._walk(left, right)
        self.exits.forget()

    # -- up to the point where packets are routed ----------------------------------------------------------

    def _walk(self, one: Diagram, other: Diagram) -> bool:
        """Walk two diagrams within the box; whether they were the same, whatever the box is."""
        key = (one, other)
        if key in self._same or (one is other and self._equal_behind):
            return True
        var = min(one.var, other.var)
        if var == LEAF:
            same = self._meet(one, other)
        else:
            same = True
            for left, right in self._within(var, key):
                same = self._walk(left, right) and same
        if same:
            self._same.add(key)
        return same

    def _within(self, var: int, parts: tuple[Diagram, ...]) -> Iterator[tuple[Diagram, ...]]:
        """The parts on each interval of a variable that has values in the box, which holds just these meanwhile.

        TCP comes before all other protocols: examples are chosen from the divergences that are found first.
        """
        outer = self._box.get(var)
        low, high = outer or (0, self.compared.fields.size(var) - 1)
        rows = list(zipped(var, parts))
        ends = [start - 1 for start, _ in rows[1:]] + [high]
        within = [(max(start, low), min(end, high), row) for (start, row), end in zip(rows, ends, strict=True)]
        if fields.is_hash(var):  # of narrow intervals no source may be found
            within.sort(key=lambda one: one[0] - one[1])
        elif var == fields.PROTOCOL:
            within.sort(key=lambda one: not one[0] <= fields.TCP <= one[1])
        for start, end, row in within:
            if start <= end:
                self._box[var] = (start, end)
                yield tuple(row)
        if outer:
            self._box[var] = outer
        else:
            self._box.pop(var, None)

    def _meet(self, one: Diagram, other: Diagram) -> bool:
        """Compare what becomes of the packets of two leaves."""
        left, right = Mix(), Mix()
        self._put(left, one)
        self._put(right, other)
        if self._equal_behind:
            left, right = _cancelled(left, right)
        left, right = _cancelled(self._onward(0, left), self._onward(1, right))
        if not left and not right:
            return True
        box = dict(self._box)
        left, right = _cancelled(self._narrowed(left, box), self._narrowed(right, box))
        if left or right:
            self._explore(left, right, (one, other))
        return False

    def _onward(self, side: int, mix: Mix) -> Mix:
        """What finally becomes of packets of which the first part of their way says this."""
        final: Mix = {}
        for part, (weight, _) in mix.items():
            self._put(final, self._final(side, part), weight)
        return final

    def _final(self, side: int, part: Diagram) -> Diagram:
        """What finally becomes of packets, by their state before everything, where a part of a first way is known."""
        memo = self._finals[side]
        found = memo.get(part)
        if found is None:
            if part.kids:
                found = self.diagrams.case(part.var, part.cuts, [self._final(side, kid) for kid in part.kids])
            elif len(part.ends) > 1:
                found = self.diagrams.remixed(part, lambda end: self._final_of(side, end))
            else:
                found = self._final_of(side, *part.ends)
            memo[part] = found
        return found

    def _final_of(self, side: int, end: Hashable) -> Diagram:
        if isinstance(end, Diagram):
            return self._final(side, end)
        assert isinstance(end, Exit)
        return self._continued(side, end.change) if end.kind is Kind.ON else self.diagrams.sure(self._end(end))

    def _continued(self, side: int, change: Change) -> Diagram:
        """What becomes of packets behind the first part of their way."""
        found = self._behind[side].get(change)
        if found is None:
            behind = self.exits.then(change, self.ways[side].behind)
            found = self.diagrams.mapped(self.exits.fixed(behind, self._start), self._end)
            self._behind[side][change] = found
        return found

    def _end(self, end: Hashable) -> Hashable:
        assert isinstance(end, Exit)
        asked = [name for name in end.change.noted if name in self.asked]
        homes = [name for name in asked if name.startswith(HOMES)]
        noted = tuple(sorted({*homes[-1:], *(name for name in asked if not name.startswith(HOMES))}))
        change = end.change
        if end.kind is Kind.END:
            return End(end.why, noted=noted, met=change.met)
        return End("", change.to, change.source, noted, change.met)

    def _put(self, mix: Mix, one: Diagram, weight: int = UNIT, ways: int = 1) -> None:
        """Add what a diagram can be to a mix."""
        for part, share in self.diagrams.parts(one):
            before, count = mix.get(part, (0, 0))
            mix[part] = (before + weight * share // UNIT, count + ways)

    # -- behind it -----------------------------------------------------------------------------------------

    def _narrowed(self, mix: Mix, box: Box) -> Mix:
        """What becomes of the packets in a box: without what only matters to others."""
        narrow: Mix = {}
        memo: dict[Diagram, Diagram] = {}
        for part, (weight, ways) in mix.items():
            self._put(narrow, self._narrow(part, box, memo), weight, ways)
        return narrow

    def _narrow(self, part: Diagram, box: Box, memo: dict[Diagram, Diagram]) -> Diagram:
        if not part.kids and not part.traits:
            return part
        found = memo.get(part)
        if found is None and not part.kids:
            found = memo[part] = self.diagrams.remixed(
                part, lambda end: self._narrow(end, box, memo) if isinstance(end, Diagram) else self.diagrams.sure(end)
            )
        if found is None:
            low, high = box.get(part.var, (0, self.compared.fields.size(part.var) - 1))
            inside = [
                (start, kid)
                for start, end, kid in zip(part.cuts, (*part.cuts[1:], high + 1), part.kids, strict=True)
                if start <= high and end > low
            ]
            kids = [self._narrow(kid, box, memo) for _, kid in inside]
            found = memo[part] = self.diagrams.node(part.var, [0, *(start for start, _ in inside[1:])], kids)
        return found

    def _explore(self, left: Mix, right: Mix, leaves: tuple[Diagram, Diagram]) -> None:
        """Find packets in the box that meet different ends."""
        left, right = _cancelled(left, right)
        parts = (*left, *right)
        if not parts:
            return
        var = min(part.var for part in parts)
        if var == LEAF:
            self._conclude(left, right, leaves)
            return
        for row in self._within(var, parts):
            kids = (Mix(), Mix())
            for index, kid in enumerate(row):
                side, from_ = (0, left) if index < len(left) else (1, right)
                self._put(kids[side], kid, *from_[parts[index]])
            self._explore(*kids, leaves)

    def _conclude(self, left: Mix, right: Mix, leaves: tuple[Diagram, Diagram]) -> None:
        ends = self._ends(left), self._ends(right)
        if all(_near(*(side.get(end, (0, 0)) for side in ends)) for end in {**ends[0], **ends[1]}):
            return
        if not self._is_possible():
            return
        whole = [self._onward(side, {leaf: (UNIT, 1)}) for side, leaf in enumerate(leaves)]
        self.compared.divergences.append(Divergence(self.sent, dict(self._box), (whole[0], whole[1])))
        if len(self.compared.divergences) >= _ENOUGH:
            raise _EnoughError

    def _is_possible(self) -> bool:
        """Whether some packet in the box goes to itself, or doesn't, as the box says."""
        names = self.compared.fields
        itself = self._box.get(names.named(*TO_ITSELF))
        if itself is None or itself[0] != itself[1]:
            return True
        sources, destinations = (
            self._box.get(var, (0, names.size(var) - 1)) for var in (fields.SOURCE, fields.DESTINATION)
        )
        if itself[0]:
            return max(sources[0], destinations[0]) <= min(sources[1], destinations[1])
        return sources != destinations or sources[0] != sources[1]

    def _ends(self, mix: Mix) -> Mapping[End, tuple[int, int]]:
        found: dict[End, tuple[int, int]] = {}
        for leaf, (weight, ways) in mix.items():
            end = self._at_port(*leaf.ends)
            before, count = found.get(end, (0, 0))
            found[end] = (before + weight, count + ways)
        return found

    def _at_port(self, end: Hashable) -> End:
        """The end with the packet's own port, if it is translated without one and the box has just one."""
        assert isinstance(end, End)
        first, last = self._box.get(fields.PORT, (0, 1))
        if end.to and end.to[1] is None and first == last:
            return end._replace(to=(end.to[0], first))
        return end


def _near(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two weights differ by no more than is tolerated for as many ways as there are."""
    return abs(one[0] - other[0]) <= max(one[1], other[1]) * TOLERANCE + _ROUNDING


def _cancelled(left: Mix, right: Mix) -> tuple[Mix, Mix]:
    """Without what is the same on both sides, and has the same weight."""
    same = {part for part, (weight, ways) in left.items() if part in right and _near((weight, ways), right[part])}
    if not same:
        return left, right
    return tuple({part: one for part, one in mix.items() if part not in same} for mix in (left, right))  # type: ignore[return-value]
