"""Stale conntrack entries of UDP Services: which they are (pure), how to list and delete them (the rim).

A UDP "connection" has no end: as long as a client sends, the kernel sends its packets where the first one
went, also when that endpoint is gone, or when there was none and the packet went to the Service's own address.
As kube-proxy (`pkg/proxy/conntrack/cleanup.go`): an entry whose original destination is a Service's address
and port, or a node port, and whose reply doesn't come from a serving endpoint's address and port, is deleted,
so that the client's next packet meets the rules. Serving endpoints count whether or not they are terminating,
local, or chosen by topology: policies don't cut flows. TCP and SCTP notice a dead endpoint themselves.

Where this goes further than kube-proxy 1.36:

- Services without serving endpoints, and Services that are gone, count too, with no endpoint to be kept:
  1.36 leaves their entries, and a client that never stops sending is never freed. kube-proxy was mended so
  later (kubernetes/kubernetes#139629, #141371).
- A node port counts only on the addresses on which it is open, and never where the destination is a Service's
  address and port: kube-proxy cuts flows to any host whose port happens to be a node port's number (#49881).
"""

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET, AF_INET6, IPPROTO_UDP, inet_ntop
from typing import Final, NamedTuple

from kpx.errors import KpxError
from kpx.family import Family
from kpx.model.endpoint import Endpoints
from kpx.model.service import ServicePort
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

Place = tuple[str, int]
"""An address, in canonical text, and a port."""


class Flow(NamedTuple):
    """A conntrack entry: who sent to whom, and where the answers come from.

    The reply's source is the original destination if nothing translates it. `key` is by which the kernel finds
    the entry: its own attributes, untouched.
    """

    family: Family
    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    reply_source: str
    reply_source_port: int
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class Frontends:
    """Where UDP clients may send to, and the serving endpoints behind each.

    `node_addresses` are those on which node ports are open.
    """

    services: Mapping[Place, frozenset[Place]]
    node_ports: Mapping[int, frozenset[Place]]
    node_addresses: frozenset[str]


def frontends(
    live: Iterable[tuple[ServicePort, Endpoints]],
    gone: Iterable[ServicePort] = (),
    node_addresses: Iterable[str] = (),
) -> Frontends:
    """The frontends of one family's service ports; what isn't UDP is left out.

    `gone` are service ports as they were before they vanished or changed their addresses or ports; what a live
    one has taken over is the live one's.
    """
    services: dict[Place, frozenset[Place]] = {}
    node_ports: dict[int, frozenset[Place]] = {}
    for port, endpoints in (*((port, ()) for port in gone), *live):
        if port.protocol != "udp":
            continue
        serving = frozenset((one.address, one.port) for one in endpoints if one.serving)
        for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
            services[address, port.port] = serving
        if port.node_port:
            node_ports[port.node_port] = serving
    return Frontends(services, node_ports, frozenset(node_addresses))


def stale(entries: Iterable[Flow], known: Frontends) -> tuple[Flow, ...]:
    """The entries to delete, in the order given, each once."""
    return tuple(dict.fromkeys(one for one in entries if _is_stale(one, known)))


def _is_stale(flow: Flow, known: Frontends) -> bool:
    if flow.protocol != "udp":
        return False
    serving = known.services.get((flow.destination, flow.destination_port))
    if serving is None and flow.destination in known.node_addresses:
        serving = known.node_ports.get(flow.destination_port)
    return serving is not None and (flow.reply_source, flow.reply_source_port) not in serving


# ---- the rim: linux/netfilter/nfnetlink_conntrack.h ----

_GET, _DELETE = 0x101, 0x102
_TUPLE_ORIG, _TUPLE_REPLY, _ZONE, _FILTER = 1, 2, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS, _FILTER_PROTO_NUM = 1, 1 << 3
_ADDRESS_FAMILY: Final = {Family.IPV4: AF_INET, Family.IPV6: AF_INET6}
_BATCH = 64
"""Deletions sent at once: their answers must fit into the socket's buffer."""

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


def list_udp(family: Family) -> Iterator[Flow]:
    """All UDP entries of a family in this network namespace; some may come twice while the table changes.

    The kernel leaves out other protocols (since 5.8). Raises KpxError if it refuses, or writes entries otherwise
    than it always did.
    """
    proto = nested(_TUPLE_PROTO, attribute(_PROTO_NUM, bytes([IPPROTO_UDP])))
    flags = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _FILTER_PROTO_NUM))
    body = _nfgenmsg(family) + nested(_TUPLE_ORIG, proto) + nested(_FILTER, flags)
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            for entry in link.dump(_GET, body):
                flow = _flow(family, entry)
                if flow:
                    yield flow
    except OSError as error:
        raise KpxError(f"can't list conntrack entries: {error.strerror}") from error


def delete(flows: Iterable[Flow]) -> int:
    """Delete entries that `list_udp` told, in this network namespace; how many there were.

    Entries are found by where their answers come from: one that has gone, and whose client has since been sent
    elsewhere, is passed over. (The kernel's own CTA_ID can't tell the two apart: it is made from the client's
    addresses and a memory address, which the next entry often gets.) Raises KpxError if the kernel refuses one,
    after all have been tried.
    """
    every = tuple(flows)
    deleted, refused = 0, 0
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            for start in range(0, len(every), _BATCH):
                codes = list(link.acknowledged([_deletion(flow) for flow in every[start : start + _BATCH]]))
                deleted += codes.count(0)
                refused = next((code for code in codes if code not in (0, errno.ENOENT)), refused)
    except OSError as error:
        raise KpxError(f"can't delete conntrack entries: {error.strerror}") from error
    if refused:
        raise KpxError(f"the kernel refused to delete a conntrack entry: {os.strerror(refused)}")
    return deleted


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
    places = (_text(sent[1]), sent[7], _text(sent[3]), sent[9], _text(answered[1]), answered[7])
    return Flow(family, "udp", *places, key)


@lru_cache(maxsize=4096)
def _text(packed: bytes) -> str:
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def _nfgenmsg(family: Family) -> bytes:
    return NFGENMSG.pack(_ADDRESS_FAMILY[family], 0, 0)
