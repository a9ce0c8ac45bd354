"""What Services claim, and by what right. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from sys import intern

from kpx.model.endpoint import Endpoints
from kpx.model.service import ServicePort, ServicePortName

Claim = tuple[str, str, int]
"""Protocol, address (empty for a node port) and port number."""

Claimant = tuple[str, str]
"""Namespace and name of a Service."""

API_SERVER: Claimant = (intern("default"), intern("kubernetes"))
"""The Service whose endpoints are the API servers."""

CLUSTER_IP, NODE_PORT = "spec.clusterIP", "spec.ports.nodePort"
EXTERNAL, INGRESS = "spec.externalIPs", "status.loadBalancer.ingress"


class Right(IntEnum):
    """By what right somebody claims something, the strongest first."""

    ALLOTTED = 0
    """The API server allots cluster IPs and node ports, and gives none twice."""
    GIVEN = 1
    """A controller writes a load balancer's addresses into a Service's status."""
    HELD = 2
    """It is where an API server listens."""
    ASKED = 3
    """Anybody who may write a Service writes what he likes into externalIPs."""
    YIELDING = 4
    """An external IP that is this node's own asks for what may be a node port there, and for nothing if it isn't."""


Standing = tuple[Right, Claimant]
"""A claimant of something, and by what right. The least has it: of several with the same right the first by name."""


def claims_of(port: ServicePort) -> Iterator[tuple[str, Claim]]:
    """What a service port claims, by the field of the Service that does so."""
    yield CLUSTER_IP, (port.protocol, port.cluster_ip, port.port)
    for address in port.external_ips:
        yield EXTERNAL, (port.protocol, address, port.port)
    for address in port.load_balancer_ips:
        yield INGRESS, (port.protocol, address, port.port)
    if port.node_port:
        yield NODE_PORT, (port.protocol, "", port.node_port)


RIGHTS = {
    CLUSTER_IP: Right.ALLOTTED,
    NODE_PORT: Right.ALLOTTED,
    INGRESS: Right.GIVEN,
    EXTERNAL: Right.ASKED,
}


def api_server_claims(endpoints: Mapping[ServicePortName, Endpoints]) -> frozenset[Claim]:
    """Where the API servers listen, of one family: the endpoints of their Service, in whatever state."""
    return frozenset(
        (name.protocol, one.address, one.port)
        for name, some in endpoints.items()
        if (name.namespace, name.name) == API_SERVER
        for one in some
    )


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that a Service goes without: in which field it asks for it, who has it and by what right.

    If that is `Right.YIELDING`, who has it has the node port of that number.
    """

    field: str
    claim: Claim
    winner: Claimant
    right: Right

    @property
    def lost(self) -> Claim:
        """What the winner has: a node port, where that is what the external IP would take."""
        return node_port_of(self.claim) if self.right is Right.YIELDING else self.claim

    @property
    def what(self) -> str:
        """What it is, in words."""
        protocol, address, number = self.claim
        return f"{address} port {number}/{protocol}" if address else f"node port {number}/{protocol}"

    @property
    def message(self) -> str:
        """Who has it, and why."""
        who = "/".join(self.winner)
        if self.right is Right.HELD:
            return f"{self.what} is the API server's, an endpoint of Service {who}"
        if self.right is Right.GIVEN:
            return f"{self.what} was given to Service {who} in its {INGRESS}"
        if self.right is Right.YIELDING:
            return f"{self.what} is a node port of Service {who} on this node"
        return f"{self.what} is already taken by Service {who}"


def node_port_of(claim: Claim) -> Claim:
    """The node port of the same number."""
    return claim[0], "", claim[2]
