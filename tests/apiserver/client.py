"""A plain client for the server's own tests: the standard library's HTTP, nothing clever."""

import json
import ssl
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlencode

from .server import ApiServer


class Answer:
    """Status, headers and decoded body of a finished answer."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.json["items"]]


class Stream:
    """An open watch."""

    def __init__(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        self.connection = connection
        self.response = response

    def line(self, timeout: float = 60.0) -> bytes:
        """The next line as it came; empty at the end of the answer."""
        assert self.connection.sock is not None
        self.connection.sock.settimeout(timeout)
        return self.response.readline()

    def event(self, timeout: float = 60.0) -> tuple[str, Any]:
        found = json.loads(self.line(timeout))
        return found["type"], found["object"]

    def kinds(self, count: int) -> list[tuple[str, str]]:
        """Type and object name of the next events."""
        return [(kind, obj["metadata"]["name"]) for kind, obj in (self.event() for _ in range(count))]


class Client:
    """Requests with the server's token, each on a connection of its own unless told otherwise."""

    def __init__(self, server: ApiServer, token: str | None = None) -> None:
        self.server = server
        self.token = server.token if token is None else token

    def connection(self) -> HTTPConnection:
        if self.server.url.startswith("https"):
            context = ssl.create_default_context(cafile=str(self.server.ca_file))
            return HTTPSConnection("127.0.0.1", self.server.port, timeout=60, context=context)
        return HTTPConnection("127.0.0.1", self.server.port, timeout=60)

    def open(
        self,
        path: str,
        query: Mapping[str, object] | None = None,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        connection: HTTPConnection | None = None,
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """Send a request and read the head of its answer."""
        connection = connection or self.connection()
        authorization = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        target = f"{path}?{urlencode(query)}" if query else path
        connection.request(method, target, headers={**authorization, **(headers or {})})
        return connection, connection.getresponse()

    def get(self, path: str, **query: object) -> Answer:
        connection, response = self.open(path, query)
        try:
            return Answer(response)
        finally:
            connection.close()

    def send(self, method: str, path: str, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection, response = self.open(path, method=method, headers=named)
        try:
            return Answer(response)
        finally:
            connection.close()

    def watch(self, path: str, **query: object) -> Stream:
        stream = Stream(*self.open(path, {"watch": "1", **query}))
        assert stream.response.status == 200, stream.response.read()
        return stream
