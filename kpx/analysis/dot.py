"""A picture in the language of Graphviz. See https://graphviz.org/doc/info/lang.html."""

from collections.abc import Iterator
from html import escape

from kpx.analysis.picture import Arrow, Box, Kind, Picture

COLOURS: dict[Kind, tuple[str, str, str]] = {
    "hook": ("#343a46", "#343a46", "#ffffff"),
    "dispatch": ("#f1edfb", "#8a76cf", "#1f2430"),
    "way in": ("#e6f0fd", "#3b7dd8", "#1f2430"),
    "chain": ("#ffffff", "#8a94a6", "#1f2430"),
    "endpoint": ("#e6f6ec", "#2f9e5b", "#1f2430"),
    "refusal": ("#fdeaea", "#d64545", "#8f1d1d"),
}
"""Fill, border and text of each kind of box."""

_FONT = "Helvetica,Arial,sans-serif"
_HEAD = f"""\
digraph kpx {{
  rankdir=LR; ranksep=0.6; nodesep=0.14; pad=0.2; compound=true; bgcolor="white"; splines=true;
  fontname="{_FONT}"; fontsize=12;
  node [shape=box style="rounded,filled" fontname="{_FONT}" fontsize=11 margin="0.12,0.06" penwidth=1.1 height=0.3];
  edge [fontname="{_FONT}" fontsize=10 color="#5b6472" fontcolor="#333a46" arrowsize=0.6 penwidth=1.1];"""

_CLUSTER = 'labeljust=l; style=rounded; color="#d5dae2"; bgcolor="#fafbfc"; margin=10;'


def dot(drawn: Picture) -> str:
    """The picture as a digraph, a cluster for each service port. The same picture gives the same bytes."""
    return "\n".join([_HEAD, *_body(drawn), "}", ""])


def _body(drawn: Picture) -> Iterator[str]:
    numbers = {key: f"n{number}" for number, key in enumerate(drawn.boxes)}
    # What comes last, Graphviz puts on top.
    for group, some in reversed(list(drawn.grouped.items())):
        boxes = [f"  {numbers[box.id]} {_box(box)};" for box in reversed(some)]
        if group:
            yield f'  subgraph "cluster {escape(group)}" {{'
            yield f"    label=<<b>{escape(group)}</b>>; {_CLUSTER}"
            yield from (f"  {line}" for line in boxes)
            yield "  }"
        else:
            yield from boxes
    for one in drawn.arrows:
        yield f"  {numbers[one.source]} -> {numbers[one.target]} {_arrow(one)};"


def _box(box: Box) -> str:
    fill, border, text = COLOURS[box.kind]
    lines = "".join(f'<br/><font point-size="8.5">{escape(line)}</font>' for line in box.lines)
    title = f"<b>{escape(box.title) or '?'}</b>" if box.is_known else escape(box.title)
    name = f"<b>{escape(box.name)}</b><br/>" if box.name else ""
    label = f"<{name}{title}{lines}>"
    return f'[label={label} fillcolor="{fill}" color="{border}" fontcolor="{text}" tooltip={_quoted(box.id)}]'


def _arrow(arrow: Arrow) -> str:
    dashed = ' style=dashed color="#9aa3b2" fontcolor="#6b7482" fontsize=8.5' if arrow.seldom else ""
    return f"[label={_quoted(f' {arrow.label} ' if arrow.label else '')}{dashed}]"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
