"""In which column boxes stand, in which order lines run side by side, and how far apart things are. Pure."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import permutations

from kpx.analysis.picture import Arrow, Box

Node = Hashable
"""A box by its id, or a place that a long line passes."""

NEAR = 4
"""Lines that are less far apart are taken to lie on each other."""

_TRIED = 6
"""Lines of a gap up to which every order of them is tried; 720 of six."""


def columns(boxes: Sequence[Box], arrows: Sequence[Arrow]) -> tuple[dict[Node, int], Collection[tuple[str, str]]]:
    """The column of each box, and the arrows that lead backwards: no kernel takes circles, but a file may hold them."""
    into: dict[str, set[str]] = {one.id: set() for one in boxes}
    from_: dict[str, list[str]] = {one.id: [] for one in boxes}
    for arrow in arrows:
        into[arrow.target].add(arrow.source)
        from_[arrow.source].append(arrow.target)
    depth: dict[str, int] = {}
    backwards: set[tuple[str, str]] = set()
    waiting = {key: set(sources) for key, sources in into.items()}
    ready = [key for key, sources in waiting.items() if not sources]
    while waiting:
        if not ready:  # a circle: it is entered at its first box
            ready = [next(iter(waiting))]
        here = ready.pop()
        backwards |= {(source, here) for source in waiting.pop(here)}
        depth[here] = max((depth[one] + 1 for one in into[here] if (one, here) not in backwards), default=0)
        for target in from_[here]:
            if target in waiting:
                waiting[target].discard(here)
                if not waiting[target] and target not in ready:
                    ready.append(target)
    first = {one.id for one in boxes if one.kind == "way in"}
    for key, targets in from_.items():
        ahead = [depth[one] for one in targets if (key, one) not in backwards]
        if not into[key] and ahead and key not in first:  # what nothing leads to stands right before what it leads to
            depth[key] = max(0, min(ahead) - 1)
    used = {old: column for column, old in enumerate(sorted(set(depth.values())))}
    return {one.id: used[depth[one.id]] for one in boxes}, backwards


def spread(wanted: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Places in this order, at least `gaps` apart, as near as can be to those wanted (isotonic regression)."""
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=False):
        pools.append((want - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    flat = [middle for middle, count in pools for _ in range(count)]
    return [middle + offset for middle, offset in zip(flat, offsets, strict=False)]


def lanes(bent: Mapping[Node, tuple[int, Sequence[int]]]) -> Sequence[Node]:
    """The order of lines in a gap, from left to right, in which they hide each other least and cross least."""
    nodes = list(bent)
    if len(nodes) <= _TRIED:
        return min(permutations(nodes), key=lambda order: _clashes([bent[one] for one in order]))
    down = [one for one in nodes if mean(bent[one][1], 0) >= bent[one][0]]
    up = [one for one in nodes if one not in down]
    orders = [[*reversed(down), *up], [*up, *reversed(down)]]
    return min(orders, key=lambda order: _clashes([bent[one] for one in order]))


def _clashes(lines: Sequence[tuple[int, Sequence[int]]]) -> tuple[int, int]:
    """How often a line lies on another, and how often two cross, if they bend in this order from left to right."""
    hidden = crossed = 0
    for place, (here, there) in enumerate(lines):
        low, high = min(here, *there), max(here, *there)
        for before, entered in lines[:place]:
            hidden += sum(abs(here - one) < NEAR for one in entered)
            crossed += min(before, *entered) < here < max(before, *entered)
            crossed += sum(low < one < high and one not in there for one in entered)
    return hidden, crossed


def mean(values: Sequence[float], default: float) -> float:
    """The mean; the default of none."""
    return sum(values) / len(values) if values else default
