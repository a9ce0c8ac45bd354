"""Pictures of Services with many endpoints: a few endpoints in full, the others in one box. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from kpx.analysis.picture import ALL, Arrow, Box, Passage, Picture
from kpx.netfilter.names import TREE

MANY = 24
"""Endpoints of a service port up to which each has a box."""
SHOWN = 8
"""Endpoints of a service port with more of them that still have boxes."""

Ways = Mapping[str, Sequence[Arrow]]
"""Arrows by the box that they start from."""


def folded(drawn: Picture) -> Picture:
    """The picture with few endpoints of each service port that has more than `MANY`.

    The first ones stay; one box stands for the others and for the chains that only choose among them. Arrows to it bear
    the sum of their shares.
    """
    ways: dict[str, list[Arrow]] = defaultdict(list)
    for arrow in drawn.arrows:
        ways[arrow.source].append(arrow)
    into: dict[str, str] = {}
    stacks: dict[str, Box] = {}
    for group, boxes in drawn.grouped.items():
        if sum(one.kind == "endpoint" for one in boxes) <= MANY:
            continue
        hidden = _hidden(boxes, ways)
        stack = _stack(group, [one for one in boxes if one.id in hidden])
        into |= dict.fromkeys(hidden, stack.id)
        stacks[stack.id] = stack
    return _redrawn(drawn, into, stacks)


def _hidden(boxes: Sequence[Box], ways: Ways) -> Collection[str]:
    """The endpoints but the first ones that packets meet, and the chains that lead to nothing else."""
    endpoints = {one.id for one in boxes if one.kind == "endpoint"}
    hidden = endpoints - set(islice(_met(boxes, endpoints, ways), SHOWN))
    choosing = {one.id for one in boxes if one.chain.startswith(TREE) and ways.get(one.id)}
    while more := {one for one in choosing - hidden if all(way.target in hidden for way in ways[one])}:
        hidden |= more
    return hidden


def _met(boxes: Sequence[Box], endpoints: Collection[str], ways: Ways) -> Iterator[str]:
    """Endpoints as packets meet them, those of one chain together, so that few chains lead to the first ones."""
    ahead = [one.id for one in boxes if one.kind == "way in"]
    seen: set[str] = set()
    while ahead:
        here = ahead.pop()
        if here in seen:
            continue
        seen.add(here)
        if here in endpoints:
            yield here
        order = sorted(ways.get(here, ()), key=lambda way: (way.share is None, way.target not in endpoints))
        ahead += [way.target for way in reversed(order)]


def _stack(group: str, hidden: Sequence[Box]) -> Box:
    endpoints = sum(one.kind == "endpoint" for one in hidden)
    chains = len(hidden) - endpoints
    lines = (f"behind {chains:,} chains that choose among them",) if chains else ()
    ids = tuple(one.id for one in hidden)
    return Box(f"more {group}", "endpoint", f"{endpoints:,} more endpoints", lines, group, stands_for=ids)


def _redrawn(drawn: Picture, into: Mapping[str, str], stacks: dict[str, Box]) -> Picture:
    """The picture with each stack in place of what is folded into it."""
    passages: dict[tuple[str, str], list[Passage]] = defaultdict(list)
    plain: list[Arrow | tuple[str, str]] = []
    for one in drawn.arrows:
        if one.source in into:
            continue
        if one.target not in into:
            plain.append(one)
            continue
        between = (one.source, into[one.target])
        if between not in passages:
            plain.append(between)
        passages[between] += _passages(one)
    arrows = tuple(one if isinstance(one, Arrow) else Arrow.of(*one, passages[one]) for one in plain)
    for source, target in reversed(passages):  # a stack's rules are those of the chain that leads there first
        stacks[target] = replace(stacks[target], table=drawn.boxes[source].table, chain=drawn.boxes[source].chain)
    boxes: dict[str, Box] = {}
    for box in drawn.boxes.values():
        shown = stacks[into[box.id]] if box.id in into else box
        boxes.setdefault(shown.id, shown)
    return Picture(boxes, arrows)


def _passages(arrow: Arrow) -> Iterator[Passage]:
    lines = arrow.label.split("\n")
    if arrow.share is not None and arrow.share < ALL:
        lines.pop()
    yield from (Passage(line, None, arrow.seldom) for line in lines)
    if arrow.share is not None:
        yield Passage("", arrow.share, arrow.seldom)
