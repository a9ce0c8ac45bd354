"""How requests get to one API server, under one configuration."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from kpx.errors import KpxError
from kpx.sources.answer import Answer
from kpx.sources.client import Configuration
from kpx.sources.http1 import Http1

_IDENTITY = ("host", "ssl_ca_cert", "cert_file", "key_file", "verify_ssl", "tls_server_name", "proxy")


class Transport:
    """Requests under one configuration, of which only the token may change. `users` are reading answers."""

    def __init__(self, configuration: Configuration) -> None:
        """Raises `KpxError` where certificates can't be used."""
        self.configuration = configuration
        self.users = 0
        try:
            self._http1 = Http1(configuration)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise KpxError(f"certificates for {configuration.host} can't be used: {error}") from None

    def suits(self, configuration: Configuration) -> bool:
        """Whether connections made under this configuration would be the same but for the token."""
        return all(getattr(self.configuration, name) == getattr(configuration, name) for name in _IDENTITY)

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """Send a GET with the credentials of now. Raises as `Connection.get` does."""
        authorization = await self.configuration.get_api_key_with_prefix("BearerToken")
        if authorization:
            headers = {**headers, "Authorization": authorization.strip()}  # token files may end in a newline
        async with self._http1.get(url, headers) as answer:
            yield answer

    async def close_unless_used(self) -> None:
        """Close now if nobody is reading; a reader whose session is closed might wait forever."""
        if not self.users:
            await self.close()

    async def close(self) -> None:
        """End all connections."""
        await self._http1.close()
