"""HTTP/1.1 by hand, so that every byte, and every way to end a connection, is ours to choose.

Message syntax: RFC 9112. Requests may be pipelined; bodies are read and thrown away.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

_MAX_HEAD = 64 * 1024
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_PIECE = 64


class BadRequestError(Exception):
    """Bytes that aren't an HTTP request."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came in. Header names are in lower case, `query` has the first value of each name.

    `time` is CLOCK_MONOTONIC in seconds, the same for all processes of a host; `connection` tells
    connections apart (1, 2, ... in order of arrival).
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    time: float
    connection: int


class Channel(Protocol):
    """How an answer gets to its client: a connection of HTTP/1.1, or a stream of one of HTTP/2.

    Everything that sends waits until the transport has taken most of it, and raises ConnectionError where the client
    has gone. `number` tells connections apart, `certified` says whether the client has shown a certificate.
    """

    number: int
    certified: bool
    rate: int | None
    """Bytes a second from now on; None: as fast as it goes."""

    async def whole(self, code: int, headers: Mapping[str, str], body: bytes) -> None:
        """A whole answer, that says how long it is."""

    async def begin(self, code: int, headers: Mapping[str, str]) -> None:
        """The head of an answer that is as long as it is."""

    async def chunk(self, data: bytes) -> None:
        """More of it; nothing if it is empty."""

    async def half(self, data: bytes) -> None:
        """The first half of something that was announced as whole, as far as that can be."""

    async def end(self) -> None:
        """The end of it."""

    def abort(self, reset: bool) -> None:
        """Break it off."""

    def hang_up(self, reset: bool) -> None:
        """End the connection at once, with RST or with FIN; what the kernel hasn't taken yet is lost."""

    def blackhole(self) -> None:
        """Let the kernel drop every packet that arrives for this connection: it acknowledges nothing more."""


class Connection(asyncio.Protocol):
    """One client connection. `serve` runs as a task that is cancelled when the client is gone."""

    def __init__(self, number: int, serve: "Callable[[Connection], Awaitable[None]]") -> None:
        self.number = number
        self.received = 0
        self.rate: int | None = None
        """Bytes a second from now on; None: as fast as it goes."""
        self.sent = 0
        self._serve = serve
        self._input = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.certified = bool(transport.get_extra_info("peercert"))
        self._task = asyncio.ensure_future(self._run())

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self._input += data
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def request(self) -> Request:
        """Wait for the next request. Raises BadRequestError."""
        while (end := self._input.find(b"\r\n\r\n")) < 0:
            if len(self._input) > _MAX_HEAD:
                raise BadRequestError("request head too long")
            await self._more()
        head = self._input[:end].decode("latin-1")
        del self._input[: end + 4]
        request = _parse(head, self.number)
        length = request.headers.get("content-length", "0")
        if not length.isdecimal():
            raise BadRequestError(f"Content-Length: {length}")
        left = int(length)
        while len(self._input) < left:
            await self._more()
        del self._input[:left]
        return request

    async def send(self, data: bytes) -> None:
        """Write, and wait until the transport has taken most of it (or all of it slowly, under `rate`)."""
        if self.rate is None:
            await self._write(data)
            return
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            await self._write(piece)
            await asyncio.sleep(len(piece) / self.rate)

    async def chunk(self, data: bytes) -> None:
        """Send one chunk of a chunked body; nothing if it is empty."""
        if data:
            await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def whole(self, code: int, headers: Mapping[str, str], body: bytes) -> None:
        await self.send(head(code, {**headers, "Content-Length": str(len(body))}) + body)

    async def begin(self, code: int, headers: Mapping[str, str]) -> None:
        await self.send(head(code, {**headers, "Transfer-Encoding": "chunked"}))

    async def half(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b" % (len(data), data[: len(data) // 2]))

    def hang_up(self, reset: bool) -> None:
        self.abort(reset)

    def abort(self, reset: bool) -> None:
        break_off(self._transport, reset)

    def blackhole(self) -> None:
        deafen(self._transport)

    async def _run(self) -> None:
        try:
            await self._serve(self)
        finally:
            self._transport.close()

    async def _more(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    async def _write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionAbortedError
        self.sent += len(data)
        self._transport.write(data)
        await self._writable.wait()


def deafen(transport: asyncio.BaseTransport) -> None:
    """Let the kernel drop every packet that arrives for this connection: it acknowledges nothing more.

    A classic BPF program of one instruction, `return 0` (socket(7), SO_ATTACH_FILTER).
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    _setsockopt(transport, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def break_off(transport: asyncio.Transport, reset: bool) -> None:
    """End the connection at once, with RST or with FIN; what the kernel hasn't taken yet is lost."""
    if reset:
        _setsockopt(transport, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _setsockopt(transport: asyncio.BaseTransport, option: int, value: bytes) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:  # it is None, or bad, once the connection has ended by itself
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, value)


def all_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """With what every answer of an API server has."""
    return {"Cache-Control": "no-cache, private", "Date": _http_date(), **headers}


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """A status line and headers."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in all_headers(headers).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def gzipped(data: bytes) -> bytes:
    """One gzip member at the level that the API server uses (1)."""
    packer = zlib.compressobj(level=1, wbits=31)
    return packer.compress(data) + packer.flush()


def read_target(target: str) -> tuple[str, dict[str, str]]:
    """The path and the query of a request's target."""
    address = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
    return unquote(address.path), query


def _parse(text: str, connection: int) -> Request:
    first, *rest = text.split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequestError(first)
    path, query = read_target(words[1])
    headers = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequestError(line)
        headers[name.strip().lower()] = value.strip()
    return Request(words[0], path, query, headers, time.monotonic(), connection)


def _http_date() -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
