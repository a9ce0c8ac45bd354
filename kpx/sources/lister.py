"""Everything there is of one kind, by lists: for servers that don't offer WatchList, or don't bring it to its end."""

import asyncio
from collections.abc import Mapping

from kpx import logs
from kpx.sources.mirror import Mirror
from kpx.sources.requests import Requests
from kpx.sources.resource import Pace
from kpx.sources.trials import Trials
from kpx.sources.trouble import PASSING, TROUBLE, BrokenAnswerError, RefusedError, TooLargeError
from kpx.sources.wire import Entry, Item, ListReader, Page, encoding_of

_TOKEN_SECONDS = 300.0
"""How long we go on with one list: then etcd, unless configured otherwise, has forgotten what it is of."""
_SMALLER = 8
"""By what the size of a page is divided if one of that size is too large."""
_MOST_NAMELESS = 3
"""How many objects of one list that can't be told from others are named in the log."""
_AHEAD = "Too large resource version"

log = logs.get_logger()


class Lister:
    """Lists into a mirror.

    A list is first asked for from the server's cache, whole, as of a resourceVersion not older than what is known: so
    thousands of agents that need one at the same moment don't have it read from etcd for each. In protobuf it is taken
    apart as it comes. Where that isn't to be had, because it is too large in JSON or the server's past isn't the one
    that we know, it is asked for in pages, of what is newest.
    """

    _cached = True
    """Whether to ask the server's cache."""

    def __init__(self, requests: Requests, page: int, mirror: Mirror, pace: Pace, trials: Trials) -> None:
        self._requests = requests
        self._mirror = mirror
        self._pace = pace
        self._trials = trials
        self._largest = self._limit = page
        self._nameless = 0

    async def take(self) -> Page:
        """Put everything there is into the mirror, whose census has begun. Raises what `diagnose` knows."""
        self._nameless = 0
        token = ""
        began = self._now()
        while True:
            before = self._mirror.met
            page = await self._whole_page(token, began)
            token = page.token
            if not token:
                self._limit = min(self._limit * _SMALLER, self._largest)
                return page
            if self._mirror.met == before:  # its tokens may go round, or be ever new ones
                raise BrokenAnswerError("a list that doesn't go on: a page without any new object, and not the last")

    def trust_cache(self, trusted: bool) -> None:
        """Whether to ask the server's cache first: not where its past may be another than ours."""
        self._cached = trusted

    async def where(self) -> int:
        """The resourceVersion that the server is at. Raises what `diagnose` knows."""
        async with asyncio.timeout(self._pace.patience), self._requests.get({"limit": "1"}) as answer:
            reader = encoding_of(answer).reader(self._requests.kind)
            async for chunk in answer.body:
                for _ in reader.feed(chunk):
                    pass
        for _ in reader.rest():
            pass
        return reader.page().version

    async def _whole_page(self, token: str, began: float) -> Page:
        """A page; of fewer objects if as many are too large to take."""
        while True:
            try:
                if token:
                    return await self._further_page(token, began)
                return await (self._from_cache() if self._cached else self._page(self._first))
            except TooLargeError as error:
                if self._cached and not token:
                    self._cached = False
                    log.info("list too large at once", kind=self._requests.kind, why=str(error))
                    continue
                if self._limit == 1:
                    raise
                self._limit = max(1, self._limit // _SMALLER)
                log.info("page too large", kind=self._requests.kind, why=str(error), limit=self._limit)

    @property
    def _first(self) -> Mapping[str, str]:
        return {"limit": str(self._limit)}

    async def _from_cache(self) -> Page:
        query = {"resourceVersion": str(self._mirror.newest)}
        if self._mirror.newest:
            query["resourceVersionMatch"] = "NotOlderThan"
        try:
            return await self._page(query, longest=_TOKEN_SECONDS)
        except RefusedError as refused:
            if _AHEAD not in str(refused):
                raise
            self._cached = False
            log.info("the server isn't where it was, listing anew", kind=self._requests.kind, why=str(refused))
            return await self._page(self._first)

    async def _further_page(self, token: str, began: float) -> Page:
        """Trouble that passes doesn't cost the pages before: of a thousand, a busy server refuses some every time."""
        backoff = self._trials.backoff
        failures = backoff.failures
        while True:
            try:
                page = await self._page({"limit": str(self._limit), "continue": token})
            except TooLargeError:
                raise
            except TROUBLE as error:
                trouble = self._trials.trouble(error)
                if trouble.reason not in PASSING or self._now() - began > _TOKEN_SECONDS:
                    raise
                await self._trials.pause(trouble)
            else:
                backoff.failures = failures
                return page

    async def _page(self, query: Mapping[str, str], longest: float = 0.0) -> Page:
        """A page, or with `longest` a list that may go on so many seconds as long as more of it comes."""
        began = self._now()
        async with asyncio.timeout(self._pace.patience) as limit, self._requests.get(query) as answer:
            reader = encoding_of(answer).reader(self._requests.kind)
            async for chunk in answer.body:
                if longest:
                    limit.reschedule(min(self._now() + self._pace.patience, began + longest))
                for item in reader.feed(chunk):
                    await self._put(item)
        return await self._end(reader)

    async def _end(self, reader: ListReader) -> Page:
        for item in reader.rest():
            await self._put(item)
        return reader.page()

    async def _put(self, item: Item) -> None:
        """An object of a list. One that can't be told from others is left out: these are not to suffer from it."""
        await self._trials.breathe()
        if isinstance(item, Entry):
            self._mirror.put(item)
            return
        self._mirror.doubt()
        self._trials.skipped()
        self._nameless += 1
        if self._nameless <= _MOST_NAMELESS:
            log.error("object skipped", kind=self._requests.kind, problem=str(item))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
