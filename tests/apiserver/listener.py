"""The listening socket: a port that outgoing connections and NodePorts don't use, if wanted in a namespace."""

import ctypes
import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PORTS = range(20_000, 30_000)  # below ip_local_port_range and the NodePorts
_CLONE_NEWNET = 0x40000000
_PATIENCE = 5.0


def listen(host: str, port: int, netns: str) -> socket.socket:
    """A listening socket on `port` (0: a free one), inside of a network namespace if a name or path is given.

    A socket belongs to the namespace of the thread that made it (network_namespaces(7)), so a thread of its
    own goes there and makes it. Raises OSError.
    """
    if not netns:
        return _listen(host, port)

    def inside() -> socket.socket:
        _enter(Path("/run/netns") / netns)
        return _listen(host, port)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(inside).result()


def _listen(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return socket.create_server((host, port or random.choice(_PORTS)), backlog=512, family=_family(host))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _enter(namespace: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    finally:
        os.close(descriptor)
