"""A picture as a Mermaid flowchart, for Markdown. See https://mermaid.js.org/syntax/flowchart.html."""

from collections.abc import Iterator

from kpx.analysis.dot import COLOURS
from kpx.analysis.picture import Box, Picture

MOST_CHARACTERS, MOST_ARROWS = 50_000, 500
"""What Mermaid draws unless configured otherwise (`maxTextSize`, `maxEdges`); on GitHub it can't be configured."""


def mermaid(drawn: Picture) -> str:
    """The picture as a flowchart, a subgraph for each service port. The same picture gives the same bytes."""
    return "\n".join(["flowchart LR", *_body(drawn), ""])


def _body(drawn: Picture) -> Iterator[str]:
    numbers = {key: f"n{number}" for number, key in enumerate(drawn.boxes)}
    for number, (group, some) in enumerate(drawn.grouped.items()):
        boxes = [f"  {numbers[box.id]}{_box(box)}" for box in some]
        if group:
            yield f'  subgraph g{number}["<b>{_plain(group)}</b>"]'
            yield from (f"  {line}" for line in boxes)
            yield "  end"
        else:
            yield from boxes
    for one in drawn.arrows:
        line = "-.->" if one.seldom else "-->"
        label = f'|"{_plain(one.label)}"|' if one.label else ""
        yield f"  {numbers[one.source]} {line}{label} {numbers[one.target]}"
    for kind, (fill, border, text) in COLOURS.items():
        yield f"  classDef {_class(kind)} fill:{fill},stroke:{border},color:{text}"


def _box(box: Box) -> str:
    name = [f"<b>{_plain(box.name)}</b>"] if box.name else []
    title = f"<b>{_plain(box.title)}</b>" if box.is_known else _plain(box.title)
    text = "<br/>".join([*name, title, *map(_plain, box.lines)])
    return f'["{text}"]:::{_class(box.kind)}'


def _class(kind: str) -> str:
    return kind.replace(" ", "")


def _plain(text: str) -> str:
    """A text without what Mermaid or HTML would act on: entities are written `#34;`."""
    return "".join(f"#{ord(c)};" if c in '"<>&#`\\;{}[]()|' else "<br/>" if c == "\n" else c for c in text)
