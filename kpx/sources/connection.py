"""The connection to the API server: requests that answer in raw bytes, under credentials that stay fresh."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlencode

import aiohttp

from kpx import logs
from kpx.api import KubeProxyConfiguration
from kpx.errors import KpxError
from kpx.sources.answer import Answer
from kpx.sources.credentials import Credentials, from_cluster, from_kubeconfig
from kpx.sources.transport import Transport
from kpx.version import __version__

_RENEWAL_SECONDS = 15.0
_RETRY_SECONDS = 10.0

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
        self._transport: Transport | None = None
        self._distrusted = False
        self._renew_at = 0.0
        self._renewal: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def get(self, path: str, query: Mapping[str, str], accept: str = "application/json") -> AsyncIterator[Answer]:
        """Send a GET; for as long as its answer is read, from the head on, whatever the status.

        Raises `aiohttp.ClientError` or OSError where there is no answer, `KpxError` without credentials.
        """
        transport = await self._current()
        transport.users += 1
        headers = {"Accept": accept, "User-Agent": f"kpx/{__version__}"}
        try:
            async with transport.get(f"{path}?{urlencode(query)}", headers) as answer:
                if answer.status == 401:
                    self._distrust(transport)
                yield answer
        except (aiohttp.ClientSSLError, ssl.SSLError):
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

    async def _current(self) -> Transport:
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
            self._transport = Transport(configuration)
            if old is not None:
                await old.close_unless_used()
        else:
            old.configuration.api_key = configuration.api_key
        self._distrusted = False
        self._renew_at = time.monotonic() + credentials.lasts

    def _distrust(self, transport: Transport) -> None:
        """Renew before the next request, unless that has happened since this one was sent."""
        if transport is self._transport:
            self._distrusted = True
            self._renew_at = 0.0
