"""What waits to be written, and in which order it is served. Pure: the clock is passed in.

Changes are served fairly. Calm Services, which haven't been served for a while, have a throttle of their own, so that
restless ones can't use it up. What is large takes turns and rests in between. So no Service, however large and
restless, holds up the others.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kpx.agent.store import ServiceKey
from kpx.agent.throttle import Throttle

LARGE = 300
"""Rules of a Service from which on it is large: more than what a sync of many small ones writes."""
BATCH = 4000
"""Rules of small Services that one sync takes up at most."""
CALM = 5.0
"""Seconds without a turn after which a Service is calm."""
REST = 1.0
"""How long no large Service is served after one was, in times of what that took."""
TRIGGERS = 100
"""Times of changes of one Service that are remembered while it waits."""
PATIENCE = 10.0
"""Seconds after which a large Service goes before small ones."""


@dataclass(slots=True)
class Waiting:
    """One Service that changed: since when it waits, what changed how often, and when that came about.

    `since` is of a monotonic clock, `triggers` are seconds since the epoch.
    """

    since: float
    changes: Counter[str] = field(default_factory=Counter)
    triggers: list[float] = field(default_factory=list)

    def add(self, other: "Waiting") -> None:
        """What waits also waits for this."""
        self.since = min(self.since, other.since)
        self.changes += other.changes
        self.triggers = (self.triggers + other.triggers)[:TRIGGERS]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one sync takes up: Services, and why the whole kernel state is to be compared, if it is.

    `large` says that it is a large Service's turn.
    """

    services: Mapping[ServiceKey, Waiting] = field(default_factory=dict)
    full: str = ""
    large: bool = False

    @property
    def triggers(self) -> Iterator[float]:
        """When the changes came about, in seconds since the epoch, as far as that is known."""
        return (trigger for one in self.services.values() for trigger in one.triggers)


class Pending:
    """Collects what waits; `weigh` says how many rules a Service has, more or less.

    A sync of calm Services may come every `period` seconds, and one of others likewise.
    """

    def __init__(self, weigh: Callable[[ServiceKey], int], period: float, now: float) -> None:
        self.full = ""
        self.throttle, self._restless = Throttle(period, now), Throttle(period, now)
        self._weigh = weigh
        self._services: dict[ServiceKey, Waiting] = {}
        self._served: dict[ServiceKey, float] = {}
        self._large_from = 0.0
        self._turn_of_large = False

    def __len__(self) -> int:
        """How many Services wait."""
        return len(self._services)

    def touch(self, keys: Iterable[ServiceKey], kind: str, trigger: float | None, now: float) -> None:
        """An object of `kind` changed, and with it these Services."""
        for key in keys:
            one = self._services.setdefault(key, Waiting(now))
            one.changes[kind] += 1
            if trigger is not None and len(one.triggers) < TRIGGERS:
                one.triggers.append(trigger)

    def compare(self, reason: str) -> None:
        """The whole kernel state is to be compared; of several reasons the first is kept."""
        self.full = self.full or reason

    def adapt(self, least: float, seconds: float, now: float) -> None:
        """A restore took so long: see `Throttle.adapt`."""
        self.throttle.adapt(least, seconds, now)
        self._restless.adapt(least, seconds, now)

    def waiting(self, kind: str) -> int:
        """How many changes of objects of a kind wait."""
        return sum(one.changes[kind] for one in self._services.values())

    def since(self) -> float | None:
        """Since when what has waited longest waits."""
        return min((one.since for one in self._services.values()), default=None)

    def due(self, now: float) -> float | None:
        """Seconds until there is something to serve; None if nothing waits."""
        if self.full:
            return self.throttle.delay(now)
        found = []
        if any(self._is_small(key) and self._is_calm(key, now) for key in self._services):
            found.append(self.throttle.delay(now))
        if any(self._is_small(key) for key in self._services):
            found.append(self._restless.delay(now))
        if not all(map(self._is_small, self._services)):
            found.append(max(self._large_from - now, self._restless.delay(now), 0.0))
        return min(found, default=None)

    def take(self, now: float) -> Batch:
        """What is to be served now; everything, if the whole state is compared anyway."""
        if self.full:
            batch = Batch(self._services, self.full)
            self._services, self.full = {}, ""
            self.throttle.take(now)
            return batch
        large = self._next_large(now)
        overdue = large is not None and now - self._services[large].since > PATIENCE
        calm = [key for key in self._small() if self._is_calm(key, now)]
        if calm and not self.throttle.delay(now) and not overdue:
            self.throttle.take(now)
            return self._batch(dict.fromkeys((*calm, *self._small())))
        self._restless.take(now)
        small = [] if large is not None and (self._turn_of_large or overdue) else list(self._small())
        self._turn_of_large = bool(small)
        if small or large is None:
            return self._batch(small)
        return self._batch([large], large=True)

    def put_back(self, batch: Batch) -> None:
        """What could not be written waits on."""
        came = self._services
        self._services = dict(batch.services)
        for key, one in came.items():
            self._services.setdefault(key, Waiting(one.since)).add(one)
        if batch.full:
            self.compare(batch.full)

    def go_on(self, keys: Iterable[ServiceKey], now: float) -> None:
        """These are done in part. They wait from now on: what is large takes its time, but it moves."""
        for key in keys:
            self._services.setdefault(key, Waiting(now))

    def served(self, batch: Batch, seconds: float, now: float) -> None:
        """A batch was written, which took so long."""
        self._served = {key: at for key, at in self._served.items() if now - at < CALM}
        self._served.update(dict.fromkeys(batch.services, now))
        if batch.large:
            self._large_from = now + REST * seconds

    def _batch(self, keys: Iterable[ServiceKey], large: bool = False) -> Batch:
        return Batch({key: self._services.pop(key) for key in keys}, large=large)

    def _small(self) -> Iterator[ServiceKey]:
        """Small Services, in the order in which they came, as many as one sync takes up."""
        room = BATCH
        for key in self._services:
            weight = self._weigh(key)
            if weight < LARGE:
                room -= weight
                if room < 0:
                    return
                yield key

    def _next_large(self, now: float) -> ServiceKey | None:
        """The large Service that has waited longest, unless none may be served yet."""
        if now < self._large_from:
            return None
        large = (key for key in self._services if not self._is_small(key))
        return min(large, key=lambda one: self._services[one].since, default=None)

    def _is_small(self, key: ServiceKey) -> bool:
        return self._weigh(key) < LARGE

    def _is_calm(self, key: ServiceKey, now: float) -> bool:
        return now - self._served.get(key, -CALM) >= CALM
