"""Decision diagrams: what rules do to every packet at once.

A diagram is a function from packets to what can become of them. A node asks for one variable of the packet (its
destination, say), whose values are whole numbers, and has one diagram for each interval of values; a leaf holds ends
with their weights. Variables are asked in ascending order, neighbouring intervals differ, and no two nodes are equal:
so two diagrams without chance are the same object if, and only if, they are the same function. What doesn't depend on a
variable doesn't ask for it.

Where chance decides, a leaf's end can be a diagram itself: then, with that weight, a packet's end is what this diagram
says, whichever variables it asks for. So n endpoints of which each does something else to one packet (the one that it
sent itself) take room for n, not for n times n. Such leaves may differ and be the same function all the same.

Weights are whole numbers in units of 2^-128. A product is rounded down, by less than one unit; however many there are
on a packet's way, what is lost can't be seen beside a step of 2^-31, in which the kernel keeps probabilities.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

from kpx.errors import KpxError

Ends = Mapping[Hashable, int]

LEAF = 1 << 62
"""What a leaf has as variable: it comes behind all others."""

STEPS = 31
UNIT = 1 << 128
STEP = UNIT >> STEPS
"""The weight of 1, and of the kernel's smallest probability."""


class Diagram:
    """A node or a leaf. Made by `Diagrams` alone; equal ones are the same object.

    A node's `cuts` are the first values of its intervals, starting with 0, and `kids` their diagrams. `traits` has the
    bits of the variables that are asked for here or below (`bit_of`), and those that its ends have.
    """

    __slots__ = ("cuts", "ends", "kids", "traits", "var")

    def __init__(
        self, var: int, cuts: tuple[int, ...], kids: "tuple[Diagram, ...]", ends: Ends, traits: int = 0
    ) -> None:
        self.var, self.cuts, self.kids, self.ends, self.traits = var, cuts, kids, ends, traits

    def at(self, value: int) -> "Diagram":
        """The diagram for a value of this node's variable."""
        return self.kids[bisect_right(self.cuts, value) - 1]


_NO_ENDS: Ends = {}
_LEAST, _EACH, _MOST = 300_000, 100, 40_000_000
"""How many intervals and ends there may be for few rules, how many more for each rule, and for many.

Rulesets of Services need some 10 for each rule. The least is a few seconds' work, the most fits in 4 GB of memory.
"""


class TooComplexError(KpxError):
    """Rules that tell so many classes of packets apart that they can't all be looked at."""


_LAST_BIT = 56


PLACE = 1 << 20
"""Variables are numbered in steps of this, so that any number of them can be put behind one that there is."""


def bit_of(var: int) -> int:
    """The bit that stands for a variable in `traits`; it shares one with those of its place, or all beyond the last."""
    return 1 << min(var // PLACE, _LAST_BIT)


class Diagrams:
    """Makes diagrams and computes with them; those of different makers don't mix.

    `trait` gives the bits of an end, which must lie beyond those of variables: from bit 57 on. `rules` is how
    many rules there are to compute with, which says how much is too much.
    """

    def __init__(self, trait: Callable[[Hashable], int], rules: int) -> None:
        self._trait = trait
        self._room = min(_LEAST + _EACH * rules, _MOST)
        self._leaves: dict[frozenset[tuple[Hashable, int]], Diagram] = {}
        self._nodes: dict[tuple[int, tuple[int, ...], tuple[Diagram, ...]], Diagram] = {}
        self._picked: dict[tuple[Diagram, Diagram, Diagram], Diagram] = {}
        self.true, self.false = self.sure(True), self.sure(False)

    def leaf(self, ends: Ends) -> Diagram:
        """The diagram that is the same for every packet."""
        key = frozenset(ends.items())
        found = self._leaves.get(key)
        if found is None:
            self._take(len(ends))
            traits = 0
            for end in ends:
                traits |= end.traits if isinstance(end, Diagram) else self._trait(end)
            found = self._leaves[key] = Diagram(LEAF, (), (), ends, traits)
        return found

    def mix(self, parts: Iterable[tuple[Diagram, int]]) -> Diagram:
        """The leaf that is each of some diagrams with a weight."""
        ends: dict[Hashable, int] = {}
        for part, weight in parts:
            for end, share in ((part, UNIT),) if part.kids else part.ends.items():
                ends[end] = ends.get(end, 0) + share * weight // UNIT
        return self.leaf(ends)

    def parts(self, one: Diagram) -> Iterator[tuple[Diagram, int]]:
        """What a diagram is by chance, with weights: nodes, and leaves with one end each."""
        if one.kids:
            yield one, UNIT
        for end, weight in one.ends.items():
            yield (end if isinstance(end, Diagram) else self.sure(end)), weight

    def remixed(self, leaf: Diagram, change: Callable[[Hashable], Diagram]) -> Diagram:
        """A leaf with a diagram instead of each of its ends."""
        return self.mix((change(end), weight) for end, weight in leaf.ends.items())

    def _take(self, room: int) -> None:
        self._room -= room
        if self._room < 0:
            raise TooComplexError("these rules tell too many classes of packets apart to compare all of them")

    def sure(self, end: Hashable) -> Diagram:
        """A leaf with one end."""
        return self.leaf({end: UNIT})

    def node(self, var: int, cuts: Sequence[int], kids: Sequence[Diagram]) -> Diagram:
        """A node, whose kids must ask for later variables only; the kid itself if there is only one."""
        starts: list[int] = []
        differing: list[Diagram] = []
        last = None
        for start, kid in zip(cuts, kids, strict=True):
            if kid is not last:
                starts.append(start)
                differing.append(kid)
                last = kid
        if len(differing) == 1:
            return differing[0]
        key = (var, tuple(starts), tuple(differing))
        found = self._nodes.get(key)
        if found is None:
            self._take(len(differing))
            traits = bit_of(var)
            for kid in differing:
                traits |= kid.traits
            found = self._nodes[key] = Diagram(var, key[1], key[2], _NO_ENDS, traits)
        return found

    def between(self, var: int, first: int, last: int, size: int) -> Diagram:
        """The test that a variable with the values 0 to `size` - 1 lies in an interval; true or false."""
        cuts, kids = [first], [self.true]
        if first > 0:
            cuts.insert(0, 0)
            kids.insert(0, self.false)
        if last < size - 1:
            cuts.append(last + 1)
            kids.append(self.false)
        return self.node(var, cuts, kids)

    def pick(self, test: Diagram, yes: Diagram, no: Diagram) -> Diagram:
        """One diagram where a test is true, and another one where it is false."""
        if test is self.true or yes is no:
            return yes
        if test is self.false:
            return no
        key = (test, yes, no)
        found = self._picked.get(key)
        if found is None:
            cuts, kids = [], []
            var = min(test.var, yes.var, no.var)
            for start, (t, y, n) in zipped(var, key):
                cuts.append(start)
                kids.append(self.pick(t, y, n))
            found = self._picked[key] = self.node(var, cuts, kids)
        return found

    def negated(self, test: Diagram) -> Diagram:
        """The opposite test."""
        return self.pick(test, self.false, self.true)

    def case(self, var: int, cuts: Sequence[int], kids: Sequence[Diagram]) -> Diagram:
        """Like `node`, but kids may ask for any variable."""
        if all(var < kid.var for kid in kids):
            return self.node(var, cuts, kids)
        result = kids[-1]
        for start, kid in zip(reversed(cuts[1:]), reversed(kids[:-1]), strict=True):
            result = self.pick(self.node(var, (0, start), (self.true, self.false)), kid, result)
        return result

    def chance(self, weight: int, yes: Diagram, no: Diagram) -> Diagram:
        """One diagram with a probability, and else another one."""
        if weight in (0, UNIT):
            return yes if weight else no
        return self.mix(((yes, weight), (no, UNIT - weight)))

    def mapped(self, one: Diagram, change: Callable[[Hashable], Hashable]) -> Diagram:
        """With other ends; those that become the same are added up."""
        memo: dict[Diagram, Diagram] = {}

        def changed(end: Hashable) -> Diagram:
            return go(end) if isinstance(end, Diagram) else self.sure(change(end))

        def go(part: Diagram) -> Diagram:
            found = memo.get(part)
            if found is None:
                if not part.kids:
                    found = self.remixed(part, changed)
                else:
                    found = self.node(part.var, part.cuts, [go(kid) for kid in part.kids])
                memo[part] = found
            return found

        return go(one)

    def forget(self) -> None:
        """Give back the memory of what was computed; diagrams stay."""
        self._picked.clear()


def zipped(var: int, parts: Sequence[Diagram]) -> Iterator[tuple[int, Sequence[Diagram]]]:
    """The intervals of a variable on which no part changes: their first values, with what each part is there."""
    asking = [index for index, part in enumerate(parts) if part.var == var]
    if len(asking) == 1:
        (index,) = asking
        row = list(parts)
        for start, kid in zip(parts[index].cuts, parts[index].kids, strict=True):
            row[index] = kid
            yield start, tuple(row)
        return
    row = list(parts)
    starts = sorted({cut for index in asking for cut in parts[index].cuts})
    at = dict.fromkeys(asking, 0)
    for start in starts:
        for index in asking:
            part, place = parts[index], at[index]
            if place < len(part.cuts) and part.cuts[place] == start:
                row[index] = part.kids[place]
                at[index] = place + 1
        yield start, tuple(row)


def variables(one: Diagram) -> set[int]:
    """The variables that a diagram depends on."""
    seen: set[Diagram] = set()
    edge = [one]
    while edge:
        part = edge.pop()
        if part not in seen:
            seen.add(part)
            edge += part.kids
            edge += (end for end in part.ends if isinstance(end, Diagram))
    return {part.var for part in seen} - {LEAF}
