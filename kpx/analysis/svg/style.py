"""What colours and letters an SVG has, light and dark. Values."""

from collections.abc import Mapping
from dataclasses import dataclass

from kpx.analysis.dot import COLOURS
from kpx.analysis.picture import Kind

_SANS = '"Helvetica Neue",Helvetica,Arial,"DejaVu Sans",sans-serif'
_MONO = 'ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace'

LEGEND: Mapping[Kind, str] = {
    "hook": "hook of the kernel, or others' chain",
    "dispatch": "chain that all Services share",
    "way in": "way in",
    "chain": "chain of a Service",
    "endpoint": "endpoint",
    "refusal": "refusal",
}
ARROWS: Mapping[str, str] = {
    "arrow": "packets go on: this share of them, or all",
    "arrow seldom": "only what meets a condition",
}
"""Styles of lines, and what they mean."""


@dataclass(frozen=True, slots=True)
class _Colours:
    """Of each kind of box fill, border and text; of everything else one."""

    kinds: Mapping[Kind, tuple[str, str, str]]
    sheet: str
    panel: str
    border: str
    line: str
    ink: str
    dim: str

    def css(self) -> str:
        boxes = " ".join(
            f".{css_class(kind)}{{fill:{fill};stroke:{edge}}} .in-{css_class(kind)}{{fill:{text}}}"
            for kind, (fill, edge, text) in self.kinds.items()
        )
        return (
            f"svg{{background:{self.sheet}}} .sheet{{fill:{self.sheet}}} "
            f".panel{{fill:{self.panel};stroke:{self.border}}} .arrow{{stroke:{self.line}}} .head{{fill:{self.line}}} "
            f"text{{fill:{self.ink}}} {boxes} .label,.legend text{{fill:{self.dim}}}"
        )


_LIGHT = _Colours(COLOURS, "#ffffff", "#fafbfc", "#d5dae2", "#5b6472", "#1f2430", "#5b6472")
_DARK = _Colours(
    {
        "hook": ("#4a5262", "#4a5262", "#ffffff"),
        "dispatch": ("#2a2640", "#a08ce6", "#e4e7ec"),
        "way in": ("#1b2d47", "#5c9aee", "#e4e7ec"),
        "chain": ("#1d2027", "#7d8799", "#e4e7ec"),
        "endpoint": ("#18332a", "#4fc07e", "#e4e7ec"),
        "refusal": ("#40211f", "#f07575", "#f6b3b3"),
    },
    "#16181d",
    "#1a1d23",
    "#363c48",
    "#8f99ab",
    "#e4e7ec",
    "#a3adbd",
)


def css_class(kind: Kind) -> str:
    """What boxes of a kind are called in the style."""
    return kind.replace(" ", "-")


def css() -> str:
    """The style of the picture. Lines are drawn sharply: those that share a part of their way look like one."""
    return (
        f"text{{font-family:{_SANS}}} .name,.service,.heading{{font-weight:700}} .name{{font-size:12px}} "
        f".service{{font-size:14px}} .heading{{font-size:16px}} .hash{{font:400 10px {_MONO}}} "
        ".note{font-size:9.5px} .label{font-size:10px;text-anchor:end} "
        ".arrow{fill:none;stroke-width:1;shape-rendering:crispEdges} .head{shape-rendering:auto} "
        f".seldom{{stroke-dasharray:4 3}} {_LIGHT.css()} @media (prefers-color-scheme:dark){{{_DARK.css()}}}"
    )
