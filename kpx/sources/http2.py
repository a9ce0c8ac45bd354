"""HTTP/2 (RFC 9113): one connection for all requests, by the package h2, over asyncio.

h2 takes GOAWAY for the end of a connection, though the answers that are under way go on after it, and an API server
that shuts down, or sends its clients to others, says it minutes before they end. So h2 isn't shown that frame.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import SplitResult

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error, NoAvailableStreamIDError
from h2.settings import SettingCodes, Settings

from kpx.api.problems import plain
from kpx.sources.answer import Answer
from kpx.sources.sockets import CONNECT_SECONDS, watch_peer
from kpx.sources.trouble import BrokenAnswerError, StalledError, UnreachableError, cut
from kpx.sources.unpacking import unpacked

PING_AFTER = 30.0
"""Seconds of silence after which the server is asked whether it is alive, as by Go's client in kube-proxy."""
PING_PATIENCE = 15.0
"""Seconds that it has to answer."""

_WINDOW = 512 << 10
"""Bytes of one answer that may wait to be read."""
_ALL_WINDOWS = 8 * _WINDOW
_FRAME = 64 << 10
_FRAME_HEAD = 9
_LONGEST_HEAD = 64 << 10
_GOAWAY = 7
_DELAY = 0.25
"""Seconds until another address of the same name is tried besides (RFC 8305)."""


class NotOfferedError(Exception):
    """The server doesn't speak HTTP/2."""


class Http2:
    """Requests to one server over as few connections as it allows: one.

    A server that says goodbye gets no more requests on that connection, and the answers under way go on; nor does one
    that takes no more of them at once, or whose answer somebody has waited for in vain.
    """

    def __init__(self, address: SplitResult, context: ssl.SSLContext, server_name: str | None) -> None:
        assert address.hostname
        self._address, self._host, self._port = address, address.hostname, address.port or 443
        self._context = context
        self._server_name = server_name or self._host
        self._sessions: set[_Session] = set()
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def get(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """Send a GET; for as long as its answer is read. Raises OSError, `BrokenAnswerError`, `NotOfferedError`."""
        session = await self._session()
        exchange = session.send(self._head(path, headers))
        try:
            head = await exchange.head()
            status = head.pop(":status", "")
            if len(status) != 3 or not status.isdecimal():
                raise BrokenAnswerError(f"no HTTP/2: a status of {cut(plain(status))!r}")
            body = unpacked(exchange.body(), head.get("content-encoding", ""))
            yield Answer(int(status), "", head, body, pinged=True)
        except asyncio.CancelledError:  # somebody's patience is over: what comes next may have more luck elsewhere
            session.avoid()
            raise
        finally:
            session.finish(exchange)

    async def close(self) -> None:
        """End all connections."""
        for session in list(self._sessions):
            session.abort()
        await asyncio.sleep(0)

    async def _session(self) -> "_Session":
        async with self._opening:
            for session in self._sessions:
                if session.takes_more:
                    return session
            return await self._open()

    async def _open(self) -> "_Session":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                transport, session = await loop.create_connection(
                    lambda: _Session(self._sessions.discard),
                    self._host,
                    self._port,
                    ssl=self._context,
                    server_hostname=self._server_name,
                    happy_eyeballs_delay=_DELAY,
                    ssl_shutdown_timeout=1.0,
                )
        except ssl.SSLError:
            raise
        except OSError as error:  # TimeoutError is one
            reason = str(error) or f"no connection within {CONNECT_SECONDS:g} s"
            raise UnreachableError(f"{self._host}:{self._port}: {reason}") from None
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            transport.abort()
            raise NotOfferedError
        self._sessions.add(session)
        return session

    def _head(self, path: str, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        authority = self._address.netloc.rpartition("@")[2]
        pseudo = {":method": "GET", ":scheme": "https", ":authority": authority, ":path": self._address.path + path}
        named = {name.lower(): value for name, value in headers.items()}
        return list((pseudo | named | {"accept-encoding": "gzip"}).items())


class _Exchange:
    """One request and its answer."""

    def __init__(self, session: "_Session", number: int) -> None:
        self.number = number
        self.ended = False
        self.error: Exception | None = None
        self.headers: dict[str, str] | None = None
        self.chunks: deque[tuple[bytes, int]] = deque()
        """What waits to be read, and how much of the windows each takes."""
        self.news = asyncio.Event()
        self._session = session

    async def head(self) -> dict[str, str]:
        """Its headers, names in lower case. Raises as `body` does."""
        while self.headers is None:
            if self.error is not None:
                raise self.error
            self.news.clear()
            await self.news.wait()
        return self.headers

    async def body(self) -> AsyncIterator[bytes]:
        """Its body as it comes. Raises OSError, `BrokenAnswerError`, `StalledError`."""
        while True:
            while self.chunks:
                chunk, size = self.chunks.popleft()
                self._session.has_read(self, size)
                yield chunk
            if self.error is not None:
                raise self.error
            if self.ended:
                return
            self.news.clear()
            await self.news.wait()

    def fail(self, error: Exception) -> None:
        """Let the reader know that no more will come; an answer that has ended is whole."""
        if not self.ended:
            self.error = self.error or error
        self.news.set()


class _Session(asyncio.Protocol):
    """One connection. `gone` is told of its end, and when it takes no more requests for good."""

    def __init__(self, gone: Callable[["_Session"], None]) -> None:
        self._gone = gone
        self._h2 = _new()
        self._exchanges: dict[int, _Exchange] = {}
        self._waiting = bytearray()
        self._draining = False
        self._heard = 0.0
        self._pinged = False

    # What the connection does.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say how much we take."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        watch_peer(transport.get_extra_info("socket"))
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_ALL_WINDOWS - self._h2.inbound_flow_control_window)
        self._flush()
        self._watching = self._loop.call_later(PING_AFTER, self._watch_silence)

    def data_received(self, data: bytes) -> None:
        """Take apart what has come, except for a goodbye."""
        self._heard, self._pinged = self._loop.time(), False
        self._waiting += data
        try:
            for piece in self._pieces():
                for event in self._h2.receive_data(piece):
                    self._take(event)
        except (H2Error, ValueError) as error:  # hyperframe's and hpack's are ValueErrors, or h2 makes them its own
            self._flush()
            reason = f"no HTTP/2: {type(error).__name__}: {plain(str(error))}"
            self._end(BrokenAnswerError(cut(reason)))
            return
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let all readers know."""
        if isinstance(exc, ssl.SSLError):  # a certificate that is refused is only now
            self._end(exc)
        else:  # nothing else must be taken for this: a TimeoutError is whoever's patience
            self._end(ConnectionResetError(str(exc or "the server has closed the connection")))

    # What its owner does.

    @property
    def takes_more(self) -> bool:
        """Whether another request may be sent now."""
        free = self._h2.open_outbound_streams < self._h2.remote_settings.max_concurrent_streams
        return free and not self._draining and not self._transport.is_closing()

    def send(self, head: list[tuple[str, str]]) -> _Exchange:
        """Send a request without a body."""
        try:
            number = self._h2.get_next_available_stream_id()
        except NoAvailableStreamIDError:  # after a billion requests
            self._drain()
            raise ConnectionResetError("this connection has had all its requests") from None
        exchange = self._exchanges[number] = _Exchange(self, number)
        self._h2.send_headers(number, head, end_stream=True)
        self._flush()
        return exchange

    def avoid(self) -> None:
        """Take no more requests."""
        self._draining = True

    def finish(self, exchange: _Exchange) -> None:
        """Nobody reads this answer any more."""
        if self._exchanges.pop(exchange.number, None) is None:
            return
        with suppress(H2Error):
            if not exchange.ended:
                self._h2.reset_stream(exchange.number, ErrorCodes.CANCEL)
        self.has_read(exchange, sum(size for _, size in exchange.chunks))
        if self._draining and not self._exchanges:
            self._transport.close()

    def has_read(self, exchange: _Exchange, size: int) -> None:
        """Let the server send as much again."""
        with suppress(H2Error):
            if size:
                self._h2.acknowledge_received_data(size, exchange.number)
            self._flush()

    def abort(self) -> None:
        """End the connection at once: TLS would wait for a goodbye, even from the dead."""
        self._end(ConnectionAbortedError("we have closed the connection"))

    # In between.

    def _pieces(self) -> Iterator[bytes]:
        """Whole frames, as many at once as there are between goodbyes."""
        at = 0
        while len(self._waiting) - at >= _FRAME_HEAD:
            end = at + _FRAME_HEAD + int.from_bytes(self._waiting[at : at + 3])
            if end - at > _FRAME_HEAD + _FRAME:
                raise ValueError("a frame that is longer than we take")
            if end > len(self._waiting):
                break
            if self._waiting[at + 3] == _GOAWAY:
                goodbye = bytes(self._waiting[at + _FRAME_HEAD : end])
                before = bytes(self._waiting[:at])
                del self._waiting[:end]
                at = 0
                yield before
                self._goodbye(goodbye)
            else:
                at = end
        whole = bytes(self._waiting[:at])
        del self._waiting[:at]
        yield whole

    def _goodbye(self, content: bytes) -> None:
        """No more requests here; those that came after the last one that it names haven't been looked at."""
        last = int.from_bytes(content[:4]) & 0x7FFFFFFF
        self._drain()
        for number, exchange in list(self._exchanges.items()):
            if number > last:
                exchange.fail(ConnectionResetError("the server was about to leave"))
        if not self._exchanges:
            self._transport.close()

    def _drain(self) -> None:
        self._draining = True
        self._gone(self)

    def _take(self, event: Event) -> None:
        exchange = self._exchanges.get(getattr(event, "stream_id", 0) or 0)
        match event:
            case DataReceived() if exchange is None:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case ResponseReceived() if exchange is not None:
                exchange.headers = {str(name): str(value) for name, value in event.headers}
                exchange.news.set()
            case DataReceived() if exchange is not None:
                exchange.chunks.append((event.data, event.flow_controlled_length))
                exchange.news.set()
            case StreamEnded() if exchange is not None:
                exchange.ended = True
                exchange.news.set()
            case StreamReset() if exchange is not None:
                exchange.fail(ConnectionResetError(f"the server has reset the stream: {_name(event.error_code)}"))
            case _:
                pass  # settings, windows and pings are h2's business

    def _watch_silence(self) -> None:
        """Ask whether the server is alive, and give it up if it doesn't answer."""
        silent = self._loop.time() - self._heard
        if silent >= PING_AFTER + PING_PATIENCE and self._pinged:
            self._end(StalledError(f"no answer to a PING within {PING_PATIENCE:g} s"))
            return
        if silent >= PING_AFTER and not self._pinged:
            self._h2.ping(b"kpx ping")
            self._pinged = True
            self._flush()
        due = self._heard + PING_AFTER + (PING_PATIENCE if self._pinged else 0.0)
        self._watching = self._loop.call_later(max(due - self._loop.time(), 0.01), self._watch_silence)

    def _end(self, error: Exception) -> None:
        self._draining = True
        self._watching.cancel()
        for exchange in self._exchanges.values():
            exchange.fail(error)
        self._exchanges.clear()
        self._gone(self)
        self._transport.abort()

    def _flush(self) -> None:
        if (data := self._h2.data_to_send()) and not self._transport.is_closing():
            self._transport.write(data)


def _new() -> H2Connection:
    made = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    made.local_settings = Settings(
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
            SettingCodes.MAX_FRAME_SIZE: _FRAME,
            SettingCodes.MAX_HEADER_LIST_SIZE: _LONGEST_HEAD,
        }
    )
    made.max_inbound_frame_size = _FRAME
    made.decoder.max_header_list_size = _LONGEST_HEAD
    return made


def _name(code: ErrorCodes | int) -> str:
    return code.name if isinstance(code, ErrorCodes) else str(int(code))
