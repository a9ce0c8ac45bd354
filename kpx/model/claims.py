"""Who has which address and port: no two Services can have the same. Pure."""

from collections.abc import Iterable, Iterator

from kpx.model.service import ServicePort

Claim = tuple[str, str, int]
"""Protocol, address (empty for a node port) and port number."""

Claimant = tuple[str, str]
"""Namespace and name of a Service."""


def claims_of(port: ServicePort) -> Iterator[tuple[str, Claim]]:
    """What a service port claims, by the field of the Service that does so."""
    yield "spec.clusterIP", (port.protocol, port.cluster_ip, port.port)
    for address in port.external_ips:
        yield "spec.externalIPs", (port.protocol, address, port.port)
    for address in port.load_balancer_ips:
        yield "status.loadBalancer.ingress", (port.protocol, address, port.port)
    if port.node_port:
        yield "spec.ports.nodePort", (port.protocol, "", port.node_port)


class Claims:
    """Every claim and who makes it. Of several Services the first by name has it, the others lose."""

    def __init__(self) -> None:
        self._claimants: dict[Claim, set[Claimant]] = {}
        self._made: dict[Claimant, frozenset[Claim]] = {}

    def set(self, claimant: Claimant, ports: Iterable[ServicePort]) -> frozenset[Claimant]:
        """Say what a Service claims now; returns the other Services that may win or lose by it."""
        before = self._made.pop(claimant, frozenset())
        now = frozenset(claim for port in ports for _, claim in claims_of(port))
        if now:
            self._made[claimant] = now
        rivals: set[Claimant] = set()
        for claim in before - now:
            rivals |= self._claimants[claim]
            self._claimants[claim].discard(claimant)
            if not self._claimants[claim]:
                del self._claimants[claim]
        for claim in now - before:
            self._claimants.setdefault(claim, set()).add(claimant)
            rivals |= self._claimants[claim]
        return frozenset(rivals - {claimant})

    def winner(self, claim: Claim) -> Claimant:
        """Who has it: the first by name of those who claim it."""
        claimants = self._claimants[claim]
        return next(iter(claimants)) if len(claimants) == 1 else min(claimants)

    def loses(self, claimant: Claimant) -> bool:
        """Whether somebody else has something that this Service claims too."""
        return any(self.winner(claim) != claimant for claim in self._made.get(claimant, ()))
