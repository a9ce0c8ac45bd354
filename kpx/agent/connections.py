"""New connections per Service for the metrics, from the counters of the kernel's rules: kubernetes/kubernetes #9125.

The counters are read apart from updates, and only if somebody has asked for metrics since the last time; never more
often than every so many seconds, nor so often that reading would take more than `SHARE` of the time. What a chain
counted between the last reading and its end is lost.
"""

import asyncio
import time
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
from kpx.compiler.names import endpoint_chain
from kpx.errors import KpxError
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.counters import Counted, read_counters

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
        self._seen: dict[str, int] | None = None

    def take(self, counted: Iterable[Counted]) -> Iterator[tuple[Counted, int]]:
        """What every counter that isn't 0 has counted since the last time; nothing the first time."""
        before, now = self._seen, {one.chain: one for one in counted}
        self._seen = {chain: one.connections for chain, one in now.items()}
        if before is None:
            return
        for chain, one in now.items():
            known = before.get(chain, 0)
            yield one, one.connections - (known if known <= one.connections else 0)


class FamilyMeter:
    """The counters of one family, with the service ports that they belong to."""

    def __init__(self, sync: FamilySync) -> None:
        self.sync, self._meter = sync, Meter()
        self._owners: dict[str, ServicePort] = {}

    async def read(self) -> Sequence[tuple[ServicePort, Counted, int]]:
        """What was counted since the last time, by service port and endpoint. Raises KpxError."""
        counted = await asyncio.to_thread(lambda: list(read_counters(self.sync.tools, idle=False, niceness=NICENESS)))
        await self._find_owners({one.chain: one.endpoint for one in counted if one.chain not in self._owners})
        # A chain that has gone is forgotten; one that is about to go keeps its owner while it counts.
        self._owners = {one.chain: self._owners[one.chain] for one in counted if one.chain in self._owners}
        return [
            (self._owners[one.chain], one, new) for one, new in self._meter.take(counted) if one.chain in self._owners
        ]

    async def _find_owners(self, wanted: dict[str, str]) -> None:
        """Find the service ports of chains, given with their endpoints, a few Services at a time."""
        desired, endpoints = self.sync.desired, frozenset(wanted.values())
        services = desired.services() if wanted else []
        for at in range(0, len(services), CHUNK):
            for key in services[at : at + CHUNK]:
                for chain, port in _chains(desired.served(key), endpoints):
                    if wanted.pop(chain, None):
                        self._owners[chain] = port
            if not wanted:
                return
            await asyncio.sleep(0)


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
        self.metrics.forget_connections(lambda labels: self._is_gone(labels, endpoints))
        took = time.monotonic() - start
        self.metrics.connections_read(took)
        return took

    def _is_gone(self, labels: tuple[str, ...], endpoints: set[tuple[str, ...]]) -> bool:
        return not self.is_service((labels[0], labels[1])) or (len(labels) > 3 and labels not in endpoints)


def _labels(port: ServicePort) -> tuple[str, str, str]:
    name: ServicePortName = port.name
    return name.namespace, name.name, name.port or str(port.port)
