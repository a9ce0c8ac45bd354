"""A Service under test, as a value that knows its addresses and writes its manifests."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from tests.lab import Host

Manifest = dict[str, Any]
FamilyName = Literal["ipv4", "ipv6"]


class Port(NamedTuple):
    """A Service port and the container port behind it."""

    protocol: str = "TCP"
    port: int = 80
    target: int = 8080


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod, or the node itself, in a certain condition."""

    host: Host
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    weight: str = ""

    def manifest(self, family: FamilyName) -> Manifest:
        """It, as an item of an EndpointSlice."""
        conditions = {"ready": self.ready, "serving": self.serving, "terminating": self.terminating}
        return {"addresses": [self.host.address(family)], "nodeName": self.host.on, "conditions": conditions}


@dataclass(frozen=True, slots=True)
class Web:
    """One Service of one family. Its addresses and node ports come from its number: no other Service has them, so
    that no connection which was tracked for another one matters here.
    """

    number: int
    family: FamilyName
    endpoints: tuple[Endpoint, ...]
    ports: tuple[Port, ...] = (Port(),)
    spec: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"web-{self.number}"

    @property
    def cluster_ip(self) -> str:
        return f"fd00:96::{self.number:x}" if self.family == "ipv6" else f"10.96.{self.number // 250}.{self._octet}"

    @property
    def load_balancer_ip(self) -> str:
        return f"2001:db8:203::{self.number:x}" if self.family == "ipv6" else f"203.0.113.{self._octet}"

    @property
    def external_ip(self) -> str:
        return f"2001:db8:198::{self.number:x}" if self.family == "ipv6" else f"198.18.0.{self._octet}"

    @property
    def node_port(self) -> int:
        """The node port of the first port; the others follow it."""
        return 30000 + 4 * self.number

    def with_endpoints(self, *endpoints: Endpoint) -> "Web":
        """The same Service in front of others."""
        return replace(self, endpoints=endpoints)

    def with_spec(self, **spec: Any) -> "Web":
        """The same Service with more in its spec."""
        return replace(self, spec={**self.spec, **spec})

    def annotated(self, **annotations: str) -> "Web":
        """The same Service with annotations of ours: `local_weight` is `kpx.dev/local-weight`."""
        ours = {f"kpx.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
        return replace(self, annotations={**self.annotations, **ours})

    def manifests(self) -> list[Manifest]:
        """The Service and its EndpointSlices, one for each weight."""
        weights = dict.fromkeys(endpoint.weight for endpoint in self.endpoints) or {"": None}
        return [self._service(), *(self._slice(weight) for weight in weights)]

    @property
    def _octet(self) -> int:
        return self.number % 250 + 1

    def _service(self) -> Manifest:
        kind = self.spec.get("type", "ClusterIP")
        addresses = [{"ip": self.load_balancer_ip}] if kind == "LoadBalancer" else []
        ports = [
            {"name": f"p{n}", "protocol": port.protocol, "port": port.port, "targetPort": port.target}
            | ({} if kind == "ClusterIP" else {"nodePort": self.node_port + n})
            for n, port in enumerate(self.ports)
        ]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": "shop", "annotations": dict(self.annotations)},
            "spec": {"clusterIP": self.cluster_ip, "ports": ports, **self.spec},
            "status": {"loadBalancer": {"ingress": addresses}},
        }

    def _slice(self, weight: str) -> Manifest:
        ports = [{"name": f"p{n}", "protocol": port.protocol, "port": port.target} for n, port in enumerate(self.ports)]
        labels = {"kubernetes.io/service-name": self.name}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{self.name}-{weight or 'a'}",
                "namespace": "shop",
                "labels": labels,
                "annotations": {"kpx.dev/weight": weight} if weight else {},
            },
            "addressType": "IPv6" if self.family == "ipv6" else "IPv4",
            "ports": ports,
            "endpoints": [one.manifest(self.family) for one in self.endpoints if one.weight == weight],
        }
