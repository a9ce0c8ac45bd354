"""Service ports: one Service, one port, one family, as far as a proxy cares."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from sys import intern

from kpx import api
from kpx.api.selection import serves
from kpx.api.service import HEADLESS
from kpx.family import Family
from kpx.model.balance import PLAIN, Balancing, balancing

EXTERNAL_TYPES = frozenset({"NodePort", "LoadBalancer"})


@dataclass(frozen=True, slots=True, order=True)
class ServicePortName:
    """The key of a service port; sorts by namespace, name, port name, protocol."""

    namespace: str
    name: str
    port: str
    protocol: str

    def __str__(self) -> str:
        """`namespace/name:port`, or `namespace/name` for an unnamed port: kube-proxy's spelling."""
        return f"{self.namespace}/{self.name}:{self.port}" if self.port else f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """What one port of a Service means for one family.

    Addresses are canonical text of that family, `protocol` is in lower case, ports that don't exist are 0,
    `affinity_seconds` is 0 without ClientIP affinity. `cluster_ip` is always set: Services without one in
    this family have no service ports.
    """

    name: ServicePortName
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    health_check_node_port: int = 0
    affinity_seconds: int = 0
    external_local: bool = False
    internal_local: bool = False
    balancing: Balancing = PLAIN

    @property
    def protocol(self) -> str:
        """Protocol as iptables spells it: `tcp`, `udp` or `sctp`."""
        return self.name.protocol

    @property
    def externally_accessible(self) -> bool:
        """Whether there is a way in besides the ClusterIP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def uses_cluster_endpoints(self) -> bool:
        """Whether some traffic follows the Cluster policy.

        External traffic counts even under the Local policy: pods and the node itself are short-circuited to
        all endpoints.
        """
        return not self.internal_local or self.externally_accessible

    @property
    def uses_local_endpoints(self) -> bool:
        """Whether some traffic follows the Local policy."""
        return self.internal_local or (self.external_local and self.externally_accessible)


def service_ports(service: api.Service, family: Family) -> Iterator[ServicePort]:
    """The service ports that this proxy serves for `service` in `family`; none if it isn't ours to serve."""
    cluster_ip = _cluster_ip(service, family)
    if cluster_ip is None or not serves(service):
        return
    spec = service.spec
    external = spec.type in EXTERNAL_TYPES or bool(spec.external_ips)
    local = spec.external_traffic_policy == "Local"
    owner = intern(service.metadata.namespace), intern(service.metadata.name)
    wanted = balancing(service)
    for port in spec.ports:
        yield ServicePort(
            name=ServicePortName(*owner, intern(port.name), intern(port.protocol.lower())),
            cluster_ip=cluster_ip,
            port=port.port,
            node_port=port.node_port,
            external_ips=_of_family(spec.external_ips, family),
            load_balancer_ips=_of_family(_load_balancer_vips(service), family),
            source_ranges=_source_ranges(spec, family),
            health_check_node_port=spec.health_check_node_port if local and spec.type == "LoadBalancer" else 0,
            affinity_seconds=_affinity_seconds(spec),
            external_local=external and local,
            internal_local=spec.internal_traffic_policy == "Local",
            balancing=wanted,
        )


def _cluster_ip(service: api.Service, family: Family) -> str | None:
    of_family = [ip for ip in service.spec.cluster_ips if ip != HEADLESS and Family.of(ip) is family]
    return of_family[0] if of_family else None


def _load_balancer_vips(service: api.Service) -> Iterator[str]:
    """Ingress addresses that packets bear as destination: `ipMode: Proxy` and host names are not such."""
    for ingress in service.status.load_balancer.ingress:
        if ingress.ip and ingress.ip_mode != "Proxy":
            yield ingress.ip


def _source_ranges(spec: api.ServiceSpec, family: Family) -> tuple[str, ...]:
    """The ranges that restrict a load balancer's clients; none if one of them holds everybody.

    As kube-proxy 1.36 (`pkg/proxy/serviceport.go`) takes them: each family by itself, repeated ones as often as they
    stand there.
    """
    ranges = tuple(cidr for cidr in spec.load_balancer_source_ranges if Family.of(cidr) is family)
    return () if any(cidr.endswith("/0") for cidr in ranges) else ranges


def _affinity_seconds(spec: api.ServiceSpec) -> int:
    if spec.session_affinity != "ClientIP" or spec.session_affinity_config is None:
        return 0
    return spec.session_affinity_config.client_ip.timeout_seconds


def _of_family(values: Iterable[str], family: Family) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if Family.of(value) is family))
