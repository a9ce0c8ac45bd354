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
"""Seconds to wait at least after a failure; twice as long each time."""
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


class Backlog:
    """Work that waits, put together, however often it was asked for; and a clean-up's turn.

    After a quiet time that is at once, and so for the next few, until they have taken `burst` seconds. Later it is
    once all so far have come to no more than `share` of the time. After a clean-up that failed, its work waits on, and
    a growing pause goes before the next.
    """

    def __init__(self, share: float = SHARE, burst: float = BURST) -> None:
        self._share, self._burst = share, burst
        self._services: set[ServiceKey] = set()
        self._everything = False
        self._gone: dict[ServicePort, None] = {}
        self._paid = self._not_before = 0.0
        self._pause = FIRST_PAUSE

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return self._everything or bool(self._services or self._gone)

    def add(self, work: Work) -> None:
        """Let this wait, too."""
        self._services |= work.services
        self._everything = self._everything or work.everything
        self._add_gone(work.gone)

    def delay(self, now: float) -> float:
        """Seconds until the next clean-up may start."""
        return max(0.0, self._paid - now, self._not_before - now)

    def take(self) -> Work:
        """A clean-up starts: everything that waits is its work."""
        work = Work(frozenset(self._services), self._everything, tuple(self._gone))
        self._services, self._everything, self._gone = set(), False, {}
        return work

    def done(self, now: float, cost: float) -> None:
        """A clean-up went through; it took so many seconds of CPU time."""
        self._pause = FIRST_PAUSE
        self._pay(now, cost)

    def failed(self, work: Work, now: float, cost: float) -> None:
        """A clean-up failed, in part or in whole: all of its work is to be done again."""
        later = tuple(self._gone)
        self._gone.clear()
        self._add_gone(work.gone)
        self._add_gone(later)
        self.add(Work(work.services, work.everything))
        self._pay(now, cost)
        self._not_before = now + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def _add_gone(self, gone: Iterable[ServicePort]) -> None:
        for port in gone:
            self._gone.pop(port, None)
            self._gone[port] = None
        while len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]

    def _pay(self, now: float, cost: float) -> None:
        """`_paid` is the time at which all clean-ups so far have come to their share."""
        self._paid = max(self._paid, now - self._burst / self._share) + cost / self._share
