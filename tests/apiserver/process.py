"""The API server as a process of its own, steered through a socket pair.

Worth it where the server must not share the interpreter with the test (latency, memory), must live inside
of a network namespace, or must be stopped by signals.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, cast

from .access import Auth
from .faults import Faults
from .resources import Object
from .server import ApiServer
from .state import Promises, Stats, WatchInfo
from .wire import Request

_ROOT = Path(__file__).parents[len(__package__.split("."))]


class ApiServerProcess:
    """Same control interface as `ApiServer`; `prefix` goes before the command (`nsenter -t PID -n`).

    The process ends with `stop`, or when its parent is gone.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: bool = False,
        promises: Promises | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        ours, theirs = socket.socketpair()
        command = [*prefix, sys.executable, "-m", __package__, "--host", host, "--port", str(port)]
        command += ["--control", str(theirs.fileno()), *(["--tls"] if tls else [])]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self._pipe: Pipe[Any, Any] = Pipe(ours.detach())
        self._lock = threading.Lock()
        if promises:
            self.promises = promises

    def __enter__(self) -> "ApiServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return cast(str, self._call("url"))

    @property
    def port(self) -> int:
        return cast(int, self._call("port"))

    @property
    def token(self) -> str:
        return cast(str, self._call("token"))

    @property
    def ca_file(self) -> Path:
        return cast(Path, self._call("ca_file"))

    @property
    def version(self) -> int:
        return cast(int, self._call("version"))

    @property
    def promises(self) -> Promises:
        return cast(Promises, self._call("promises"))

    @promises.setter
    def promises(self, promises: Promises) -> None:
        self._call("promises=", promises)

    @property
    def faults(self) -> Faults:
        return cast(Faults, self._call("faults"))

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._call("faults=", faults)

    @property
    def requests(self) -> list[Request]:
        return cast(list[Request], self._call("requests"))

    @property
    def open_watches(self) -> list[WatchInfo]:
        return cast(list[WatchInfo], self._call("open_watches"))

    @property
    def stats(self) -> Stats:
        return cast(Stats, self._call("stats"))

    def put(self, obj: Object) -> int:
        return cast(int, self._call("put", obj))

    def put_all(self, objects: Iterable[Object]) -> None:
        self._call("put_all", list(objects))

    def delete(self, kind: str, namespace: str, name: str) -> int:
        return cast(int, self._call("delete", kind, namespace, name))

    def change(self, verb: str, obj: Object) -> int:
        return cast(int, self._call("change", verb, obj))

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return cast("Object | None", self._call("get", kind, namespace, name))

    def objects(self, *kinds: str) -> list[Object]:
        return cast(list[Object], self._call("objects", *kinds))

    def compact(self) -> None:
        self._call("compact")

    def jump(self, by: int) -> None:
        self._call("jump", by)

    def drop_watches(self, reset: bool = True) -> None:
        self._call("drop_watches", reset)

    def stall_watches(self, blackhole: bool = False) -> None:
        self._call("stall_watches", blackhole)

    def drop_connections(self, reset: bool = True) -> None:
        self._call("drop_connections", reset)

    def say_goodbye(self) -> None:
        self._call("say_goodbye")

    def limit_streams(self, count: int) -> None:
        self._call("limit_streams", count)

    def refuse(self, seconds: float | None = None) -> None:
        self._call("refuse", seconds)

    def accept(self) -> None:
        self._call("accept")

    def restart(self, *, down: float = 0.0, keep_history: bool = True) -> None:
        self._call("restart", down=down, keep_history=keep_history)

    def kubeconfig(self, path: Path, auth: Auth = Auth.TOKEN, expires_in: float = 3600.0) -> Path:
        return cast(Path, self._call("kubeconfig", path.absolute(), auth, expires_in))

    def service_account(self, directory: Path) -> dict[str, str]:
        return cast(dict[str, str], self._call("service_account", directory.absolute()))

    def rotate_token(self) -> str:
        return cast(str, self._call("rotate_token"))

    def wait_for(self, condition: "Callable[[ApiServerProcess], object]", timeout: float = 60.0) -> None:
        """Wait until `condition(server)` is true. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while not condition(self):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout} s; watches {self.open_watches}, {self.stats}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End the process. Raises RuntimeError if it ended badly."""
        self._pipe.close()
        if status := self._process.wait(60):
            raise RuntimeError(f"the API server's process ended with status {status}")

    def _call(self, name: str, *arguments: object, **named: object) -> Any:
        with self._lock:
            self._pipe.send((name, arguments, named))
            value, problem = self._pipe.recv()
        if problem is not None:
            raise problem
        return value


def serve_control(server: ApiServer, descriptor: int) -> None:
    """Do what the other end of a control socket asks, until it is closed."""
    with Pipe(descriptor) as pipe:  # type: Pipe[Any, Any]
        while True:
            try:
                name, arguments, named = pipe.recv()
            except (EOFError, ConnectionError):
                return
            try:
                pipe.send((_perform(server, name, arguments, named), None))
            except Exception as problem:
                pipe.send((None, problem))


def _perform(server: ApiServer, name: str, arguments: Sequence[Any], named: dict[str, Any]) -> object:
    if name.endswith("="):
        setattr(server, name[:-1], arguments[0])
        return None
    value = getattr(server, name)
    return value(*arguments, **named) if callable(value) else value
