"""Real servers in pods, which say who they are and whom they saw."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.node import Host

_PROGRAM = Path(__file__).with_name("answering.py")
_BACKLOG = 4096
_PRIORITY = -10


class Backends:
    """Servers on the given TCP and UDP ports of every host, in both families, while in the context.

    They have their turn before all else, so that on a busy machine, too, nobody waits for an answer. `addresses`
    replaces the hosts' own addresses, for servers on a loopback address.
    """

    def __init__(
        self,
        *hosts: Host,
        tcp: Sequence[int] = (),
        udp: Sequence[int] = (),
        addresses: Sequence[str] = (),
    ) -> None:
        self._hosts = hosts
        self._ports = [(socket.SOCK_STREAM, port) for port in tcp] + [(socket.SOCK_DGRAM, port) for port in udp]
        self._addresses = addresses

    def __enter__(self) -> Self:
        sockets = [pair for host in self._hosts for pair in self._listen(host)]
        descriptors = [sock.fileno() for sock, _ in sockets]
        words = [f"{sock.fileno()}:{sock.getsockname()[1]}:{host.name}" for sock, host in sockets]
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM), *words],
            stdin=subprocess.PIPE,  # closed by us, or by the kernel when we die: its sign to end
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        for sock, _ in sockets:
            sock.close()
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _PRIORITY)
        assert self._process.stdout
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        if self._process.stdout:
            self._process.stdout.close()
        self._process.wait(60)

    @property
    def pid(self) -> int:
        """The serving process."""
        return self._process.pid

    def _listen(self, host: Host) -> list[tuple[socket.socket, Host]]:
        addresses = self._addresses or (host.ipv4, host.ipv6)
        with host.namespace.entered():
            return [(_bound(kind, address, port), host) for address in addresses for kind, port in self._ports]


def _bound(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if kind is socket.SOCK_STREAM:
        sock.listen(_BACKLOG)
    return sock
