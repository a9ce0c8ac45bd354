"""The API server: HTTP(S) on its own thread, steered from any other."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from .access import Auth, Credentials
from .exchange import Exchange
from .faults import Faults
from .listener import listen
from .resources import BY_KIND, RESOURCES, Object, Resource
from .state import Promises, State, Stats, WatchInfo
from .store import Store
from .wire import BadRequestError, Channel, Connection, Request
from .wire2 import Http2Connection

T = TypeVar("T")


class ApiServer:
    """A test API server, running from construction until `stop` (or the end of a `with` block).

    It listens on `host`:`port` (0: a free port; it keeps it over restarts) with HTTP, or HTTPS and a CA of its
    own. With `netns` (the name of a network namespace, or a path such as /proc/PID/ns/net), the listening
    socket is in there while the server stays where it is.
    Every method may be called from any thread. `promises` and `faults` can be assigned at any time; they
    hold for the next request, and for the next event of the watches that are open.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: bool = False,
        netns: str = "",
        promises: Promises | None = None,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="apiserver-")
        promises = promises or Promises()
        credentials = Credentials(Path(self._directory.name), tls)
        self._state = State(Store(promises.history), credentials, promises)
        self._faults = Faults()
        self._connections: set[Connection | Http2Connection] = set()
        self._accepted = self._closed_bytes = self._closed_received = 0
        self._failures: list[BaseException] = []
        self._wakes: set[Resource] = set()
        self._listener: asyncio.Server | None = None
        self._host, self._netns = host, netns
        socket = listen(host, port, netns)
        self.port: int = socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="apiserver", daemon=True)
        self._thread.start()
        self._state.store.on_change = self._changed
        self._call(self._accept(socket))

    def __enter__(self) -> "ApiServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._state.credentials.tls else 'http'}://{host}:{self.port}"

    @property
    def token(self) -> str:
        """The bearer token that is valid now."""
        return self._state.credentials.token

    @property
    def ca_file(self) -> Path:
        """The CA certificate; exists with TLS only."""
        return self._state.credentials.directory / "ca.crt"

    # What the cluster holds.

    @property
    def version(self) -> int:
        """The newest resourceVersion."""
        return self._state.store.version

    def put(self, obj: Object) -> int:
        """Create or replace an object, see `Store.put`. The resourceVersion it has now."""
        return self._state.store.put(obj)

    def put_all(self, objects: Iterable[Object]) -> None:
        """`put` for many."""
        for obj in objects:
            self.put(obj)

    def delete(self, kind: str, namespace: str, name: str) -> int:
        """Delete an object; the resourceVersion of the deletion. Raises KeyError if there is none."""
        return self._state.store.delete(kind, namespace, name)

    def change(self, verb: str, obj: Object) -> int:
        """Apply one step of `churn`: `verb` is create, update or delete."""
        if verb == "delete":
            return self.delete(obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        return self.put(obj)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object as a client would read it, or None."""
        stored = self._state.store.find(BY_KIND[kind], namespace, name)
        return stored.decode() if stored else None

    def objects(self, *kinds: str) -> list[Object]:
        """All objects, or those of some kinds, in list order."""
        wanted = [BY_KIND[kind] for kind in kinds] or RESOURCES
        return [s.decode() for resource in wanted for s in self._state.store.view(resource).entries]

    def compact(self) -> None:
        """Forget all history: every older resourceVersion and every continue token is gone (410)."""
        self._state.store.compact()

    def jump(self, by: int) -> None:
        """Let the resourceVersion leap ahead."""
        self._state.store.jump(by)

    # How it behaves.

    @property
    def promises(self) -> Promises:
        return self._state.promises

    @promises.setter
    def promises(self, promises: Promises) -> None:
        self._state.promises = promises
        self._state.store.set_history(promises.history)

    @property
    def faults(self) -> Faults:
        """What was assigned last; assigning starts its counts and its dice anew."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self._state.set_faults(faults)

    def drop_watches(self, reset: bool = True) -> None:
        """End the connections of all open watches, by RST or by FIN without the end of the body."""
        for watch in list(self._state.watches):
            self._soon(watch.connection.hang_up, reset)

    def stall_watches(self, blackhole: bool = False) -> None:
        """Send nothing more on the watches that are open now; with `blackhole`, not even TCP answers."""
        for watch in list(self._state.watches):
            watch.stalled = True
            self._soon(watch.changed.set)
            if blackhole:
                self._soon(watch.connection.blackhole)

    def drop_connections(self, reset: bool = True) -> None:
        """End all connections."""
        for connection in list(self._connections):
            self._soon(connection.abort, reset)

    def say_goodbye(self) -> None:
        """Let clients with HTTP/2 take new requests elsewhere: GOAWAY. What is under way goes on."""
        for connection in list(self._connections):
            if isinstance(connection, Http2Connection):
                self._soon(connection.goodbye)

    def limit_streams(self, count: int) -> None:
        """Take no more requests at once on a connection with HTTP/2."""
        for connection in list(self._connections):
            if isinstance(connection, Http2Connection):
                self._soon(connection.limit, count)

    def refuse(self, seconds: float | None = None) -> None:
        """Close the listener, for some seconds or until `accept`; open connections stay."""
        self._call(self._close_listener())
        if seconds is not None:
            self._soon(self._loop.call_later, seconds, lambda: self._loop.create_task(self._reopen()))

    def accept(self) -> None:
        """Listen again on the same port."""
        self._call(self._reopen())

    def restart(self, *, down: float = 0.0, keep_history: bool = True) -> None:
        """Die and come back on the same port after `down` seconds; returns then.

        All connections are reset. Without `keep_history`, watches from before get 410.
        """
        self.refuse()
        self.drop_connections()
        if not keep_history:
            self.compact()
        time.sleep(down)
        self.accept()

    # How clients find it.

    def kubeconfig(self, path: Path, auth: Auth = Auth.TOKEN, expires_in: float = 3600.0) -> Path:
        """Write a kubeconfig to `path`, and next to it what it names; see `Credentials.kubeconfig`."""
        self._state.credentials.kubeconfig(path, self.url, auth, expires_in)
        return path

    def service_account(self, directory: Path) -> dict[str, str]:
        """Write a pod's service account files; the environment variables that go with them."""
        self._state.credentials.service_account(directory)
        return {"KUBERNETES_SERVICE_HOST": self._host, "KUBERNETES_SERVICE_PORT": str(self.port)}

    def rotate_token(self) -> str:
        """Make a new token the only valid one, and rewrite token files and exec answers."""
        return self._state.credentials.rotate()

    # What clients did.

    @property
    def requests(self) -> list[Request]:
        """All requests so far (the last 100,000), oldest first."""
        return list(self._state.requests)

    @property
    def open_watches(self) -> list[WatchInfo]:
        return [watch.info for watch in list(self._state.watches)]

    @property
    def stats(self) -> Stats:
        state = self._state
        connections = list(self._connections)
        return Stats(
            connections=self._accepted,
            open_connections=len(connections),
            open_watches=len(state.watches),
            events=state.event_count,
            bytes_sent=self._closed_bytes + sum(connection.sent for connection in connections),
            bytes_received=self._closed_received + sum(connection.received for connection in connections),
            requests=dict(state.request_counts),
            answers=dict(state.answer_counts),
            faults=dict(state.fault_counts),
        )

    def wait_for(self, condition: "Callable[[ApiServer], object]", timeout: float = 60.0) -> None:
        """Wait until `condition(server)` is true. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while not condition(self):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout} s; watches {self.open_watches}, {self.stats}")
            time.sleep(0.005)

    def stop(self) -> None:
        """End everything. Raises what went wrong inside of the server, if anything did."""
        if self._loop.is_closed():
            return
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
        self._directory.cleanup()
        if self._failures:
            raise self._failures[0]

    # On the server's thread.

    async def _accept(self, socket: Any) -> None:
        context = self._state.credentials.server_context(self._state.promises.http2)
        self._listener = await self._loop.create_server(self._connect, sock=socket, ssl=context)

    async def _reopen(self) -> None:
        if self._listener is None:
            await self._accept(await asyncio.to_thread(listen, self._host, self.port, self._netns))

    async def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _close(self) -> None:
        await self._close_listener()
        for connection in list(self._connections):
            connection.abort(reset=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=5)

    def _connect(self) -> asyncio.Protocol:
        self._accepted += 1
        return _Chooser(self._accepted, self)

    def connect_http1(self, number: int) -> asyncio.Protocol:
        """A connection on which no HTTP/2 was agreed upon."""
        return Connection(number, self._serve)

    def connect_http2(self, number: int) -> asyncio.Protocol:
        """A connection on which it was."""
        connection = Http2Connection(number, self._serve_one, lambda: self._forget(connection))
        self._connections.add(connection)
        return connection

    async def _serve(self, connection: Connection) -> None:
        """Answer the requests of one connection, one after the other."""
        self._connections.add(connection)
        try:
            while True:
                request = await connection.request()
                await self._serve_one(connection, request)
                if request.headers.get("connection", "").lower() == "close":
                    return
        except (ConnectionError, BadRequestError):
            pass
        finally:
            self._forget(connection)

    async def _serve_one(self, channel: Channel, request: Request) -> None:
        self._state.requests.append(request)
        try:
            await Exchange(self._state, channel, request).run()
        except ConnectionError:
            if isinstance(channel, Connection):
                raise
        except Exception as bug:
            self._failures.append(bug)
            raise

    def _forget(self, connection: Connection | Http2Connection) -> None:
        self._connections.discard(connection)
        self._closed_bytes += connection.sent
        self._closed_received += connection.received

    def _changed(self, resource: Resource) -> None:
        """Wake the watches of a resource, once for all changes since the last time."""
        if resource in self._wakes:
            return
        self._wakes.add(resource)
        self._soon(self._wake, resource)

    def _wake(self, resource: Resource) -> None:
        self._wakes.discard(resource)
        self._state.wake(resource)

    def _soon(self, function: Callable[..., object], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)


class _Chooser(asyncio.Protocol):
    """A connection until it is known what is spoken on it."""

    def __init__(self, number: int, server: ApiServer) -> None:
        self._number = number
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        secured = transport.get_extra_info("ssl_object")
        spoken = secured.selected_alpn_protocol() if secured else None
        connect = self._server.connect_http2 if spoken == "h2" else self._server.connect_http1
        protocol = connect(self._number)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
