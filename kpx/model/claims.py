"""Who has which address and port: no two Services can have the same. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from kpx.model.service import ServicePort

Claim = tuple[str, str, int]
"""Protocol, address (empty for a node port) and port number."""

Claimant = tuple[str, str]
"""Namespace and name of a Service."""

Claimants = Claimant | set[Claimant]
"""The only claimant, or all of several."""


_CLUSTER_IP, _NODE_PORT = "spec.clusterIP", "spec.ports.nodePort"
_EXTERNAL, _INGRESS = "spec.externalIPs", "status.loadBalancer.ingress"


def claims_of(port: ServicePort) -> Iterator[tuple[str, Claim]]:
    """What a service port claims, by the field of the Service that does so."""
    yield _CLUSTER_IP, (port.protocol, port.cluster_ip, port.port)
    for address in port.external_ips:
        yield _EXTERNAL, (port.protocol, address, port.port)
    for address in port.load_balancer_ips:
        yield _INGRESS, (port.protocol, address, port.port)
    if port.node_port:
        yield _NODE_PORT, (port.protocol, "", port.node_port)


class Claims:
    """Every claim and who makes it.

    Cluster IPs and node ports are allotted by the API server, which gives none twice; other addresses are what a user
    wrote. So who was allotted something has it, whoever else asks for it; otherwise the first by name.
    """

    def __init__(self) -> None:
        # Nearly every claim has one claimant: a set for each would take more memory than all the rest.
        self._claimants: dict[Claim, Claimants] = {}
        self._made: dict[Claimant, tuple[Claim, ...]] = {}
        self._asked: set[tuple[Claim, Claimant]] = set()
        self._contested: set[Claim] = set()

    def put(self, claimant: Claimant, ports: Iterable[ServicePort]) -> frozenset[Claimant]:
        """Say what a Service claims now; returns the other Services that may win or lose by it."""
        before = {claim: (claim, claimant) in self._asked for claim in self._made.pop(claimant, ())}
        now: dict[Claim, bool] = {}
        for field, claim in (one for port in ports for one in claims_of(port)):
            now[claim] = now.get(claim, True) and field in (_EXTERNAL, _INGRESS)
        if now:
            self._made[claimant] = tuple(now)
        rivals: set[Claimant] = set()
        for claim, asked in before.items():
            if now.get(claim) is not asked:
                rivals |= self._drop(claim, claimant)
        for claim, asked in now.items():
            if before.get(claim) is not asked:
                rivals |= self._add(claim, claimant, asked)
        return frozenset(rivals)

    def winner(self, claim: Claim) -> Claimant:
        """Who has it."""
        claimants = self._claimants[claim]
        if not isinstance(claimants, set):
            return claimants
        return min(claimants, key=lambda one: ((claim, one) in self._asked, one))

    def holder(self, claim: Claim) -> Claimant | None:
        """Who has it, if anybody claims it."""
        return self.winner(claim) if claim in self._claimants else None

    def beaten_by(self, claimant: Claimant) -> Claimant | None:
        """Who has something that a Service goes without, if anybody: as `losers` tells for all."""
        if not self._contested:
            return None
        contested = self._contested.intersection(self._made.get(claimant, ()))
        return next((one for one in map(self.winner, sorted(contested, reverse=True)) if one != claimant), None)

    def losers(self) -> Mapping[Claimant, Claimant]:
        """All Services that go without something, and one that has it."""
        losers: dict[Claimant, Claimant] = {}
        for claim in sorted(self._contested):
            winner, claimants = self.winner(claim), self._claimants[claim]
            assert isinstance(claimants, set)
            losers |= dict.fromkeys(claimants - {winner}, winner)
        return losers

    def kept(self, claimant: Claimant, ports: tuple[ServicePort, ...]) -> tuple[ServicePort, ...]:
        """The service ports of a Service without the addresses that others have.

        None at all if another one has its cluster IP or node port: no API server lets that through.
        """
        contested = self._contested.intersection(self._made.get(claimant, ()))
        lost = {claim for claim in contested if self.winner(claim) != claimant}
        if not lost:
            return ports
        fields = {field for port in ports for field, claim in claims_of(port) if claim in lost}
        return () if fields & {_CLUSTER_IP, _NODE_PORT} else tuple(_without(lost, port) for port in ports)

    def _add(self, claim: Claim, claimant: Claimant, asked: bool) -> AbstractSet[Claimant]:
        """Add a claimant; returns the others."""
        if asked:
            self._asked.add((claim, claimant))
        others = self._claimants.setdefault(claim, claimant)
        if others is claimant:
            return frozenset()
        every = others if isinstance(others, set) else {others}
        self._claimants[claim] = every | {claimant}
        self._contested.add(claim)
        return frozenset(every)

    def _drop(self, claim: Claim, claimant: Claimant) -> AbstractSet[Claimant]:
        """Take away a claimant; returns the others."""
        self._asked.discard((claim, claimant))
        every = self._claimants.pop(claim)
        others = every - {claimant} if isinstance(every, set) else frozenset[Claimant]()
        if others:
            self._claimants[claim] = set(others) if len(others) > 1 else next(iter(others))
        if len(others) < 2:
            self._contested.discard(claim)
        return others


def _without(lost: AbstractSet[Claim], port: ServicePort) -> ServicePort:
    def kept(addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one for one in addresses if (port.protocol, one, port.port) not in lost)

    return replace(port, external_ips=kept(port.external_ips), load_balancer_ips=kept(port.load_balancer_ips))
