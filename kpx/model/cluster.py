"""The cluster as one family of a proxy sees it: service ports and the endpoints behind them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kpx import api
from kpx.errors import Problem
from kpx.family import Family
from kpx.model.claims import Claims
from kpx.model.endpoint import Endpoints, Slice, merge_slices, slice_of
from kpx.model.rights import API_SERVER, Claimant, api_server_claims
from kpx.model.service import ServicePort, ServicePortName, service_ports

LARGE_CLUSTER_ENDPOINTS = 1000
"""Above this many endpoints kube-proxy drops the comments of endpoint rules."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """All service ports, sorted by name, and the endpoints of those that have any."""

    ports: Mapping[ServicePortName, ServicePort]
    endpoints: Mapping[ServicePortName, Endpoints]

    @property
    def is_large(self) -> bool:
        """Whether there are more endpoints than kube-proxy likes to comment on."""
        return sum(len(self.endpoints.get(name, ())) for name in self.ports) > LARGE_CLUSTER_ENDPOINTS


def cluster_of(objects: Iterable[api.Object], family: Family, node_name: str) -> Cluster:
    """Sort out Services and EndpointSlices, in whatever order, into the cluster of `family`."""
    ports: dict[ServicePortName, ServicePort] = {}
    slices: dict[tuple[str, str], list[Slice]] = defaultdict(list)
    for one in objects:
        if isinstance(one, api.Service):
            ports.update((port.name, port) for port in service_ports(one, family))
        elif isinstance(one, api.EndpointSlice):
            packed = slice_of(one, node_name)
            if packed is not None:
                slices[packed.service].append(packed)
    endpoints: dict[ServicePortName, Endpoints] = {}
    for of_service in slices.values():
        endpoints.update(merge_slices(of_service, family))
    return Cluster({name: ports[name] for name in sorted(ports)}, endpoints)


def claims_in(cluster: Cluster, node_addresses: Iterable[str] = ()) -> Claims:
    """Who has what; `node_addresses` are where this node's node ports are open."""
    claims = Claims(node_addresses)
    services = _by_service(cluster)
    held = api_server_claims(cluster.endpoints)
    for service in {**services, API_SERVER: ()}:
        claims.put(service, services.get(service, ()), held if service == API_SERVER else frozenset())
    return claims


def without_conflicts(cluster: Cluster, node_addresses: Iterable[str] = ()) -> tuple[Cluster, tuple[Problem, ...]]:
    """Take from Services the addresses that another one has already, and leave out who can't do without: see `Claims`.

    It doesn't matter in what order the objects came in. The problems name both Services and the field of the one
    that goes without, one for each that does.
    """
    claims = claims_in(cluster, node_addresses)
    services = _by_service(cluster)
    kept = {port.name: port for service, ports in services.items() for port in claims.kept(service, tuple(ports))}
    sound = {name: kept[name] for name in cluster.ports if name in kept}
    first = ((service, next(claims.losses(service), None)) for service in services)
    problems = (Problem(f"Service {'/'.join(who)}", loss.message, loss.field) for who, loss in first if loss)
    return Cluster(sound, cluster.endpoints), tuple(problems)


def _by_service(cluster: Cluster) -> dict[Claimant, list[ServicePort]]:
    services: dict[Claimant, list[ServicePort]] = defaultdict(list)
    for name, port in cluster.ports.items():
        services[name.namespace, name.name].append(port)
    return services
