"""Bodies of a server's answers: bytes as they come, never more than we can hold."""

from collections.abc import Iterator
from typing import Protocol

from kpx.sources.answer import Answer
from kpx.sources.trouble import TooLargeError

LONGEST = 6 << 20
"""Bytes of one object or one page of a list beyond which an answer is nonsense, or a page is asked for in parts.

etcd takes objects of 1.5 MiB unless told otherwise, in protobuf; in JSON an EndpointSlice takes 3.5 times as much. A
page of 500 Services is about 1 MiB, one of 100 EndpointSlices with 100 endpoints each 3.5 MiB.
"""

LONGEST_PACKED = 2 << 20
"""Bytes of one object in protobuf, likewise."""

LONGEST_REFUSAL = 64 << 10
"""Bytes that are read of an answer with a bad status: a Status has a few hundred."""


async def read_at_most(answer: Answer, limit: int) -> tuple[bytes, bool]:
    """The first `limit` bytes of a body, and whether they are all of it. What comes later isn't waited for."""
    pieces, size = [], 0
    async for chunk in answer.body:
        pieces.append(chunk[: limit - size])
        size += len(chunk)
        if size > limit:
            return b"".join(pieces), False
    return b"".join(pieces), True


class Splitter(Protocol):
    """Cuts a stream of bytes into its parts, however it comes in."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The parts that this chunk completes; to be used up. Raises `TooLargeError`."""


class LineSplitter:
    """Cuts a stream of bytes into its lines, without their ends."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See `Splitter`."""
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


class FrameSplitter:
    """Cuts a stream of bytes into frames: big-endian numbers of four bytes, each followed by so many bytes."""

    _HEAD = 4

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """See `Splitter`."""
        self._waiting += chunk
        start = 0
        while len(self._waiting) - start >= self._HEAD:
            body = start + self._HEAD
            length = int.from_bytes(self._waiting[start:body])
            if length > LONGEST_PACKED:
                self._waiting.clear()
                raise TooLargeError(f"a frame of {length} bytes")
            if len(self._waiting) < body + length:
                break
            yield bytes(self._waiting[body : body + length])
            start = body + length
        del self._waiting[:start]
