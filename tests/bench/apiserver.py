"""What a node costs the API server: bytes, requests and connections of one agent's sources, and its time to a start.

`python -m tests.bench.apiserver`. The API server is the tests' own, over TLS, in a process of its own; it counts what
HTTP carries (what TLS adds is the same for everybody). The agent's half runs in a process of its own, too: everything
that it does up to the models, and nothing with them.
"""

import asyncio
import gc
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import structlog
from rich.console import Console
from rich.table import Table

from kpx.api import KubeProxyConfiguration
from kpx.sources.cluster import ClusterSource
from kpx.sources.connection import connect
from kpx.sources.events import Event, Synced
from tests.apiserver import ApiServerProcess, Promises, Stats
from tests.bench import clusters

SIZE = 10_001, 5
"""Services, and endpoints of each."""
_CHANGES = 100
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes down and up, requests."""

    down: int
    up: int
    requests: int

    @classmethod
    def between(cls, before: Stats, after: Stats) -> "Traffic":
        """What has gone by."""
        return cls(
            after.bytes_sent - before.bytes_sent,
            after.bytes_received - before.bytes_received,
            sum(after.requests.values()) - sum(before.requests.values()),
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one way to ask. Times in seconds, memory in MB; `change` is of one EndpointSlice."""

    way: str
    start: Traffic
    idle: Traffic
    change: float
    connections: int
    complete: float
    cpu: float
    rss: float
    peak: float


WAYS = {
    "HTTP/2, protobuf": Promises(),
    "HTTP/2, JSON": Promises(prefers_json=True),
    "HTTP/1.1, protobuf": Promises(http2=False),
    "HTTP/1.1, JSON": Promises(http2=False, prefers_json=True),
    "HTTP/2, protobuf, no WatchList": Promises(watch_list=False),
}


def measure(way: str, services: int, endpoints: int, idle: float) -> Costs:
    """An agent that starts, `idle` seconds without a change, then some changes."""
    with tempfile.TemporaryDirectory() as folder, ApiServerProcess(tls=True) as server:
        server.promises = WAYS[way]
        server.refuse()
        server.accept()
        server.put_all(clusters.objects(services, endpoints))
        server.put({"kind": "Node", "apiVersion": "v1", "metadata": {"name": clusters.NODE}})
        _warm(server)
        before = server.stats
        with _Follower(server.kubeconfig(Path(folder) / "kubeconfig")) as follower:
            started = follower.complete()
            server.wait_for(lambda server: len(server.open_watches) == 3)
            time.sleep(0.5)
            at_start = server.stats
            connections = at_start.open_connections
            time.sleep(idle)
            at_rest = server.stats
            for number in range(_CHANGES):
                server.put(_changed(number, endpoints))
                time.sleep(0.02)
            time.sleep(1.0)
            changed = Traffic.between(at_rest, server.stats)
        return Costs(
            way,
            Traffic.between(before, at_start),
            Traffic.between(at_start, at_rest),
            changed.down / _CHANGES,
            connections,
            **started,
        )


def _warm(server: ApiServerProcess) -> None:
    """Let the server make the bytes that it will send, which a real one has in its cache."""
    with tempfile.TemporaryDirectory() as folder, _Follower(server.kubeconfig(Path(folder) / "kubeconfig")) as one:
        one.complete()
    server.wait_for(lambda server: server.stats.open_connections == 0)


def _changed(number: int, endpoints: int) -> dict[str, Any]:
    changed = clusters.endpoint_slice(number, endpoints)
    changed["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    return changed


class _Follower:
    """The sources of an agent, in a process of their own."""

    def __init__(self, kubeconfig: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.apiserver", "--follow", str(kubeconfig)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> "_Follower":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def complete(self) -> dict[str, float]:
        """Wait until it knows everything; what that took."""
        assert self._process.stdout
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found


def _memory(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


async def _follow(kubeconfig: str) -> None:
    """Follow until standard input ends."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    connection = await connect(kubeconfig, KubeProxyConfiguration())
    done, kinds = asyncio.Event(), set[str]()
    kept: dict[int, Event] = {}

    def sink(event: Event) -> None:
        kept[len(kept)] = event
        if isinstance(event, Synced):
            kinds.add(event.kind)
            if len(kinds) == 3:
                done.set()

    gc.disable()  # as the agent, until it has loaded everything
    began, used = time.monotonic(), time.process_time()
    source = ClusterSource(connection, clusters.NODE, lambda kind, reason: print(kind, reason, file=sys.stderr))
    task = asyncio.create_task(source.run(sink))
    await done.wait()
    found = {"complete": time.monotonic() - began, "cpu": time.process_time() - used}
    print(json.dumps({**found, "rss": _memory("VmRSS"), "peak": _memory("VmHWM")}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    task.cancel()
    await asyncio.wait({task})
    await connection.close()


def cells(costs: Costs) -> Iterator[tuple[str, str]]:
    """The rows of one way: what, and how much."""
    yield "bytes at start, down + up", f"{costs.start.down / 1e6:.2f} MB + {costs.start.up / 1e3:.1f} kB"
    yield "requests at start", f"{costs.start.requests}"
    yield "bytes per changed EndpointSlice", f"{costs.change:.0f}"
    yield "requests while nothing happens", f"{costs.idle.requests}"
    yield "bytes while nothing happens, down + up", f"{costs.idle.down} + {costs.idle.up}"
    yield "connections", f"{costs.connections}"
    yield "lists begin → caches complete", f"{costs.complete:.2f} s"
    yield "  of which CPU", f"{costs.cpu:.2f} s"
    yield "RSS then / at most", f"{costs.rss:.0f} / {costs.peak:.0f} MB"


def table(found: list[Costs]) -> Table:
    """One column for each way."""
    made = Table(title="API server: what one node costs it")
    made.add_column("")
    columns = [dict(cells(costs)) for costs in found]
    for costs in found:
        made.add_column(costs.way, justify="right")
    for what in columns[0]:
        made.add_row(what, *(column[what] for column in columns))
    return made


def rows(services: int, endpoints: int, idle: float, ways: list[str] | None = None) -> list[Costs]:
    """Each way in turn."""
    return [measure(way, services, endpoints, idle) for way in ways or WAYS]


@click.command()
@click.option("--services", default=SIZE[0], show_default=True)
@click.option("--endpoints", default=SIZE[1], show_default=True)
@click.option("--idle", default=60.0, show_default=True, help="Seconds without a change.")
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="[default: all]")
@click.option("--follow", hidden=True, help="Be the agent.")
def main(services: int, endpoints: int, idle: float, ways: tuple[str, ...], follow: str | None) -> None:
    """Measure what one node costs the API server."""
    if follow:
        asyncio.run(_follow(follow))
        return
    found = rows(services, endpoints, idle, list(ways))
    click.echo(json.dumps([asdict(costs) for costs in found]), err=True)
    Console(width=170).print(table(found))


if __name__ == "__main__":
    main()
