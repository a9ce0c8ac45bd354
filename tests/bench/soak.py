"""A day of churn in minutes: what the agent uses as 20,000 changes go by. `python -m tests.bench.soak`."""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from kpx.netfilter.tools import Backend
from tests.agent.harness import KINDS, AgentProcess, stale_chains, wait_until_converged
from tests.apiserver import ApiServerProcess, churn, node_objects
from tests.lab import Namespace

BATCH = 10
ROWS = 10
CONFIG = {"iptables": {"minSyncPeriod": "1ms"}}
"""As many syncs as the agent can do (0 means the default, a second)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds: memory in MB, open files, threads, child processes that nobody has waited for."""

    rss: float
    files: int
    threads: int
    zombies: int
    cpu: float

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Read from proc(5)."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(
            int(status["VmRSS"].split()[0]) / 1024,
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]),
            sum(state == "Z" and parent == pid for state, parent in _processes()),
            sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"),
        )


def _processes() -> Iterator[tuple[str, int]]:
    """State and parent of every process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        yield state, int(parent)


class Soak:
    """An agent and the changes that it has to follow."""

    def __init__(self, agent: AgentProcess, server: ApiServerProcess, services: int) -> None:
        self.agent, self.server = agent, server
        self._changes = churn(1, services=services)
        self._done = self._syncs = 0
        self._log = agent.log_file.open()
        self._start = time.monotonic()
        self.table = Table(title=f"{agent.backend}, some {services} Services")
        for column in ("changes", "seconds", "syncs", "RSS MB", "files", "threads", "zombies", "CPU s", "settled in s"):
            self.table.add_column(column, justify="right")

    def run(self, count: int) -> None:
        """Make so many changes, each handful as soon as the agent has taken in the one before."""
        self._note()
        while self._done < count:
            for change in islice(self._changes, BATCH):
                self.server.change(*change)
            self._done += BATCH
            self._wait_for_syncs()
            if self._done % (count // ROWS) == 0:
                self._note()

    def _wait_for_syncs(self) -> None:
        """Wait until both families have synced; some changes concern neither, so not forever."""
        goal, deadline = self._syncs + 2, time.monotonic() + 0.5
        while self._syncs < goal and time.monotonic() < deadline:
            time.sleep(0.002)
            self._syncs += self._log.read().count('"event": "synced"')

    def _note(self) -> None:
        """Measure once the kernel is right; fails if that takes long."""
        settled = wait_until_converged(self.agent, self.server, 30)
        usage = Usage.of(self.agent.pid)
        cells = (f"{usage.rss:.1f}", usage.files, usage.threads, usage.zombies, f"{usage.cpu:.0f}", f"{settled:.2f}")
        self.table.add_row(*map(str, (self._done, round(time.monotonic() - self._start), self._syncs, *cells)))


@click.command()
@click.option("--changes", default=20_000, show_default=True)
@click.option("--services", default=30, show_default=True)
@click.option(
    "--backend", type=click.Choice([one.value for one in Backend]), default=Backend.NFT.value, show_default=True
)
def main(changes: int, services: int, backend: str) -> None:
    """Let an agent follow many changes, and see whether it grows."""
    with tempfile.TemporaryDirectory(prefix="kpx-soak-") as folder, Namespace() as namespace:
        namespace.ip("link set lo up")
        with ApiServerProcess(prefix=["nsenter", f"--net={namespace.path}"]) as server:
            server.put(node_objects(1)[0])
            with AgentProcess(namespace, Path(folder), server, backend=Backend(backend), config=CONFIG) as agent:
                soak = Soak(agent, server, services)
                soak.run(changes)
                Console(width=110).print(soak.table)
                stale = stale_chains(agent, server.objects(*KINDS))
                troubles = [*agent.log("sync failed"), *agent.log("rules repaired")]
                click.echo(f"stale chains: {len(stale)}, syncs that failed or repaired: {len(troubles)}")
                for trouble in troubles[:5]:
                    click.echo(trouble)


if __name__ == "__main__":
    main()
