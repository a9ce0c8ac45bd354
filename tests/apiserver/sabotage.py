"""What each fault does to one line of a watch; the methods have the faults' names."""

import asyncio
from collections.abc import Awaitable, Callable

from . import refusals
from .faults import DELIVERY, Dice
from .speech import PADDING, Event, Speech, compact, pad
from .state import OpenWatch
from .wire import Channel

__all__ = ["PADDING", "Sabotage", "StreamEndError", "compact", "forever", "pad"]

SendLine = Callable[[bytes], Awaitable[None]]


class StreamEndError(Exception):
    """The answer ends here, cleanly."""


class Sabotage:
    """Sends lines of a watch the wrong way. `send` is the right way."""

    def __init__(self, watch: OpenWatch, dice: Dice, speech: Speech, send: SendLine) -> None:
        self._watch = watch
        self._dice = dice
        self._speech = speech
        self._send = send

    @property
    def _connection(self) -> Channel:
        return self._watch.connection

    async def strike(self, fault: str, event: Event) -> None:
        """Do what `fault` (one of DELIVERY) does. May raise StreamEndError or RefusalError, or never return."""
        assert fault in DELIVERY
        if fault == "oversize":
            await self._send(self._speech.event(event, self._dice.faults.oversize_bytes))
            return
        act: SendLine = getattr(self, fault)
        await act(self._speech.event(event, 0))

    async def drip(self, line: bytes) -> None:
        self._connection.rate = self._dice.faults.drip_rate
        await self._send(line)

    async def drop_mid_line(self, line: bytes) -> None:
        await self._connection.half(line)
        await self._hang_up()

    async def drop(self, line: bytes) -> None:
        await self._send(line)
        await self._hang_up()

    async def end(self, line: bytes) -> None:
        await self._send(line)
        raise StreamEndError

    async def stall(self, line: bytes) -> None:
        self._watch.stalled = True
        await forever()

    async def blackhole(self, line: bytes) -> None:
        self._connection.blackhole()
        await self.stall(line)

    async def freeze(self, line: bytes) -> None:
        await asyncio.sleep(self._dice.faults.freeze_seconds)
        await self._send(line)

    async def garbage(self, line: bytes) -> None:
        await self._connection.chunk(self._speech.garbage)
        await self._send(line)

    async def truncate_line(self, line: bytes) -> None:
        await self._connection.chunk(self._speech.halved(line))

    async def duplicate(self, line: bytes) -> None:
        await self._send(line)
        await self._send(line)

    async def split(self, line: bytes) -> None:
        third = len(line) // 3 + 1
        for start in range(0, len(line), third):
            await self._connection.chunk(line[start : start + third])
            await asyncio.sleep(0.005)
        await self._send(b"")  # counts it

    async def gone_event(self, line: bytes) -> None:
        raise refusals.expired("The resourceVersion for the provided watch is too old.")

    async def error_event(self, line: bytes) -> None:
        raise refusals.internal_error()

    async def _hang_up(self) -> None:
        await asyncio.sleep(0.02)  # so that the client has read what came before
        self._connection.abort(reset=self._dice.random.random() < 0.5)
        await forever()


async def forever() -> None:
    """Wait until cancelled: the client has gone, or the server stops."""
    await asyncio.Event().wait()
