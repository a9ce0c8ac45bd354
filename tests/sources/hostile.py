"""An API server that says whatever a function makes it say, byte by byte.

with HostileServer(answer) as server:
    server.kubeconfig(folder / "kubeconfig")
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.apiserver import Auth, Request
from tests.apiserver.listener import listen
from tests.apiserver.wire import BadRequestError, Connection

Answer = Callable[[Request, Connection], Awaitable[None]]
"""Answers a request; the connection ends when it returns."""

JSON = "application/json"
KINDS = {"services": "Service", "endpointslices": "EndpointSlice", "nodes": "Node"}
API_VERSIONS = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Node": "v1"}


class HostileServer:
    """Listens on a port of its own, in a network namespace if one is given, on a thread of its own."""

    def __init__(self, answer: Answer, netns: str = "") -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.sent: Counter[int] = Counter()
        """Bytes by connection."""
        socket = listen("127.0.0.1", 0, netns)
        self.port: int = socket.getsockname()[1]
        self._numbers = 0
        self._failures: list[Exception] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            self._loop.create_server(self._connect, sock=socket), self._loop
        ).result()

    def __enter__(self) -> "HostileServer":
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert not self._failures, self._failures

    def kubeconfig(self, path: Path, auth: Auth = Auth.TOKEN) -> Path:
        """Write a kubeconfig; with a token, which is nobody else's business."""
        user = {"name": "a", "user": {"token": "secret"}}
        cluster = {"name": "a", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "a", "context": {"cluster": "a", "user": "a"}}
        config = {"current-context": "a", "contexts": [context], "clusters": [cluster], "users": [user]}
        path.write_text(json.dumps(config))
        return path

    def drop(self) -> None:
        """End every answer that is under way."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()

    def _connect(self) -> Connection:
        self._numbers += 1
        return Connection(self._numbers, self._serve)

    async def _serve(self, connection: Connection) -> None:
        try:
            request = await connection.request()
            self.requests.append(request)
            await self.answer(request, connection)
        except (BadRequestError, ConnectionError):
            pass
        except Exception as error:
            self._failures.append(error)
        finally:
            self.sent[connection.number] = connection.sent

    async def _stop(self) -> None:
        self._server.close()
        await self._cancel()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


# What answers are made of.


def head(status: int = 200, content_type: str = JSON, **more: str) -> bytes:
    """A head of an answer that goes on until the connection ends."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def kind_of(request: Request) -> str:
    return KINDS[request.path.rpartition("/")[2]]


def is_watch(request: Request) -> bool:
    return "watch" in request.query


def is_census(request: Request) -> bool:
    """Whether this is a WatchList."""
    return "sendInitialEvents" in request.query


def listing(kind: str, items: Iterable[Mapping[str, Any]], version: object = "10", token: str = "") -> bytes:
    metadata = {"resourceVersion": version} | ({"continue": token} if token else {})
    words = {"kind": f"{kind}List", "apiVersion": API_VERSIONS[kind], "metadata": metadata, "items": list(items)}
    return json.dumps(words).encode()


def line(of_type: str, content: object) -> bytes:
    return json.dumps({"type": of_type, "object": content}).encode() + b"\n"


def bookmark(kind: str, version: object, end: bool = False) -> bytes:
    metadata: dict[str, object] = {"resourceVersion": version}
    if end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return line("BOOKMARK", {"kind": kind, "apiVersion": API_VERSIONS[kind], "metadata": metadata})


def status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def service(name: str, version: object = "5", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "resourceVersion": version}
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]} | spec
    return {"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": spec}


async def forever() -> None:
    await asyncio.Event().wait()


class Sane:
    """Answers as an API server with these objects does, which never change; all of `version`.

    A watch from an older resourceVersion is refused with 410, one from a newer says nothing, as real ones do.
    """

    def __init__(self, objects: Mapping[str, Iterable[Mapping[str, Any]]], version: int) -> None:
        self._objects = {kind: list(objects.get(kind, ())) for kind in KINDS.values()}
        self._version = version

    async def __call__(self, request: Request, connection: Connection) -> None:
        kind = kind_of(request)
        if not is_watch(request):
            await connection.send(head() + listing(kind, self._objects[kind], str(self._version)))
            return
        await connection.send(head())
        since = self._version
        if is_census(request):
            for one in self._objects[kind]:
                await connection.send(line("ADDED", {"kind": kind, "apiVersion": API_VERSIONS[kind], **one}))
            await connection.send(bookmark(kind, str(self._version), end=True))
        else:
            since = int(request.query["resourceVersion"])
        if since < self._version:
            await connection.send(line("ERROR", status(410, "too old resource version")))
            return
        while since == self._version:
            await asyncio.sleep(0.02)
            await connection.send(bookmark(kind, str(self._version)))
        await forever()
