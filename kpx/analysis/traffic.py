"""Connections per Service and endpoint from two readings of counters. The shape of `kpx top --json`. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from pydantic import Field

from kpx.analysis.order import Order
from kpx.netfilter.counters import Counted, Place
from kpx.printable import printable
from kpx.shape import Part


class EndpointTraffic(Part):
    """Connections to one endpoint of a service port."""

    endpoint: str = Field(description="address:port")
    connections: int = Field(description="new connections that its rule has counted")
    rate: float | None = Field(description="new connections per second; null after a single reading")


class ServiceTraffic(Part):
    """Connections to one service port: the sum over its endpoints."""

    service: str = Field(description="namespace/name:port as the rules' comments say it; a chain if they don't")
    protocol: str
    connections: int
    rate: float | None
    endpoints: Sequence[EndpointTraffic]


Row = TypeVar("Row", ServiceTraffic, EndpointTraffic)


class Traffic(Part):
    """All service ports that have endpoints, sorted as asked for."""

    seconds: float | None = Field(description="time between the two readings; null after a single one")
    connections: int
    rate: float | None
    services: Sequence[ServiceTraffic]


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters by chain and endpoint, read at a time in seconds; and the service ports behind the chains."""

    at: float
    counters: Mapping[Place, Counted]
    owners: Mapping[str, str]


SORTS: Mapping[Order, Callable[[ServiceTraffic | EndpointTraffic], tuple[float, float]]] = {
    Order.RATE: lambda one: (-(one.rate or 0.0), -one.connections),
    Order.TOTAL: lambda one: (-one.connections, 0.0),
    Order.NAME: lambda one: (0.0, 0.0),
}
"""Orders of service ports and endpoints; equal ones go by name."""


def traffic(before: Reading | None, after: Reading, sort: str = "rate", wanted: str = "*") -> Traffic:
    """What was counted until `after`, and how fast between the two.

    A counter that is lower than before began anew: all it has counted since. `wanted` is a pattern (`shop/*`) or a
    part of the name of a service port or endpoint.
    """
    seconds = after.at - before.at if before else None
    grouped: dict[tuple[str, str], dict[str, list[Counted]]] = defaultdict(lambda: defaultdict(list))
    for one in after.counters.values():
        owner = after.owners.get(one.chain, one.chain)
        grouped[printable(owner), printable(one.protocol)][one.endpoint].append(one)
    services = [
        _service(
            *key, _sorted((_endpoint(before, seconds, some) for some in by_endpoint.values()), sort, _endpoint_key)
        )
        for key, by_endpoint in grouped.items()
    ]
    chosen = [one for one in services if _is_wanted(one, wanted)]
    return Traffic(
        seconds=seconds,
        connections=sum(one.connections for one in chosen),
        rate=_sum(chosen),
        services=_sorted(chosen, sort, lambda one: f"{one.service}/{one.protocol}"),
    )


def _new(before: Reading, one: Counted) -> int:
    """How many connections came since a reading."""
    known = before.counters.get(one.place)
    return one.connections - known.connections if known and known.connections <= one.connections else one.connections


def _endpoint(before: Reading | None, seconds: float | None, counted: Sequence[Counted]) -> EndpointTraffic:
    """One endpoint, from all places that count for it."""
    return EndpointTraffic(
        endpoint=printable(counted[0].endpoint),
        connections=sum(one.connections for one in counted),
        rate=sum(_new(before, one) for one in counted) / seconds if before and seconds else None,
    )


def _service(name: str, protocol: str, endpoints: Sequence[EndpointTraffic]) -> ServiceTraffic:
    connections = sum(one.connections for one in endpoints)
    return ServiceTraffic(
        service=name, protocol=protocol, connections=connections, rate=_sum(endpoints), endpoints=endpoints
    )


def _sum(parts: Sequence[ServiceTraffic] | Sequence[EndpointTraffic]) -> float | None:
    rates = [one.rate for one in parts if one.rate is not None]
    return sum(rates) if rates else None


def _endpoint_key(one: EndpointTraffic) -> str:
    return one.endpoint


def _sorted(rows: Iterable[Row], sort: str, name: Callable[[Row], str]) -> list[Row]:
    return sorted(rows, key=lambda one: (SORTS[Order(sort)](one), name(one)))


def _is_wanted(one: ServiceTraffic, wanted: str) -> bool:
    names = [one.service, *(endpoint.endpoint for endpoint in one.endpoints)]
    return any(wanted in name or fnmatchcase(name, wanted) for name in names)
