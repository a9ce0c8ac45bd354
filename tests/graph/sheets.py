"""An SVG of `kpx graph`, read back: where boxes, lines and texts stand."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field

NAMESPACE = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Area:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: "Area", by: float = 0.0) -> bool:
        """Whether two rectangles share an area; `by` is how much may be shared still."""
        return (
            self.left < other.right - by
            and other.left < self.right - by
            and self.top < other.bottom - by
            and other.top < self.bottom - by
        )


@dataclass(frozen=True)
class Words:
    """A text and where it begins."""

    text: str
    style: str
    x: float
    y: float


@dataclass(frozen=True)
class Box:
    """A box and what is written in it."""

    id: str
    kind: str
    area: Area
    words: tuple[Words, ...]


@dataclass(frozen=True)
class Way:
    """A line from a box to another."""

    source: str
    target: str
    points: tuple[tuple[float, float], ...]

    def parts(self) -> Iterator[Area]:
        """Its straight parts, each as an area without width."""
        for (a, b), (c, d) in zip(self.points, self.points[1:], strict=False):
            yield Area(min(a, c), min(b, d), max(a, c), max(b, d))


@dataclass
class Sheet:
    """What stands on one picture."""

    root: ElementTree.Element
    boxes: dict[str, Box] = field(default_factory=dict)
    panels: dict[str, Area] = field(default_factory=dict)
    names: dict[str, Words] = field(default_factory=dict)
    headings: list[Words] = field(default_factory=list)
    labels: list[Words] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """Everything that is written, in the order of the file."""
        return [one.text or "" for one in self.root.iter(f"{NAMESPACE}text")]


def read(svg: str) -> Sheet:
    """Read an SVG of `kpx graph`."""
    sheet = Sheet(ElementTree.fromstring(svg))
    for element in sheet.root:
        match element.get("class"):
            case "node":
                title, rect = element[0].text or "", element[1]
                words = tuple(_words(one) for one in element.iter(f"{NAMESPACE}text"))
                sheet.boxes[title] = Box(title, rect.get("class") or "", _area(rect), words)
            case "cluster":
                title = element[0].text or ""
                sheet.panels[title] = _area(element[1])
                sheet.names[title] = _words(element[2])
            case "heading":
                sheet.headings.append(_words(element))
            case "label":
                sheet.labels.append(_words(element))
            case "legend":
                sheet.legend = [one.get("class") or "" for one in element if one.tag != f"{NAMESPACE}text"]
            case "arrow" | "arrow seldom":
                numbers = [float(one) for one in re.findall(r"-?[\d.]+", element.get("d") or "")]
                points = tuple(zip(numbers[::2], numbers[1::2], strict=True))
                sheet.ways.append(Way(element.get("data-from") or "", element.get("data-to") or "", points))
    return sheet


def _area(rect: ElementTree.Element) -> Area:
    x, y, width, height = (float(rect.get(name) or "") for name in ("x", "y", "width", "height"))
    return Area(x, y, x + width, y + height)


def _words(text: ElementTree.Element) -> Words:
    return Words(text.text or "", text.get("class") or "", float(text.get("x") or ""), float(text.get("y") or ""))
