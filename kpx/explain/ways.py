"""Who can use a way in, and what becomes of them: packets of each kind of sender, sent through the rules."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from kpx.analysis.notation import WITH_PORTS
from kpx.analysis.packet import Origin, Packet
from kpx.analysis.report import outcome_reports
from kpx.analysis.simulate import Simulator
from kpx.explain.report import UseReport, WayReport
from kpx.explain.stops import stops
from kpx.family import Family, host_port
from kpx.model.node import contains

_OUTSIDE = {
    Family.IPV4: ("198.51.100.7", "192.0.2.7", "203.0.113.7", "8.8.8.8", "100.64.0.7", "172.31.0.7"),
    Family.IPV6: ("2001:db8:ffff::7", "2001:4860::7", "fd99::7"),
}
"""Addresses to send from that are seldom anybody's own."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way in. `kind` is what clients call it, `policy` the traffic policy that it follows."""

    kind: str
    address: str
    port: int
    protocol: str
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Sender:
    """A kind of sender, and one of that kind."""

    words: str
    origin: Origin
    address: str
    in_interface: str | None = None

    def packet(self, way: Way) -> Packet:
        """The first packet of a connection of this sender."""
        return Packet(
            self.address,
            way.address,
            way.protocol,
            way.port,
            40_000,
            self.origin,
            in_interface=self.in_interface,
            bridged=False,
        )


def senders(
    family: Family,
    pods: str,
    node_address: str,
    endpoints: Sequence[str],
    source_ranges: Sequence[str] = (),
) -> tuple[Sender, ...]:
    """Everybody who may be treated differently.

    `pods` is what tells this node's pods, as a rule asks for them: `-s CIDR`, `-i NAME`, or nothing. `endpoints` are
    addresses that no example but an endpoint's own may have.
    """
    return tuple(_senders(family, pods, node_address, endpoints, source_ranges))


def _senders(
    family: Family, pods: str, node_address: str, endpoints: Sequence[str], source_ranges: Sequence[str]
) -> Iterator[Sender]:
    taken = {*endpoints, node_address}
    cidr = pods.removeprefix("-s ") if pods.startswith("-s ") else ""
    if cidr:
        yield Sender("pods", Origin.POD, _within(cidr, taken))
    elif pods:
        name = pods.removeprefix("-i ")
        interface = name[:-1] + "0" if name.endswith("+") else name
        yield Sender("pods of this node", Origin.POD, _outside(family, (), taken), interface)
    if node_address:
        yield Sender("the node itself", Origin.NODE, node_address)
    uplink = "eth0" if pods.startswith("-i ") else None
    for allowed in source_ranges:
        if not allowed.endswith("/0"):
            yield Sender(f"outside in {allowed}", Origin.OUTSIDE, _within(allowed, taken), uplink)
    if stranger := _outside(family, (*source_ranges, *([cidr] if cidr else ())), taken):
        words = "elsewhere outside" if any(not one.endswith("/0") for one in source_ranges) else "outside"
        yield Sender(words, Origin.OUTSIDE, stranger, uplink)


def _within(cidr: str, taken: Iterable[str]) -> str:
    """An address late in a network that nobody has."""
    network, gone = ip_network(cidr), set(taken)
    last = network.num_addresses - 1
    places = (last - step for step in range(1, min(last, len(gone) + 2) + 1))
    return next((one for place in places if (one := str(network[place])) not in gone), str(network[0]))


def _outside(family: Family, networks: Sequence[str], taken: Iterable[str]) -> str:
    """An address in none of the networks; empty if none is at hand."""
    gone = set(taken)
    free = (one for one in _OUTSIDE[family] if one not in gone and not any(contains(net, one) for net in networks))
    return next(free, "")


def way_report(
    simulator: Simulator, way: Way, some: Iterable[Sender], endpoints: Collection[str] | None = None
) -> WayReport:
    """What becomes of packets of these senders that use a way in; `endpoints` as in `stops`."""
    return WayReport(
        kind=way.kind,
        address=way.address,
        port=way.port,
        policy=way.policy,
        uses=[_use(simulator, way, sender, endpoints) for sender in some],
    )


def _use(simulator: Simulator, way: Way, sender: Sender, endpoints: Collection[str] | None) -> UseReport:
    packet = sender.packet(way)
    place = host_port(way.address, way.port) if way.protocol in WITH_PORTS else way.address
    outcomes = simulator.outcomes(packet)
    kept = stops(simulator, packet, endpoints)
    order = sorted(outcomes, key=lambda one: (-outcomes[one], one))
    return UseReport(
        sender=sender.words,
        packet=f"{way.protocol} {sender.address} -> {place}",
        origin=sender.origin.value,
        outcomes=outcome_reports(outcomes),
        stopped=[kept[one].brief(one) if one in kept else "" for one in order],
    )
