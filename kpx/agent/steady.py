"""A setting that doesn't follow every whim. Pure: the clock is passed in."""

PAUSE = 60.0
"""Seconds from one change to the next."""


class Steady:
    """A yes or no that changes at once if it stood long enough, else when it has.

    Whether rules have comments is such a setting: kube-proxy leaves them out above a number of endpoints, and a cluster
    that swings around that number would have all rules written anew each time.
    """

    def __init__(self) -> None:
        self._value: bool | None = None
        self._until = 0.0

    def settle(self, wanted: bool, now: float) -> bool:
        """What is in force if this is wanted now."""
        if self._value is None:
            self._value = wanted
        elif wanted != self._value and now >= self._until:
            self._value, self._until = wanted, now + PAUSE
        return self._value

    def due(self, wanted: bool, now: float) -> float | None:
        """Seconds until what is wanted comes into force; None if it is already."""
        return None if self._value in (None, wanted) else max(0.0, self._until - now)
