"""HTTP/2 as a server: streams that the rest of the server takes for connections. By the package h2 (RFC 9113)."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, RequestReceived, StreamReset, WindowUpdated
from h2.exceptions import H2Error
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from .wire import Request, all_headers, break_off, deafen, read_target

_PIECE = 64
_STREAMS = 100
_LAST = (1 << 31) - 1


class Stream:
    """One request on a connection, a `Channel`."""

    def __init__(self, connection: "Http2Connection", stream: int) -> None:
        self.number = connection.number
        self.certified = connection.certified
        self.rate: int | None = None
        self._connection = connection
        self._stream = stream

    async def whole(self, code: int, headers: Mapping[str, str], body: bytes) -> None:
        self._connection.head(self._stream, code, {**headers, "Content-Length": str(len(body))})
        await self.chunk(body)
        await self.end()

    async def begin(self, code: int, headers: Mapping[str, str]) -> None:
        self._connection.head(self._stream, code, headers)

    async def chunk(self, data: bytes) -> None:
        if self.rate is None:
            await self._connection.data(self._stream, data)
            return
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            await self._connection.data(self._stream, piece)
            await asyncio.sleep(len(piece) / self.rate)

    async def half(self, data: bytes) -> None:
        await self.chunk(data[: len(data) // 2])

    async def end(self) -> None:
        self._connection.end(self._stream)

    def abort(self, reset: bool) -> None:
        """Reset the stream, or close the connection."""
        if reset:
            self._connection.reset(self._stream)
        else:
            self._connection.abort(reset=False)

    def hang_up(self, reset: bool) -> None:
        self._connection.abort(reset)

    def blackhole(self) -> None:
        self._connection.blackhole()


class Http2Connection(asyncio.Protocol):
    """One client connection. `serve` runs as a task for every request, cancelled when the client gives it up."""

    def __init__(
        self, number: int, serve: Callable[[Stream, Request], Awaitable[None]], gone: Callable[[], None]
    ) -> None:
        self.number = number
        self.sent = 0
        self.received = 0
        self._serve = serve
        self._gone = gone
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.certified = bool(transport.get_extra_info("peercert"))
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: _STREAMS})
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except H2Error:
            self._flush()
            self._transport.close()
            return
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._room.set()
        for task in self._tasks.values():
            task.cancel()
        self._gone()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the server does with all of it.

    def abort(self, reset: bool) -> None:
        break_off(self._transport, reset)

    def blackhole(self) -> None:
        deafen(self._transport)

    def limit(self, streams: int) -> None:
        """Take no more requests at once than that."""
        self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: streams})
        self._flush()

    def goodbye(self) -> None:
        """Let the client send no more requests; what is under way goes on. (h2 would end it, so it doesn't know.)"""
        frame = GoAwayFrame(last_stream_id=self._h2.highest_inbound_stream_id, error_code=0)
        self._write(frame.serialize())

    # What streams do.

    def head(self, stream: int, code: int, headers: Mapping[str, str]) -> None:
        named = {":status": str(code), **{name.lower(): value for name, value in all_headers(headers).items()}}
        self._send(lambda: self._h2.send_headers(stream, list(named.items())))

    async def data(self, stream: int, data: bytes) -> None:
        """Send as much at once as the client takes."""
        start = 0
        while start < len(data):
            await self._writable.wait()
            size = min(self._window(stream), self._h2.max_outbound_frame_size, len(data) - start)
            if size <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            piece = data[start : start + size]
            self._send(lambda piece=piece: self._h2.send_data(stream, piece))  # type: ignore[misc]
            start += size

    def end(self, stream: int) -> None:
        self._send(lambda: self._h2.end_stream(stream))

    def reset(self, stream: int) -> None:
        self._send(lambda: self._h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR))

    # In between.

    def _take(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event)
            case StreamReset():
                if task := self._tasks.get(event.stream_id):
                    task.cancel()
            case WindowUpdated():
                self._room.set()
            case _:
                pass

    def _begin(self, event: RequestReceived) -> None:
        headers = {str(name): str(value) for name, value in event.headers or ()}
        path, query = read_target(headers[":path"])
        request = Request(headers[":method"], path, query, headers, time.monotonic(), self.number)
        task = asyncio.ensure_future(self._serve(Stream(self, event.stream_id), request))
        self._tasks[event.stream_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(event.stream_id, None))

    def _window(self, stream: int) -> int:
        try:
            return self._h2.local_flow_control_window(stream)
        except H2Error:
            raise ConnectionAbortedError from None

    def _send(self, act: Callable[[], None]) -> None:
        if self._transport.is_closing():
            raise ConnectionAbortedError
        try:
            act()
        except H2Error:  # the client has given the stream up
            raise ConnectionAbortedError from None
        self._flush()

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._write(data)

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if not self._transport.is_closing():
                self.sent += len(data)
                self._transport.write(data)
