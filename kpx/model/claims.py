"""Who has which address and port: no two Services can have the same. Pure."""

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from kpx.model.rights import (
    CLUSTER_IP,
    EXTERNAL,
    INGRESS,
    NODE_PORT,
    RIGHTS,
    Claim,
    Claimant,
    Loss,
    Right,
    Standing,
    claims_of,
    node_port_of,
)
from kpx.model.service import ServicePort


@dataclass(frozen=True, slots=True)
class Shift:
    """What other Services have to do with a change: who wins or loses something, and who loses it to somebody else."""

    changed: frozenset[Claimant]
    beaten_by_another: frozenset[Claimant]


NO_SHIFT: Final = Shift(frozenset(), frozenset())


class Claims:
    """Every claim, who makes it, and who goes without.

    kube-proxy takes the first by name. Here whoever was allotted or given something has it, and the API server has what
    it listens on, whoever else asks for it (CVE-2020-8554). `node_addresses` are where this node's node ports are open:
    an external IP among them doesn't take another Service's node port.

    A change costs what the Service claims otherwise than before, and what changes hands by it.
    """

    def __init__(self, node_addresses: Iterable[str] = ()) -> None:
        self.node_addresses = frozenset(node_addresses)
        # Nearly every claim has one claimant: a list for each would take more memory than all the rest.
        self._standings: dict[Claim, Standing | list[Standing]] = {}
        self._made: dict[Claimant, tuple[ServicePort, ...]] = {}
        self._held: dict[Claimant, frozenset[Claim]] = {}
        self._lost: dict[Claimant, set[Claim]] = {}
        self._kept: dict[Claimant, tuple[tuple[ServicePort, ...], tuple[ServicePort, ...]]] = {}

    def put(self, claimant: Claimant, ports: Iterable[ServicePort], held: frozenset[Claim] = frozenset()) -> Shift:
        """Say what a Service claims now, and what its endpoints hold against external IPs."""
        asked = tuple(ports)
        if self._made.get(claimant, ()) == asked and self._held.get(claimant, frozenset()) == held:
            if asked:
                self._made[claimant] = asked  # the caller's: equal ones of before would take memory of their own
            return NO_SHIFT
        before = self._rights(self._made.pop(claimant, ()), self._held.pop(claimant, frozenset()))
        now = self._rights(asked, held)
        if asked:
            self._made[claimant] = asked
        if held:
            self._held[claimant] = held
        changes = _Changes()
        shared = {right: (right, claimant) for right in Right}
        for claim, right in before.items():
            if now.get(claim) is not right:
                self._drop(claim, (right, claimant), changes)
        for claim, right in now.items():
            if before.get(claim) is not right:
                self._add(claim, shared[right], changes)
        self._kept.pop(claimant, None)
        for one in changes.changed:
            self._kept.pop(one, None)
        changed = frozenset(changes.changed) - {claimant}
        return Shift(changed, frozenset(changes.seen) - changed - {claimant})

    def winner(self, claim: Claim) -> Standing | None:
        """Who has it, if anybody claims it."""
        standings = self._standings.get(claim)
        return standings[0] if isinstance(standings, list) else standings

    def holder(self, claim: Claim) -> Claimant | None:
        """Who has it, if anybody claims it."""
        standing = self.winner(claim)
        return None if standing is None else standing[1]

    def losses(self, claimant: Claimant) -> Iterator[Loss]:
        """What a Service goes without, in the order of its ports."""
        lost = self._lost.get(claimant)
        if lost:
            for port in self._made[claimant]:
                yield from self._losses(lost, port)

    def beaten_by(self, claimant: Claimant) -> Claimant | None:
        """Who has something that a Service goes without, if anybody: as `losers` tells for all."""
        lost = self._lost.get(claimant)
        return self.holder(min(lost)) if lost else None

    def losers(self) -> Mapping[Claimant, Claimant]:
        """All Services that go without something, and one that has it."""
        found = ((one, self.beaten_by(one)) for one in self._lost)
        return {one: winner for one, winner in found if winner is not None}

    def kept(self, claimant: Claimant, ports: tuple[ServicePort, ...]) -> tuple[ServicePort, ...]:
        """The service ports of a Service without the addresses that others have; it must have claimed them.

        None at all if another one has its cluster IP or node port: no API server lets that through.
        """
        lost = self._lost.get(claimant)
        if not lost:
            return ports
        known = self._kept.get(claimant)
        if known is None or known[0] != ports:
            self._kept[claimant] = known = (ports, self._what_is_left(lost, ports))
        return known[1]

    def _rights(self, ports: Iterable[ServicePort], held: Iterable[Claim]) -> Mapping[Claim, Right]:
        """The best right to everything that is claimed."""
        found: dict[Claim, Right] = dict.fromkeys(held, Right.HELD)
        for port in ports:
            for field, claim in claims_of(port):
                right = RIGHTS[field]
                found[claim] = min(right, found.get(claim, right))
                if field == EXTERNAL and claim[1] in self.node_addresses:
                    found.setdefault(node_port_of(claim), Right.YIELDING)
        return found

    def _losses(self, lost: AbstractSet[Claim], port: ServicePort) -> Iterator[Loss]:
        for field, claim in claims_of(port):
            if claim in lost:
                yield self._loss(field, claim, claim)
            if self._is_of_node(field, claim) and node_port_of(claim) in lost:
                yield self._loss(field, claim, node_port_of(claim))

    def _loss(self, field: str, claim: Claim, lost: Claim) -> Loss:
        standing = self.winner(lost)
        assert standing is not None
        return Loss(field, claim, standing[1], standing[0] if lost == claim else Right.YIELDING)

    def _is_of_node(self, field: str, claim: Claim) -> bool:
        return field == EXTERNAL and claim[1] in self.node_addresses

    def _what_is_left(self, lost: AbstractSet[Claim], ports: Iterable[ServicePort]) -> tuple[ServicePort, ...]:
        found: list[ServicePort] = []
        for port in ports:
            losses = list(self._losses(lost, port))
            if any(one.field in (CLUSTER_IP, NODE_PORT) for one in losses):
                return ()
            found.append(_without(losses, port) if losses else port)
        return tuple(found)

    def _add(self, claim: Claim, standing: Standing, changes: "_Changes") -> None:
        before = self._standings.get(claim)
        if before is None:
            self._standings[claim] = standing
            return
        every = before if isinstance(before, list) else [before]
        old = every[0]
        insort(every, standing)
        self._standings[claim] = every
        self._judge(claim, old, every, standing, changes)

    def _drop(self, claim: Claim, standing: Standing, changes: "_Changes") -> None:
        before = self._standings.pop(claim)
        self._note(claim, standing[1], False, changes)
        if not isinstance(before, list):
            return
        old = before[0]
        before.remove(standing)
        self._standings[claim] = before if len(before) > 1 else before[0]
        self._judge(claim, old, before, None, changes)

    def _judge(
        self, claim: Claim, old: Standing, every: list[Standing], new: Standing | None, changes: "_Changes"
    ) -> None:
        """Note who loses something now, and who doesn't any more; `old` had it, and `new` has come."""
        winner = every[0]
        judged = [] if new is None else [new]
        if winner is not old:
            # Nearly always both have the same right: then nobody else's lot changes, but for who has it instead.
            judged = every if winner[0] is not old[0] else [winner, *(one for one in every if one is old or one is new)]
            changes.seen.update(one for _, one in every)
        for right, one in judged:
            self._note(claim, one, _loses(right, one, winner), changes)

    def _note(self, claim: Claim, one: Claimant, loses: bool, changes: "_Changes") -> None:
        lost = self._lost.get(one)
        if loses is (lost is not None and claim in lost):
            return
        changes.changed.add(one)
        if loses:
            self._lost.setdefault(one, set()).add(claim)
        elif lost is not None:
            lost.remove(claim)
            if not lost:
                del self._lost[one]


@dataclass(slots=True)
class _Changes:
    """Who wins or loses by a change, and who claims what changes hands."""

    changed: set[Claimant]
    seen: set[Claimant]

    def __init__(self) -> None:
        self.changed, self.seen = set(), set()


def _loses(right: Right, one: Claimant, winner: Standing) -> bool:
    """Whether somebody goes without what the winner has."""
    if one == winner[1] or right is Right.HELD:
        return False
    return right is not Right.YIELDING or winner[0] is not Right.YIELDING


def _without(losses: Iterable[Loss], port: ServicePort) -> ServicePort:
    gone = {(one.field, one.claim[1]) for one in losses}
    return replace(
        port,
        external_ips=tuple(one for one in port.external_ips if (EXTERNAL, one) not in gone),
        load_balancer_ips=tuple(one for one in port.load_balancer_ips if (INGRESS, one) not in gone),
    )
