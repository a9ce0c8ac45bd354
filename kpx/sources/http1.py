"""HTTP/1.1: the kubernetes client's transport, over sockets that notice within 25 s that nobody is there any more."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from kpx.api.problems import plain
from kpx.errors import KpxError
from kpx.sources.answer import Answer
from kpx.sources.client import Configuration, RESTClientObject
from kpx.sources.sockets import CONNECT_SECONDS, new_socket
from kpx.sources.trouble import TROUBLE, BrokenAnswerError, cut

_BUFFER = 256 << 10
"""Bytes of a body that wait to be read, or that come of one piece that was compressed; the client allows twice that."""


class Http1(RESTClientObject):
    """A connection for each request that is under way. Raises OSError or ValueError for certificates of no use."""

    configuration: Configuration

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """Send a GET; for as long as its answer is read. Raises as `Connection.get` does.

        Redirects aren't followed: an API server sends none, and we have no business elsewhere, least of all with
        these credentials.
        """
        async with await self._send(url, headers) as response:
            try:
                head = {name.lower(): value for name, value in response.headers.items()}
                yield Answer(response.status, response.reason or "", head, _chunks(response))
            finally:
                _abort(response)

    async def _send(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        if self.pool_manager is None:
            self.pool_manager = self._create_pool_manager()
        try:
            return await self.pool_manager.get(
                f"{self.configuration.host}{url}",
                headers=headers,
                timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS),
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

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=0, ssl=self.ssl_context, socket_factory=new_socket)

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        """A session that keeps nothing of what servers say: cookies would be kept without bound."""
        jar = aiohttp.DummyCookieJar()
        return aiohttp.ClientSession(
            connector=self._create_connector(), cookie_jar=jar, trust_env=True, read_bufsize=_BUFFER
        )


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What comes of a body, as it comes, unpacked. Raises only what `diagnose` knows."""
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except TROUBLE:
        raise
    except Exception as error:  # a client that chokes on bytes does so by whatever it stumbles over
        raise BrokenAnswerError(cut(f"no HTTP: {type(error).__name__}: {plain(str(error))}")) from None


def _abort(response: aiohttp.ClientResponse) -> None:
    """End the connection if the answer wasn't read to its end: TLS would wait for a goodbye, even from the dead."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
