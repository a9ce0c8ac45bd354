"""conntrack's entries of UDP, listed and deleted: `linux/netfilter/nfnetlink_conntrack.h`. Which are stale: `flows`.

The kernel leaves out what wasn't asked for (CTA_FILTER, Linux 5.8). pyroute2 (0.9.7) can ask for that, too, but takes
24 MB for its imports and 11 s of CPU time where 150,000 entries come; here it is 0.6 s, and 0.04 s if they are left
out. The kernel can also delete by status and mark, but by neither address nor port.
"""

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, IPPROTO_UDP
from typing import Final

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.flows import Flow, Query
from kpx.netfilter.netlink import (
    ACK,
    ATTRIBUTE,
    NETLINK_NETFILTER,
    NFGENMSG,
    REQUEST,
    Netlink,
    attribute,
    attributes,
    message,
    nested,
)

_GET, _DELETE, _STATISTICS = 0x101, 0x102, 0x105
_TUPLE_ORIG, _TUPLE_REPLY, _ZONE, _FILTER = 1, 2, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS = 1
_BY_ADDRESS, _BY_PROTOCOL, _BY_PORT = 1 << 1, 1 << 3, 1 << 5
_STATISTICS_ENTRIES = 1
_ADDRESS_FAMILY: Final = {Family.IPV4: AF_INET, Family.IPV6: AF_INET6}
_IP_DST: Final = {Family.IPV4: 2, Family.IPV6: 4}
_PORT = struct.Struct(">H")
_BATCH = 64
"""Deletions sent at once: their answers must fit into the socket's buffer."""
_NO_FILTERS = (errno.EINVAL, errno.EOPNOTSUPP)
"""What a kernel may answer that doesn't take a filter. One before 5.8 ignores it, and lists everything."""

_LAYOUT = {
    Family.IPV4: struct.Struct(">8s4s4s4s8sB3x4sH2x4sH2x"),
    Family.IPV6: struct.Struct(">8s16s4s16s8sB3x4sH2x4sH2x"),
}
"""How the kernel writes a tuple: headers of attributes and, in every second place, values."""
_ZONE_HEADER = ATTRIBUTE.pack(ATTRIBUTE.size + 2, _ZONE)


def _headers(family: Family, source: int, destination: int, size: int) -> tuple[bytes, ...]:
    """The headers that the layout expects; the numbers are types and the size of the addresses."""
    addresses = nested(_TUPLE_IP, attribute(source, bytes(size)), attribute(destination, bytes(size)))
    ports = (attribute(_PROTO_SRC_PORT, bytes(2)), attribute(_PROTO_DST_PORT, bytes(2)))
    text = addresses + nested(_TUPLE_PROTO, attribute(_PROTO_NUM, bytes(1)), *ports)
    return _LAYOUT[family].unpack(text)[::2]


_HEADERS = {Family.IPV4: _headers(Family.IPV4, 1, 2, 4), Family.IPV6: _headers(Family.IPV6, 3, 4, 16)}


def count_entries() -> int:
    """How many entries there are in this network namespace, of all kinds. Raises KpxError."""
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            (answer, *_) = link.ask(_STATISTICS, NFGENMSG.pack(0, 0, 0))
    except OSError as error:
        raise KpxError(f"can't count conntrack entries: {error.strerror}") from error
    return int.from_bytes(attributes(answer, NFGENMSG.size)[_STATISTICS_ENTRIES], "big")


def list_udp(family: Family, queries: Iterable[Query] = (Query(),)) -> Iterator[Flow]:
    """UDP entries of a family in this network namespace: those that any of `queries` takes, and perhaps others.

    Some may come twice. What a kernel can't leave out comes too, once. Raises KpxError if the kernel refuses, goes on
    interrupting the list, or writes entries otherwise than it always did.
    """
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            for query in queries:
                unfiltered = False
                for entry in _entries(link, family, query):
                    flow = _flow(family, entry)
                    unfiltered = unfiltered or flow is None or not query.takes(flow)
                    if flow:
                        yield flow
                if unfiltered:  # so that was everything
                    return
    except OSError as error:
        raise KpxError(f"can't list conntrack entries: {error.strerror}") from error


def _entries(link: Netlink, family: Family, query: Query) -> Iterator[bytes]:
    try:
        yield from link.dump(_GET, _nfgenmsg(family) + _filter(family, query))
    except OSError as error:
        if error.errno not in _NO_FILTERS:
            raise
        yield from link.dump(_GET, _nfgenmsg(family))


def _filter(family: Family, query: Query) -> bytes:
    flags, places, protocol = _BY_PROTOCOL, b"", attribute(_PROTO_NUM, bytes([IPPROTO_UDP]))
    if query.port is not None:
        flags |= _BY_PORT
        protocol += attribute(_PROTO_DST_PORT, _PORT.pack(query.port))
    if query.address is not None:
        flags |= _BY_ADDRESS
        places = nested(_TUPLE_IP, attribute(_IP_DST[family], query.address))
    tuple_ = nested(_TUPLE_ORIG, places, nested(_TUPLE_PROTO, protocol))
    return tuple_ + nested(_FILTER, attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many entries were deleted, and what kept others from being, if anything did."""

    count: int
    error: KpxError | None = None


def delete(flows: Iterable[Flow]) -> Deleted:
    """Delete entries that `list_udp` told, in this network namespace; all are tried.

    Entries are found by where their answers come from: one that has gone, and whose client has since been sent
    elsewhere, is passed over. (The kernel's own CTA_ID can't tell the two apart: it is made from the client's
    addresses and a memory address, which the next entry often gets.)
    """
    every = tuple(flows)
    deleted, refused = 0, 0
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            for start in range(0, len(every), _BATCH):
                for code in link.acknowledged([_deletion(flow) for flow in every[start : start + _BATCH]]):
                    deleted += code == 0
                    refused = code if code not in (0, errno.ENOENT) else refused
    except OSError as error:
        return Deleted(deleted, KpxError(f"can't delete conntrack entries: {error.strerror}"))
    if refused:
        return Deleted(deleted, KpxError(f"the kernel refused to delete a conntrack entry: {os.strerror(refused)}"))
    return Deleted(deleted)


def _deletion(flow: Flow) -> bytes:
    if not flow.key:  # the kernel would take it for a request to delete the whole table
        raise ValueError(f"not an entry of the kernel: {flow}")
    return message(_DELETE, REQUEST | ACK, _nfgenmsg(flow.family) + flow.key)


def _flow(family: Family, entry: bytes) -> Flow | None:
    """The flow that an entry tells of, if it is UDP."""
    layout, headers = _LAYOUT[family], _HEADERS[family]
    original = NFGENMSG.size
    reply = original + (ATTRIBUTE.unpack_from(entry, original)[0] + 3 & ~3)
    rest = reply + (ATTRIBUTE.unpack_from(entry, reply)[0] + 3 & ~3)
    sent = layout.unpack_from(entry, original + ATTRIBUTE.size)
    answered = layout.unpack_from(entry, reply + ATTRIBUTE.size)
    if sent[5] != IPPROTO_UDP:
        return None
    if sent[::2] != headers or answered[::2] != headers:
        raise KpxError("this kernel writes conntrack entries in an order that kpx doesn't know")
    key = entry[reply:rest]
    if entry.find(_ZONE_HEADER, rest) > 0:  # perhaps: these bytes may also be part of a value
        zone = attributes(entry, rest).get(_ZONE)
        key += attribute(_ZONE, zone) if zone else b""
    return Flow(family, (sent[1], sent[7]), (sent[3], sent[9]), (answered[1], answered[7]), key)


def _nfgenmsg(family: Family) -> bytes:
    return NFGENMSG.pack(_ADDRESS_FAMILY[family], 0, 0)
