"""Who has which address and port: no two Services can have the same. Pure."""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

from kpx.model.service import ServicePort

Claim = tuple[str, str, int]
"""Protocol, address (empty for a node port) and port number."""

Claimant = tuple[str, str]
"""Namespace and name of a Service."""

Claimants = Claimant | set[Claimant]
"""The only claimant, or all of several."""


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
        # Nearly every claim has one claimant: a set for each would take more memory than all the rest.
        self._claimants: dict[Claim, Claimants] = {}
        self._made: dict[Claimant, tuple[Claim, ...]] = {}

    def set(self, claimant: Claimant, ports: Iterable[ServicePort]) -> frozenset[Claimant]:
        """Say what a Service claims now; returns the other Services that may win or lose by it."""
        before = self._made.pop(claimant, ())
        now = tuple(dict.fromkeys(claim for port in ports for _, claim in claims_of(port)))
        if now:
            self._made[claimant] = now
        rivals: set[Claimant] = set()
        for claim in before:
            if claim not in now:
                rivals |= self._drop(claim, claimant)
        for claim in now:
            if claim not in before:
                rivals |= self._add(claim, claimant)
        return frozenset(rivals)

    def winner(self, claim: Claim) -> Claimant:
        """Who has it: the first by name of those who claim it."""
        claimants = self._claimants[claim]
        return min(claimants) if isinstance(claimants, set) else claimants

    def loses(self, claimant: Claimant) -> bool:
        """Whether somebody else has something that this Service claims too."""
        return any(self.winner(claim) != claimant for claim in self._made.get(claimant, ()))

    def losers(self) -> frozenset[Claimant]:
        """All Services that lose."""
        return frozenset(claimant for claimant in self._made if self.loses(claimant))

    def _add(self, claim: Claim, claimant: Claimant) -> AbstractSet[Claimant]:
        """Add a claimant; returns the others."""
        others = self._claimants.setdefault(claim, claimant)
        if others is claimant:
            return frozenset()
        every = others if isinstance(others, set) else {others}
        rivals = frozenset(every)
        self._claimants[claim] = every | {claimant}
        return rivals

    def _drop(self, claim: Claim, claimant: Claimant) -> AbstractSet[Claimant]:
        """Take away a claimant; returns the others."""
        every = self._claimants.pop(claim)
        others = every - {claimant} if isinstance(every, set) else frozenset[Claimant]()
        if others:
            self._claimants[claim] = set(others) if len(others) > 1 else next(iter(others))
        return others
