"""What others may have damaged, and how often it is worth putting right. Pure: the clock is passed in.

Whoever undoes a repair again and again, another proxy with another configuration say, would keep both busy for ever.
So a chain is repaired at once a few times, and from then on once in ten seconds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kpx.agent.throttle import Throttle
from kpx.netfilter.ruleset import TableName

BURST = 5
"""Repairs of one chain that may follow each other at once."""
PERIOD = 10.0
"""Seconds from one repair of a chain to the next, after those."""
MANY = 1000
"""Chains: more than these are not looked at one by one."""

ChainKey = tuple[TableName, str]


@dataclass(frozen=True, slots=True)
class Culprit:
    """Who changed our rules: the name of the process, empty if unknown, and its pid in the initial pid namespace."""

    process: str = ""
    pid: int = 0

    def __str__(self) -> str:
        return f"{self.process or 'an unknown process'} (pid {self.pid or 'unknown'})"


class Suspects:
    """Chains that may be damaged, and who touched them last, if it wasn't a look at everything that found them.

    `everything` says that it isn't known which, so that all have to be compared.
    """

    def __init__(self) -> None:
        self.everything = False
        self.culprit: Culprit | None = None
        self._chains: dict[ChainKey, Culprit | None] = {}
        self._repairs: dict[ChainKey, Throttle] = {}

    def add(self, chains: Iterable[ChainKey], culprit: Culprit | None) -> None:
        """These are suspect; none means that it isn't known which."""
        found = dict.fromkeys(chains, culprit)
        self._chains |= found
        self.culprit = culprit
        if not found or len(self._chains) > MANY:
            self.doubt_all()

    def doubt_all(self) -> None:
        """All may be damaged."""
        self.everything = True
        self._chains = {}

    def due(self, now: float) -> float | None:
        """Seconds until they may be looked at; None without any.

        All wait for the one that has to wait longest: rules of one chain may jump to another.
        """
        return max((self._delay(chain, now) for chain in self._chains), default=None)

    def take(self) -> Mapping[ChainKey, Culprit | None]:
        """All of them, to be looked at now, each with who touched it last."""
        taken, self._chains = self._chains, {}
        return taken

    def put_back(self, chains: Mapping[ChainKey, Culprit | None]) -> None:
        """These were taken, and could not be looked at; who has touched them since is the later one."""
        self._chains = {**chains, **self._chains}

    def repaired(self, chains: Iterable[ChainKey], now: float) -> Mapping[ChainKey, float]:
        """These were damaged, and have been repaired. Returns those whose next repair has to wait, with how long."""
        self._repairs = {chain: one for chain, one in self._repairs.items() if not one.is_full(now)}
        held: dict[ChainKey, float] = {}
        for chain in chains:
            throttle = self._repairs.setdefault(chain, Throttle(PERIOD, now, BURST))
            throttle.take(now)
            if throttle.delay(now):
                held[chain] = throttle.delay(now)
        return held

    def _delay(self, chain: ChainKey, now: float) -> float:
        throttle = self._repairs.get(chain)
        return throttle.delay(now) if throttle else 0.0
