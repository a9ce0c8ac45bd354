"""UDP flows that conntrack keeps, and which of them are stale. Pure.

A UDP "connection" has no end: as long as a client sends, the kernel sends its packets where the first one
went, also when that endpoint is gone, or when there was none and the packet went to the Service's own address.
As kube-proxy 1.36 (`pkg/proxy/conntrack/cleanup.go`): an entry whose original destination is a Service's address
and port (cluster IP, external IP, load balancer IP), or a node port, and whose reply doesn't come from a serving
endpoint's address and port, is deleted, so that the client's next packet meets the rules. Serving endpoints count
whether or not they are terminating, local, or chosen by topology: policies don't cut flows. TCP and SCTP are left, as
there: their ends notice a dead endpoint themselves.

Where this differs from kube-proxy 1.36:

- Services without serving endpoints, and Services that are gone, count too, with no endpoint to be kept:
  1.36 leaves their entries, and a client that never stops sending is never freed. kube-proxy was mended so
  later (kubernetes/kubernetes#139629, #141371).
- A node port counts only on the addresses on which it is open, and never where the destination is a Service's
  address and port: kube-proxy cuts flows to any host whose port happens to be a node port's number (#49881).
- 1.36 looks once endpoints of a UDP Service have changed, at all Services, within the sync. This looks after any
  change, at the Services that changed (at all after a full sync), and apart from syncs: see `kpx.agent.stale`.
- What couldn't be read or deleted is tried again. 1.36 logs it, and leaves it until endpoints change again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import NamedTuple

from kpx.family import Family
from kpx.model.endpoint import Endpoints
from kpx.model.service import ServicePort

Place = tuple[bytes, int]
"""An address, packed (4 or 16 bytes), and a port."""

IPV4_SIZE = 4
ENTRIES_PER_WALK = 10_000
"""The kernel walks the whole table for each query: 10 ms, and 2 ms more for every 10,000 entries. To copy so many
entries and look at them here takes 45 ms. So a further query pays for each 10,000 entries that it may leave out."""


class Flow(NamedTuple):
    """A conntrack entry of UDP: who sent to whom, and where the answers come from.

    The reply's source is the original destination if nothing translates it. `key` is by which the kernel finds
    the entry: its own attributes, untouched.
    """

    family: Family
    source: Place
    destination: Place
    reply_source: Place
    key: bytes = b""


class Query(NamedTuple):
    """Which entries the kernel is asked for: UDP to this port, if any, on this address, if any."""

    port: int | None = None
    address: bytes | None = None

    def takes(self, flow: Flow) -> bool:
        """Whether an entry is one of these."""
        address, port = flow.destination
        return self.port in (None, port) and self.address in (None, address)


@dataclass(frozen=True, slots=True)
class Frontends:
    """Where UDP clients may send to, and the serving endpoints behind each.

    `node_addresses` are those on which node ports are open.
    """

    services: Mapping[Place, frozenset[Place]]
    node_ports: Mapping[int, frozenset[Place]]
    node_addresses: frozenset[bytes]


@lru_cache(maxsize=4096)
def packed(address: str) -> bytes:
    """An address' bytes. Raises OSError if it isn't one."""
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


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
        serving = frozenset((packed(one.address), one.port) for one in endpoints if one.serving)
        for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
            services[packed(address), port.port] = serving
        if port.node_port:
            node_ports[port.node_port] = serving
    return Frontends(services, node_ports, frozenset(map(packed, node_addresses)))


def queries(known: Frontends, entries: int) -> tuple[Query, ...]:
    """What to ask the kernel for so that nothing stale is missing; `entries` is how many it has, of all kinds.

    One query for each port, as long as that costs less than to have all of UDP. An address narrows it down where it
    is the only one with that port; but only for IPv4: Linux (5.8 to 6.18 at least) turns the comparison of IPv6
    addresses around, and leaves out just what was asked for.
    """
    addresses: dict[int, set[bytes]] = {port: set() for port in known.node_ports}
    for address, number in known.services:
        addresses.setdefault(number, set()).add(address)
    if len(addresses) > 1 + entries // ENTRIES_PER_WALK:
        return (Query(),)
    return tuple(
        Query(number, min(found) if _narrow(found) and number not in known.node_ports else None)
        for number, found in sorted(addresses.items())
    )


def _narrow(addresses: set[bytes]) -> bool:
    return len(addresses) == 1 and len(min(addresses)) == IPV4_SIZE


def stale(entries: Iterable[Flow], known: Frontends) -> Iterator[Flow]:
    """The entries to delete, in the order given."""
    services, node_ports, node_addresses = known.services, known.node_ports, known.node_addresses
    for flow in entries:
        destination = flow.destination
        serving = services.get(destination)
        if serving is None and destination[0] in node_addresses:
            serving = node_ports.get(destination[1])
        if serving is not None and flow.reply_source not in serving:
            yield flow
