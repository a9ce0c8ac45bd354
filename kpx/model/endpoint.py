"""Endpoints: the backends of a service port, merged from its EndpointSlices."""

import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from sys import intern

from kpx import api
from kpx.api.selection import uses
from kpx.family import Family, host_port
from kpx.model.balance import DEFAULT_WEIGHT, weight_of
from kpx.model.service import ServicePortName

SERVICE_NAME_LABEL = "kubernetes.io/service-name"

_NO_NAMES: frozenset[str] = frozenset()
_NO_HINTS = (_NO_NAMES, _NO_NAMES)
_FAMILIES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and port behind a service port.

    `local` says that it runs on this node; hints are the zones and nodes it is meant for. `weight` is how much it
    counts among others.
    """

    address: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False
    zone_hints: frozenset[str] = _NO_NAMES
    node_hints: frozenset[str] = _NO_NAMES
    weight: int = DEFAULT_WEIGHT

    def __str__(self) -> str:
        """`address:port`: the argument of DNAT and of the chain's name."""
        return host_port(self.address, self.port)


Endpoints = tuple[Endpoint, ...]

_READY, _SERVING, _TERMINATING, _LOCAL = 1, 2, 4, 8
_KINDS = {Family.IPV4: (socket.AF_INET, 4), Family.IPV6: (socket.AF_INET6, 16)}
"""Address family and length in bytes of an address."""

Hints = tuple[frozenset[str], frozenset[str]]
"""The zones and the nodes that an endpoint is meant for."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What counts of one EndpointSlice on one node, packed: an agent keeps tens of thousands of them.

    `ports` are name, protocol in lower case and number. `addresses` are the endpoints' first addresses, 4 or 16 bytes
    each, `states` their conditions, a byte each, `hints` one for each endpoint, or none if no endpoint has any. All
    have the same `weight`.
    """

    service: tuple[str, str]
    name: str
    family: Family
    ports: tuple[tuple[str, str, int], ...]
    addresses: bytes
    states: bytes
    hints: tuple[Hints, ...] = ()
    weight: int = DEFAULT_WEIGHT

    def endpoints(self, port: int) -> Iterator[Endpoint]:
        """The endpoints behind one of the ports."""
        kind, size = _KINDS[self.family]
        hints = self.hints or repeat(_NO_HINTS)
        for index, (state, (zones, nodes)) in enumerate(zip(self.states, hints, strict=False)):
            yield Endpoint(
                address=socket.inet_ntop(kind, self.addresses[index * size : (index + 1) * size]),
                port=port,
                ready=bool(state & _READY),
                serving=bool(state & _SERVING),
                terminating=bool(state & _TERMINATING),
                local=bool(state & _LOCAL),
                zone_hints=zones,
                node_hints=nodes,
                weight=self.weight,
            )


def slice_of(source: api.EndpointSlice, node_name: str) -> Slice | None:
    """An EndpointSlice as the node called `node_name` sees it; None if it isn't ours to use, or holds host names."""
    service = service_of(source)
    family = _FAMILIES.get(source.address_type)
    if service is None or family is None:
        return None
    kind, _ = _KINDS[family]
    hints = tuple(_hints(one.hints) for one in source.endpoints)
    return Slice(
        service=service,
        name=source.metadata.name,
        family=family,
        ports=tuple((intern(one.name), intern(one.protocol.lower()), one.port) for one in source.ports if one.port),
        addresses=b"".join(socket.inet_pton(kind, one.addresses[0]) for one in source.endpoints),
        states=bytes(_state(one, node_name) for one in source.endpoints),
        hints=hints if any(one is not _NO_HINTS for one in hints) else (),
        weight=weight_of(source),
    )


def service_of(endpoint_slice: api.EndpointSlice) -> tuple[str, str] | None:
    """The (namespace, name) of the Service that a slice belongs to; None if the slice is not ours to use."""
    labels = endpoint_slice.metadata.labels
    name = labels.get(SERVICE_NAME_LABEL)
    return (intern(endpoint_slice.metadata.namespace), intern(name)) if name and uses(endpoint_slice) else None


def merge_slices(slices: Iterable[Slice], family: Family) -> Mapping[ServicePortName, Endpoints]:
    """The endpoints of one Service by service port, from all of its slices.

    Slices may repeat an address and port: while an endpoint moves from one to another, or because the IP of a pod
    that terminates is in use again. As in kube-proxy 1.36 (`pkg/proxy/endpointslicecache.go`), the later one is taken,
    whole, unless it terminates: so what doesn't terminate goes before what does, the last of several that don't has
    it, and the first of several that all do. kube-proxy walks slices in an order that changes; here it is that of
    their names, one of those that it may take. Only an endpoint's first address counts. Endpoints are sorted by their
    text, which is the order of kube-proxy's rules.
    """
    merged: dict[ServicePortName, dict[str, Endpoint]] = {}
    for one in sorted((one for one in slices if one.family is family), key=lambda one: one.name):
        for port, protocol, number in one.ports:
            found = merged.setdefault(ServicePortName(*one.service, port, protocol), {})
            for endpoint in one.endpoints(number):
                key = str(endpoint)
                if takes_over(endpoint.terminating, key in found):
                    found[key] = endpoint
    return {name: tuple(found[key] for key in sorted(found)) for name, found in merged.items()}


def takes_over(terminating: bool, known: bool) -> bool:
    """Whether an endpoint counts rather than what was listed before; `known` says whether anything was."""
    return not terminating or not known


def count_endpoints(slices: Iterable[Slice], name: ServicePortName, family: Family) -> int:
    """How many endpoints `merge_slices` would give a service port; costs far less."""
    found: set[tuple[bytes, int]] = set()
    for one in slices:
        if one.family is family:
            size = _KINDS[family][1]
            for port, protocol, number in one.ports:
                if port == name.port and protocol == name.protocol:
                    found.update((one.addresses[at : at + size], number) for at in range(0, len(one.addresses), size))
    return len(found)


def is_of(endpoint_slice: api.EndpointSlice, family: Family) -> bool:
    """Whether the endpoints of a slice have addresses of a family."""
    return endpoint_slice.address_type.lower() == family.value


def port_names(endpoint_slice: api.EndpointSlice, service: tuple[str, str]) -> Iterator[tuple[ServicePortName, int]]:
    """The service ports that a slice's endpoints serve, with their own ports: those of the same name and protocol."""
    for port in endpoint_slice.ports:
        if port.port is not None:
            yield ServicePortName(*service, port.name, port.protocol.lower()), port.port


def _state(endpoint: api.Endpoint, node_name: str) -> int:
    conditions = endpoint.conditions
    return (
        (_READY if conditions.ready is not False else 0)
        | (_SERVING if conditions.serving is not False else 0)
        | (_TERMINATING if conditions.terminating is True else 0)
        | (_LOCAL if endpoint.node_name == node_name else 0)
    )


def _hints(hints: api.Hints | None) -> Hints:
    if hints is None or not (hints.for_zones or hints.for_nodes):
        return _NO_HINTS
    return _shared(
        tuple(intern(hint.name) for hint in hints.for_zones), tuple(intern(hint.name) for hint in hints.for_nodes)
    )


@lru_cache(maxsize=4096)
def _shared(zones: tuple[str, ...], nodes: tuple[str, ...]) -> Hints:
    """Hints, the same object for the same ones: thousands of endpoints have the same few."""
    return frozenset(zones), frozenset(nodes)
