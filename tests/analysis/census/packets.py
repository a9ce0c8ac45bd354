"""All packets of interest of a dump: to everything that its Services offer, and beside, from everybody."""

from collections.abc import Iterator

from kpx.analysis.packet import Origin, Packet
from tests.analysis.census.dumps import NODE
from tests.analysis.census.proxies import PLACES

SENDERS = (
    (Origin.POD, "10.244.0.9"),
    (Origin.POD, "10.244.0.5"),
    (Origin.OUTSIDE, "198.51.100.7"),
    (Origin.OUTSIDE, "203.0.113.99"),
    (Origin.OUTSIDE, "10.244.1.9"),
    (Origin.NODE, NODE),
)
"""A pod, one that is an endpoint, outside within a load balancer's range and not, a pod of another node, the node."""

OTHERS = (
    ("tcp", "10.244.0.5", 8080),
    ("tcp", "10.244.1.5", 8080),
    ("tcp", "192.0.2.77", 443),
    ("tcp", NODE, 22),
    ("tcp", "10.96.0.99", 80),
    ("udp", "10.96.0.10", 54),
)
"""Pods, outside, the node itself, addresses and ports beside those of Services."""


def destinations() -> Iterator[tuple[str, str, int]]:
    """Protocol, address and port of everything that can be asked for."""
    for one in PLACES:
        yield one.protocol, one.vip, one.port
        for address in filter(None, (one.balancer, one.external)):
            yield one.protocol, address, one.port
        if one.node_port:
            yield one.protocol, NODE, one.node_port
    yield from OTHERS


def packets() -> Iterator[Packet]:
    """Every destination from every sender, without interfaces, as one asks who knows no more."""
    for protocol, address, port in destinations():
        for origin, source in SENDERS:
            if source != address or origin is Origin.NODE:
                yield Packet(source, address, protocol, port, origin=origin)
