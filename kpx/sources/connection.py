"""The connection to the API server: requests that answer in raw bytes, under credentials that stay fresh."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlencode

import aiohttp

from kpx import logs
from kpx.api import KubeProxyConfiguration
from kpx.api.problems import plain
from kpx.errors import KpxError
from kpx.sources.client import Configuration, RESTClientObject
from kpx.sources.credentials import Credentials, from_cluster, from_kubeconfig
from kpx.sources.trouble import TROUBLE, BrokenAnswerError
from kpx.version import __version__

_CONNECT_SECONDS = 10.0
_RENEWAL_SECONDS = 15.0
_RETRY_SECONDS = 10.0
_KEEPALIVE = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 20_000,
}
_BUFFER = 256 << 10
"""Bytes of a body that wait to be read, or that come of one piece that was compressed; the client allows twice that."""
_IDENTITY = ("host", "ssl_ca_cert", "cert_file", "key_file", "verify_ssl", "tls_server_name", "proxy")

log = logs.get_logger()


async def connect(kubeconfig: str | None, config: KubeProxyConfiguration) -> "Connection":
    """The API server of `kubeconfig`, else of the file that the configuration names, else of this pod.

    Nothing is sent yet. Raises `KpxError` where these don't say where the server is or who we are. To be
    closed by the caller.
    """
    path = kubeconfig or config.client_connection.kubeconfig
    connection = Connection(partial(from_kubeconfig, path) if path else from_cluster)
    try:
        await connection.renew()
    except BaseException:
        await connection.close()
        raise
    return connection


class Connection:
    """Requests to one API server.

    The kubernetes client reads token files and exec plugins once, at the start (its hooks for renewal cover
    pods only, and there lag by a minute). So its whole configuration is loaded anew: as often as `Credentials`
    say, and at once after the server has answered 401 or TLS has failed; then with new TLS contexts, too, as
    certificates may have been rotated under the same names. Answers that are being read go on undisturbed.
    While renewal fails, what we have is used on.
    """

    def __init__(self, load: Callable[[], Awaitable[Credentials]]) -> None:
        self._load = load
        self._transport: _Transport | None = None
        self._distrusted = False
        self._renew_at = 0.0
        self._renewal: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def get(self, path: str, query: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a GET; for as long as its answer is read, from the head on, whatever the status.

        Raises `aiohttp.ClientError` or OSError where there is no answer, `KpxError` without credentials.
        """
        transport = await self._current()
        transport.users += 1
        try:
            async with await transport.get(f"{path}?{urlencode(query)}") as response:
                if response.status == 401:
                    self._distrust(transport)
                try:
                    yield response
                finally:
                    _abort(response)
        except aiohttp.ClientSSLError:
            self._distrust(transport)
            raise
        finally:
            transport.users -= 1
            if transport is not self._transport:
                await transport.close_unless_used()

    async def renew(self) -> None:
        """Load the credentials again, or join in where that is under way. Raises `KpxError`."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew())
            self._renewal.add_done_callback(lambda task: task.cancelled() or task.exception())  # maybe nobody asks
        renewal = self._renewal  # by the time it is done, somebody else may have begun another one
        # Not cancelled if it takes too long: one plugin that hangs is better than one more with every attempt.
        done, _ = await asyncio.wait({renewal}, timeout=_RENEWAL_SECONDS)
        if not done:
            raise KpxError(f"no credentials within {_RENEWAL_SECONDS:g} s: does an exec plugin hang?")
        renewal.result()

    async def close(self) -> None:
        """End all connections; for when nothing is being read any more."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait({self._renewal})
        if self._transport is not None:
            await self._transport.close()

    async def _current(self) -> "_Transport":
        if self._transport is None or time.monotonic() >= self._renew_at:
            try:
                await self.renew()
            except KpxError as error:
                if self._transport is None or self._distrusted:
                    raise
                self._renew_at = time.monotonic() + _RETRY_SECONDS
                log.warning("credentials not renewed", error=str(error))
        assert self._transport is not None
        return self._transport

    async def _renew(self) -> None:
        credentials = await self._load()
        old, configuration = self._transport, credentials.configuration
        if old is None or self._distrusted or not old.suits(configuration):
            self._transport = _transport(configuration)
            if old is not None:
                await old.close_unless_used()
        else:
            old.configuration.api_key = configuration.api_key
        self._distrusted = False
        self._renew_at = time.monotonic() + credentials.lasts

    def _distrust(self, transport: "_Transport") -> None:
        """Renew before the next request, unless that has happened since this one was sent."""
        if transport is self._transport:
            self._distrusted = True
            self._renew_at = 0.0


def _abort(response: aiohttp.ClientResponse) -> None:
    """End the connection if the answer wasn't read to its end: TLS would wait for a goodbye, even from the dead."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()


class _Transport(RESTClientObject):
    """The kubernetes client's transport, over sockets that notice within 25 s that nobody is there any more."""

    configuration: Configuration
    users = 0

    async def close_unless_used(self) -> None:
        """Close now if nobody is reading; a reader whose session is closed might wait forever."""
        if not self.users:
            await self.close()

    async def get(self, url: str) -> aiohttp.ClientResponse:
        """Send a GET with the credentials of now. Raises as `Connection.get` does.

        Redirects aren't followed: an API server sends none, and we have no business elsewhere, least of all with
        these credentials.
        """
        headers = {"Accept": "application/json", "User-Agent": f"kpx/{__version__}"}
        authorization = await self.configuration.get_api_key_with_prefix("BearerToken")
        if authorization:
            headers["Authorization"] = authorization.strip()  # token files may end in a newline
        if self.pool_manager is None:
            self.pool_manager = self._create_pool_manager()
        try:
            return await self.pool_manager.get(
                f"{self.configuration.host}{url}",
                headers=headers,
                timeout=aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS),
                allow_redirects=False,
                server_hostname=self.configuration.tls_server_name or None,
                proxy=self.proxy,
                proxy_headers=self.proxy_headers,
            )
        except TROUBLE:  # some of them are ValueErrors, too
            raise
        except ValueError as error:  # a token of two lines
            raise KpxError(f"can't ask {self.configuration.host}: {error}") from None
        except Exception as error:  # a client that chokes on bytes does so by whatever it stumbles over
            raise BrokenAnswerError(f"no HTTP: {type(error).__name__}: {plain(str(error))[:200]}") from None

    def suits(self, configuration: Configuration) -> bool:
        """Whether connections made under this configuration would be the same but for the token."""
        return all(getattr(self.configuration, name) == getattr(configuration, name) for name in _IDENTITY)

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=0, ssl=self.ssl_context, socket_factory=_socket)

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        """A session that keeps nothing of what servers say: cookies would be kept without bound."""
        jar = aiohttp.DummyCookieJar()
        return aiohttp.ClientSession(
            connector=self._create_connector(), cookie_jar=jar, trust_env=True, read_bufsize=_BUFFER
        )


def _transport(configuration: Configuration) -> _Transport:
    try:
        return _Transport(configuration)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise KpxError(f"certificates for {configuration.host} can't be used: {error}") from None


def _socket(address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """A TCP socket with keepalive (tcp(7)); happy eyeballs hands over what getaddrinfo said."""
    made = socket.socket(address[0], address[1], address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
