"""What all connections of a server share."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .access import NODE_PROXIER, Credentials, Rule
from .faults import Dice, Faults
from .resources import Resource
from .store import Store
from .wire import Channel, Request

_REQUESTS_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Promises:
    """How a sound server behaves; API servers differ in these.

    `history` is counted in events per resource, times are in seconds. A watch without `timeoutSeconds` ends
    after a random time within `watch_timeout`.
    """

    watch_list: bool = True
    """Whether `sendInitialEvents` is known; if not, it is refused with `watch_list_refusal`."""
    watch_list_refusal: int = 422
    bookmark_interval: float = 60.0
    history: int = 10_000
    gone_as_status: bool = False
    """Whether a watch from a forgotten resourceVersion gets HTTP 410 (else: 200 and an ERROR event)."""
    fresh_wait: float = 3.0
    """How long a read waits for a resourceVersion that is still to come before it is refused with 504."""
    watch_timeout: tuple[float, float] = (1800.0, 3600.0)
    rules: tuple[Rule, ...] = NODE_PROXIER
    protobuf: bool = True
    """Whether it answers in protobuf where that is asked for."""
    http2: bool = True
    """Whether it offers HTTP/2 where there is TLS; for the listener, not for connections that are there."""
    prefers_json: bool = False
    """Whether it answers in JSON whatever is asked for, as behind a proxy that strips the header."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the start. `requests` by "verb resource" (others by path), `answers` by HTTP code,
    `faults` by name."""

    connections: int
    open_connections: int
    open_watches: int
    events: int
    bytes_sent: int
    bytes_received: int
    """Of HTTP: what TLS adds isn't counted."""
    requests: dict[str, int]
    answers: dict[int, int]
    faults: dict[str, int]


@dataclass(frozen=True, slots=True)
class WatchInfo:
    """An open watch. `since` is the resourceVersion it asked for, `sent` the newest one it has sent."""

    resource: str
    namespace: str
    since: str
    sent: int
    events: int
    connection: int
    stalled: bool


@dataclass(slots=True)
class OpenWatch:
    """A watch while it lasts: what others look at, and the bell that wakes it."""

    resource: Resource
    namespace: str
    since: str
    arrival: int
    connection: Channel
    sent: int = 0
    events: int = 0
    stalled: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def info(self) -> WatchInfo:
        return WatchInfo(
            self.resource.plural,
            self.namespace,
            self.since,
            self.sent,
            self.events,
            self.connection.number,
            self.stalled,
        )


@dataclass(slots=True)
class State:
    """The shared state; touched by the server's thread only, except for the store and plain reads."""

    store: Store
    credentials: Credentials
    promises: Promises
    dice: Dice = field(init=False)
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=_REQUESTS_KEPT))
    request_counts: Counter[str] = field(default_factory=Counter)
    answer_counts: Counter[int] = field(default_factory=Counter)
    fault_counts: Counter[str] = field(default_factory=Counter)
    event_count: int = 0
    watches: list[OpenWatch] = field(default_factory=list)
    arrivals: int = 0
    answered: dict[tuple[str, str], int] = field(default_factory=dict)
    """By verb and resource: the newest request, in order of arrival, that has been answered."""

    def __post_init__(self) -> None:
        self.set_faults(Faults())

    def set_faults(self, faults: Faults) -> None:
        self.dice = Dice(faults, self.fault_counts)

    def wake(self, resource: Resource) -> None:
        """Tell the watches of a resource that there is something to read."""
        for watch in self.watches:
            if watch.resource is resource:
                watch.changed.set()

    def note_answer(self, verb: str, resource: Resource, arrival: int) -> None:
        """Remember that a request has its answer; older ones that are held go on."""
        key = verb, resource.plural
        self.answered[key] = max(self.answered.get(key, 0), arrival)

    async def overtaken(self, verb: str, resource: Resource, arrival: int) -> None:
        """Wait until a newer request of this verb and resource is answered, `hold_seconds` at most."""
        seconds = self.dice.faults.hold_seconds
        await _until(lambda: self.answered.get((verb, resource.plural), 0) > arrival, seconds)

    async def fresh(self, version: int) -> bool:
        """Wait until the store is at a resourceVersion, as long as promised; whether it got there."""
        await _until(lambda: self.store.version >= version, self.promises.fresh_wait)
        return self.store.version >= version


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition() and loop.time() < deadline:
        await asyncio.sleep(0.005)
