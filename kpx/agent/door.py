"""Who may stay connected to the agent's HTTP ports, which may be open to the world.

There is room for so many connections, on one port and on all. Whoever comes when it is full is let in, and the one that
has been there longest has to go: a probe is answered within milliseconds, whoever floods a port stays. Those who come
and those who go are files, too, for as long as a turn or two of the loop: so many of them again, and no more, are let
in. And nobody stays for long without a request.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from kpx import logs

log = logs.get_logger()

REQUEST_SECONDS = 10.0
"""How long the first request may take until it is there."""
IDLE_SECONDS = 60.0
"""How long a connection may stay after a request, its answer included."""
CALM_SECONDS = 10.0
"""A flood is over when nobody had to go for so long."""


@dataclass(slots=True)
class _Guest:
    transport: asyncio.Transport
    port: str
    leave: asyncio.TimerHandle


@dataclass(slots=True)
class Door:
    """Lets connections in; `room` tells how many there may be in all, a port gets half of that."""

    room: Callable[[], int]
    _guests: dict[object, _Guest] = field(default_factory=dict)
    _files: int = 0
    _closed: int = 0
    _calm: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether one more may be accepted now; else some have to be closed first, which is about to happen."""
        return self._files < 2 * self.room()

    def came(self) -> None:
        """A connection has been accepted: it is a file from now on, until it `left`."""
        self._files += 1

    def enter(self, handler: object, transport: asyncio.Transport, port: str) -> None:
        """One that came on a port is served; `handler` stands for it from now on."""
        leave = asyncio.get_running_loop().call_later(REQUEST_SECONDS, transport.abort)
        self._guests[handler] = _Guest(transport, port, leave)
        room = self.room()
        on_port = [one for one in self._guests.values() if one.port == port]
        if len(on_port) > max(1, room // 2):
            self._send_away(on_port[0])
        elif len(self._guests) > room:
            self._send_away(next(iter(self._guests.values())))

    def served(self, handler: object) -> None:
        """It has sent a request."""
        guest = self._guests.get(handler)
        if guest:
            guest.leave.cancel()
            guest.leave = asyncio.get_running_loop().call_later(IDLE_SECONDS, guest.transport.abort)

    def left(self, handler: object) -> None:
        """It has ended, or could not be served at all."""
        self._files -= 1
        guest = self._guests.pop(handler, None)
        if guest:
            guest.leave.cancel()

    def _send_away(self, guest: _Guest) -> None:
        guest.transport.abort()
        self._guests = {handler: one for handler, one in self._guests.items() if one is not guest}
        guest.leave.cancel()
        self._closed += 1
        if self._calm is None:
            log.warning("too many connections, the oldest are closed", address=guest.port)
        else:
            self._calm.cancel()
        self._calm = asyncio.get_running_loop().call_later(CALM_SECONDS, self._over)

    def _over(self) -> None:
        log.info("no longer too many connections", closed=self._closed)
        self._closed, self._calm = 0, None
