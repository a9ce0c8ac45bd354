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

    `lifetime`: what we ask of a watch. `patience`: for the head of an answer, for a page of a list or more of a long
    one, for more of what there is at first, and for the end of a watch whose time is over. `silence`: how long a watch
    may say nothing before it is given up, bookmarks included, which come about once a minute. `calm`: the same where
    the transport asks whether the server is alive, until a watch has brought a bookmark. `backoff`: the upper bound of
    the first delay, which doubles with every failure, and of the last; also how far thousands of agents that lose their
    watches at the same moment are spread.
    """

    lifetime: tuple[float, float] = (300.0, 600.0)
    patience: float = 25.0
    silence: tuple[float, float] = (80.0, 90.0)
    calm: tuple[float, float] = (140.0, 160.0)
    backoff: tuple[float, float] = (3.0, 30.0)
