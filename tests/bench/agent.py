"""The agent against a test API server in a process of its own: start, restart, changes, churn, and what it costs.

A change is one endpoint that joins a Service. Its time runs from the moment in which the API server is told until the
kernel has committed the transaction with the endpoint's rules.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from kpx.compiler.compile import Layout
from kpx.family import Family
from kpx.netfilter.legacy_monitor import legacy_fingerprint
from kpx.netfilter.netlink import HEADER, NETLINK_NETFILTER, Netlink
from kpx.netfilter.tools import Backend
from tests.agent.harness import NODE, AgentProcess, save
from tests.apiserver import ApiServerProcess
from tests.bench.towns import Joined, Town
from tests.lab import Namespace
from tests.manifests import node

_NFTABLES_GROUP = 1 << 6
_NEWGEN = 10 << 8 | 15
_PATIENCE = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Clock(Protocol):
    """Tells when the kernel has what it is waited for."""

    def wait(self, chain: str) -> float:
        """Wait for the commit that changes a chain; its `time.monotonic()`."""


class NftClock:
    """The kernel's own notifications."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._link = Netlink(NETLINK_NETFILTER, _NFTABLES_GROUP, 32 << 20)
        self._link.socket.settimeout(_PATIENCE)

    def wait(self, chain: str) -> float:
        name, found = f"{chain}\0".encode(), False
        while True:
            data = self._link.socket.recv(1 << 16)
            now = time.monotonic()
            _, kind, _, _, _ = HEADER.unpack_from(data)
            if kind == _NEWGEN and found:
                return now
            found = found or name in data


class LegacyClock:
    """A look every millisecond whether the table has changed."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._known = self._look()

    def wait(self, chain: str) -> float:
        end = time.monotonic() + _PATIENCE
        while (now := self._look()) == self._known:
            if time.monotonic() > end:
                raise TimeoutError(f"{chain} is as it was")
            time.sleep(0.001)
        self._known = now
        return time.monotonic()

    def _look(self) -> bytes | None:
        with self._namespace.entered():
            return legacy_fingerprint(Family.IPV4, "nat")


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds since the process was started: imports done, everything listed and parsed, all rules in the kernel.

    `own` and `tools` are seconds of CPU of kpx and of the iptables processes, `peak` MB of kpx alone, `tools_peak` of
    the largest of those processes.
    """

    imported: float
    listed: float
    done: float
    own: float
    tools: float
    peak: float
    tools_peak: float
    lines: int
    restores: float


@dataclass(frozen=True, slots=True)
class Changes:
    """Seconds until each change was in the kernel, and of that what kpx took itself from the sync's start on."""

    latencies: Sequence[float]
    own: Sequence[float]
    restores: Sequence[float]

    def quantile(self, values: Sequence[float], percent: int) -> float:
        """Of one of the lists."""
        return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True, slots=True)
class Churn:
    """Many changes a second: as many as were wanted and as there were, shares of one CPU (kpx, tools), MB, seconds."""

    wanted: float
    rate: float
    own: float
    tools: float
    memory: float
    settled: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What one town came to on one backend, in one layout. `memory` is RSS in MB, a while after the start; `kernel`
    is by how many MB what the kernel holds for itself has grown by then (slabs that can't be reclaimed, and vmalloc).
    """

    cold: Start
    restart: Start
    memory: float
    kernel: float
    rules: int
    chains: int
    changes: Changes
    slow_churn: Churn
    churn: Churn | None
    idle: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what: single changes and the seconds between them, and the seconds of each kind of churn."""

    changes: int = 60
    pause: float = 1.1
    seconds: float = 30.0
    churn_seconds: float = 60.0
    config: dict[str, Any] = field(default_factory=dict)


def measure(town: Town, backend: Backend, layout: Layout, plan: Plan, folder: Path) -> Figures:
    """Run an agent on a town and change it."""
    with Namespace() as namespace:
        namespace.ip("link set lo up")
        with ApiServerProcess(prefix=["nsenter", f"--net={namespace.path}"]) as server:
            server.put_all([node(NODE), *town.objects()])
            # kube-proxy's own defaults, with minSyncPeriod of a second.
            agent = AgentProcess(
                namespace, folder, server, backend=backend, layout=layout, config={"iptables": plan.config}
            )
            before = kernel_memory()
            cold = start(agent)
            time.sleep(5)
            memory, kernel = status(agent.pid, "VmRSS"), kernel_memory() - before
            text = save(namespace, backend, Family.IPV4)
            numbers = _Numbers(town)
            changes = change(agent, server, numbers, plan)
            idle = share(agent.pid, 10)
            slow = churn(agent, server, numbers, 10, plan.seconds)
            fast = (
                churn(agent, server, numbers, town.services / 100, plan.churn_seconds) if town.services > 100 else None
            )
            agent.stop(60)
            restart = start(agent)
            agent.stop(60)
            rules, chains = text.count("\n-A "), text.count("\n:")
            return Figures(cold, restart, memory, kernel, rules, chains, changes, slow, fast, sum(idle))


class _Numbers:
    """Changes of a town, each another one."""

    def __init__(self, town: Town) -> None:
        self._town, self._number = town, 0

    def next(self) -> Joined:
        self._number += 1
        return self._town.joined(self._number)


def start(agent: AgentProcess) -> Start:
    """Start the agent and wait until IPv4 is in the kernel."""
    before = time.time()
    agent.start()
    with _largest_child(agent.pid) as largest:
        for _ in agent.patiently(400, "all rules", pause=0.02):
            synced = [one for one in agent.log("synced") if one["family"] == "ipv4"]
            if synced:
                break
    (imported,), (listed,) = agent.log("started"), agent.log("caches complete")
    own, tools = _cpu_seconds(agent.pid)
    return Start(
        _when(imported) - before,
        _when(listed) - before,
        _when(synced[0]) - before,
        own,
        tools,
        status(agent.pid, "VmHWM"),
        largest[0],
        synced[0]["lines"],
        agent.total("kpx_restores_total"),
    )


def _when(entry: dict[str, Any]) -> float:
    return datetime.fromisoformat(entry["timestamp"]).timestamp()


@contextmanager
def _largest_child(pid: int) -> Iterator[list[float]]:
    """The RSS in MB of the largest child of a process so far."""
    largest, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    largest[0] = max(largest[0], *(status(int(one), "VmRSS") for one in task.read_text().split()), 0.0)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield largest
    finally:
        ended.set()
        thread.join()


def change(agent: AgentProcess, server: ApiServerProcess, numbers: _Numbers, plan: Plan) -> Changes:
    """Let an endpoint join one Service after the other."""
    clock: Clock = NftClock(agent.namespace) if agent.backend is Backend.NFT else LegacyClock(agent.namespace)
    known = len(agent.log("synced"))
    latencies = []
    for _ in range(plan.changes):
        joined = numbers.next()
        begin = time.monotonic()
        server.put(joined.piece)
        latencies.append(clock.wait(joined.chain) - begin)
        time.sleep(plan.pause)
    syncs = [one for one in agent.log("synced")[known:] if one["lines"] and one.get("restore_ms")]
    own = [(one["total_ms"] - one["restore_ms"]) / 1000 for one in syncs]
    return Changes(latencies, own, [one["restore_ms"] / 1000 for one in syncs])


def churn(agent: AgentProcess, server: ApiServerProcess, numbers: _Numbers, rate: float, seconds: float) -> Churn:
    """Let endpoints join at a rate for some seconds."""
    before, begin, count = _cpu_seconds(agent.pid), time.monotonic(), 0
    while (passed := time.monotonic() - begin) < seconds:
        if count < passed * rate:
            server.put(numbers.next().piece)
            count += 1
        else:
            time.sleep(0.001)
    own, tools = (now - then for now, then in zip(_cpu_seconds(agent.pid), before, strict=True))
    real = count / passed
    last = numbers.next()
    end = time.monotonic()
    server.put(last.piece)
    for _ in agent.patiently(120, "the last change", pause=0.05):
        if f"--to-destination {last.endpoint}\n" in save(agent.namespace, agent.backend, Family.IPV4):
            break
    settled = time.monotonic() - end
    return Churn(rate, real, own / passed, tools / passed, status(agent.pid, "VmRSS"), settled)


def status(pid: int, name: str) -> float:
    """A size from a process' status, in MB; 0 of one that has just ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{name}:")), 0.0)


def kernel_memory() -> float:
    """What the kernel holds for itself, in MB: slabs that can't be reclaimed, and vmalloc."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return (sizes["SUnreclaim"] + sizes["VmallocUsed"]) / 1000


def share(pid: int, seconds: float) -> tuple[float, float]:
    """The shares of one CPU that a process and its ended children take."""
    before, begin = _cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begin
    own, tools = (now - then for now, then in zip(_cpu_seconds(pid), before, strict=True))
    return own / passed, tools / passed


def _cpu_seconds(pid: int) -> tuple[float, float]:
    """Of a process, and of its ended children."""
    numbers = [int(one) for one in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    return sum(numbers[:2]) / _TICKS, sum(numbers[2:]) / _TICKS
