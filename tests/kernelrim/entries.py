"""Conntrack entries without a packet, as many as one likes: told to the kernel as conntrackd tells them."""

import socket
import struct
from collections.abc import Iterable, Iterator

from kpx.netfilter.flows import packed
from kpx.netfilter.netlink import ACK, NETLINK_NETFILTER, NFGENMSG, REQUEST, Netlink, attribute, message, nested

_NEW, _CREATE, _EXCLUSIVE = 0x100, 0x400, 0x200
_STATUS = attribute(3, struct.pack(">I", 1 << 1 | 1 << 3))  # has seen a reply, is confirmed
_ESTABLISHED = nested(4, nested(1, attribute(1, bytes([3]))))
_BATCH = 50
_HOUR = attribute(7, struct.pack(">I", 3600))

Where = tuple[str, int]


def entry(client: Where, destination: Where, answers: Where, protocol: int = socket.IPPROTO_UDP) -> bytes:
    """The request for an entry: a client sent to a place, and the answers come from another (or the same)."""
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    tuples = _tuple(1, client, destination, protocol) + _tuple(2, answers, client, protocol)
    state = _ESTABLISHED if protocol == socket.IPPROTO_TCP else b""
    body = NFGENMSG.pack(family, 0, 0) + tuples + _STATUS + _HOUR + state
    return message(_NEW, REQUEST | ACK | _CREATE | _EXCLUSIVE, body)


def insert(entries: Iterable[bytes]) -> None:
    """Make these entries in this network namespace."""
    with Netlink(NETLINK_NETFILTER) as link:
        for batch in _batches(entries):
            assert set(link.acknowledged(batch)) == {0}


def _batches(entries: Iterable[bytes]) -> Iterator[list[bytes]]:
    every = list(entries)
    return (every[at : at + _BATCH] for at in range(0, len(every), _BATCH))


def _tuple(kind: int, source: Where, destination: Where, protocol: int) -> bytes:
    first = 3 if ":" in source[0] else 1
    addresses = attribute(first, packed(source[0])) + attribute(first + 1, packed(destination[0]))
    ports = [attribute(at, struct.pack(">H", port)) for at, (_, port) in ((2, source), (3, destination))]
    return nested(kind, nested(1, addresses), nested(2, attribute(1, bytes([protocol])), *ports))
