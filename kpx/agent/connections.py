"""New connections per Service for the metrics, from the counters of the kernel's rules: kubernetes/kubernetes #9125.

The counters are read apart from updates, and only if somebody has asked for metrics since the last time; never more
often than every so many seconds, nor so often that reading would take more than `SHARE` of the time. What a rule
counted between the last reading and its end is lost: with the endpoint, or in the layout `compact` whenever the shares
of its Service's endpoints change.
"""

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from kpx import logs
from kpx.agent.desired import Served
from kpx.agent.detail import EVERY as EVERY
from kpx.agent.detail import Detail as Detail
from kpx.agent.kernel import CHUNK
from kpx.agent.metrics import Metrics
from kpx.agent.store import ServiceKey
from kpx.agent.sync import FamilySync
from kpx.compiler.names import endpoint_chain, port_hash
from kpx.errors import KpxError
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.counters import Counted, Place, by_place, read_counters

log = logs.get_logger()

SHARE = 0.02
NICENESS = 5
"""Updates come first."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the metrics shall tell, and how many seconds must be between two readings."""

    detail: Detail = Detail.NONE
    every: float = EVERY


class Meter:
    """Turns counters into increments. A counter begins anew when its rule is written anew, and ends with its chain."""

    def __init__(self) -> None:
        self._seen: dict[Place, int] | None = None

    def take(self, counted: Iterable[Counted]) -> Iterator[tuple[Counted, int]]:
        """What every counter that isn't 0 has counted since the last time; nothing the first time."""
        before, now = self._seen, by_place(counted)
        self._seen = {place: one.connections for place, one in now.items()}
        if before is None:
            return
        for place, one in now.items():
            known = before.get(place, 0)
            yield one, one.connections - (known if known <= one.connections else 0)


class FamilyMeter:
    """The counters of one family, with the service ports that they belong to."""

    def __init__(self, sync: FamilySync) -> None:
        self.sync, self._meter = sync, Meter()
        self._owners: dict[str, ServicePort] = {}

    async def read(self) -> Sequence[tuple[ServicePort, Counted, int]]:
        """What was counted since the last time, by service port and endpoint. Raises KpxError."""
        tools, choices = self.sync.tools, self.sync.desired.settings.direct
        counted = await asyncio.to_thread(lambda: list(read_counters(tools, False, NICENESS, choices)))
        await self._find_owners([one for one in counted if one.chain not in self._owners])
        # A chain that has gone is forgotten; one that is about to go keeps its owner while it counts.
        self._owners = {one.chain: self._owners[one.chain] for one in counted if one.chain in self._owners}
        return [
            (self._owners[one.chain], one, new) for one, new in self._meter.take(counted) if one.chain in self._owners
        ]

    async def _find_owners(self, counted: Iterable[Counted]) -> None:
        """Find the service ports of the chains where these were counted, a few Services at a time."""
        desired = self.sync.desired
        own = {one.chain: one.endpoint for one in counted if not _OF_PORT.match(one.chain)}
        by_hash: dict[str, set[str]] = defaultdict(set)
        for one in counted:
            if found := _OF_PORT.match(one.chain):
                by_hash[found[1]].add(one.chain)
        endpoints = frozenset(own.values())
        services = desired.services() if own or by_hash else []
        for at in range(0, len(services), CHUNK):
            for key in services[at : at + CHUNK]:
                for port in desired.ports(key) if by_hash else ():
                    self._owners |= dict.fromkeys(by_hash.pop(port_hash(port.name), ()), port)
                for chain, port in _chains(desired.served(key), endpoints) if own else ():
                    if own.pop(chain, None):
                        self._owners[chain] = port
            if not own and not by_hash:
                return
            await asyncio.sleep(0)


_OF_PORT = re.compile(r"(?:KUBE|KPX)-SV[CL]-([A-Z2-7]{16})")
"""A chain of a service port, named by its hash."""


def _chains(served: Iterable[Served], endpoints: frozenset[str]) -> Iterator[tuple[str, ServicePort]]:
    """The chains of those of a Service's endpoints that are among `endpoints`."""
    for one in served:
        for endpoint in map(str, one.selection.reachable):
            if endpoint in endpoints:
                yield endpoint_chain(one.port.name, endpoint), one.port


class Connections:
    """Keeps the metrics of connections up to date. `is_service` says whether there is a Service of this name."""

    def __init__(
        self,
        syncs: Iterable[FamilySync],
        metrics: Metrics,
        wanted: "Wanted",
        is_service: Callable[[ServiceKey], bool],
    ) -> None:
        self.metrics, self.wanted, self.is_service = metrics, wanted, is_service
        self._meters = tuple(FamilyMeter(sync) for sync in syncs)

    async def run(self) -> None:
        """Read again and again, until cancelled."""
        for meter in self._meters:
            await meter.sync.synced_once.wait()
        while True:
            shown = self.metrics.expositions
            took = await self._read()
            await asyncio.sleep(max(self.wanted.every, took / SHARE))
            while self.metrics.expositions == shown:
                await asyncio.sleep(1.0)

    async def _read(self) -> float:
        start = time.monotonic()
        endpoints: set[tuple[str, ...]] = set()
        for meter in self._meters:
            try:
                found = await meter.read()
            except KpxError as error:
                log.warning("connections not counted", family=meter.sync.family, error=str(error))
                continue
            for port, counted, new in found:
                labels = _labels(port)
                self.metrics.connections(labels, new)
                if self.wanted.detail is Detail.ENDPOINTS:
                    endpoints.add((*labels, counted.endpoint))
                    self.metrics.connections((*labels, counted.endpoint), new)
        known = _Known(self._meters)
        self.metrics.forget_connections(lambda labels: self._is_gone(labels, endpoints, known))
        took = time.monotonic() - start
        self.metrics.connections_read(took)
        return took

    def _is_gone(self, labels: tuple[str, ...], counted: set[tuple[str, ...]], known: "_Known") -> bool:
        """Whether there is no such Service or endpoint any more; one with new rules may have counted nothing yet."""
        key = (labels[0], labels[1])
        return not self.is_service(key) or (len(labels) > 3 and labels not in counted and labels not in known.of(key))


class _Known:
    """The labels of the endpoints that Services have now, looked up once for each."""

    def __init__(self, meters: Iterable[FamilyMeter]) -> None:
        self._meters = tuple(meters)
        self._found: dict[ServiceKey, frozenset[tuple[str, ...]]] = {}

    def of(self, key: ServiceKey) -> frozenset[tuple[str, ...]]:
        """Those of one Service."""
        if key not in self._found:
            served = (one for meter in self._meters for one in meter.sync.desired.served(key))
            self._found[key] = frozenset(
                (*_labels(one.port), str(endpoint)) for one in served for endpoint in one.selection.reachable
            )
        return self._found[key]


def _labels(port: ServicePort) -> tuple[str, str, str]:
    name: ServicePortName = port.name
    return name.namespace, name.name, name.port or str(port.port)
