"""How wide texts are in an SVG, which nobody can measure before it is shown.

Taken are the widths of DejaVu Sans, in thousandths of the font's size. It is the widest of the fonts that pictures ask
for, so that in others there is a little more room.
"""

from collections.abc import Mapping
from math import ceil

_PLAIN = {
    275: "'", 278: "ijl", 295: "IJ", 318: " ,.", 337: "/:;\\|", 352: "f", 361: "-", 390: "()[]", 392: "t", 401: "!",
    411: "r", 460: '"', 500: "*_`", 521: "s", 525: "z", 531: "?", 550: "c", 557: "L", 575: "F", 579: "k", 592: "vxy",
    603: "P", 611: "TY", 614: "oae", 634: "hnu", 636: "Sbdgpq$0123456789{}", 656: "K", 684: "AVXZB", 695: "RC",
    732: "U", 750: "NH", 775: "DG", 787: "&OQ", 838: "w#+<=>^~", 863: "M", 950: "%", 974: "m", 989: "W",
}  # fmt: skip
_BOLD = {
    306: "'", 343: "ijl", 348: " ", 365: "/\\|", 372: "IJ", 380: ",.", 400: ":;", 415: "-", 435: "f", 457: "!()[]",
    478: "t", 493: "r", 500: "_`", 521: '"', 523: "*", 582: "?z", 595: "cs", 637: "L", 645: "x", 652: "vy", 665: "k",
    678: "ae", 683: "TEF", 687: "o", 696: "$0123456789", 712: "hnu{}", 716: "bdgpq", 725: "SYZ", 734: "PC", 771: "BRX",
    775: "AVK", 821: "UG", 838: "DHN#+<=>^~", 872: "OQ&", 924: "w", 995: "M", 1002: "%", 1042: "m", 1103: "W",
}  # fmt: skip
_OTHER = 1000
_MONO = 602


def _by_character(groups: Mapping[int, str]) -> Mapping[str, int]:
    return {character: width for width, some in groups.items() for character in some}


_PLAIN_WIDTHS, _BOLD_WIDTHS = _by_character(_PLAIN), _by_character(_BOLD)


def plain(text: str, size: float) -> int:
    """The width of a text, in pixels, in letters of this size."""
    return ceil(sum(_PLAIN_WIDTHS.get(one, _OTHER) for one in text) * size / 1000)


def bold(text: str, size: float) -> int:
    """The same in bold letters."""
    return ceil(sum(_BOLD_WIDTHS.get(one, _OTHER) for one in text) * size / 1000)


def mono(text: str, size: float) -> int:
    """The same in letters that are all equally wide."""
    return ceil(sum(_MONO if one.isascii() else _OTHER for one in text) * size / 1000)
