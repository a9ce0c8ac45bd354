"""What an update of an innocent Service takes while others make trouble: `python -m tests.bench.neighbours`.

Each trouble is measured beside the quiet of the same run, on the same agent: the ratio counts, not the seconds.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kpx.netfilter.tools import Backend
from tests.agent.harness import NODE, AgentProcess
from tests.apiserver import ApiServerProcess
from tests.bench.agent import Changes, Clock, LegacyClock, NftClock, _cpu_seconds, _Numbers, start, status
from tests.bench.towns import Town
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service

Trouble = Callable[["Scene", int], None]
"""Makes one piece of trouble, the n-th."""

SHARED_ADDRESSES = [f"203.0.113.{number}" for number in range(1, 21)]
MANY_ADDRESSES = [f"198.51.100.{number}" for number in range(1, 101)]


class Scene:
    """An agent on a town, and the API server that it follows."""

    def __init__(self, namespace: Namespace, server: ApiServerProcess, agent: AgentProcess, town: Town) -> None:
        self.namespace, self.server, self.agent = namespace, server, agent
        self.numbers = _Numbers(town)

    def update(self) -> float:
        """Let an endpoint join an innocent Service; seconds until the kernel has it."""
        joined = self.numbers.next()
        nft = self.agent.backend is Backend.NFT
        clock: Clock = NftClock(self.namespace) if nft else LegacyClock(self.namespace)  # what waits fills the old one
        begin = time.monotonic()
        self.server.put(joined.piece)
        return clock.wait(joined.chain) - begin


def greedy(number: int, ports: int, addresses: list[str]) -> Manifest:
    """A Service of many ports and external addresses."""
    listed = [{"name": f"p{port}", "port": 1000 + port, "targetPort": 8080} for port in range(ports)]
    return service(f"greedy-{number:02}", f"10.111.0.{number + 1}", ports=listed, externalIPs=addresses)


def greedy_slice(number: int, ports: int, pods: list[str]) -> Manifest:
    """Its endpoints, behind all of its ports."""
    made = endpoint_slice(f"greedy-{number:02}", pods)
    made["ports"] = [{"name": f"p{port}", "port": 8080, "protocol": "TCP"} for port in range(ports)]
    return made


def rivals(scene: Scene, turn: int) -> None:
    """20 Services x 200 ports x 20 external addresses, all the same; each comes and goes."""
    scene.server.put(greedy_slice(turn % 20, 200, [f"10.250.0.{turn % 200 + 1}"] if turn // 20 % 2 else []))


def heavy(scene: Scene, turn: int) -> None:
    """Two Services x 500 ports x 100 external addresses, whose endpoint comes and goes."""
    scene.server.put(greedy_slice(turn % 2, 500, [f"10.250.0.{turn % 200 + 1}"] if turn // 2 % 2 else []))


def crowd(scene: Scene, turn: int) -> None:
    """A slice of a Service of 10,000 endpoints comes and goes."""
    scene.server.put(crowd_slice(turn % 100, 100 if turn // 100 % 2 else 50))


def crowd_slice(number: int, endpoints: int) -> Manifest:
    """A hundred endpoints of the crowd."""
    made = endpoint_slice("crowd", [f"10.240.{number}.{one}" for one in range(endpoints)])
    made["metadata"]["name"] = f"crowd-{number:03}"
    return made


def foreign(scene: Scene, turn: int) -> None:
    """Another program adds a rule to nat POSTROUTING, or deletes it."""
    action = "-I" if turn % 2 else "-D"
    scene.namespace.run(
        ["iptables-nft", "-t", "nat", action, "POSTROUTING", "-d", "192.0.2.77", "-j", "RETURN"], check=False
    )


TROUBLES: dict[str, tuple[Callable[[Scene], None], Trouble, float]] = {
    "rivals": (
        lambda scene: scene.server.put_all(
            one
            for number in range(20)
            for one in (greedy(number, 200, SHARED_ADDRESSES), greedy_slice(number, 200, ["10.250.1.1"]))
        ),
        rivals,
        5.0,
    ),
    "heavy": (
        lambda scene: scene.server.put_all(
            one
            for number in range(2)
            for one in (greedy(number, 500, MANY_ADDRESSES), greedy_slice(number, 500, ["10.250.1.1"]))
        ),
        heavy,
        2.0,
    ),
    "crowd": (
        lambda scene: scene.server.put_all(
            [service("crowd", "10.112.0.1"), *(crowd_slice(number, 100) for number in range(100))]
        ),
        crowd,
        5.0,
    ),
    "foreign": (lambda scene: None, foreign, 10.0),
}
"""How each begins, what it does, and how often in a second."""


@contextmanager
def troubled(scene: Scene, trouble: Trouble, rate: float) -> Iterator[None]:
    """Make trouble in the background."""
    ended = threading.Event()

    def work() -> None:
        turn, begin = 0, time.monotonic()
        while not ended.wait(max(0.0, turn / rate - (time.monotonic() - begin))):
            trouble(scene, turn)
            turn += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def settle(scene: Scene) -> None:
    """Wait until the agent has written what has just been put; what is large is written in steps, with rests."""
    while True:
        known = len(scene.agent.log("synced"))
        time.sleep(15)
        if len(scene.agent.log("synced")) == known:
            return


def measured(scene: Scene, count: int) -> tuple[list[float], float]:
    """Seconds of so many updates; and the share of a core that the agent took meanwhile."""
    before, begin = sum(_cpu_seconds(scene.agent.pid)), time.monotonic()
    taken = []
    for _ in range(count):
        taken.append(scene.update())
        time.sleep(1.1)
    return taken, (sum(_cpu_seconds(scene.agent.pid)) - before) / (time.monotonic() - begin)


@click.command()
@click.option("--size", default="10k", show_default=True)
@click.option("--trouble", "names", multiple=True, type=click.Choice(list(TROUBLES)))
@click.option("--updates", default=30, show_default=True)
@click.option("--backend", default="nft", type=click.Choice([one.value for one in Backend]))
def main(size: str, names: tuple[str, ...], updates: int, backend: str) -> None:
    """Measure updates in quiet and beside each trouble."""
    town = Town.of(size)
    for name in names or TROUBLES:
        begin, trouble, rate = TROUBLES[name]
        with Namespace() as namespace, tempfile.TemporaryDirectory() as folder:
            namespace.ip("link set lo up")
            with ApiServerProcess(prefix=["nsenter", f"--net={namespace.path}"]) as server:
                server.put_all([node(NODE), *town.objects()])
                config: dict[str, Any] = {"iptables": {}}
                agent = AgentProcess(namespace, Path(folder), server, backend=Backend(backend), config=config)
                start(agent)
                scene = Scene(namespace, server, agent, town)
                begin(scene)
                settle(scene)
                quiet, idle = measured(scene, updates)
                known = len(agent.log("synced"))
                with troubled(scene, trouble, rate):
                    busy, cpu = measured(scene, updates)
                tell(f"{town} {name}: quiet", quiet, idle)
                tell(f"{town} {name}: troubled", busy, cpu)
                for one in sorted(agent.log("synced")[known:], key=lambda one: -float(one["total_ms"]))[:3]:
                    click.echo("  longest: " + ", ".join(f"{key} {value}" for key, value in one.items() if value))
                again = [one for one in agent.log("synced") if one["full"] not in (None, "start")]
                log_size = agent.log_file.stat().st_size
                click.echo(f"  full syncs {len(again)}, RSS {status(agent.pid, 'VmRSS'):.0f} MB, log {log_size} bytes")
                click.echo(f"  ratio p99 {quantile(busy, 99) / quantile(quiet, 99):.1f}")
                agent.stop(60)


def quantile(values: list[float], percent: int) -> float:
    """Of a list."""
    return Changes(values, values, values).quantile(values, percent)


def tell(what: str, values: list[float], cpu: float) -> None:
    """One line."""
    click.echo(
        f"{what}: p50 {quantile(values, 50):.2f} s, p99 {quantile(values, 99):.2f} s, "
        f"max {max(values):.2f} s, {cpu:.0%} of a core"
    )


if __name__ == "__main__":
    main()
