"""Bodies of a server's answers: bytes as they come, never more than we can hold."""

from collections.abc import AsyncIterator, Iterator

import aiohttp

from kpx.api.problems import plain
from kpx.sources.trouble import TROUBLE, BrokenAnswerError, TooLargeError, cut

LONGEST = 6 << 20
"""Bytes of one object or one page of a list beyond which an answer is nonsense, or a page is asked for in parts.

etcd takes objects of 1.5 MiB unless told otherwise, in protobuf; in JSON an EndpointSlice takes 3.5 times as much. A
page of 500 Services is about 1 MiB, one of 100 EndpointSlices with 100 endpoints each 3.5 MiB.
"""

LONGEST_REFUSAL = 64 << 10
"""Bytes that are read of an answer with a bad status: a Status has a few hundred."""


async def chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What comes of a body, as it comes, unpacked. Raises only what `diagnose` knows."""
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except TROUBLE:
        raise
    except Exception as error:  # a client that chokes on bytes does so by whatever it stumbles over
        raise BrokenAnswerError(cut(f"no HTTP: {type(error).__name__}: {plain(str(error))}")) from None


async def read_at_most(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """The first `limit` bytes of a body, and whether they are all of it. What comes later isn't waited for."""
    pieces, size = [], 0
    async for chunk in chunks(response):
        pieces.append(chunk[: limit - size])
        size += len(chunk)
        if size > limit:
            return b"".join(pieces), False
    return b"".join(pieces), True


class Splitter:
    """Cuts a stream of bytes into its lines, however it comes in."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that this chunk completes, without their ends; to be used up. Raises `TooLargeError`."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._keep(chunk[start:end])
            line = b"".join(self._pieces)
            self._pieces, self._length, start = [], 0, end + 1
            yield line
        self._keep(chunk[start:])

    def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._length += len(piece)
        if self._length > LONGEST:
            self._pieces.clear()
            raise TooLargeError(f"a line of over {LONGEST} bytes")


def check_content_type(response: aiohttp.ClientResponse) -> None:
    """Raise `BrokenAnswerError` unless an answer says that it is JSON, which is all we ask for."""
    if response.content_type != "application/json":
        raise BrokenAnswerError(f"content type {cut(plain(response.content_type))} instead of application/json")
