"""Boxes and arrows in their places. Values; numbers are pixels, the origin is at the top left."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kpx.analysis.picture import Arrow, Box

Point = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a box stands: its top left corner, and its size."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Line:
    """The way of an arrow, corner by corner, and where the last line of its label ends."""

    arrow: Arrow
    points: tuple[Point, ...]
    label_end: Point


@dataclass(frozen=True, slots=True)
class Block:
    """Boxes and arrows in their places. `exits` are heights at the right edge where lines leave for elsewhere."""

    spots: Mapping[str, Spot]
    lines: tuple[Line, ...]
    exits: Mapping[str, int]
    ways_out: Mapping[str, tuple[Point, ...]]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Measures:
    """How large texts are: of a box its width and height, of a label the width of its longest line."""

    box: Callable[[Box], tuple[int, int]]
    label: Callable[[str], int]
