"""A client of the API server: JSON over one connection, from inside a namespace."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Collection, Mapping
from typing import Any

from tests.cluster.layout import API_PORT
from tests.cluster.pki import Pki
from tests.lab import Namespace

Object = dict[str, Any]
MERGE = "application/merge-patch+json"
KINDS = {
    "Service": ("v1", "/api/v1/services"),
    "EndpointSlice": ("discovery.k8s.io/v1", "/apis/discovery.k8s.io/v1/endpointslices"),
    "Node": ("v1", "/api/v1/nodes"),
}
"""What a proxy reads: API version and where all of them are listed."""
_TRIES = 30


class RefusedError(OSError):
    """The API server said no; `status` is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text[:500]}")
        self.status = status


class Api:
    """Requests as the user of a certificate."""

    def __init__(self, network: Namespace, host: str, pki: Pki, user: str) -> None:
        self._network, self._host = network, host
        self._context = ssl.create_default_context(cafile=str(pki.ca))
        self._context.load_cert_chain(*map(str, pki.pair(user)))
        self._connection: http.client.HTTPSConnection | None = None

    def get(self, path: str) -> Object:
        return self.request("GET", path)

    def post(self, path: str, body: Mapping[str, Any], allow: Collection[int] = ()) -> Object:
        return self.request("POST", path, body, allow=allow)

    def merge(self, path: str, body: Mapping[str, Any]) -> Object:
        return self.request("PATCH", path, body, kind=MERGE)

    def delete(self, path: str) -> Object:
        return self.request("DELETE", path)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        kind: str = "application/json",
        allow: Collection[int] = (),
    ) -> Object:
        """Send and read JSON. Raises RefusedError for a status of 300 and above that isn't allowed.

        A lost connection is tried again: everything that is sent here may be sent twice.
        """
        text = self.text(method, path, body, kind, allow)
        found: Object = json.loads(text) if text.startswith("{") else {"text": text}
        return found

    def text(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        kind: str = "application/json",
        allow: Collection[int] = (),
    ) -> str:
        """The same, as text."""
        data = json.dumps(body) if body is not None else None
        for attempt in range(_TRIES):
            try:
                status, text = self._once(method, path, data, kind)
            except (http.client.HTTPException, OSError):
                self.close()
                if attempt == _TRIES - 1:
                    raise
                time.sleep(1)
                continue
            if status == 429 and attempt < _TRIES - 1:
                time.sleep(1)
                continue
            if status >= 300 and status not in allow and not (attempt and status == 409):
                raise RefusedError(status, text)
            return text
        raise AssertionError("unreachable")

    def objects(self) -> list[Object]:
        """All that a proxy reads, as `kubectl get -o json` prints it."""
        found = []
        for kind, (version, path) in KINDS.items():
            for one in self.get(path)["items"]:
                one["metadata"].pop("managedFields", None)
                found.append({"apiVersion": version, "kind": kind, **one})
        return found

    def close(self) -> None:
        """Drop the connection; the next request makes a new one."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _once(self, method: str, path: str, data: str | None, kind: str) -> tuple[int, str]:
        if self._connection is None:
            made = http.client.HTTPSConnection(self._host, API_PORT, context=self._context, timeout=60)
            with self._network.entered():
                made.connect()
            made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection = made
        self._connection.request(method, path, data, {"Content-Type": kind, "Accept": "application/json"})
        response = self._connection.getresponse()
        return response.status, response.read().decode(errors="replace")
