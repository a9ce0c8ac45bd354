"""Where boxes and arrows of a picture stand: columns from left to right, and lines that only go across and up or down.

Boxes are placed as packets come by them (as Sugiyama, Tagawa and Toda do, 1981): each in the column behind all boxes
that lead there, in a column in the order of those, as near to their height as their neighbours allow. Ways in stand in
the first column. Numbers are pixels; the origin is at the top left. Pure.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap

from kpx.analysis.picture import Arrow, Box
from kpx.analysis.svg.block import Block, Line, Measures, Point, Spot
from kpx.analysis.svg.order import NEAR, Node, columns, lanes, mean, spread

APART = 10
"""Between boxes of a column."""
LANE = 7
"""Between lines that run side by side."""
LABEL_LINE = 11
_HEAD, _START, _LOOP = 16, 10, 12
_SWEEPS = 4


def block(boxes: Sequence[Box], arrows: Iterable[Arrow], measures: Measures, exits: Collection[str] = ()) -> Block:
    """Place boxes and arrows between them. From boxes in `exits` a line leads to the right edge."""
    return _Placing(boxes, arrows, measures, exits).block()


@dataclass(frozen=True, slots=True)
class _Hop:
    """A part of an arrow's way, from one column to the next."""

    source: Node
    target: Node
    label: str = ""


class _Placing:
    """A block while it is laid out."""

    def __init__(
        self, boxes: Sequence[Box], arrows: Iterable[Arrow], measures: Measures, exits: Collection[str]
    ) -> None:
        self.boxes = {one.id: one for one in boxes}
        self.measures = measures
        self.sizes: dict[Node, tuple[int, int]] = {one.id: measures.box(one) for one in boxes}
        self.loops = [one for one in arrows if one.source == one.target]
        self.arrows = [one for one in arrows if one.source != one.target]
        self.column, self.backwards = columns(boxes, self.arrows)
        self.chains: dict[tuple[str, str], list[_Hop]] = {}
        self.out: dict[str, list[_Hop]] = {}
        self._hop(exits)
        self.into: dict[Node, list[_Hop]] = defaultdict(list)
        self.from_: dict[Node, list[_Hop]] = defaultdict(list)
        for hop in dict.fromkeys(hop for some in (*self.chains.values(), *self.out.values()) for hop in some):
            self.into[hop.target].append(hop)
            self.from_[hop.source].append(hop)
        self.sizes |= {node: self._grown(node, size) for node, size in self.sizes.items()}
        self.columns = self._ordered()
        self.y = self._heights()
        self.widths = self._equal_widths()

    def _hop(self, exits: Collection[str]) -> None:
        """Cut arrows into hops from column to column; what lies between is a place of its own, one for each source."""
        last = max(self.column.values(), default=0) + 1
        for arrow in self.arrows:
            ends = (arrow.source, arrow.target)
            source, target = reversed(ends) if ends in self.backwards else ends
            between: list[Node] = [source]
            for column in range(self.column[source] + 1, self.column[target]):
                between.append(("via", source, column))
                self.column[between[-1]] = column
            between.append(target)
            hops = list(starmap(_Hop, pairwise(between)))
            hops[-1] = _Hop(hops[-1].source, target, arrow.label)
            self.chains[ends] = hops
        for source in (one for one in self.boxes if one in exits):
            between = [source, *(("out", source, column) for column in range(self.column[source] + 1, last + 1))]
            self.column |= {place: self.column[source] + step for step, place in enumerate(between)}
            self.out[source] = list(starmap(_Hop, pairwise(between)))

    # ---- order and heights ----

    def _ordered(self) -> list[list[Node]]:
        """Columns, each in the order of what leads there, and of what it leads to; else as boxes came."""
        found: list[list[Node]] = [[] for _ in range(max(self.column.values(), default=-1) + 1)]
        for node, column in self.column.items():
            found[column].append(node)
        at = {node: (place + 0.5) / len(nodes) for nodes in found for place, node in enumerate(nodes)}
        before = {node: [hop.source for hop in self.into[node]] for node in self.column}
        behind = {node: [hop.target for hop in self.from_[node]] for node in self.column}
        forwards = [(nodes, before) for nodes in found]
        backwards = [(nodes, behind) for nodes in reversed(found)]
        for nodes, beside in (*forwards, *backwards, *forwards):
            if nodes is not found[0]:  # ways in stay sorted
                wanted = {one: mean([at[other] for other in beside[one]], at[one]) for one in nodes}
                nodes.sort(key=wanted.__getitem__)
                at |= {node: (place + 0.5) / len(nodes) for place, node in enumerate(nodes)}
        return found

    def _heights(self) -> dict[Node, float]:
        """The middle of each box and place."""
        y: dict[Node, float] = {}
        for nodes in self.columns:
            down = 0.0
            for node in nodes:
                y[node] = down + self._slot(node) / 2
                down += self._slot(node) + APART
            y |= {node: y[node] - down / 2 for node in nodes}
        for _ in range(_SWEEPS):
            for nodes in reversed(self.columns):
                self._settle(nodes, y, {one: [y[hop.target] for hop in self.from_[one]] for one in nodes})
            for nodes in self.columns[1:]:
                self._settle(nodes, y, {one: [y[hop.source] for hop in self.into[one]] for one in nodes})
        top = min((y[one] - self._slot(one) / 2 for one in y), default=0.0)
        return {node: round(middle - top) for node, middle in y.items()}

    def _settle(self, nodes: Sequence[Node], y: dict[Node, float], wanted: Mapping[Node, Sequence[float]]) -> None:
        """Move the nodes of a column as near to where they want to be as their order and sizes allow."""
        gaps = [(self._slot(a) + self._slot(b)) / 2 + APART for a, b in pairwise(nodes)]
        found = spread([mean(wanted[one], y[one]) for one in nodes], gaps)
        y |= dict(zip(nodes, found, strict=True))

    def _slot(self, node: Node) -> int:
        """The height that a node needs, labels of lines that end there included."""
        size = self.sizes.get(node, (0, 2))[1]
        labels = self._labels(node)
        return max(size, 2 * LABEL_LINE * _lines(labels[0]) + 4) if len(labels) == 1 and labels[0] else size

    def _labels(self, node: Node) -> Sequence[str]:
        """The labels of lines that end at a node. Lines with the same one end at one point, others apart."""
        return sorted({hop.label for hop in self.into[node]})

    def _grown(self, node: Node, size: tuple[int, int]) -> tuple[int, int]:
        """The size of a box that lines with different labels lead to: each needs room."""
        labels = self._labels(node)
        return (size[0], max(size[1], len(labels) * _step(labels))) if len(labels) > 1 else size

    def _entry(self, hop: _Hop) -> int:
        """The height at which a line ends."""
        heights: dict[str, list[float]] = defaultdict(list)
        for one in self.into[hop.target]:
            heights[one.label].append(self.y[one.source])
        labels = sorted(heights, key=lambda label: mean(heights[label], 0))
        place = labels.index(hop.label) - (len(labels) - 1) / 2
        return round(self.y[hop.target] + place * _step(labels))

    # ---- lines ----

    def block(self) -> Block:
        """Everything in its place."""
        ways: dict[_Hop, tuple[Point, ...]] = {}
        left: list[int] = []
        x = 0
        for column in range(len(self.columns)):
            if column:
                x = self._route([hop for node in self.columns[column - 1] for hop in self.from_[node]], left, x, ways)
            left.append(x)
            x += max(self.widths.get(node, 0) for node in self.columns[column])
        spots = {}
        for key in self.boxes:
            column, height = self.column[key], self.sizes[key][1]
            spots[key] = Spot(left[column], round(self.y[key] - height / 2), self.widths[key], height)
        lines = [self._line(arrow, ways, spots) for arrow in self.arrows] + [_loop(one, spots) for one in self.loops]
        bottom = round(max((middle + self._slot(node) / 2 for node, middle in self.y.items()), default=0))
        right = max([x, *(point[0] for line in lines for point in line.points)], default=0)
        out = {key: _joined([ways[hop] for hop in hops]) for key, hops in self.out.items()}
        return Block(spots, tuple(lines), {key: way[-1][1] for key, way in out.items()}, out, right, bottom)

    def _line(self, arrow: Arrow, ways: Mapping[_Hop, tuple[Point, ...]], spots: Mapping[str, Spot]) -> Line:
        ends = (arrow.source, arrow.target)
        points = _joined([ways[hop] for hop in self.chains[ends]])
        x, y = points[-1]
        if ends in self.backwards:
            points = points[::-1]
        return Line(arrow, points, (x - _HEAD, y - 4))

    def _route(self, hops: Sequence[_Hop], left: list[int], x: int, ways: dict[_Hop, tuple[Point, ...]]) -> int:
        """Lead lines through the gap right of `x`; returns where the next column begins."""
        entries = {hop: self._entry(hop) for hop in hops}
        leaves = self._leaves(entries)
        bent: dict[Node, list[int]] = defaultdict(list)
        for hop, entry in entries.items():
            if entry != leaves[hop.source]:
                bent[hop.source].append(entry)
        order = lanes({node: (leaves[node], entered) for node, entered in bent.items()})
        bends = {node: x + _START + LANE * place for place, node in enumerate(order)}
        labels = max((self.measures.label(hop.label) for hop in hops if hop.label), default=0)
        there = x + _START + LANE * len(bends) + labels + _HEAD + 4
        for hop, entry in entries.items():
            start, here = left[self.column[hop.source]] + self.widths.get(hop.source, 0), leaves[hop.source]
            bend = bends.get(hop.source, there)
            ways[hop] = _joined([((start, here), (bend, here), (bend, entry), (there, entry))])
        return there

    def _leaves(self, entries: Mapping[_Hop, int]) -> dict[Node, int]:
        """The height at which lines leave each source: straight on if one can, and never where others' lines end."""
        found: dict[Node, int] = {}
        for source in dict.fromkeys(hop.source for hop in entries):
            middle = round(self.y[source])
            own = [entry for hop, entry in entries.items() if hop.source == source]
            others = [entry for hop, entry in entries.items() if hop.source != source and entry not in own]
            straight = [one for one in own if abs(one - middle) <= NEAR]
            room = self.sizes[source][1] // 2 - NEAR if source in self.sizes else 0
            free = (middle + step for by in range(room) for step in (by, -by) if _is_free(middle + step, others))
            found[source] = straight[0] if straight and source in self.sizes else next(free, middle)
        return found

    def _equal_widths(self) -> dict[Node, int]:
        """Boxes of one kind in one column are equally wide."""
        widest: dict[tuple[int, str], int] = defaultdict(int)
        for key, box in self.boxes.items():
            place = (self.column[key], box.kind)
            widest[place] = max(widest[place], self.sizes[key][0])
        return {key: widest[self.column[key], box.kind] for key, box in self.boxes.items()}


def _is_free(height: int, others: Iterable[int]) -> bool:
    return all(abs(height - one) >= NEAR for one in others)


def _step(labels: Sequence[str]) -> int:
    """How far apart lines with different labels end."""
    return max(map(_lines, labels)) * LABEL_LINE + 6


def _joined(parts: Sequence[tuple[Point, ...]]) -> tuple[Point, ...]:
    """One line of several, without points that it goes straight through."""
    points: list[Point] = []
    for point in (point for part in parts for point in part):
        if points and points[-1] == point:
            continue
        if len(points) > 1 and any(points[-2][axis] == points[-1][axis] == point[axis] for axis in (0, 1)):
            points.pop()
        points.append(point)
    return tuple(points)


def _loop(arrow: Arrow, spots: Mapping[str, Spot]) -> Line:
    """An arrow from a box to itself."""
    spot = spots[arrow.source]
    right, middle, top = spot.x + spot.width, spot.y + spot.height // 2, spot.y - _LOOP // 2
    end = spot.x + spot.width // 2
    points = ((right, middle), (right + _LOOP, middle), (right + _LOOP, top), (end, top), (end, spot.y))
    return Line(arrow, points, (end, top - 2))


def _lines(label: str) -> int:
    return label.count("\n") + 1
