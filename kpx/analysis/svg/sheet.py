"""The sheet that a picture is drawn on: what stands where, and the SVG of it. Pure.

Up to `kpx.analysis.picture.FEW` service ports stand beside the chains that lead to them. More of them stand below these
chains; then each way in says which chain it stands in.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from html import escape
from itertools import count
from typing import get_args

from kpx.analysis.picture import Arrow, Box, Kind, Picture
from kpx.analysis.svg.block import Block, Point, Spot
from kpx.analysis.svg.layout import LABEL_LINE, LANE, block
from kpx.analysis.svg.style import ARROWS, LEGEND, css, css_class
from kpx.analysis.svg.texts import MEASURES, placed
from kpx.analysis.svg.width import bold, plain

_MARGIN, _PAD, _TITLE, _BETWEEN, _HEADING = 20, 12, 26, 12, 40


def sheet(drawn: Picture) -> Iterator[str]:
    """The lines of the SVG."""
    return _Sheet(drawn).lines()


@dataclass(frozen=True, slots=True)
class _Panel:
    """One Service: its name, and its boxes."""

    group: str
    block: Block

    @property
    def width(self) -> int:
        return max(self.block.width, bold(self.group, 14)) + 2 * _PAD

    @property
    def height(self) -> int:
        return self.block.height + _TITLE + _PAD


class _Sheet:
    """What is drawn, and where: SVG line by line, and how far it reaches."""

    def __init__(self, drawn: Picture) -> None:
        self.boxes, self.between = _parted(drawn)
        inner: dict[str, list[Arrow]] = {group: [] for group in self.boxes}
        for one in drawn.arrows:
            here, there = drawn.boxes[one.source].group, drawn.boxes[one.target].group
            if here == there:
                inner[here].append(one)
        exits = {one.source for one in self.between}
        self.blocks = {group: block(some, inner[group], MEASURES, exits) for group, some in self.boxes.items()}
        self.body: list[str] = []
        self.entries: dict[str, Point] = {}
        self.right = self.bottom = 0

    def lines(self) -> Iterator[str]:
        """The whole picture."""
        self._legend()
        left, top = _MARGIN, self.bottom + _BETWEEN
        shared = self.blocks[""]
        if shared.spots:
            top = self._heading(left, top, "Chains that all Services share")
            self._block(shared, self.boxes[""], left, top)
            if self.between:
                left += shared.width + LANE * (len(shared.exits) + 2)
                top -= _HEADING
            else:
                top += shared.height + _BETWEEN
        self._panels(left, top)
        self._lanes(shared, top + _HEADING)
        yield from _head(self.right + _MARGIN, self.bottom + _MARGIN)
        yield from self.body
        yield "</svg>"

    def _reach(self, right: int, bottom: int) -> None:
        self.right, self.bottom = max(self.right, right), max(self.bottom, bottom)

    def _legend(self) -> None:
        """What colours and lines mean, of those that are there."""
        x, y = _MARGIN, _MARGIN
        self.body.append('<g class="legend">')
        kinds = {one.kind for some in self.boxes.values() for one in some}
        for kind in (one for one in get_args(Kind) if one in kinds):
            self.body += [
                f'<rect class="{css_class(kind)}" x="{x}" y="{y}" width="22" height="14" rx="3"/>',
                _text(x + 28, y + 11, LEGEND[kind], "note"),
            ]
            x += 28 + plain(LEGEND[kind], 9.5) + 18
        for style, words in ARROWS.items():
            self.body += [
                f'<path class="{style}" d="M{x} {y + 7} L{x + 28} {y + 7}" marker-end="url(#head)"/>',
                _text(x + 34, y + 11, words, "note"),
            ]
            x += 34 + plain(words, 9.5) + 18
        self.body.append("</g>")
        self._reach(x, y + 14)

    def _heading(self, x: int, y: int, words: str) -> int:
        """A heading; returns where what it is about begins."""
        self.body.append(_text(x, y + 22, words, "heading"))
        self._reach(x + bold(words, 16), y + _HEADING)
        return y + _HEADING

    def _panels(self, x: int, y: int) -> None:
        """The Services, those first that have endpoints."""
        panels = [_Panel(group, self.blocks[group]) for group in self.boxes if group]
        width = max([self.right - x, *(one.width for one in panels)])
        served = [one for one in panels if any(box.kind == "endpoint" for box in self.boxes[one.group])]
        refused = [one for one in panels if one not in served]
        for words, some in (
            (f"Services ({len(served)})", served),
            (f"Refused ({len(refused)}): no endpoint here", refused),
        ):
            if some:
                y = self._heading(x, y, words)
            for one in some:
                self._panel(one, x, y, width)
                y += one.height + _BETWEEN

    def _panel(self, panel: _Panel, x: int, y: int, width: int) -> None:
        self.body += [
            '<g class="cluster">',
            f"<title>{escape(panel.group)}</title>",
            f'<rect class="panel" x="{x}" y="{y}" width="{width}" height="{panel.height}" rx="6"/>',
            _text(x + _PAD, y + 19, panel.group, "service"),
            "</g>",
        ]
        self._reach(x + width, y + panel.height)
        self._block(panel.block, self.boxes[panel.group], x + _PAD, y + _TITLE)

    def _block(self, placed: Block, boxes: Iterable[Box], x: int, y: int) -> None:
        for line in placed.lines:
            self._arrow(line.arrow, [(x + a, y + b) for a, b in line.points])
        labels = dict.fromkeys((line.label_end, line.arrow.label) for line in placed.lines if line.arrow.label)
        for (a, b), label in labels:
            for number, words in enumerate(reversed(label.split("\n"))):
                self.body.append(_text(x + a, y + b - LABEL_LINE * number, words, "label"))
        for box in boxes:
            spot = placed.spots[box.id]
            self.body += _node(box, spot, x, y)
            self.entries[box.id] = (x + spot.x, y + spot.y + spot.height // 2)
        self._reach(x + placed.width, y + placed.height)

    def _lanes(self, shared: Block, top: int) -> None:
        """The lines from shared chains to ways in: each chain's down a lane of its own, and from there to each."""
        order = sorted(shared.exits, key=lambda one: -shared.exits[one])
        taken = {top + y for y in shared.exits.values()}
        for number, source in enumerate(order, 1):
            lane = _MARGIN + shared.width + LANE * number
            way = [(_MARGIN + x, top + y) for x, y in shared.ways_out[source]]
            for arrow in (one for one in self.between if one.source == source):
                x, middle = self.entries[arrow.target]
                y = next(y for y in _nearest(middle) if all(abs(y - one) > 2 for one in taken))
                self._arrow(arrow, [*way, (lane, way[-1][1]), (lane, y), (x, y)])

    def _arrow(self, arrow: Arrow, points: Iterable[Point]) -> None:
        d = " L".join(f"{x} {y}" for x, y in points)
        style = "arrow seldom" if arrow.seldom else "arrow"
        ends = f'data-from="{escape(arrow.source)}" data-to="{escape(arrow.target)}"'
        self.body.append(f'<path class="{style}" {ends} d="M{d}" marker-end="url(#head)"/>')


def _parted(drawn: Picture) -> tuple[dict[str, list[Box]], list[Arrow]]:
    """The boxes by service port, and the arrows from shared chains to ways in.

    Arrows between Services otherwise, which no proxy writes, are said in the box that they leave.
    """
    between: list[Arrow] = []
    said: dict[str, list[str]] = {}
    for one in drawn.arrows:
        here, there = drawn.boxes[one.source], drawn.boxes[one.target]
        if here.group != there.group:
            if not here.group and there.kind == "way in":
                between.append(one)
            else:
                said.setdefault(here.id, []).append(f"leads to {there.title}")
    boxes = {
        group: [replace(one, lines=(*one.lines, *said.get(one.id, ()))) for one in some]
        for group, some in drawn.grouped.items()
    }
    return boxes, between


def _nearest(middle: int) -> Iterator[int]:
    """Heights, the nearest to the middle first."""
    for step in count():
        yield from (middle + step, middle - step)


def _node(box: Box, spot: Spot, x: int, y: int) -> Iterator[str]:
    yield f'<g class="node"><title>{escape(box.id)}</title>'
    yield (
        f'<rect class="{css_class(box.kind)}" x="{x + spot.x}" y="{y + spot.y}" width="{spot.width}" '
        f'height="{spot.height}" rx="4"/>'
    )
    for left, down, text in placed(box, x + spot.x, y + spot.y):
        yield _text(left, down, text.words, f"{text.style} in-{css_class(box.kind)}")
    yield "</g>"


def _text(x: int, y: int, words: str, style: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(words)}</text>'


def _head(width: int, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="100%" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px;height:auto" role="img" aria-label="Rules for Services">'
    )
    yield f"<style>{css()}</style>"
    yield (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>'
    )
    yield f'<rect class="sheet" width="{width}" height="{height}"/>'
