"""Deletes UDP flows that conntrack would go on sending to where nobody serves them any more.

A task of each family's own, beside its syncs: none waits for it. Whom a sync concerned is noted; what has come
together is cleaned up at once after a quiet time, else as soon as clean-ups take no more than their share of a core.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TypeVar

from kpx import host, logs
from kpx.agent.backlog import Backlog, Work
from kpx.agent.desired import Desired
from kpx.agent.inputs import Inputs
from kpx.agent.metrics import Metrics
from kpx.agent.store import ServiceKey
from kpx.agent.sync import Synced
from kpx.errors import KpxError
from kpx.model.endpoint import merge_slices
from kpx.model.rights import Claim
from kpx.model.service import ServicePort
from kpx.netfilter import conntrack
from kpx.netfilter.flows import IPV4_SIZE, Flow, Frontends, Place, frontends, queries, stale

log = logs.get_logger()

CHUNK = 5_000
"""How many stale flows to find before they are deleted: 2 MB."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """Some stale flows, the last ones if `ended`; `error` is why there may be others that weren't found."""

    flows: Sequence[Flow]
    ended: bool
    error: KpxError | None = None


class StaleFlows:
    """One family's clean-ups."""

    def __init__(self, desired: Desired, metrics: Metrics) -> None:
        self.desired, self.metrics = desired, metrics
        self.family = desired.target.family
        self._backlog = Backlog()
        self._woken = asyncio.Event()
        self._cost = 0.0
        self._told: set[str] = set()

    def note(self, synced: Synced) -> None:
        """A sync went through: clean up after it, in `run` or by `clean`."""
        udp = frozenset(key for key in synced.touched if _serves_udp(self.desired.ports(key)))
        self._backlog.add(Work(udp, synced.full, self.desired.take_gone()))
        self._woken.set()

    async def run(self) -> None:
        """Clean up whenever there is cause, until cancelled."""
        while True:
            # While everything is loaded anew, nothing is known: the sync that ends the load will be noted.
            wait = self._backlog.delay(time.monotonic()) if self.desired.is_loaded else None
            if wait == 0:
                await self.clean()
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), wait)
            self._woken.clear()

    async def clean(self) -> None:
        """Clean up what waits. What fails is logged, once for each kind of failure, and waits on."""
        if not self.desired.is_loaded:
            return
        start = time.monotonic()
        work, self._cost = self._backlog.take(start), 0.0
        try:
            await self._clean(work, start)
        except KpxError as error:
            self._backlog.failed(work, time.monotonic(), self._cost)
            if str(error) not in self._told:
                self._told.add(str(error))
                log.error("stale UDP flows not deleted, will be tried again", family=self.family, error=str(error))
        else:
            self._backlog.done(time.monotonic(), self._cost)
            if self._told and not self._backlog.failing:
                log.info("stale UDP flows can be deleted again", family=self.family)
                self._told.clear()

    async def _clean(self, work: Work, start: float) -> None:
        services = self.desired.services() if work.everything else work.services
        # A thread may look on while syncs change this: what it finds is judged again.
        live = await self._in_thread(lambda: self._inputs(services))
        if not live and not work.gone:
            return
        addresses = await self._in_thread(self._node_addresses)
        flows = await self._in_thread(lambda: self._search(live, work.gone, addresses))
        found, count, errors = Found((), ended=False), 0, list[KpxError]()
        while not found.ended:
            found = await self._in_thread(lambda: _next(flows))
            if found.flows:
                deleted = await self._delete(found.flows, work.gone, addresses)
                count += deleted.count
                errors += filter(None, [deleted.error])
        errors += filter(None, [found.error])
        self.metrics.conntrack_deleted(self.family, count, time.monotonic() - start)
        if count:
            log.info("stale UDP flows deleted", family=self.family, count=count)
        if errors:
            raise errors[0]

    def _search(self, live: Iterable[Inputs], gone: Iterable[ServicePort], addresses: Sequence[str]) -> Iterator[Flow]:
        known = self._frontends(live, gone, addresses)
        listed = conntrack.list_udp(self.family, queries(known, conntrack.count_entries()))
        return stale(listed, known)

    async def _delete(
        self, flows: Sequence[Flow], gone: tuple[ServicePort, ...], addresses: Sequence[str]
    ) -> conntrack.Deleted:
        """Delete those that are still stale: syncs go on meanwhile.

        Judged by whoever has a flow's place now, since the search knew only some Services. A flow was there before
        that is asked: so either its endpoint is known by now, or it has gone since.
        """
        claims = await self._in_thread(lambda: frozenset(_claims({flow.destination for flow in flows})))
        if not self.desired.is_loaded:  # all Services will be cleaned up after that load
            self._backlog.add(Work(gone=gone))
            return conntrack.Deleted(0)
        holders = self._inputs(self.desired.holders(claims))

        def delete() -> conntrack.Deleted:
            return conntrack.delete(stale(flows, self._frontends(holders, gone, addresses)))

        return await self._in_thread(delete)

    def _inputs(self, services: Iterable[ServiceKey]) -> Sequence[Inputs]:
        every = (self.desired.inputs(key) for key in services)
        return [one for one in every if _serves_udp(one.ports)]

    def _frontends(self, live: Iterable[Inputs], gone: Iterable[ServicePort], addresses: Iterable[str]) -> Frontends:
        return frontends(
            (
                (port, endpoints.get(port.name, ()))
                for one in live
                for endpoints in [merge_slices(one.slices, self.family)]
                for port in one.ports
                if port.protocol == "udp"
            ),
            gone,
            addresses,
        )

    def _node_addresses(self) -> Sequence[str]:
        """Where node ports are open."""
        open_on = self.desired.settings.node_port_addresses
        return host.interface_addresses(self.family) if open_on is None else tuple(open_on)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run it in a thread, and add what it costs."""

        def counted() -> T:
            start = time.thread_time()
            try:
                return work()
            finally:
                self._cost += time.thread_time() - start

        return await asyncio.to_thread(counted)


def _next(flows: Iterator[Flow]) -> Found:
    """The next flows, each once."""
    found: dict[Flow, None] = {}
    try:
        for flow in islice(flows, CHUNK):
            found[flow] = None
    except KpxError as error:
        return Found(tuple(found), ended=True, error=error)
    return Found(tuple(found), ended=not found)


def _claims(places: Iterable[Place]) -> Iterator[Claim]:
    """What a Service claims that serves a place, under its own address or as a node port."""
    for address, port in places:
        family = AF_INET if len(address) == IPV4_SIZE else AF_INET6
        yield "udp", inet_ntop(family, address), port
        yield "udp", "", port


def _serves_udp(ports: Iterable[ServicePort]) -> bool:
    return any(port.protocol == "udp" for port in ports)
