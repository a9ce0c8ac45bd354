"""HTTP on one address: from a function of paths to a socket, however long it takes to get that."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, Self

from aiohttp import web

from kpx import logs
from kpx.agent import files
from kpx.agent.door import IDLE_SECONDS, Door
from kpx.agent.store import ServiceKey
from kpx.agent.throttle import Backoff
from kpx.errors import KpxError
from kpx.family import Family, host_port

log = logs.get_logger()

_QUEUE = 128
"""Connections of a port that the kernel keeps until they are accepted."""
_ACCEPT_AGAIN_SECONDS = 1.0
"""How long nothing is accepted for want of files."""
_GRACE_SECONDS = 0.5
"""How long an answer may take while the listener closes."""
_LONGEST_RETRY = 5.0
"""Seconds between tries to get a port, at most: what kube-proxy waits."""

_CLIENT_NOISE = logging.getLogger(__name__)
"""Where aiohttp logs what is wrong with requests: nowhere, as these ports may be open to the world."""
_CLIENT_NOISE.disabled = True


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


DOOR: Final = Door(files.connections)
"""One for all ports: they share the files that connections may take."""


class _Server(web.Server):
    """Tells the door who comes and goes."""

    def __init__(self, port: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._port = port

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        DOOR.enter(handler, transport, self._port)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        DOOR.left(handler)


Answer = Callable[[str], Reply | None]
"""The reply to a GET of a path; None if there is nothing under it."""

_NOT_FOUND = Reply(b"404 page not found\n", 404)
_NOT_ALLOWED = Reply(b"405 method not allowed\n", 405, headers={"Allow": "GET, HEAD"})
_BROKEN = Reply(b"500 internal server error\n", 500)


class Listener:
    """Serves an answer on one address, `host:port`, from `open` to `close` or as a context manager.

    An address that can't be had is logged once, with the Service that it is for, and tried again in the background,
    unless `hard_fail`: then it raises KpxError. A wildcard address (`0.0.0.0` or `[::]`) stands for both families, as
    for kube-proxy, or for `family` alone.
    """

    def __init__(
        self,
        address: str,
        answer: Answer,
        *,
        hard_fail: bool = False,
        family: Family | None = None,
        service: ServiceKey | None = None,
    ) -> None:
        self.address, self.hard_fail = address, hard_fail
        self._answer, self._family, self._service = answer, family, service
        self._socket: socket.socket | None = None
        self._http: web.Server | None = None
        self._coming: set[asyncio.Task[None]] = set()
        self._retrying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def bound(self) -> str:
        """Where this listens now, as `host:port`; empty while the address can't be had."""
        if self._socket is None:
            return ""
        host, port = self._socket.getsockname()[:2]
        return host_port(host, port)

    async def open(self) -> None:
        """Listen, or begin to try."""
        try:
            await self._listen()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            if self.hard_fail:
                raise KpxError(f"can't listen on {self.address} (bindAddressHardFail): {reason}") from error
            self._retrying = asyncio.create_task(self._retry())
            service = "/".join(self._service) if self._service else None
            log.warning("can't listen, will try again", address=self.address, error=reason, service=service)

    async def close(self) -> None:
        """Stop to listen and end all connections; `open` may follow."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.wait((self._retrying,))
            self._retrying = None
        if self._socket is not None and self._http is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._http.pre_shutdown()
            await self._http.shutdown(_GRACE_SECONDS)
            self._socket = self._http = None

    async def move(self, address: str) -> None:
        """Serve on another address from now on; nothing happens if it is the same."""
        if address != self.address:
            await self.close()
            self.address = address
            await self.open()

    async def _listen(self) -> None:
        sock = _listening_socket(self.address, self._family)
        sock.setblocking(False)
        sock.listen(_QUEUE)
        self._socket = sock
        self._http = _Server(
            self.address,
            self._serve,
            access_log=None,
            logger=_CLIENT_NOISE,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=0.0,
        )
        asyncio.get_running_loop().add_reader(sock, self._accept, sock)
        log.debug("listening", address=self.address)

    def _accept(self, sock: socket.socket) -> None:
        """Accept one connection, if the door is open. asyncio's servers accept without asking anybody."""
        if not DOOR.is_open:
            return
        try:
            one, _ = sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # a want of files or memory
            loop = asyncio.get_running_loop()
            loop.remove_reader(sock)
            loop.call_later(_ACCEPT_AGAIN_SECONDS, self._accept_again, sock)
            loop.call_exception_handler({"message": "can't accept a connection", "exception": error})
            return
        DOOR.came()
        assert self._http is not None
        coming = asyncio.create_task(_let_in(self._http, one))
        self._coming.add(coming)
        coming.add_done_callback(self._coming.discard)

    def _accept_again(self, sock: socket.socket) -> None:
        if self._socket is sock:
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    async def _retry(self) -> None:
        backoff = Backoff(first=0.25, longest=_LONGEST_RETRY)
        while not self.bound:
            await asyncio.sleep(backoff.after_failure())
            with suppress(OSError):
                await self._listen()
        log.info("port is free now, listening", address=self.address)

    async def _serve(self, request: web.BaseRequest) -> web.Response:
        DOOR.served(request.protocol)
        reply = self._reply(request.path) if request.method in ("GET", "HEAD") else _NOT_ALLOWED
        fixed = {"Content-Type": reply.content_type, "X-Content-Type-Options": "nosniff", "Server": "kpx"}
        return web.Response(body=reply.body, status=reply.status, headers={**fixed, **reply.headers})

    def _reply(self, path: str) -> Reply:
        try:
            return self._answer(path) or _NOT_FOUND
        except Exception:
            log.exception("can't answer", path=path, address=self.address)
            return _BROKEN


async def _let_in(http: web.Server, one: socket.socket) -> None:
    """Serve an accepted connection."""
    try:
        await asyncio.get_running_loop().connect_accepted_socket(http, one)
    except OSError:  # gone already
        one.close()
        DOOR.left(one)


def _listening_socket(address: str, only: Family | None) -> socket.socket:
    """A socket that listens on `host:port`, of `only` this family if the host is a wildcard address."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if only is None and ip_address(host).is_unspecified and socket.has_dualstack_ipv6():
        return socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=kind)
