"""Netlink messages, as far as the agent's rim needs them: `linux/netlink.h`, `linux/netfilter/nfnetlink.h`.

The standard library's socket and a few lines of struct instead of a netlink library: the imports of one cost
22 MB of memory, and its decoding of every attribute is what a monitor of large transactions can't afford.
"""

import errno
import os
import socket
import struct
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType
from typing import Self

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_SO_RCVBUFFORCE = 33
_BUFFER = 1 << 18
_TRIES = 3

HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence number, port of the sender."""
ATTRIBUTE = struct.Struct("=HH")
"""Length, type; the value follows, padded to 4 bytes."""
NFGENMSG = struct.Struct("=BBH")
"""What follows the header of every netfilter message: family, version, resource."""
_ERRNO = struct.Struct("=i")
_NESTED = 0x8000


def message(kind: int, flags: int, body: bytes, sequence: int = 1) -> bytes:
    """One message; `body` starts with the protocol's own header and must be padded to 4 bytes."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes from `start` to the end of `data`: values by type, the last one of each."""
    found = {}
    end = len(data)
    while start + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[start + 4 : start + length]
        start += length + 3 & ~3
    return found


class Netlink:
    """A netlink socket in the network namespace of the calling thread. Raises OSError as sockets do."""

    def __init__(self, protocol: int, groups: int = 0, receive_buffer: int = 0) -> None:
        """Open it as a member of the multicast `groups` (a mask), with room for so many received bytes."""
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        if receive_buffer:
            self._make_room(receive_buffer)
        self.socket.bind((0, groups))

    def _make_room(self, size: int) -> None:
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:  # a user namespace's root may not: then as much as the host allows
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def ask(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Send one request and return its answers without their headers. Raises OSError if it is refused."""
        self.socket.send(message(kind, REQUEST | ACK, body))
        return self._answers()

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """List what the kernel has, without headers.

        What changes meanwhile may be missing or come twice; a list that the kernel calls inconsistent
        (NLM_F_DUMP_INTR) is read anew, up to three times, so that everything before then comes twice. Raises OSError:
        EINTR if the third one is no better.
        """
        for _ in range(_TRIES):
            self.socket.send(message(kind, REQUEST | DUMP, body))
            if (yield from self._answers()):
                return
        raise OSError(errno.EINTR, "it changed each time while it was read")

    def acknowledged(self, messages: Sequence[bytes]) -> Iterator[int]:
        """Send requests that bear ACK all at once; the errno of each, 0 where it succeeded."""
        self.socket.send(b"".join(messages))
        left = len(messages)
        while left:
            for kind, _, body in self._receive():
                if kind == _ERROR:
                    left -= 1
                    yield -_ERRNO.unpack_from(body)[0]

    def _answers(self) -> Generator[bytes, None, bool]:
        """All messages up to the last; returns whether they are consistent."""
        consistent = True
        while True:
            for kind, flags, body in self._receive():
                consistent = consistent and not flags & _INTERRUPTED
                if kind in (_ERROR, _DONE):
                    code = -_ERRNO.unpack_from(body)[0] if len(body) >= _ERRNO.size else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return consistent
                yield body

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self.socket.recv(_BUFFER)
        start = 0
        while start < len(data):
            length, kind, flags, _, _ = HEADER.unpack_from(data, start)
            yield kind, flags, data[start + HEADER.size : start + length]
            start += length + 3 & ~3

    def close(self) -> None:
        """Leave the groups and free the socket."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
