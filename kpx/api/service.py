"""Service (v1)."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from kpx.api.addresses import Address, SpacedCidr, UsualAddress, canonical, one_per_family
from kpx.api.grammar import (
    DnsLabel,
    DnsSubdomain,
    FamilyName,
    Fault,
    Flag,
    Items,
    Labels,
    LabelValue,
    OptionalDnsLabel,
    Part,
    Port,
    PortOrZero,
    Protocol,
    TargetPort,
    Unset,
    raise_faults,
)
from kpx.api.meta import ObjectMeta

ServiceType = Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]
TrafficPolicy = Literal["Cluster", "Local"]

HEADLESS = "None"
"""The cluster IP of a Service that wants none."""


def _cluster_ip(text: str) -> str:
    address = text if text == HEADLESS else canonical(text)
    if address is None:
        raise PydanticCustomError("address", 'must be an IP address or "None"')
    return address


def _optional_cluster_ip(text: str) -> str:
    return text and _cluster_ip(text)


_ClusterIP = Annotated[str, StringConstraints(strict=True), AfterValidator(_cluster_ip)]
_OptionalClusterIP = Annotated[str, StringConstraints(strict=True), AfterValidator(_optional_cluster_ip)]


class ServicePort(Part):
    """One port of a Service; `node_port` is 0 where there is none."""

    name: Annotated[OptionalDnsLabel, Unset("")] = ""
    protocol: Annotated[Protocol, Unset("TCP")] = "TCP"
    port: Port
    target_port: TargetPort = None
    node_port: Annotated[PortOrZero, Unset(0)] = 0


class ClientIPConfig(Part):
    """How long, in seconds, a client stays with its endpoint."""

    timeout_seconds: Annotated[int, Field(strict=True, ge=1, le=86400), Unset(10800)] = 10800


class SessionAffinityConfig(Part):
    """Settings of session affinity; they count only where `session_affinity` is `ClientIP`."""

    client_ip: Annotated[ClientIPConfig, Unset(ClientIPConfig())] = ClientIPConfig()


class ServiceSpec(Part):
    """What a Service asks for, with the API server's defaults filled in.

    `cluster_ip` is an address, `"None"` (headless) or `""` (ExternalName only); `cluster_ips` begins with it.
    `external_traffic_policy` is None where nothing outside the cluster can reach the Service.
    """

    type: Annotated[ServiceType, Unset("ClusterIP")] = "ClusterIP"
    cluster_ip: Annotated[_OptionalClusterIP, Unset("")] = ""
    cluster_ips: Items[_ClusterIP] = ()
    ports: Items[ServicePort] = ()
    external_ips: Items[UsualAddress] = ()
    selector: Labels = Field(default_factory=dict)
    session_affinity: Annotated[Literal["None", "ClientIP"], Unset("None")] = "None"
    session_affinity_config: Annotated[SessionAffinityConfig, Unset(SessionAffinityConfig())] = SessionAffinityConfig()
    load_balancer_source_ranges: Items[SpacedCidr] = ()
    external_traffic_policy: Annotated[TrafficPolicy, Unset(None)] | None = None
    internal_traffic_policy: Annotated[TrafficPolicy, Unset("Cluster")] = "Cluster"
    health_check_node_port: Annotated[PortOrZero, Unset(0)] = 0
    ip_families: Items[FamilyName] = ()
    allocate_load_balancer_node_ports: Annotated[Flag, Unset(True)] = True
    traffic_distribution: Annotated[LabelValue, Unset(None)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Fill what follows from other fields, then check what fields demand of each other."""
        derived: dict[str, object] = {}
        if self.cluster_ip and not self.cluster_ips:
            derived["cluster_ips"] = (self.cluster_ip,)
        if self.cluster_ips and not self.cluster_ip:
            derived["cluster_ip"] = self.cluster_ips[0]
        if self.external_traffic_policy is None and self._reachable_from_outside():
            derived["external_traffic_policy"] = "Cluster"
        for field, value in derived.items():
            object.__setattr__(self, field, value)
        raise_faults([*_address_faults(self), *_port_faults(self)])
        return self

    def _reachable_from_outside(self) -> bool:
        return self.type in ("NodePort", "LoadBalancer") or bool(self.external_ips)


def _address_faults(spec: ServiceSpec) -> Iterator[Fault]:
    if spec.type == "ExternalName":
        return
    ips = spec.cluster_ips
    if not ips:
        yield Fault(("clusterIP",), "is required: only an API server can allot one")
    elif ips[0] != spec.cluster_ip:
        yield Fault(("clusterIPs", 0), "must equal spec.clusterIP", ips[0])
    if HEADLESS in ips:
        if len(ips) > 1:
            yield Fault(("clusterIPs",), f'must hold nothing else beside "{HEADLESS}"')
        if spec.type != "ClusterIP":
            yield Fault(("clusterIP",), f"must be an address in a Service of type {spec.type}", HEADLESS)
    elif not one_per_family(ips):
        yield Fault(("clusterIPs",), "must hold at most one address of each family")


def _port_faults(spec: ServiceSpec) -> Iterator[Fault]:
    if not spec.ports and spec.type != "ExternalName" and spec.cluster_ip != HEADLESS:
        yield Fault(("ports",), "must hold at least one port")
    seen: set[tuple[object, ...]] = set()
    for i, port in enumerate(spec.ports):
        if not port.name and len(spec.ports) > 1:
            yield Fault(("ports", i, "name"), "is required where a Service has several ports")
        # What tells one port of a Service from the others, by the field to blame.
        for field, value, key in (
            ("name", port.name, (port.name,)),
            ("port", port.port, (port.protocol, port.port)),
            ("nodePort", port.node_port, (port.protocol, port.node_port)),
        ):
            if value and (field, *key) in seen:
                yield Fault(("ports", i, field), "is taken by another port of this Service", value)
            seen.add((field, *key))
        yield from _node_port_faults(spec, i, port)


def _node_port_faults(spec: ServiceSpec, i: int, port: ServicePort) -> Iterator[Fault]:
    path = ("ports", i, "nodePort")
    if spec.type in ("ClusterIP", "ExternalName"):
        if port.node_port:
            yield Fault(path, f"must not be set in a Service of type {spec.type}", port.node_port)
    elif not port.node_port and (spec.type == "NodePort" or spec.allocate_load_balancer_node_ports):
        yield Fault(path, "is required: only an API server can allot one")


class LoadBalancerIngress(Part):
    """One way into a load balancer: an address or a host name; `ip_mode` None means VIP."""

    ip: Annotated[Address, Unset(None)] | None = None
    hostname: Annotated[DnsSubdomain, Unset(None)] | None = None
    ip_mode: Annotated[Literal["VIP", "Proxy"], Unset(None)] | None = None


class LoadBalancerStatus(Part):
    """What the load balancer's controller reported."""

    ingress: Items[LoadBalancerIngress] = ()


class ServiceStatus(Part):
    """Observed state of a Service."""

    load_balancer: Annotated[LoadBalancerStatus, Unset(LoadBalancerStatus())] = LoadBalancerStatus()


class ServiceMeta(ObjectMeta):
    """Metadata of a Service: its name is a DNS label."""

    name: DnsLabel


class Service(Part):
    """A Service; `model_validate` takes the object as the API spells it."""

    metadata: ServiceMeta
    spec: ServiceSpec
    status: Annotated[ServiceStatus, Unset(ServiceStatus())] = ServiceStatus()
