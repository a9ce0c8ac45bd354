"""Follows one kind of object on an API server, whatever the server, the network and the credentials do.

The protocol: kubernetes.io/docs/reference/using-api/api-concepts, "Efficient detection of changes", "Streaming
lists", "Retrieving large results sets in chunks".
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from kpx import logs
from kpx.sources.answer import Answer
from kpx.sources.lister import Lister
from kpx.sources.mirror import Mirror
from kpx.sources.requests import Asked, Requests
from kpx.sources.resource import Pace, Resource
from kpx.sources.trials import Trials
from kpx.sources.trouble import TROUBLE, Backoff, BrokenAnswerError, RefusedError, RewoundError, Trouble
from kpx.sources.wire import Bookmark, Changed, Deleted, Said, encoding_of

_EARLY_SECONDS = 5.0
"""A watch that ends so much before its time was ended by something that others may have met, too."""
_MOST_BREAKS = 3
"""How often in a row what there is at first may break off before a list is asked for."""

log = logs.get_logger()


@dataclass(slots=True, eq=False)
class _Stream:
    """A watch that is open; moments are those of the loop's clock.

    `limit`: when it will be given up. `since`: when its answer began; `until`: when its time is over; `complete`: from
    when on it has brought changes, None as long as it brings what there is at first. `newest` is the last
    resourceVersion, `parts` counts what it has brought since it was complete, `marked` says whether a bookmark was
    among that.
    """

    limit: asyncio.Timeout
    since: float
    until: float
    pinged: bool
    complete: float | None
    newest: int
    parts: int = 0
    marked: bool = False


class Reflector:
    """Lists and watches a resource; a mirror makes events of it.

    What there is at first comes by WatchList, or by lists where the server doesn't offer that or doesn't bring it to
    its end. Then a watch goes on from one resourceVersion to the next; it is resumed when it ends or breaks, and 410
    leads back to the start; so does nonsense that comes a second time from the same resourceVersion.

    Dead peers are TCP's business (`Connection`), and where there is HTTP/2 its PING finds a server that hangs. But
    behind a living load balancer a watch may be dead while both are content. So a watch must say something from time to
    time, and be it a bookmark, as servers promise about once a minute; one that is silent for longer is opened again
    from where it was, which costs nothing but a request. If it had said nothing at all, it may be of another past: from
    a resourceVersion that is yet to come a watch is silent, too. Then a list of one object tells where the server is.
    """

    def __init__(
        self,
        connection: Asked,
        resource: Resource,
        mirror: Mirror,
        on_trouble: Callable[[str, str], None],
        pace: Pace,
    ) -> None:
        self._kind = resource.kind
        self._mirror = mirror
        self._pace = pace
        self._backoff = Backoff(*pace.backoff)
        self._trials = Trials(mirror, resource.kind, on_trouble, self._backoff)
        self._requests = Requests(connection, resource)
        self._lister = Lister(self._requests, resource.page, mirror, pace, self._trials)
        self._watch_list = True
        self._breaks = 0
        self._last_heard = 0.0

    async def run(self) -> None:
        """Never returns."""
        while True:
            try:
                trouble = await self._connect()
            except TROUBLE as error:
                trouble = self._trials.trouble(error)
            if trouble is not None:
                if trouble.reason == "rewound":
                    self._lister.trust_cache(False)
                await self._trials.pause(trouble)

    async def _connect(self) -> Trouble | None:
        """Do what comes next: a census, or following from where we are. None if something else comes next."""
        try:
            if self._mirror.version is None and not (self._watch_list and self._breaks < _MOST_BREAKS):
                await self._list()
                return None
            return await self._watch()
        except RefusedError as error:
            if not self._ask_less(error):
                raise
            return None

    def _ask_less(self, refused: RefusedError) -> bool:
        """Do without what a server may not know, as it has called a request a bad one; whether there was such."""
        if refused.status in (406, 415):
            return self._requests.speak_json(refused)
        if refused.status not in (400, 422):
            return False
        if "field" in str(refused) and self._requests.narrow_less(refused):
            return True
        if self._watch_list and self._mirror.version is None:
            self._watch_list = False
            log.info("no WatchList here, listing instead", kind=self._kind, why=str(refused))
            return True
        return self._requests.narrow_less(refused)

    async def _list(self) -> None:
        began = self._now()
        self._mirror.begin()
        page = await self._lister.take()
        self._finish(page.version, began)

    # Watches.

    async def _watch(self) -> Trouble:
        """Open a watch and follow it until it is of no more use."""
        census = self._mirror.version is None
        lifetime = random.uniform(*self._pace.lifetime)
        stream: _Stream | None = None
        try:
            async with (
                asyncio.timeout(self._pace.patience) as limit,
                self._requests.get(self._watch_query(lifetime), stream=True) as answer,
            ):
                now = self._now()
                complete, newest = (None, 0) if census else (now, self._mirror.version or 0)
                stream = _Stream(limit, now, now + lifetime, answer.pinged, complete, newest)
                trouble = await self._follow(answer, stream)
        except TimeoutError:
            if stream is None:
                raise
            trouble = Trouble("stalled", f"nothing came within {self._now() - self._last_heard:.0f} s")
        except TROUBLE as error:
            if census and stream is not None and stream.complete is None:
                self._break(self._trials.trouble(error))
            raise
        finally:
            if stream is not None and stream.complete is not None:
                self._backoff.lasted(self._now() - stream.complete)
        if census and self._mirror.version is None:
            self._break(trouble)
        elif trouble.reason in ("stalled", "ended") and stream is not None and await self._is_ahead(stream):
            self._mirror.rewind()
            return self._trials.trouble(RewoundError())
        return trouble

    def _watch_query(self, lifetime: float) -> dict[str, str]:
        query = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(lifetime)))}
        if self._mirror.version is not None:
            return query | {"resourceVersion": str(self._mirror.version)}
        # No resourceVersion: from the server's cache, once that is as new as anything.
        return query | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}

    async def _follow(self, answer: Answer, stream: _Stream) -> Trouble:
        """Read a watch until it ends or makes no sense. Raises TimeoutError when it has been silent for too long."""
        if stream.complete is None:
            self._mirror.begin()
        encoding = encoding_of(answer)
        splitter = encoding.splitter()
        self._expect_more(stream)
        try:
            async for chunk in answer.body:
                census, before = stream.complete is None, stream.parts
                for part in splitter.feed(chunk):
                    self._take(encoding.event(self._kind, part), stream)
                    await self._trials.breathe()
                if census or stream.parts > before:  # in the end a line comes at once or not at all
                    self._expect_more(stream)
        except BrokenAnswerError as error:
            return self._trials.trouble(error)
        return Trouble("ended", everywhere=stream.until - self._now() > _EARLY_SECONDS)

    def _expect_more(self, stream: _Stream) -> None:
        """Give the watch up unless more comes in time."""
        now = self._last_heard = self._now()
        if stream.complete is None:
            silence = self._pace.patience
        elif stream.pinged and not stream.marked:
            silence = random.uniform(*self._pace.calm)
        else:
            silence = random.uniform(*self._pace.silence)
        if not stream.limit.expired():
            stream.limit.reschedule(min(now + silence, stream.until + self._pace.patience))

    def _take(self, said: Said, stream: _Stream) -> None:
        before = self._mirror.version
        if before is not None:
            if said.version < stream.newest:  # within one watch they grow
                self._mirror.rewind()
                raise RewoundError
            stream.newest = said.version
            stream.parts += 1
        match said:
            case Bookmark(version) if before is not None:
                self._mirror.bookmark(version)
                stream.marked = True
            case Bookmark(version, initial_end=True):
                self._finish(version, stream.since)
                stream.complete, stream.newest = self._now(), version
            case Bookmark():
                raise BrokenAnswerError("a bookmark among the initial events")
            case Changed(entry):
                self._mirror.put(entry)
            case Deleted(entry):
                self._mirror.remove(entry)
        if before not in (None, self._mirror.version) and not isinstance(said, Bookmark):
            self._backoff.news()

    def _break(self, trouble: Trouble) -> None:
        """What there is at first has broken off: a server that leaves does that; one that knows no end falls silent."""
        self._breaks += 1
        self._watch_list = self._watch_list and trouble.reason != "stalled"
        if not self._watch_list or self._breaks >= _MOST_BREAKS:
            log.info("WatchList doesn't come to its end, listing instead", kind=self._kind, why=trouble.reason)

    async def _is_ahead(self, stream: _Stream) -> bool:
        """Whether a watch said nothing because the server hasn't come to its resourceVersion yet."""
        silent = self._now() - (stream.complete or stream.since) >= min(self._pace.silence)
        if stream.parts or not silent:
            return False
        try:
            return await self._lister.where() < (self._mirror.version or 0)
        except TROUBLE:
            return False

    def _finish(self, version: int, began: float) -> None:
        """End a census. From here on a watch has to prove itself by what it brings, or by lasting."""
        self._mirror.finish(version)
        self._breaks = 0
        self._lister.trust_cache(True)
        seconds = round(self._now() - began, 3)
        log.info("complete", kind=self._kind, objects=len(self._mirror), version=version, seconds=seconds)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
