"""A picture as SVG: a legend, the chains that all Services share, Service by Service, and those that get nowhere."""

from kpx.analysis.picture import Picture
from kpx.analysis.svg.sheet import sheet
from kpx.errors import KpxError

MOST = 500
"""Service ports in one SVG: of more nobody sees anything."""


def svg(drawn: Picture) -> str:
    """The picture as SVG; the same picture gives the same bytes.

    It is as wide as there is room for, and light or dark as the reader likes it. Raises KpxError if there are too many
    Services in it.
    """
    if len(drawn.groups) > MOST:
        raise KpxError(
            f"{len(drawn.groups):,} service ports are too many for one picture: name some Services (at most {MOST} "
            "service ports), or use --html, where they are searched"
        )
    return "\n".join([*sheet(drawn), ""])
