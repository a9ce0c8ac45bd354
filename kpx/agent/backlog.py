"""What waits to be cleaned up, and when that may start. Pure: the clock is passed in."""

from collections.abc import Iterable
from dataclasses import dataclass

from kpx.agent.store import ServiceKey
from kpx.model.service import ServicePort

SHARE = 0.025
"""How much of a core one family's clean-ups may take in the long run: with both, 5 %."""
BURST = 0.25
"""Seconds of CPU time that clean-ups after a quiet time needn't wait for: some 20 of them, if the table is small."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds until what failed is tried again; twice as long each time."""
MOST_GONE = 10_000
"""How many service ports that are gone may wait. Of more than these, the oldest are forgotten: as long as the kernel
refuses every clean-up, their number would know no bound."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a clean-up is about: some Services or all of them, and service ports as they were before they went."""

    services: frozenset[ServiceKey] = frozenset()
    everything: bool = False
    gone: tuple[ServicePort, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return self.everything or bool(self.services or self.gone)


class _Pile:
    """Work put together."""

    def __init__(self) -> None:
        self._services: set[ServiceKey] = set()
        self._everything = False
        self._gone: dict[ServicePort, None] = {}

    def __bool__(self) -> bool:
        return self._everything or bool(self._services or self._gone)

    def add(self, work: Work) -> None:
        self._services |= work.services
        self._everything = self._everything or work.everything
        self._add_gone(work.gone)

    def take(self) -> Work:
        work = Work(frozenset(self._services), self._everything, tuple(self._gone))
        self._services, self._everything, self._gone = set(), False, {}
        return work

    def _add_gone(self, gone: Iterable[ServicePort]) -> None:
        for port in gone:
            self._gone.pop(port, None)
            self._gone[port] = None
        while len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]


class Backlog:
    """Work that waits, put together, however often it was asked for; and a clean-up's turn.

    After a quiet time that is at once, and so for the next few, until they have taken `burst` seconds. Later it is
    once all so far have come to no more than `share` of the time. What failed is tried again after a growing pause,
    for which new work doesn't wait.
    """

    def __init__(self, share: float = SHARE, burst: float = BURST) -> None:
        self._share, self._burst = share, burst
        self._new, self._failed = _Pile(), _Pile()
        self._paid = self._again_at = 0.0
        self._pause = FIRST_PAUSE

    @property
    def failing(self) -> bool:
        """Whether anything waits that has failed before."""
        return bool(self._failed)

    def add(self, work: Work) -> None:
        """Let this wait, too."""
        self._new.add(work)

    def delay(self, now: float) -> float | None:
        """Seconds until the next clean-up may start; None if nothing waits."""
        if not self._new and not self._failed:
            return None
        return max(0.0, self._paid - now, 0.0 if self._new else self._again_at - now)

    def take(self, now: float) -> Work:
        """A clean-up starts: what waits is its work, but for what has failed only just now."""
        if self._failed and self._again_at <= now:
            new = self._new.take()
            self._new.add(self._failed.take())
            self._new.add(new)
        return self._new.take()

    def done(self, now: float, cost: float) -> None:
        """A clean-up went through; it took so many seconds of CPU time."""
        self._pay(now, cost)
        if not self._failed:
            self._pause = FIRST_PAUSE

    def failed(self, work: Work, now: float, cost: float) -> None:
        """A clean-up failed, in part or in whole: all of its work is to be done again."""
        self._pay(now, cost)
        self._failed.add(work)
        self._again_at = now + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def _pay(self, now: float, cost: float) -> None:
        """`_paid` is the time at which all clean-ups so far have come to their share."""
        self._paid = max(self._paid, now - self._burst / self._share) + cost / self._share
