"""What goes on between attempts: what went wrong, how long to wait, and turns for others."""

import asyncio
import time
from collections.abc import Callable

from kpx import logs
from kpx.sources.mirror import Mirror
from kpx.sources.trouble import Backoff, Trouble, diagnose

_SLICE_SECONDS = 0.005

log = logs.get_logger()


class Trials:
    """Attempts to follow one kind of object."""

    def __init__(self, mirror: Mirror, kind: str, on_trouble: Callable[[str, str], None], backoff: Backoff) -> None:
        self.backoff = backoff
        self._mirror = mirror
        self._kind = kind
        self._on_trouble = on_trouble
        self._garbled_at: int | None = None
        self._rested = 0.0

    def trouble(self, error: Exception) -> Trouble:
        """What an error means, and what is therefore known no more. Raises it again if it is none of a connection."""
        trouble = diagnose(error)
        if trouble.reason == "expired":
            self._mirror.expire()
        elif trouble.reason == "garbage":
            at = self._mirror.version
            if at is not None and at == self._garbled_at:
                self._mirror.expire()
            self._garbled_at = at
        return trouble

    def skipped(self) -> None:
        """An object had to be left out."""
        self._on_trouble(self._kind, "garbage")

    async def pause(self, trouble: Trouble) -> None:
        """Tell what happened, and wait as long as is right after that."""
        delay = self.backoff.delay(trouble)
        level = log.info if trouble.reason == "ended" else log.warning
        level(
            "watch interrupted",
            kind=self._kind,
            reason=trouble.reason,
            detail=trouble.detail,
            version=self._mirror.version,
            retry_seconds=round(delay, 2),
        )
        self._on_trouble(self._kind, trouble.reason)
        await asyncio.sleep(delay)

    async def breathe(self) -> None:
        """Let others run if we have run for a while: much may come at once."""
        if time.monotonic() - self._rested > _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._rested = time.monotonic()
