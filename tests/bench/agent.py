"""`python -m tests.bench.agent`: how soon a change is in the kernel, and what the agent costs meanwhile.

A change is one endpoint that joins a Service. Its time runs from the moment in which the API server is told until the
kernel has committed the transaction with the endpoint's rules.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console
from rich.table import Table

from kpx.compiler.names import endpoint_chain
from kpx.family import Family
from kpx.model.service import ServicePortName
from kpx.netfilter.legacy_monitor import legacy_fingerprint
from kpx.netfilter.netlink import HEADER, NETLINK_NETFILTER, Netlink
from kpx.netfilter.tools import Backend
from tests.agent.harness import NODE, AgentProcess, wait_until_converged
from tests.apiserver import ApiServerProcess
from tests.bench import clusters
from tests.lab import Namespace
from tests.manifests import node

_NFTABLES_GROUP = 1 << 6
_NEWGEN = 10 << 8 | 15
_PATIENCE = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Clock(Protocol):
    """Tells when the kernel has what it is waited for."""

    def wait(self, chain: str) -> float:
        """Wait for the commit that makes a chain; its `time.monotonic()`."""


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
    """A look every millisecond whether the table has become larger."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._known = self._look()

    def wait(self, chain: str) -> float:
        end = time.monotonic() + _PATIENCE
        while (now := self._look()) == self._known:
            if time.monotonic() > end:
                raise TimeoutError(f"{chain} isn't there")
            time.sleep(0.001)
        self._known = now
        return time.monotonic()

    def _look(self) -> bytes | None:
        with self._namespace.entered():
            return legacy_fingerprint(Family.IPV4, "nat")


@dataclass(frozen=True, slots=True)
class Figures:
    """What one backend came to: seconds, shares of a CPU, megabytes."""

    first_load: float
    latencies: Sequence[float]
    idle: float
    memory: float
    memory_after: float
    peak: float

    def cells(self) -> Iterator[str]:
        """The column of the table."""
        ordered = [one * 1000 for one in sorted(self.latencies)]
        quantiles = statistics.quantiles(ordered, n=100, method="inclusive")
        yield f"{self.first_load:.1f} s"
        yield f"{quantiles[49]:.0f} ms"
        yield f"{quantiles[89]:.0f} ms"
        yield f"{quantiles[98]:.0f} ms"
        yield f"{ordered[-1]:.0f} ms"
        yield f"{self.idle:.2%}"
        yield f"{self.memory:.0f} MB"
        yield f"{self.memory_after:.0f} MB"
        yield f"{self.peak:.0f} MB"


LABELS = (
    "start of the process to all rules in the kernel",
    "one endpoint joins → its rules in the kernel, p50",
    "p90",
    "p99",
    "at most",
    "CPU while nothing changes (with children)",
    "memory (RSS) after the first load",
    "memory (RSS) after the changes",
    "memory (RSS) at most",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what."""

    services: int
    endpoints: int
    changes: int
    pause: float
    idle: float


def bench(backend: Backend, plan: Plan, folder: Path) -> Figures:
    """Run an agent on a cluster and change it."""
    with Namespace() as namespace:
        namespace.ip("link set lo up")
        with ApiServerProcess(prefix=["nsenter", f"--net={namespace.path}"]) as server:
            server.put_all([node(NODE), *clusters.objects(plan.services, plan.endpoints)])
            # kube-proxy's own defaults, with minSyncPeriod of a second.
            agent = AgentProcess(namespace, folder, server, backend=backend, config={"iptables": {}})
            start = time.monotonic()
            with agent:
                agent.wait_for_log("synced", 2, timeout=120)
                first = time.monotonic() - start
                wait_until_converged(agent, server, 60)
                time.sleep(3)
                memory = status(agent.pid, "VmRSS")
                latencies = list(change(namespace, server, backend, plan))
                time.sleep(3)
                idle = cpu_share(agent.pid, plan.idle)
                after, peak = status(agent.pid, "VmRSS"), status(agent.pid, "VmHWM")
                agent.stop()
                return Figures(first, latencies, idle, memory, after, peak)


def change(namespace: Namespace, server: ApiServerProcess, backend: Backend, plan: Plan) -> Iterator[float]:
    """Let an endpoint join one Service after the other; the seconds that each took."""
    clock: Clock = NftClock(namespace) if backend is Backend.NFT else LegacyClock(namespace)
    for number in range(plan.changes):
        which = number * 7 % plan.services
        piece = clusters.endpoint_slice(which, plan.endpoints)
        address = f"10.200.{number >> 8}.{number & 255}"
        joined: dict[str, Any] = {**piece["endpoints"][0], "addresses": [address]}
        piece["endpoints"].append(joined)
        name = ServicePortName(piece["metadata"]["namespace"], f"svc-{which:05}", "http", "tcp")
        start = time.monotonic()
        server.put(piece)
        yield clock.wait(endpoint_chain(name, f"{address}:8080")) - start
        time.sleep(plan.pause)


def status(pid: int, field: str) -> float:
    """A size from a process' status, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{field}:"))


def cpu_share(pid: int, seconds: float) -> float:
    """The share of one CPU that a process and its ended children take."""
    before, start = _cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (_cpu_seconds(pid) - before) / (time.monotonic() - start)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


@click.command()
@click.option("--services", default=1000, show_default=True)
@click.option("--endpoints", default=5, show_default=True)
@click.option("--changes", default=200, show_default=True)
@click.option("--pause", default=1.1, show_default=True, help="Seconds between changes; minSyncPeriod is 1 s.")
@click.option("--idle", default=30.0, show_default=True, help="Seconds to measure idle CPU over.")
@click.option("--backend", type=click.Choice([one.value for one in Backend]), multiple=True, help="[default: both]")
def main(services: int, endpoints: int, changes: int, pause: float, idle: float, backend: tuple[str, ...]) -> None:
    """Measure the agent on a generated cluster."""
    backends = [Backend(one) for one in backend] or list(Backend)
    plan = Plan(services, endpoints, changes, pause, idle)
    table = Table(title=f"{services} Services × {endpoints} endpoints, {changes} changes")
    table.add_column("what")
    columns = []
    for one in backends:
        table.add_column(one.value, justify="right")
        with tempfile.TemporaryDirectory(prefix="kpx-bench-") as folder:
            columns.append(list(bench(one, plan, Path(folder)).cells()))
    for label, *cells in zip(LABELS, *columns, strict=True):
        table.add_row(label, *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
