"""A packet on its way: what changes of it, what stays the same meanwhile, and the steps that it took."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kpx.analysis.packet import Host, Packet
from kpx.netfilter.options import WORD

Key = tuple[Hashable, ...]
"""A question whose answer isn't known, such as `("-i", "docker0")`: asked twice, it has the same answer."""

Assumed = tuple[tuple[Key, bool], ...]
"""Answers that are assumed, in the order in which they were asked for."""


class Step(NamedTuple):
    """A rule that a packet matched; `position` counts from 1 in its chain, as `iptables -L --line-numbers` does.

    A policy that ends a packet's way is such a step too: at position 0, its rule reads `policy DROP`.
    """

    table: str
    hook: str
    chain: str
    position: int
    rule: str


@dataclass(frozen=True, slots=True, eq=False)
class Trail:
    """Steps, last first. Every way has trails of its own: they are compared by what they are, not by what they say."""

    step: Step
    before: "Trail | None"


MOST_STEPS, LAST_STEPS = 500, 20
"""Steps of a way among many that are kept, and how many of the last ones are where there are more.

A packet may pass the same chains over and over, and its way be longer than anything can hold."""


class Sample:
    """The trail of one way among many, and how many rules it was compared with.

    All samples are equal: packets that are the same but for their ways are one, with the way of the first.
    """

    __slots__ = ("examined", "length", "trail")

    def __init__(self, trail: Trail | None = None, examined: int = 0, length: int = 0) -> None:
        self.trail, self.examined, self.length = trail, examined, length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sample)

    def __hash__(self) -> int:
        return 0

    def step(self, step: Step) -> "Sample":
        """This way with one more step."""
        return Sample(Trail(step, self.trail), self.examined, self.length + 1)

    def compared(self, rules: int) -> "Sample":
        """This way, compared with so many more rules."""
        return Sample(self.trail, self.examined + rules, self.length)

    def then(self, later: "Sample") -> "Sample":
        """This way and another one behind it. Where that gets too long, what stands between is left out."""
        steps = later.steps() if self.length + later.length <= MOST_STEPS else later.steps(LAST_STEPS)
        joined = self.trail
        if len(steps) < later.length:
            left_out = f"{later.length - len(steps)} more rules, not shown"
            joined = Trail(steps[0]._replace(position=0, rule=left_out), joined)
        for step in steps:
            joined = Trail(step, joined)
        return Sample(joined, self.examined + later.examined, self.length + later.length)

    def steps(self, last: int | None = None) -> list[Step]:
        """The steps, first things first; of many only so many last ones."""
        found: list[Step] = []
        trail = self.trail
        while trail is not None and (last is None or len(found) < last):
            found.append(trail.step)
            trail = trail.before
        return found[::-1]


class State(NamedTuple):
    """A packet on its way: what can change of it. `source` is None once it is translated to an unknown address.

    `masqueraded` says that its source was replaced. `tracked` is false behind `CT --notrack`. `connmark` is the mark of
    its connection. `noted` are the lists of xt_recent that it put its sender on, `forgotten` those it took it off.
    `assumed` are the answers to what isn't known with which it got here.
    `unread` are the tables that it passed of which nobody knows the rules.
    `trail` and `examined`, the number of rules it was compared with, are only kept for packets that are traced.
    """

    source: int | None
    destination: int
    port: int
    mark: int
    translated: bool = False
    masqueraded: bool = False
    tracked: bool = True
    connmark: int = 0
    noted: frozenset[str] = frozenset()
    forgotten: frozenset[str] = frozenset()
    assumed: Assumed = ()
    unread: tuple[str, ...] = ()
    trail: Trail | Sample | None = None
    examined: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """What stays the same while a packet is in one table of one hook.

    An interface is None if it isn't known, and empty where there is none. `known` tells how many seconds ago the
    sender was last put on lists of xt_recent, `marks` the bits of marks that rules ask for.
    """

    packet: Packet
    host: Host
    table: str
    hook: str
    in_interface: str | None
    out_interface: str | None
    known: Mapping[str, float]
    marks: int = WORD

    def conntrack_state(self, state: State) -> str:
        """What `--ctstate` finds. Conntrack comes behind raw, but what comes in through lo it saw on its way out."""
        if not state.tracked:
            return "UNTRACKED"
        return "INVALID" if self.table == "raw" and self.in_interface != "lo" else self.packet.state
