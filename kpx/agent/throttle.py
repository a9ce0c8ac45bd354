"""How often to sync. Pure: the clock is passed in."""

BURST = 2
"""Syncs that may follow each other at once after a quiet time, as in kube-proxy."""


SHARE = 0.5
"""How much of the time restores may take where the period adapts to them."""


class Throttle:
    """A bucket of `burst` tokens, one more every `period` seconds (0: no limit)."""

    def __init__(self, period: float, now: float, burst: int = BURST) -> None:
        self.period, self._burst = period, float(burst)
        self._tokens = self._burst
        self._at = now

    def delay(self, now: float) -> float:
        """Seconds until the next sync may start."""
        self._refill(now)
        return 0.0 if self._tokens >= 1 or not self.period else (1 - self._tokens) * self.period

    def take(self, now: float) -> None:
        """A sync starts; also one that couldn't wait, for which later ones don't pay."""
        self._refill(now)
        self._tokens = max(0.0, self._tokens - 1)

    def is_full(self, now: float) -> bool:
        """Whether it has been quiet for so long that it is as at the beginning."""
        self._refill(now)
        return self._tokens >= self._burst

    def adapt(self, least: float, seconds: float, now: float) -> None:
        """A restore took so long: make the period long enough for it, but no shorter than `least`.

        It grows at once and shrinks step by step.
        """
        self._refill(now)
        self.period = max(least, seconds / SHARE, self.period * 0.8)

    def _refill(self, now: float) -> None:
        if self.period:
            self._tokens = min(self._burst, self._tokens + (now - self._at) / self.period)
        else:
            self._tokens = self._burst
        self._at = now


class Backoff:
    """Growing pauses after failures: `first` seconds, then twice as long each time up to `longest`."""

    def __init__(self, first: float = 0.5, longest: float = 30.0) -> None:
        self.first, self.longest = first, longest
        self._next = first

    def after_failure(self) -> float:
        """Seconds to wait before the next try."""
        pause, self._next = self._next, min(self.longest, self._next * 2)
        return pause

    def after_success(self) -> None:
        """Start over."""
        self._next = self.first
