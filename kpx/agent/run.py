"""The agent: a source of objects, a loop per family, watchers of the kernel, and the ports. Wires them and waits."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kpx import api, host, logs
from kpx.agent import memory
from kpx.agent.checks import update_checks
from kpx.agent.connections import Connections, Detail, Wanted
from kpx.agent.desired import Desired
from kpx.agent.drift import Children, Drift
from kpx.agent.dump import write_dump
from kpx.agent.external import ExternalIPs
from kpx.agent.health import Health
from kpx.agent.metrics import Metrics
from kpx.agent.servers import HealthServer, MetricsServer, ServiceHealth, ServiceHealthServers
from kpx.agent.stale import StaleFlows
from kpx.agent.store import ServiceKey, Store
from kpx.agent.suspects import ChainKey, Culprit
from kpx.agent.sync import FamilySync, Synced
from kpx.api import KubeProxyConfiguration
from kpx.compiler.compile import Layout, Target
from kpx.errors import KpxError
from kpx.family import Family
from kpx.model.balance import misread
from kpx.model.endpoint import is_of
from kpx.model.external import ExternalRanges
from kpx.netfilter.nfacct import Counters
from kpx.netfilter.refusal import WANT
from kpx.netfilter.tools import Backend, Tools, binary
from kpx.sources.events import Event, Put, Source, Unsound
from kpx.sources.events import Synced as SourceSynced

log = logs.get_logger()

KINDS = frozenset({"Service", "EndpointSlice", "Node"})
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"


@dataclass(frozen=True, slots=True)
class Setup:
    """What an agent runs with."""

    config: KubeProxyConfiguration
    node_name: str
    layout: Layout
    backend: Backend
    connections: Wanted = field(default_factory=Wanted)
    external_ranges: ExternalRanges | None = None
    """Where external IPs may be; None: anywhere, as for kube-proxy."""


class Agent:
    """One agent. It writes nothing before the source has told everything there is."""

    def __init__(self, setup: Setup, source: Source, metrics: Metrics) -> None:
        self.setup, self.source, self.metrics = setup, source, metrics
        self.health = Health(2 * setup.config.iptables.sync_period)
        self.store = Store(setup.node_name)
        self.drift = Drift(setup.backend)
        self.children = Children(self.drift.recording)
        self._external_ips = ExternalIPs(setup.external_ranges)
        self._started = time.time()
        self._complete = asyncio.Event()
        self._told: set[str] = set()
        self._unsound: dict[str, set[tuple[str, str]]] = {kind: set() for kind in KINDS}
        self.proxies = tuple(
            FamilyProxy(self, family)
            for family in Family
            if binary(setup.backend, family, "-restore") or _missing(setup.backend, family)
        )
        self.health.expect([proxy.family for proxy in self.proxies])
        metrics.changes_pending(lambda kind: max(proxy.sync.waiting(kind) for proxy in self.proxies))

    async def run(self) -> None:
        """Follow the source and keep the kernel right, until cancelled."""
        async with AsyncExitStack() as stack:
            # A long load isn't waited for: what it has done so far is sound, and the next agent does the rest.
            stack.callback(self.children.stop)
            await stack.enter_async_context(self._ports())
            for proxy in self.proxies:
                await stack.enter_async_context(proxy.health_checks)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.source.run(self.take))
                if self.drift.watching:
                    for proxy in self.proxies:
                        proxy.sync.kernel.read_ahead()
                await self._complete.wait()
                log.info("caches complete", **self.store.counts())
                host.setup(self.setup.config)
                tasks.create_task(self.drift.run(self._changed))
                for proxy in self.proxies:
                    proxy.start(tasks.create_task)
                if self.setup.connections.detail is not Detail.NONE:
                    tasks.create_task(self._connections().run())
                for proxy in self.proxies:
                    await proxy.sync.attempted.wait()
                memory.settle()

    def _connections(self) -> Connections:
        syncs = (proxy.sync for proxy in self.proxies)
        return Connections(syncs, self.metrics, self.setup.connections, self.store.__contains__)

    async def once(self) -> None:
        """Bring the kernel up to date once. Raises KpxError if a family can't be."""
        following = asyncio.create_task(self.source.run(self.take))
        complete = asyncio.create_task(self._complete.wait())
        await asyncio.wait({following, complete}, return_when=asyncio.FIRST_COMPLETED)
        for task in (following, complete):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        host.setup(self.setup.config)  # not before: what has no sound input changes nothing
        failed = [proxy.family for proxy in self.proxies if not await proxy.once()]
        if failed:
            raise KpxError(f"not up to date: {', '.join(failed)}")

    def take(self, event: Event) -> None:
        """Take in what the source tells."""
        event = self._external_ips.permit(event)
        match event:
            case SourceSynced():
                self._told.add(event.kind)
                if self._told >= KINDS:
                    self._complete.set()
                return
            case Unsound():
                self._skip(event)
                return
            case Put():
                kind, key = type(event.object).__name__, _key(event.object)
                for problem in misread(event.object):
                    log.warning("annotation not understood", problem=str(problem))
            case _:
                kind, key = event.kind, (event.namespace, event.name)
        self._unsound[kind].discard(key)
        self.metrics.skipped(kind, len(self._unsound[kind]))
        touched = self.store.take(event)
        self.health.node(self.store.node)
        self.metrics.cached(kind, self.store.counts()[kind])
        self.metrics.changed(kind)
        for proxy in self.proxies:
            if concerns(event, proxy.family):
                proxy.sync.touch(touched, kind, self._trigger(event))

    def _changed(self, family: Family, chains: frozenset[ChainKey], culprit: Culprit) -> None:
        for proxy in self.proxies:
            if proxy.family is family:
                proxy.sync.repairs.suspect(chains, culprit)

    def is_complete(self) -> bool:
        """Whether all objects that there were at the start are known."""
        return self._complete.is_set()

    def dump(self) -> None:
        """Write what is known to a file."""
        write_dump(self.store, (proxy.sync for proxy in self.proxies))

    def _skip(self, event: Unsound) -> None:
        self._unsound[event.kind].add((event.namespace, event.name))
        self.metrics.skipped(event.kind, len(self._unsound[event.kind]))
        for problem in event.problems:
            log.error("object skipped", problem=str(problem))

    def _trigger(self, event: Event) -> float | None:
        """When the change came about, as the EndpointSlice controller noted, unless before this agent started."""
        if not isinstance(event, Put) or not isinstance(event.object, api.EndpointSlice):
            return None
        text = event.object.metadata.annotations.get(TRIGGER_TIME, "")
        try:
            when = datetime.fromisoformat(text).timestamp()
        except ValueError:
            return None
        return when if when >= self._started else None

    @asynccontextmanager
    async def _ports(self) -> AsyncIterator[None]:
        config = self.setup.config
        hard = config.bind_address_hard_fail
        health = HealthServer(self.health, self.metrics, config.healthz_bind_address, hard_fail=hard)
        metrics = MetricsServer(self.metrics, config.metrics_bind_address, config, self.setup.layout)
        async with health, metrics:
            yield


class FamilyProxy:
    """One family's part of an agent: its sync loop, what follows a sync, and its watch over the kernel."""

    def __init__(self, agent: Agent, family: Family) -> None:
        setup = agent.setup
        self.family, self.config, self.metrics = family, setup.config, agent.metrics
        self.tools = Tools(setup.backend, family, recording=agent.children.recording)
        target = Target(setup.node_name, family, setup.layout, host.tcp_be_liberal())
        counters = Counters(self.tools)
        self.desired = Desired(agent.store, setup.config, target, lambda: counters.ready(make=agent.is_complete()))
        self.stale_flows = StaleFlows(self.desired, agent.metrics)
        self.health_checks = ServiceHealthServers(
            family, agent.health, lambda: self.desired.settings.node_port_addresses
        )
        self.sync = FamilySync(
            agent.store,
            self.desired,
            self.tools,
            agent.metrics,
            agent.health,
            setup.config.iptables.min_sync_period,
            # The legacy kernel copies a table whole with every change.
            setup.backend is Backend.LEGACY and "min_sync_period" not in setup.config.iptables.model_fields_set,
            self._after_sync,
            setup.config.iptables.sync_period,
        )
        self.sync.repairs.after = lambda: self.stale_flows.note(Synced(frozenset(), full=True))
        self._checks: dict[ServiceKey, ServiceHealth] = {}
        self._serving = False

    async def once(self) -> bool:
        """Bring the kernel up to date once; whether that worked."""
        try:
            await self.sync.once()
        except (KpxError, *WANT) as error:
            log.error("sync failed", family=self.family, error=str(error))
            return False
        finally:
            await self.stale_flows.clean()
        return True

    def start(self, create_task: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        """Start the tasks of this family; the first sync compares the whole kernel state."""
        self._serving = True
        self.sync.compare("start")
        create_task(self.sync.run())
        create_task(self.stale_flows.run())
        create_task(self._watch())

    async def _watch(self) -> None:
        """Mend what others damage, and look at everything in turns, once there are rules."""
        await self.sync.synced_once.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sync.repairs.run())
            tasks.create_task(self.sync.repairs.verify())

    async def _after_sync(self, synced: Synced) -> None:
        self.stale_flows.note(synced)
        changed = update_checks(self._checks, self.desired, synced.touched)
        if self._serving and (changed.ports or synced.full):
            await self.health_checks.sync(self._checks)
        elif self._serving:
            self.health_checks.tell(changed.counts)
        self._tell_losers()
        self.metrics.service_ports(self.family, self.desired.service_ports)
        for policy, names in self.desired.without_local.items():
            self.metrics.no_local_endpoints(policy, self.family, len(names))

    def _tell_losers(self) -> None:
        for loser, winner in self.desired.take_new_losers().items():
            service, other = "/".join(loser), "/".join(winner)
            losses = list(self.desired.losses(loser))
            first = next((one for one in losses if one.winner == winner), None)
            if first is not None:
                log.error(
                    "an address or node port is another Service's",
                    service=service,
                    other=other,
                    field=first.field,
                    what=first.message,
                    count=len(losses),
                )


def concerns(event: Event, family: Family) -> bool:
    """Whether an event can change rules of a family: an EndpointSlice has endpoints of one only, all its life."""
    if isinstance(event, Put) and isinstance(event.object, api.EndpointSlice):
        return is_of(event.object, family)
    return True


def _key(one: api.Object) -> tuple[str, str]:
    return ("" if isinstance(one, api.Node) else one.metadata.namespace, one.metadata.name)


def _missing(backend: Backend, family: Family) -> bool:
    log.warning("no iptables for this family: its Services have no rules here", family=family, backend=backend)
    return False
