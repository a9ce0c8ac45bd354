"""The texts in boxes, and how large they make them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from kpx.analysis.picture import Box
from kpx.analysis.svg.block import Measures
from kpx.analysis.svg.width import bold, mono, plain

_LONGEST = 36
"""Characters in a line of small print."""
_BESIDE, _ABOVE = 9, 5
"""Room between texts and the border of their box."""


@dataclass(frozen=True, slots=True)
class Text:
    """A line in a box: `name` is what people call it, `hash` what only rules do, `note` is small print."""

    words: str
    style: str

    @property
    def height(self) -> int:
        """How much lower the next line stands."""
        return 15 if self.style == "name" else 12

    @property
    def width(self) -> int:
        """The width of the line."""
        sizes = {"name": (bold, 12), "hash": (mono, 10), "note": (plain, 9.5)}
        measure, size = sizes[self.style]
        return measure(self.words, size)


def texts(box: Box) -> Sequence[Text]:
    """What is written in a box, line by line."""
    found = [Text(box.name, "name")] if box.name else []
    found.append(Text(box.title or "?", "name" if box.is_known else "hash"))
    for line in box.lines:
        if line.startswith(("KUBE-", "KPX-")):
            found.append(Text(line, "hash"))
        else:
            found += (Text(part, "note") for part in wrap(line, _LONGEST, break_on_hyphens=False))
    return found


def placed(box: Box, x: int, y: int) -> Sequence[tuple[int, int, Text]]:
    """The same, each with the place where it begins, in a box with this corner."""
    found = []
    down = y + _ABOVE
    for one in texts(box):
        down += one.height
        found.append((x + _BESIDE, down - 3, one))
    return found


def _box(box: Box) -> tuple[int, int]:
    every = texts(box)
    return max(one.width for one in every) + 2 * _BESIDE, sum(one.height for one in every) + 2 * _ABOVE + 1


def _label(label: str) -> int:
    return max(plain(line, 10) for line in label.split("\n")) + 6


MEASURES = Measures(_box, _label)
