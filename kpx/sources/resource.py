"""What is followed on an API server, and at which pace."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Resource:
    """Objects of one kind: where they are, which of them, and how many to ask for at once.

    `wish` narrows further where the server is able to; where it isn't, what comes beyond that does no harm.
    """

    kind: str
    path: str
    selector: Mapping[str, str]
    page: int
    wish: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds; pairs are ranges, of which one value is picked at random.

    `lifetime`: what we ask of a watch. `patience`: for the head of an answer, for a page of a list, and for the end of
    a watch whose time is over. `silence`: after that, we doubt that a watch is alive. `proof`: after that without a
    line, bookmarks included, we doubt that it is about the same past. `backoff`: the upper bound of the first delay,
    which doubles with every failure, and of the last.
    """

    lifetime: tuple[float, float] = (300.0, 600.0)
    patience: float = 25.0
    silence: float = 20.0
    proof: float = 150.0
    backoff: tuple[float, float] = (1.0, 30.0)
