"""What a change costs doesn't depend on how many Services there are, and nothing else holds it up."""

import asyncio
import os
import shutil
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from kpx.agent.checks import update_checks
from kpx.agent.desired import Desired
from kpx.agent.health import Health
from kpx.agent.metrics import Metrics
from kpx.agent.run import Agent, Setup
from kpx.agent.servers import ServiceHealth
from kpx.agent.store import ServiceKey, Store
from kpx.agent.sync import FamilySync, Synced
from kpx.agent.throttle import Throttle
from kpx.api import KubeProxyConfiguration, parse_config, parse_object
from kpx.compiler.compile import Layout, Target
from kpx.family import Family
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.apply import payload_of
from kpx.sources.directory import DirectorySource
from kpx.sources.events import Put
from tests.agent.harness import PATIENCE, AgentProcess, expected, wait_for_rules, wait_until_converged
from tests.apiserver import ApiServer
from tests.bench import clusters
from tests.kernel import BACKENDS, PROGRAM, needs_kernel
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service

NODE = "node-0"
CONFIG = KubeProxyConfiguration(cluster_cidr="10.128.0.0/9")
CHANGED = 7


@dataclass(frozen=True, slots=True)
class Work:
    """What one change took: calls of functions (Python's and C's), bytes in use at most, lines for the kernel."""

    calls: int
    memory: int
    lines: int


class World:
    """Everything of an agent's way from an event to a payload, for some Services of two endpoints."""

    def __init__(self, services: int, layout: Layout) -> None:
        self.store = Store(NODE)
        for one in clusters.objects(services, 2):
            self.store.take(Put(parse_object(one["kind"], one)))
        self.desired = Desired(self.store, CONFIG, Target(NODE, Family.IPV4, layout))
        self.desired.load_all()
        self.checks: dict[ServiceKey, ServiceHealth] = {}
        self.tools = Tools(Backend.NFT, Family.IPV4)

    def change(self, endpoints: int) -> int:
        """One Service comes to have so many endpoints; the lines to send."""
        one = clusters.endpoint_slice(CHANGED, 2)
        first = one["endpoints"][0]
        one["endpoints"] = [{**first, "addresses": [f"10.250.0.{number + 1}"]} for number in range(endpoints)]
        touched = self.store.take(Put(parse_object("EndpointSlice", one)))
        edits = self.desired.refresh(touched)
        assert not self.desired.settings_changed()
        update_checks(self.checks, self.desired, touched)
        return payload_of(edits, self.tools).count("\n")

    def work(self) -> Work:
        """What a change takes, once caches of compiled patterns and the like are warm."""
        self.change(4)
        self.change(2)
        calls, lines = counted(lambda: self.change(3))
        self.change(2)
        tracemalloc.start()
        try:
            self.change(3)
            _, memory = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return Work(calls, memory, lines)


def counted(do: Callable[[], int]) -> tuple[int, int]:
    """How many functions are called, and what comes of it."""
    calls = 0

    def count(_: FrameType, event: str, __: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        found = do()
    finally:
        sys.setprofile(None)
    return calls, found


@pytest.mark.parametrize("layout", Layout)
def test_a_change_takes_the_same_work_however_many_services_there_are(layout: Layout) -> None:
    small, large = World(1000, layout).work(), World(5000, layout).work()
    assert large.lines <= small.lines + 4
    assert large.calls < 1.3 * small.calls
    assert large.memory < 1.3 * small.memory + 10_000  # a list of all 5,000 would be 40,000 bytes


def rivals(services: int) -> Iterator[Manifest]:
    """Services that have a health check, and each its external IP from or for its neighbour."""
    for number in range(services):
        pair = divmod(number // 2, 250)
        yield service(
            f"web-{number}",
            f"10.96.{number // 250}.{number % 250 + 1}",
            type="LoadBalancer",
            externalTrafficPolicy="Local",
            healthCheckNodePort=20_000 + number,
            externalIPs=[f"203.0.{pair[0]}.{pair[1] + 1}"],
            ports=[{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30_000 + number}],
        )
        yield endpoint_slice(f"web-{number}", ["10.244.0.10"], NODE)


def calls_after_a_sync(services: int) -> int:
    """How many functions are called after the sync of one change among so many Services."""
    config, _ = parse_config(b"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n")
    with Namespace() as namespace, namespace.entered():
        agent = Agent(Setup(config, NODE, Layout.TREE, Backend.NFT), DirectorySource("/nowhere"), Metrics())
        proxy = next(one for one in agent.proxies if one.family is Family.IPV4)
        for one in (node(NODE), *rivals(services)):
            agent.take(Put(parse_object(str(one["kind"]), one)))
        proxy.desired.load_all()
        assert len(proxy.desired.losers()) == services // 2

        def change(pods: list[str]) -> int:
            one = endpoint_slice("web-7", pods, NODE)
            touched = agent.store.take(Put(parse_object("EndpointSlice", one)))
            proxy.desired.refresh(touched)
            calls, _ = counted(lambda: asyncio.run(proxy._after_sync(Synced(touched, full=False))) or 0)
            return calls

        asyncio.run(proxy._after_sync(Synced(agent.store.keys(), full=False)))
        proxy._serving = True
        change(["10.244.0.10", "10.244.0.11"])
        return change(["10.244.0.10"])


@pytest.mark.kernel
@needs_kernel
def test_what_follows_a_sync_takes_the_same_work_however_many_services_there_are() -> None:
    assert calls_after_a_sync(1000) < 1.2 * calls_after_a_sync(50)


# -- verification, beside the updates ---------------------------------------------------------------------


def save_that_waits(folder: Path, program: str) -> str:
    """A PATH on which a tool of iptables-save waits as long as there is a file `hold`, and says so in `held`."""
    tools = folder / "bin"
    tools.mkdir()
    real = shutil.which(program)
    script = f'while [ -e {folder}/hold ]; do touch {folder}/held; sleep 0.05; done\nexec {real} "$@"'
    (tools / program).write_text(f"#!/bin/sh\n{script}\n")
    (tools / program).chmod(0o755)
    return f"PATH={tools}:{os.environ['PATH']}"


@pytest.mark.kernel
@needs_kernel
def test_changes_reach_the_kernel_while_it_is_verified(tmp_path: Path) -> None:
    path = save_that_waits(tmp_path, "iptables-legacy-save")
    objects = [node(), service("web", "10.96.0.1"), endpoint_slice("web", ("10.244.0.10",))]
    config = {"iptables": {"syncPeriod": "1s", "minSyncPeriod": "100ms"}}
    with Namespace() as namespace, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        server.put_all(objects)
        with AgentProcess(
            namespace, tmp_path, server, backend=Backend.LEGACY, config=config, prefix=["env", path]
        ) as agent:
            wait_until_converged(agent, server, PATIENCE)
            (tmp_path / "hold").touch()
            try:
                for _ in agent.patiently(PATIENCE, "a verification"):
                    if (tmp_path / "held").exists():
                        break
                server.put(endpoint_slice("web", ("10.244.0.10", "10.244.0.11")))
                wanted = expected(server.objects(), agent.configuration, Family.IPV4, agent.layout)
                wait_for_rules(agent, {Family.IPV4: wanted}, PATIENCE)
            finally:
                (tmp_path / "hold").unlink()
            agent.stop(PATIENCE)


def syncing(backend: Backend, work: Callable[[FamilySync, Metrics], Awaitable[None]]) -> None:
    """Do something with a sync loop of a small cluster, in a namespace where nobody watches the kernel."""

    async def nothing(_: Synced) -> None:
        pass

    async def main() -> None:
        metrics = Metrics()
        store = Store(NODE)
        for one in (node(), service("web", "10.96.0.1"), endpoint_slice("web", ("10.244.0.10", "10.244.0.11"))):
            store.take(Put(parse_object(str(one["kind"]), one)))
        desired = Desired(store, CONFIG, Target(NODE, Family.IPV4, Layout.TREE))
        sync = FamilySync(
            store, desired, Tools(backend, Family.IPV4), metrics, Health(60), 0.01, backend is Backend.LEGACY, nothing
        )
        await sync.once()
        running = [asyncio.create_task(one) for one in (sync.run(), sync.repairs.run())]
        try:
            await work(sync, metrics)
        finally:
            for task in running:
                task.cancel()

    with Namespace() as namespace, namespace.entered():
        asyncio.run(main())


def full_syncs(metrics: Metrics) -> float:
    name = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
    lines = metrics.exposition().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_look_at_the_kernel_finds_damage_and_disturbs_nothing_otherwise(backend: Backend) -> None:
    async def work(sync: FamilySync, metrics: Metrics) -> None:
        before = sync.tools.save("nat")
        await sync.repairs.look()
        await asyncio.sleep(0.05)
        assert full_syncs(metrics) == 1  # the one at the start
        (chain,) = {line.split()[1] for line in before.splitlines() if line.startswith("-A KUBE-SVC-")}
        command = f"{PROGRAM[Family.IPV4]}-{backend}"
        process = await asyncio.create_subprocess_exec(command, "-t", "nat", "-D", chain, "1")
        assert await process.wait() == 0
        await sync.repairs.look()
        for _ in range(int(PATIENCE / 0.05)):
            if rules(sync.tools.save("nat")) == rules(before):
                break
            await asyncio.sleep(0.05)
        assert rules(sync.tools.save("nat")) == rules(before)
        assert full_syncs(metrics) == 1  # the chain alone was mended

    syncing(backend, work)


def rules(save: str) -> list[str]:
    return [line for line in save.splitlines() if line.startswith("-A")]


# -- the legacy backend -----------------------------------------------------------------------------------


def test_the_period_follows_the_time_that_restores_take() -> None:
    throttle = Throttle(1.0, 0.0)
    throttle.adapt(1.0, 0.01, 0.0)
    assert throttle.period == 1.0
    throttle.adapt(1.0, 3.0, 10.0)
    assert throttle.period == 6.0
    for now in (10.0, 10.0):
        throttle.take(now)
    assert throttle.delay(10.0) == pytest.approx(6.0)
    for now in range(20, 40):
        throttle.adapt(1.0, 0.01, float(now))
    assert throttle.period == 1.0


def slow_restore(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("iptables-legacy-restore")
    (folder / "iptables-legacy-restore").write_text(f'#!/bin/sh\nsleep 0.5\nexec {real} "$@"\n')
    (folder / "iptables-legacy-restore").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.kernel
@needs_kernel
def test_slow_restores_make_syncs_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_restore(tmp_path, monkeypatch)

    async def work(sync: FamilySync, __: Metrics) -> None:
        one = endpoint_slice("web", ("10.244.0.10",))
        sync.touch(sync.store.take(Put(parse_object("EndpointSlice", one))), "EndpointSlice")
        for _ in range(int(PATIENCE / 0.05)):
            if sync.throttle.period >= 1.0:
                break
            await asyncio.sleep(0.05)
        assert sync.throttle.period >= 1.0

    syncing(Backend.LEGACY, work)


def proxies(backend: Backend, iptables: str) -> Iterator[FamilySync]:
    text = f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\niptables: {iptables}\n"
    config, _ = parse_config(text.encode())
    with Namespace() as namespace, namespace.entered():
        agent = Agent(Setup(config, NODE, Layout.TREE, backend), DirectorySource("/nowhere"), Metrics())
        yield from (proxy.sync for proxy in agent.proxies)


@pytest.mark.kernel
@needs_kernel
def test_the_period_adapts_on_legacy_unless_it_is_configured() -> None:
    assert all(sync.adaptive for sync in proxies(Backend.LEGACY, "{}"))
    assert not any(sync.adaptive for sync in proxies(Backend.LEGACY, "{minSyncPeriod: 2s}"))
    assert not any(sync.adaptive for sync in proxies(Backend.NFT, "{}"))
