"""Requests for one kind of object, with as much in them as the server understands."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from kpx import logs
from kpx.sources.answer import Answer
from kpx.sources.resource import Resource
from kpx.sources.trouble import RefusedError
from kpx.sources.wire import JSON, PROTOBUF, refusal

log = logs.get_logger()


class Asked(Protocol):
    """What answers: a `Connection`."""

    def get(self, path: str, query: Mapping[str, str], accept: str) -> AbstractAsyncContextManager[Answer]:
        """Send a GET; for as long as its answer is read."""


class Requests:
    """Asks for one resource: in protobuf and by its selectors, as long as the server takes that."""

    def __init__(self, connection: Asked, resource: Resource) -> None:
        self._connection = connection
        self._resource = resource
        self._selector = {**resource.selector, **resource.wish}
        self._encoding = PROTOBUF

    @property
    def kind(self) -> str:
        """The kind of the objects."""
        return self._resource.kind

    @property
    def narrowed(self) -> bool:
        """Whether more is asked for than every server knows how to select."""
        return self._selector != self._resource.selector

    @asynccontextmanager
    async def get(self, query: Mapping[str, str], *, stream: bool = False) -> AsyncIterator[Answer]:
        """An answer that isn't a refusal; `stream` is for a watch. Raises what `diagnose` knows."""
        accept = self._encoding.stream if stream else self._encoding.wish
        async with self._connection.get(self._resource.path, {**self._selector, **query}, accept) as answer:
            if answer.status != 200:
                raise await refusal(answer)
            yield answer

    def speak_json(self, refused: RefusedError) -> bool:
        """Ask for JSON from now on; whether that is new."""
        if self._encoding is JSON:
            return False
        self._encoding = JSON
        log.info("no protobuf here, asking for JSON", kind=self.kind, why=str(refused))
        return True

    def narrow_less(self, refused: RefusedError) -> bool:
        """Do without what a server may not select by; whether there was such."""
        if not self.narrowed:
            return False
        self._selector = dict(self._resource.selector)
        log.info("no such field selector here, doing without", kind=self.kind, why=str(refused))
        return True
