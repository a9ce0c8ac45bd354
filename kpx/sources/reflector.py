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

import structlog

from kpx.sources.answer import Answer
from kpx.sources.connection import Connection
from kpx.sources.mirror import Mirror
from kpx.sources.resource import Pace, Resource
from kpx.sources.trouble import (
    PASSING,
    TROUBLE,
    Backoff,
    BrokenAnswerError,
    RefusedError,
    RewoundError,
    TooLargeError,
    Trouble,
    diagnose,
)
from kpx.sources.wire import JSON, PROTOBUF, Bookmark, Changed, Deleted, Entry, Item, Page, Said, encoding_of, refusal

_SLICE_SECONDS = 0.005
_GRACE_SECONDS = 1.0
_TOKEN_SECONDS = 300.0
"""How long we go on with one list: then etcd, unless configured otherwise, has forgotten what it is of."""
_SMALLER = 8
"""By what the size of a page is divided if one of that size is too large."""
_MOST_NAMELESS = 3
"""How many objects of one list that can't be told from others are named in the log."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Stream:
    """A watch that is open.

    `since`: when its answer began; `complete`: from when on it has brought changes, None as long as it brings what
    there is at first. `heard`, `taken`: when the last bytes came, and the last line. `proven`: when a list last told
    that the server has been where we are. `newest` is the last resourceVersion, `found` why the watch has to end
    before its time, `limit`.
    """

    limit: asyncio.Timeout
    since: float
    complete: float | None
    heard: float
    taken: float
    newest: int
    proven: float = 0.0
    found: Trouble | None = None

    def end(self, found: Trouble) -> None:
        """Let the watch end at once."""
        if not self.limit.expired():
            self.found = found
            self.limit.reschedule(0)


class Reflector:
    """Lists and watches a resource; a mirror makes events of it.

    What there is at first comes by WatchList, or in pages where the server doesn't offer that or doesn't bring
    it to its end. Then a watch goes on from one resourceVersion to the next; it is resumed when it ends or
    breaks, and 410 leads back to the start; so does nonsense that comes a second time from the same resourceVersion.

    Dead peers are TCP's business (`Connection`). But behind a living load balancer, or in a server that hangs,
    a watch may be dead while TCP is content, and HTTP/1.1 has no ping; bookmarks come once a minute. So after
    some silence a second, short watch asks for anything newer than what the first has brought. Only if it
    gets something that the first doesn't get is the first given up: a watch that has nothing to say isn't
    disturbed, least of all while the server is too busy to answer the question. From a resourceVersion that is yet
    to come a watch is silent, too, and so is the second one; where bookmarks stay away, a list tells where the
    server is.
    """

    def __init__(
        self,
        connection: Connection,
        resource: Resource,
        mirror: Mirror,
        on_trouble: Callable[[str, str], None],
        pace: Pace,
    ) -> None:
        self._connection = connection
        self._resource = resource
        self._mirror = mirror
        self._on_trouble = on_trouble
        self._pace = pace
        self._backoff = Backoff(*pace.backoff)
        self._watch_list = True
        self._selector = {**resource.selector, **resource.wish}
        self._encoding = PROTOBUF
        self._limit = resource.page
        self._nameless = 0
        self._garbled_at: int | None = None
        self._rested = 0.0
        self._stream: _Stream | None = None

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reflect())
            group.create_task(self._doubt())

    async def _reflect(self) -> None:
        while True:
            try:
                trouble = await self._connect()
            except TROUBLE as error:
                trouble = self._trouble(error)
            if trouble is not None:
                await self._pause(trouble)

    async def _connect(self) -> Trouble | None:
        """Do what comes next: a census, or following from where we are. None if something else comes next."""
        try:
            if self._mirror.version is None and not self._watch_list:
                await self._list()
                return None
            return await self._watch()
        except RefusedError as error:
            if not self._ask_less(error):
                raise
            return None

    def _ask_less(self, refused: RefusedError) -> bool:
        """Do without what a server may not know, as it has called a request a bad one; whether there was such."""
        why = str(refused)
        if refused.status in (406, 415) and self._encoding is PROTOBUF:
            self._encoding = JSON
            log.info("no protobuf here, asking for JSON", kind=self._resource.kind, why=why)
            return True
        if refused.status not in (400, 422):
            return False
        if self._selector != self._resource.selector and ("field" in why or not self._watch_list):
            self._selector = dict(self._resource.selector)
            log.info("no such field selector here, doing without", kind=self._resource.kind, why=why)
            return True
        if self._watch_list and self._mirror.version is None:
            self._give_up_watch_list(why)
            return True
        return False

    # Lists.

    async def _list(self) -> None:
        began = time.monotonic()
        self._mirror.begin()
        token, self._nameless = "", 0
        while True:
            before = self._mirror.met
            page = await self._whole_page(token, began)
            token = page.token
            if not token:
                break
            if self._mirror.met == before:  # its tokens may go round, or be ever new ones
                raise BrokenAnswerError("a list that doesn't go on: a page without any new object, and not the last")
        self._finish(page.version, began)
        self._limit = min(self._limit * _SMALLER, self._resource.page)

    async def _put(self, item: Item) -> None:
        """An object of a list. One that can't be told from others is left out: these are not to suffer from it."""
        await self._breathe()
        if isinstance(item, Entry):
            self._mirror.put(item)
            return
        self._mirror.doubt()
        self._on_trouble(self._resource.kind, "garbage")
        self._nameless += 1
        if self._nameless <= _MOST_NAMELESS:
            log.error("object skipped", kind=self._resource.kind, problem=str(item))

    async def _whole_page(self, token: str, began: float) -> Page:
        """A page; of fewer objects if as many are too large to take."""
        while True:
            try:
                return await (self._further_page(token, began) if token else self._page(token, self._limit))
            except TooLargeError as error:
                if self._limit == 1:
                    raise
                self._limit = max(1, self._limit // _SMALLER)
                log.info("page too large", kind=self._resource.kind, why=str(error), limit=self._limit)

    async def _further_page(self, token: str, began: float) -> Page:
        """Trouble that passes doesn't cost the pages before: of a thousand, a busy server refuses some every time."""
        failures = self._backoff.failures
        while True:
            try:
                page = await self._page(token, self._limit)
            except TooLargeError:
                raise
            except TROUBLE as error:
                trouble = self._trouble(error)
                if trouble.reason not in PASSING or time.monotonic() - began > _TOKEN_SECONDS:
                    raise
                await self._pause(trouble)
            else:
                self._backoff.failures = failures
                return page

    async def _page(self, token: str, limit: int) -> Page:
        query = {"limit": str(limit)} | ({"continue": token} if token else {})
        async with asyncio.timeout(self._pace.patience), self._get(query, self._encoding.wish) as answer:
            reader = encoding_of(answer).reader(self._resource.kind)
            async for chunk in answer.body:
                for item in reader.feed(chunk):
                    await self._put(item)
        for item in reader.rest():
            await self._put(item)
        return reader.page()

    # Watches.

    async def _watch(self) -> Trouble:
        """Open a watch and follow it until it is of no more use."""
        census, begun = self._mirror.version is None, False
        lifetime = random.uniform(*self._pace.lifetime)
        try:
            async with (
                asyncio.timeout(self._pace.patience) as limit,
                self._get(self._watch_query(lifetime), self._encoding.stream) as answer,
            ):
                begun = True
                limit.reschedule(asyncio.get_running_loop().time() + lifetime + self._pace.patience)
                trouble = await self._follow(answer, limit)
        except TimeoutError:
            if not begun:
                raise
            trouble = (self._stream and self._stream.found) or Trouble("stalled")
        finally:
            stream, self._stream = self._stream, None
            if stream is not None and stream.complete is not None:
                self._backoff.lasted(time.monotonic() - stream.complete)
        if census and self._mirror.version is None:
            self._give_up_watch_list(f"{trouble.reason} before the end of the initial events")
        return trouble

    def _watch_query(self, lifetime: float) -> dict[str, str]:
        query = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(lifetime)))}
        if self._mirror.version is not None:
            return query | {"resourceVersion": str(self._mirror.version)}
        # No resourceVersion: the newest there is, as in a list without.
        return query | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}

    async def _follow(self, answer: Answer, limit: asyncio.Timeout) -> Trouble:
        """Read a watch until it ends or makes no sense."""
        now = time.monotonic()
        complete = None if self._mirror.version is None else now
        stream = self._stream = _Stream(limit, now, complete, now, now, self._mirror.version or 0)
        if self._mirror.version is None:
            self._mirror.begin()
        encoding = encoding_of(answer)
        splitter = encoding.splitter()
        try:
            async for chunk in answer.body:
                stream.heard = time.monotonic()
                for part in splitter.feed(chunk):
                    self._take(encoding.event(self._resource.kind, part), stream)
                    await self._breathe()
        except BrokenAnswerError as error:
            return self._trouble(error)
        return Trouble("ended")

    def _take(self, said: Said, stream: _Stream) -> None:
        stream.taken = time.monotonic()
        before = self._mirror.version
        if before is not None:
            if said.version < stream.newest:  # within one watch they grow
                self._mirror.rewind()
                raise RewoundError
            stream.newest = said.version
        match said:
            case Bookmark(version) if before is not None:
                self._mirror.bookmark(version)
            case Bookmark(version, initial_end=True):
                self._finish(version, stream.since)
                stream.complete, stream.newest = time.monotonic(), version
            case Bookmark():
                raise BrokenAnswerError("a bookmark among the initial events")
            case Changed(entry):
                self._mirror.put(entry)
            case Deleted(entry):
                self._mirror.remove(entry)
        if before not in (None, self._mirror.version) and not isinstance(said, Bookmark):
            self._backoff.news()

    def _give_up_watch_list(self, why: str) -> None:
        self._watch_list = False
        log.info("no WatchList here, listing instead", kind=self._resource.kind, why=why)

    # Stalled watches.

    async def _doubt(self) -> None:
        """End the watch whenever it is found to be stalled, or to be of another past."""
        while True:
            limit = self._pace.silence * random.uniform(0.8, 1.0)
            await asyncio.sleep(limit)
            while self._stream is not None and (left := self._last(self._stream) + limit - time.monotonic()) > 0:
                await asyncio.sleep(left)
            if (stream := self._stream) is None:
                continue
            last = self._last(stream)
            if await self._is_missing_something():
                await asyncio.sleep(_GRACE_SECONDS)
                found = Trouble("stalled")
            elif time.monotonic() - max(stream.taken, stream.proven) > self._pace.proof:
                if not await self._is_ahead():
                    stream.proven = time.monotonic()
                    continue
                found = diagnose(RewoundError())
            else:
                continue
            if stream is self._stream and last == self._last(stream):
                if found.reason == "rewound":
                    self._mirror.rewind()
                stream.end(found)

    def _last(self, stream: _Stream) -> float:
        """When a watch was last of use: initial events may come slowly, later a line comes at once or not at all."""
        return stream.heard if self._mirror.version is None else stream.taken

    async def _is_missing_something(self) -> bool:
        """Whether the server would say something now to a watch from here."""
        if self._mirror.version is None:  # initial events don't pause
            return True
        query = {"watch": "1", "timeoutSeconds": "1", "resourceVersion": str(self._mirror.version)}
        try:
            async with asyncio.timeout(self._pace.silence), self._get(query, self._encoding.stream) as answer:
                async for _ in answer.body:
                    return True
        except RefusedError as refused:
            return refused.status == 410
        except TROUBLE:
            pass
        return False

    async def _is_ahead(self) -> bool:
        """Whether we are at a resourceVersion that the server hasn't come to yet."""
        version = self._mirror.version or 0
        try:
            return (await self._page("", 1)).version < version
        except TROUBLE:
            return False

    # Both.

    @asynccontextmanager
    async def _get(self, query: Mapping[str, str], accept: str) -> AsyncIterator[Answer]:
        """An answer that isn't a refusal."""
        async with self._connection.get(self._resource.path, {**self._selector, **query}, accept) as answer:
            if answer.status != 200:
                raise await refusal(answer)
            yield answer

    def _finish(self, version: int, began: float) -> None:
        """End a census. From here on a watch has to prove itself by what it brings, or by lasting."""
        self._mirror.finish(version)
        seconds = round(time.monotonic() - began, 3)
        log.info("complete", kind=self._resource.kind, objects=len(self._mirror), version=version, seconds=seconds)

    async def _breathe(self) -> None:
        """Let others run if we have run for a while: much may come at once."""
        if time.monotonic() - self._rested > _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._rested = time.monotonic()

    def _trouble(self, error: Exception) -> Trouble:
        trouble = diagnose(error)
        if trouble.reason == "expired":
            self._mirror.expire()
        elif trouble.reason == "garbage":
            at = self._mirror.version
            if at is not None and at == self._garbled_at:
                self._mirror.expire()
            self._garbled_at = at
        return trouble

    async def _pause(self, trouble: Trouble) -> None:
        """Tell what happened, and wait as long as is right after that."""
        delay = self._backoff.delay(trouble)
        level = log.info if trouble.reason == "ended" else log.warning
        level(
            "watch interrupted",
            kind=self._resource.kind,
            reason=trouble.reason,
            detail=trouble.detail,
            version=self._mirror.version,
            retry_seconds=round(delay, 2),
        )
        self._on_trouble(self._resource.kind, trouble.reason)
        await asyncio.sleep(delay)
