"""Thousands of reflectors against one API server, in one process and in virtual time: what they ask of it, and when.

The server's half is the tests' own, from the request on: its store, its watches, its refusals and its counters. There
is no network, and time passes as soon as everybody waits.
"""

import asyncio
import selectors
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kpx.sources import cluster
from kpx.sources.answer import Answer
from kpx.sources.mirror import Mirror
from kpx.sources.reflector import Reflector
from kpx.sources.resource import Pace
from tests.apiserver import ALLOW_ALL, Faults, Promises, Request
from tests.apiserver.access import Credentials
from tests.apiserver.exchange import Exchange
from tests.apiserver.state import State
from tests.apiserver.store import Store


class _Clock(selectors.SelectSelector):
    """Instead of waiting, lets time pass."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes time but waiting."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)
        self._clock_resolution = 1e-6  # or a timer that is due by a hair would spin

    def time(self) -> float:
        return self._clock.now


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run something in virtual time."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(work)
    finally:
        for task in (tasks := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()


class _Channel:
    """An answer on its way from the server to its reflector: a `Channel`."""

    certified = True
    rate: int | None = None

    def __init__(self, number: int, count: Callable[[int], None]) -> None:
        self.number = number
        self.pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.head: asyncio.Future[tuple[int, Mapping[str, str]]] = asyncio.get_running_loop().create_future()
        self._count = count

    async def whole(self, code: int, headers: Mapping[str, str], body: bytes) -> None:
        await self.begin(code, headers)
        await self.chunk(body)
        await self.end()

    async def begin(self, code: int, headers: Mapping[str, str]) -> None:
        self._count(0)
        if not self.head.done():
            self.head.set_result((code, {name.lower(): value for name, value in headers.items()}))

    async def chunk(self, data: bytes) -> None:
        self._count(len(data))
        self.pieces.put_nowait(data)

    async def half(self, data: bytes) -> None:
        await self.chunk(data[: len(data) // 2])

    async def end(self) -> None:
        self.pieces.put_nowait(None)

    def abort(self, reset: bool) -> None:
        error = ConnectionResetError("reset")
        if not self.head.done():
            self.head.set_exception(error)
        self.pieces.put_nowait(error)

    def hang_up(self, reset: bool) -> None:
        self.abort(reset)

    def blackhole(self) -> None:
        raise NotImplementedError

    async def body(self) -> AsyncIterator[bytes]:
        while (piece := await self.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class Herd:
    """`count` reflectors of EndpointSlices, and the server that they follow.

    `requests` and `sent` count by whole seconds; `kinds` by what was asked for: watch, initial (WatchList), cached (a
    list from the cache), etcd (a list that the server reads from etcd).
    """

    def __init__(self, count: int, folder: Path, promises: Promises, pace: Pace | None = None) -> None:
        self.state = State(Store(promises.history), Credentials(folder, tls=False), promises)
        self.requests: Counter[int] = Counter()
        self.sent: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.complete = 0
        self.down = False
        self._count = count
        self._pace = pace or Pace()
        self._open: dict[_Channel, asyncio.Task[None]] = {}
        self._mirrors: list[Mirror] = []

    def start(self) -> None:
        """Let all of them begin at this moment."""
        for _ in range(self._count):
            mirror = Mirror(cluster.SLICES.kind, lambda event: None)
            self._mirrors.append(mirror)
            reflector = Reflector(self, cluster.SLICES, mirror, lambda kind, reason: None, self._pace)
            task = asyncio.ensure_future(reflector.run())
            task.add_done_callback(lambda done: done.cancelled() or done.result())

    def put(self, obj: dict[str, Any]) -> None:
        """Change something; those that watch are told."""
        self.state.store.put(obj)
        for watch in self.state.watches:
            watch.changed.set()

    def all_follow(self) -> bool:
        """Whether every one of them has an open watch and knows the newest there is."""
        newest = self.state.store.version
        return len(self.state.watches) == self._count and all(mirror.version == newest for mirror in self._mirrors)

    def kill(self) -> None:
        """The server dies: every answer breaks off, and nobody gets a connection."""
        self.down = True
        for channel, task in list(self._open.items()):
            task.cancel()
            channel.abort(reset=True)

    def leave(self) -> None:
        """The server ends every watch in good order, as on SIGTERM, and nobody gets a connection."""
        self.down = True
        for channel, task in list(self._open.items()):
            task.cancel()
            channel.pieces.put_nowait(None)

    def come_back(self, forgetful: bool) -> None:
        """It is there again, `forgetful` with no history: all that was before is 410."""
        self.down = False
        if forgetful:
            self.state.store.jump(10)
            self.state.store.compact()

    def throttle(self, chance: float) -> None:
        """Refuse so much with 429."""
        self.state.set_faults(Faults(throttle=chance, retry_after=1))

    def peak(self, since: int, until: int) -> int:
        """The most requests in one second."""
        return max((self.requests[second] for second in range(since, until)), default=0)

    @asynccontextmanager
    async def get(self, path: str, query: Mapping[str, str], accept: str) -> AsyncIterator[Answer]:
        """What a `Connection` does."""
        loop = asyncio.get_running_loop()
        second = int(loop.time())
        self.requests[second] += 1
        if self.down:
            raise ConnectionRefusedError("nobody listens")
        self.kinds[_kind(query)] += 1
        channel = _Channel(1, self._note)
        headers = {"accept": accept, "authorization": f"Bearer {self.state.credentials.token}"}
        exchange = Exchange(self.state, channel, Request("GET", path, query, headers, loop.time(), 1))
        task = self._open[channel] = asyncio.ensure_future(exchange.run())
        try:
            code, head = await channel.head
            yield Answer(code, "", head, channel.body(), pinged=True)
        finally:
            task.cancel()
            del self._open[channel]

    def _note(self, size: int) -> None:
        self.sent[int(asyncio.get_running_loop().time())] += size


def _kind(query: Mapping[str, str]) -> str:
    if "watch" in query:
        return "initial" if "sendInitialEvents" in query else "watch"
    return "cached" if "resourceVersion" in query and "limit" not in query else "etcd"


PROMISES = Promises(rules=ALLOW_ALL)
