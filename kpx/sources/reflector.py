"""Follows one kind of object on an API server, whatever the server, the network and the credentials do.

The protocol: kubernetes.io/docs/reference/using-api/api-concepts, "Efficient detection of changes", "Streaming
lists", "Retrieving large results sets in chunks".
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import structlog

from kpx.errors import KpxError
from kpx.sources.connection import Connection
from kpx.sources.mirror import Mirror, RewoundError
from kpx.sources.wire import (
    Bookmark,
    BrokenAnswerError,
    Changed,
    Deleted,
    Page,
    RefusedError,
    Splitter,
    Trouble,
    decode_line,
    diagnose,
)

_TROUBLE = (RefusedError, BrokenAnswerError, RewoundError, KpxError, aiohttp.ClientError, OSError)
_SLICE_SECONDS = 0.005
_GRACE_SECONDS = 1.0
_QUIET = ("ended", "stalled")
_PASSING = ("throttled", "failed", "dropped", "unreachable", "timeout", "unauthorized")
_TOKEN_SECONDS = 300.0
"""How long we go on with one list: then etcd, unless configured otherwise, has forgotten what it is of."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Resource:
    """Objects of one kind: where they are, which of them, and how many to ask for at once."""

    kind: str
    path: str
    selector: Mapping[str, str]
    page: int


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds; pairs are ranges, of which one value is picked at random.

    `lifetime`: what we ask of a watch. `patience`: for the head of an answer, and for a page of a list. `silence`:
    after that, we doubt that a watch is alive. `backoff`: the upper bound of the first delay, which doubles with
    every failure, and of the last.
    """

    lifetime: tuple[float, float] = (300.0, 600.0)
    patience: float = 25.0
    silence: float = 20.0
    backoff: tuple[float, float] = (1.0, 30.0)


class Reflector:
    """Lists and watches a resource; a mirror makes events of it.

    What there is at first comes by WatchList, or in pages where the server doesn't offer that or doesn't bring
    it to its end. Then a watch goes on from one resourceVersion to the next; it is resumed when it ends or
    breaks, and 410 leads back to the start.

    Dead peers are TCP's business (`Connection`). But behind a living load balancer, or in a server that hangs,
    a watch may be dead while TCP is content, and HTTP/1.1 has no ping; bookmarks come once a minute. So after
    some silence a second, short watch asks for anything newer than what the first has brought. Only if it
    gets something that the first doesn't get is the first given up: a watch that has nothing to say isn't
    disturbed, least of all while the server is too busy to answer the question.
    """

    def __init__(
        self,
        connection: Connection,
        resource: Resource,
        mirror: Mirror,
        on_restart: Callable[[str, str], None],
        pace: Pace,
    ) -> None:
        self._connection = connection
        self._resource = resource
        self._mirror = mirror
        self._on_restart = on_restart
        self._pace = pace
        self._watch_list = True
        self._failures = 0
        self._expiries = 0
        self._since = 0.0
        self._heard = 0.0
        self._rested = 0.0
        self._stream: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reflect())
            group.create_task(self._doubt())

    async def _reflect(self) -> None:
        while True:
            try:
                trouble = await self._connect()
            except _TROUBLE as error:
                trouble = self._trouble(error)
            if trouble is not None:
                await self._pause(trouble)

    async def _connect(self) -> Trouble | None:
        """Do what comes next: a census, or following from where we are."""
        if self._mirror.version is None and not self._watch_list:
            await self._list()
            return None
        return await self._watch()

    # Lists.

    async def _list(self) -> None:
        self._since = time.monotonic()
        self._mirror.begin()
        token = ""
        while True:
            page = await (self._further_page(token) if token else self._page())
            for entry in page.entries():
                self._mirror.put(entry)
                await self._breathe()
            token = page.token
            if not token:
                break
        self._finish(page.version)

    async def _further_page(self, token: str) -> Page:
        """Trouble that passes doesn't cost the pages before: of a thousand, a busy server refuses some every time."""
        failures = self._failures
        while True:
            try:
                page = await self._page(token)
            except _TROUBLE as error:
                trouble = self._trouble(error)
                if trouble.reason not in _PASSING or time.monotonic() - self._since > _TOKEN_SECONDS:
                    raise
                await self._pause(trouble)
            else:
                self._failures = failures
                return page

    async def _page(self, token: str = "") -> Page:
        query = {"limit": str(self._resource.page)} | ({"continue": token} if token else {})
        async with asyncio.timeout(self._pace.patience), self._get(query) as response:
            return Page.of(await response.read())

    # Watches.

    async def _watch(self) -> Trouble | None:
        """Open a watch and follow it until it is of no more use; None if the server doesn't offer such a watch."""
        census = self._mirror.version is None
        try:
            async with asyncio.timeout(self._pace.patience) as limit, self._get(self._watch_query()) as response:
                limit.reschedule(None)
                self._stream = limit
                trouble = await self._follow(response)
        except TimeoutError:
            if self._stream is None:
                raise
            trouble = Trouble("stalled")
        except RefusedError as refused:
            if not census or refused.status not in (400, 422):
                raise
            self._give_up_watch_list(str(refused))
            return None
        finally:
            self._stream = None
        if self._mirror.version is None:
            self._give_up_watch_list(f"{trouble.reason} before the end of the initial events")
        elif trouble.reason in _QUIET and time.monotonic() - self._since > _GRACE_SECONDS:
            self._succeed()
        return trouble

    def _watch_query(self) -> dict[str, str]:
        lifetime = random.uniform(*self._pace.lifetime)
        query = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(lifetime)))}
        if self._mirror.version is not None:
            return query | {"resourceVersion": str(self._mirror.version)}
        # No resourceVersion: the newest there is, as in a list without.
        return query | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}

    async def _follow(self, response: aiohttp.ClientResponse) -> Trouble:
        """Read a watch until it ends or makes no sense."""
        self._since = self._heard = time.monotonic()
        if self._mirror.version is None:
            self._mirror.begin()
        splitter = Splitter()
        try:
            async for chunk in response.content.iter_any():
                self._heard = time.monotonic()
                for line in splitter.feed(chunk):
                    self._take(line)
                    await self._breathe()
        except BrokenAnswerError as error:
            return diagnose(error)
        return Trouble("ended")

    def _take(self, line: bytes) -> None:
        said = decode_line(line)
        if self._mirror.version is not None:
            self._succeed()
        match said:
            case Bookmark(version) if self._mirror.version is not None:
                self._mirror.bookmark(version)
            case Bookmark(version, initial_end=True):
                self._finish(version)
            case Bookmark():
                raise BrokenAnswerError("a bookmark among the initial events")
            case Changed(entry):
                self._mirror.put(entry)
            case Deleted(entry):
                self._mirror.remove(entry)

    def _give_up_watch_list(self, why: str) -> None:
        self._watch_list = False
        log.info("no WatchList here, listing instead", kind=self._resource.kind, why=why)

    # Stalled watches.

    async def _doubt(self) -> None:
        """End the watch whenever it is found to be stalled."""
        while True:
            limit = self._pace.silence * random.uniform(0.8, 1.0)
            await asyncio.sleep(limit)
            while self._stream is not None and (left := self._heard + limit - time.monotonic()) > 0:
                await asyncio.sleep(left)
            stream, heard = self._stream, self._heard
            if stream is None or not await self._is_missing_something():
                continue
            await asyncio.sleep(_GRACE_SECONDS)
            if stream is self._stream and heard == self._heard:
                stream.reschedule(0)

    async def _is_missing_something(self) -> bool:
        """Whether the server would say something now to a watch from here."""
        if self._mirror.version is None:  # initial events don't pause
            return True
        query = {"watch": "1", "timeoutSeconds": "1", "resourceVersion": str(self._mirror.version)}
        try:
            async with asyncio.timeout(self._pace.silence), self._get(query) as response:
                return bool(await response.content.readany())
        except RefusedError as refused:
            return refused.status == 410
        except (KpxError, aiohttp.ClientError, OSError):
            return False

    # Both.

    @asynccontextmanager
    async def _get(self, query: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that isn't a refusal."""
        async with self._connection.get(self._resource.path, {**self._resource.selector, **query}) as response:
            if response.status != 200:
                raise await RefusedError.of(response)
            yield response

    def _finish(self, version: int) -> None:
        """End a census. From here on a watch has to prove itself by what it brings, or by lasting."""
        self._mirror.finish(version)
        seconds = round(time.monotonic() - self._since, 3)
        log.info("complete", kind=self._resource.kind, objects=len(self._mirror), version=version, seconds=seconds)
        self._since = time.monotonic()

    async def _breathe(self) -> None:
        """Let others run if we have run for a while: much may come at once."""
        if time.monotonic() - self._rested > _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._rested = time.monotonic()

    def _trouble(self, error: Exception) -> Trouble:
        if isinstance(error, RewoundError):
            return Trouble("rewound", "the server's resourceVersions have gone back")
        trouble = diagnose(error)
        if trouble.reason == "expired":
            self._mirror.expire()
        return trouble

    async def _pause(self, trouble: Trouble) -> None:
        """Tell what happened, and wait as long as is right after that."""
        delay = self._delay(trouble)
        level = log.info if trouble.reason == "ended" else log.warning
        level(
            "watch interrupted",
            kind=self._resource.kind,
            reason=trouble.reason,
            detail=trouble.detail,
            version=self._mirror.version,
            retry_seconds=round(delay, 2),
        )
        self._on_restart(self._resource.kind, trouble.reason)
        await asyncio.sleep(delay)

    def _delay(self, trouble: Trouble) -> float:
        """Exponential backoff with full jitter, on top of what the server asks for.

        None after a watch that had some success, and came to a quiet end. What a server forbids isn't asked for more
        slowly: one that has just started forbids everything until it has read its roles.
        """
        if trouble.reason in _QUIET and not self._failures:
            self._failures = 1  # until the next one has some success, too
            return 0.0
        if trouble.reason == "expired":
            # A server that was restarted says this: the failures before it are over, and it is time for a census.
            before, self._expiries = self._expiries, self._expiries + 1
        else:
            before, self._failures = self._failures, self._failures + 1
        first, longest = self._pace.backoff
        return trouble.retry_after + random.uniform(0, min(first * 2.0 ** min(before, 30), longest))

    def _succeed(self) -> None:
        self._failures = self._expiries = 0
