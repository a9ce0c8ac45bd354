"""What may go wrong on purpose, how often, and the dice that decide.

A fault has an opportunity (a request, an answer, a delivery on a watch, a bookmark) and strikes there with a
probability, or at the next n opportunities. A delivery is one live event, or the whole initial state of a
watch: then the fault strikes at a random event of it.
"""

import random
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Next:
    """At the next `count` opportunities, for certain; then never again."""

    count: int


Chance = float | Next


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong; every field a probability (0 to 1) or `Next(n)`. The default is: nothing.

    `only` narrows all of them to the verbs and the resources it names, e.g. `("watch",)`, `("services",)` or
    `("list", "watch", "services")`; `seed` starts the dice.
    """

    # A request that could otherwise be answered.
    throttle: Chance = 0.0
    """429 with `Retry-After: retry_after`."""
    internal: Chance = 0.0
    """500."""
    unavailable: Chance = 0.0
    """503."""
    timeout: Chance = 0.0
    """504."""
    gone: Chance = 0.0
    """410 Expired, as a status to a list, as `Promises.gone_as_status` says to a watch."""
    reset: Chance = 0.0
    """The connection is reset before any answer."""
    mute: Chance = 0.0
    """No answer ever; the connection stays open."""
    hold: Chance = 0.0
    """The answer is made now, and sent after a newer request of the same verb and resource has its answer
    (at the latest after `hold_seconds`): old news after new."""

    # The body of a list or of a single read.
    cut: Chance = 0.0
    """The connection ends in the middle of the body."""
    truncate: Chance = 0.0
    """Sound HTTP, half the JSON."""

    # A body or a delivery on a watch.
    drip: Chance = 0.0
    """`drip_rate` bytes a second; on a watch for the rest of its life."""
    oversize: Chance = 0.0
    """One object carries an annotation of `oversize_bytes`."""

    # A delivery on a watch.
    drop_mid_line: Chance = 0.0
    """Half the line, then the connection is gone (FIN or RST)."""
    drop: Chance = 0.0
    """The event, then the connection is gone without the end of the HTTP body."""
    end: Chance = 0.0
    """The event, then a clean end of the answer, before its time."""
    stall: Chance = 0.0
    """Nothing more, bookmarks neither; TCP still acknowledges."""
    blackhole: Chance = 0.0
    """Nothing more, and TCP doesn't acknowledge either: the peer's host is gone, nobody says so."""
    freeze: Chance = 0.0
    """`freeze_seconds` of silence, then on as if nothing had been."""
    garbage: Chance = 0.0
    """A line that isn't JSON, then the event."""
    truncate_line: Chance = 0.0
    """Half the line and its end: the event is lost, the stream goes on."""
    duplicate: Chance = 0.0
    """The event twice."""
    split: Chance = 0.0
    """The line in several chunks with pauses: legal, but often misread."""
    gone_event: Chance = 0.0
    """An ERROR event with 410, then the end."""
    error_event: Chance = 0.0
    """An ERROR event with 500, then the end."""

    # A bookmark.
    no_bookmark: Chance = 0.0
    """It isn't sent; the one that ends the initial events neither."""

    only: tuple[str, ...] = ()
    retry_after: int = 1
    hold_seconds: float = 10.0
    freeze_seconds: float = 1.0
    drip_rate: int = 2000
    oversize_bytes: int = 4 << 20
    seed: int = 0


REQUEST = ("throttle", "internal", "unavailable", "timeout", "gone", "reset", "mute", "hold")
BODY = ("cut", "truncate", "drip", "oversize")
DELIVERY = (
    "drip",
    "oversize",
    "drop_mid_line",
    "drop",
    "end",
    "stall",
    "blackhole",
    "freeze",
    "garbage",
    "truncate_line",
    "duplicate",
    "split",
    "gone_event",
    "error_event",
)
BOOKMARK = ("no_bookmark",)
_VERBS = {"get", "list", "watch"}


class Dice:
    """Decides for a `Faults` value, opportunity by opportunity, and counts what struck."""

    def __init__(self, faults: Faults, struck: Counter[str]) -> None:
        self.faults = faults
        self.random = random.Random(faults.seed)
        self._struck = struck
        self._left = {name: _left(getattr(faults, name)) for name in (*REQUEST, *BODY, *DELIVERY, *BOOKMARK)}

    def possible(self, names: tuple[str, ...]) -> bool:
        """Whether any of these faults can still strike."""
        return any(self._left[name] for name in names)

    def strike(self, names: tuple[str, ...], verb: str, plural: str) -> str:
        """The fault that strikes at this opportunity, or an empty string."""
        if not self._concerns(verb, plural):
            return ""
        for name in names:
            left = self._left[name]
            if left and (isinstance(left, int) or self.random.random() < left):
                if isinstance(left, int):
                    self._left[name] = left - 1
                self._struck[name] += 1
                return name
        return ""

    def _concerns(self, verb: str, plural: str) -> bool:
        only = set(self.faults.only)
        verbs, resources = only & _VERBS, only - _VERBS
        return (not verbs or verb in verbs) and (not resources or plural in resources)


def _left(chance: Chance) -> float | int:
    """A count of certain strikes (int) or a probability (float)."""
    return chance.count if isinstance(chance, Next) else float(chance)
