"""How requests get to one API server, under one configuration."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from kpx.errors import KpxError
from kpx.sources.answer import Answer
from kpx.sources.client import Configuration
from kpx.sources.http1 import Http1
from kpx.sources.http2 import Http2, NotOfferedError

_IDENTITY = ("host", "ssl_ca_cert", "cert_file", "key_file", "verify_ssl", "tls_server_name", "proxy")
_VISIBLE = re.compile(r"[\x20-\x7e]*")


class Transport:
    """Requests under one configuration, of which only the token may change. `users` are reading answers.

    By HTTP/2 over one connection where the server offers it (ALPN), else by HTTP/1.1: so without TLS, and through a
    proxy. A server that doesn't offer it isn't asked again before a connection to it fails: it may be another then.
    """

    def __init__(self, configuration: Configuration) -> None:
        """Raises `KpxError` where certificates can't be used."""
        self.configuration = configuration
        self.users = 0
        try:
            self._http1 = Http1(configuration)
            self._http2 = _http2(configuration)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise KpxError(f"certificates for {configuration.host} can't be used: {error}") from None
        self._offered = self._http2 is not None

    def suits(self, configuration: Configuration) -> bool:
        """Whether connections made under this configuration would be the same but for the token."""
        return all(getattr(self.configuration, name) == getattr(configuration, name) for name in _IDENTITY)

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """Send a GET with the credentials of now. Raises as `Connection.get` does."""
        authorization = await self.configuration.get_api_key_with_prefix("BearerToken")
        if authorization:
            if not _VISIBLE.fullmatch(authorization.strip()):
                raise KpxError(f"can't ask {self.configuration.host}: the token holds what a header can't hold")
            headers = {**headers, "Authorization": authorization.strip()}  # token files may end in a newline
        if self._http2 is not None and self._offered:
            try:
                async with self._http2.get(url, headers) as answer:
                    yield answer
                return
            except NotOfferedError:
                self._offered = False
        try:
            async with self._http1.get(url, headers) as answer:
                yield answer
        except (aiohttp.ClientError, OSError):
            self._offered = self._http2 is not None
            raise

    async def close_unless_used(self) -> None:
        """Close now if nobody is reading; a reader whose session is closed might wait forever."""
        if not self.users:
            await self.close()

    async def close(self) -> None:
        """End all connections."""
        if self._http2 is not None:
            await self._http2.close()
        await self._http1.close()


def _http2(configuration: Configuration) -> Http2 | None:
    """HTTP/2, where it may be had."""
    address = urlsplit(configuration.host)
    if address.scheme != "https" or not address.hostname or configuration.proxy or _is_proxied(address.hostname):
        return None
    context = Http1(configuration).ssl_context  # one of its own: what is offered is a part of it
    context.set_alpn_protocols(["h2", "http/1.1"])
    return Http2(address, context, configuration.tls_server_name)


def _is_proxied(host: str) -> bool:
    """Whether the environment sends requests to this host through a proxy."""
    proxies = getproxies()
    return bool(proxies.get("https") or proxies.get("all")) and not proxy_bypass(host)
