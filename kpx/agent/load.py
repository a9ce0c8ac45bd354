"""One run of iptables-restore that goes on while its payload is still being made."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from kpx.netfilter import confirmed
from kpx.netfilter.tools import Tools

_WAITING = 32
"""Pieces that may wait for the tool: it is slower than the compiler, and pieces take memory."""


@dataclass(frozen=True, slots=True)
class _End:
    """Comes after the last piece."""


_END: Final = _End()


class Load:
    """Takes a payload in pieces, whole transactions each, and feeds them to iptables-restore one after the other.

    The process starts with the first piece that isn't empty. `lines` is how many were sent.
    """

    def __init__(self, tools: Tools) -> None:
        self.lines = 0
        self._tools = tools
        self._pieces: SimpleQueue[str | _End] = SimpleQueue()
        self._waiting = 0
        self._moved = asyncio.Event()
        self._run: asyncio.Task[None] | None = None

    async def send(self, piece: str) -> None:
        """Send a piece as soon as there is room for it; an empty one is none. Raises KpxError if the run has failed."""
        if not piece:
            return
        if self._run is None:
            pieces = self._taken(asyncio.get_running_loop())
            self._run = asyncio.create_task(asyncio.to_thread(confirmed.restore, self._tools, pieces))
            self._run.add_done_callback(lambda _: self._moved.set())
        while self._waiting >= _WAITING and not self._run.done():
            self._moved.clear()
            await self._moved.wait()
        if self._run.done():
            await self._run
        self._waiting += 1
        self.lines += piece.count("\n")
        self._pieces.put(piece)

    async def finish(self) -> int:
        """Wait until the kernel has everything; how many runs it took. Raises KpxError if it takes it not."""
        self.end()
        if self._run is None:
            return 0
        await self._run
        return 1

    def end(self) -> None:
        """There are no more pieces; those that were sent are sound by themselves."""
        self._pieces.put(_END)

    def _taken(self, loop: asyncio.AbstractEventLoop) -> Iterator[str]:
        """The pieces, for the thread that feeds them."""
        while not isinstance(piece := self._pieces.get(), _End):
            loop.call_soon_threadsafe(self._took)
            yield piece

    def _took(self) -> None:
        self._waiting -= 1
        self._moved.set()
