"""Endpoints: the backends of a service port, merged from its EndpointSlices."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kpx import api
from kpx.family import Family
from kpx.model.service import ServicePortName, is_ours

SERVICE_NAME_LABEL = "kubernetes.io/service-name"

_NO_NAMES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and port behind a service port.

    `local` says that it runs on this node; hints are the zones and nodes it is meant for.
    """

    address: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False
    zone_hints: frozenset[str] = _NO_NAMES
    node_hints: frozenset[str] = _NO_NAMES

    def __str__(self) -> str:
        """`address:port`, with brackets around an IPv6 address: the argument of DNAT and of the chain's name."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


Endpoints = tuple[Endpoint, ...]


def service_of(endpoint_slice: api.EndpointSlice) -> tuple[str, str] | None:
    """The (namespace, name) of the Service that a slice belongs to; None if the slice is not ours to use."""
    labels = endpoint_slice.metadata.labels
    name = labels.get(SERVICE_NAME_LABEL)
    return (endpoint_slice.metadata.namespace, name) if name and is_ours(labels) else None


def merge_slices(
    slices: Iterable[api.EndpointSlice], family: Family, node_name: str
) -> Mapping[ServicePortName, Endpoints]:
    """The endpoints of one Service by service port, from all of its slices.

    Slices may repeat an endpoint, for instance while it moves from one to another: the last one on this node
    wins, else the first, slices taken by name, as kube-proxy's EndpointSliceCache does. Only an endpoint's
    first address counts. Endpoints are sorted by their text, which is the order of kube-proxy's rules.
    """
    merged: dict[ServicePortName, dict[str, Endpoint]] = {}
    for endpoint_slice in sorted(slices, key=lambda one: one.metadata.name):
        service = service_of(endpoint_slice)
        if service is None or not is_of(endpoint_slice, family):
            continue
        for name, number in port_names(endpoint_slice, service):
            found = merged.setdefault(name, {})
            for source in endpoint_slice.endpoints:
                _add(found, _endpoint(source, number, node_name))
    return {name: tuple(found[key] for key in sorted(found)) for name, found in merged.items()}


def is_of(endpoint_slice: api.EndpointSlice, family: Family) -> bool:
    """Whether the endpoints of a slice have addresses of a family."""
    return endpoint_slice.address_type.lower() == family.value


def port_names(endpoint_slice: api.EndpointSlice, service: tuple[str, str]) -> Iterator[tuple[ServicePortName, int]]:
    """The service ports that a slice's endpoints serve, with their own ports: those of the same name and protocol."""
    for port in endpoint_slice.ports:
        if port.port is not None:
            yield ServicePortName(*service, port.name, port.protocol.lower()), port.port


def _add(found: dict[str, Endpoint], endpoint: Endpoint) -> None:
    key = str(endpoint)
    if endpoint.local or key not in found:
        found[key] = endpoint


def _endpoint(source: api.Endpoint, port: int, node_name: str) -> Endpoint:
    conditions, hints = source.conditions, source.hints
    return Endpoint(
        address=source.addresses[0],
        port=port,
        ready=conditions.ready is not False,
        serving=conditions.serving is not False,
        terminating=conditions.terminating is True,
        local=source.node_name == node_name,
        zone_hints=frozenset(hint.name for hint in hints.for_zones) if hints else _NO_NAMES,
        node_hints=frozenset(hint.name for hint in hints.for_nodes) if hints else _NO_NAMES,
    )
