"""Random changes while everything goes wrong between the agent and the API server; in the end the kernel is right.

Six seeds at once, 20 with KPX_SEEDS=20.
"""

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path

import pytest

from kpx.compiler.compile import Layout
from kpx.netfilter.tools import Backend
from tests.agent.harness import KINDS, ROOT, AgentProcess, stale_chains, wait_until_converged
from tests.apiserver import ApiServer, Faults, Next, Promises, churn, node_objects
from tests.compiler.towns import town
from tests.kernel import needs_kernel
from tests.lab import Namespace
from tests.manifests import service

pytestmark = [pytest.mark.kernel, needs_kernel]

SEEDS = range(1, 1 + int(os.environ.get("KPX_SEEDS", "6")))
PARALLEL = 6
CHANGES = 500
PAUSE = 0.04
PATIENCE = 150.0
"""A watch may have stalled at the very end: it is doubted after 20 s, and several failures mean long pauses."""

WEATHER: Sequence[Faults] = (
    Faults(drop_mid_line=0.1, drop=0.1, end=0.1),
    Faults(garbage=0.1, truncate_line=0.1, split=0.3, duplicate=0.3),
    Faults(throttle=0.4, internal=0.2, unavailable=0.2, timeout=0.1, reset=0.2, drop=0.2),
    Faults(gone=0.4, gone_event=0.1, error_event=0.1, drop=0.1),
    Faults(hold=0.5, drop=0.3, hold_seconds=1.0),
    Faults(cut=0.5, truncate=0.5, gone_event=0.2),
    Faults(oversize=0.1, oversize_bytes=1 << 20, drip=0.05, drip_rate=20_000),
    Faults(freeze=0.1, no_bookmark=0.5, drop=0.1),
)
"""What may go wrong during a phase: lines, answers, old news."""

CALM = Faults()
"""In between the agent has to catch up, so that it has something to lose again."""

SILENCE: Sequence[Faults] = (
    Faults(stall=Next(1), only=("watch", "services")),
    Faults(blackhole=Next(1), only=("watch", "endpointslices")),
    Faults(mute=Next(2), drop=0.1, only=("watch",)),
)
"""What takes the agent 16 to 25 s to notice, so that it happens in a single phase only."""


def forget_and_drop(server: ApiServer) -> None:
    """Every watch has to be begun anew, and none can go on where it was."""
    server.compact()
    server.drop_watches()


BLOWS: Sequence[Callable[[ApiServer], object]] = (
    lambda server: None,
    lambda server: server.drop_watches(),
    lambda server: server.drop_connections(reset=False),
    lambda server: server.stall_watches(),
    lambda server: server.compact(),
    forget_and_drop,
    lambda server: server.jump(1000),
    lambda server: server.refuse(0.5),
    lambda server: server.restart(down=0.2),
    lambda server: server.restart(down=0.2, keep_history=False),
    lambda server: server.rotate_token(),
)
"""What may happen at the start of a phase."""


@dataclass(frozen=True, slots=True)
class Storm:
    """What one seed came to: `seconds` from the last fault until the kernel was right."""

    backend: Backend
    layout: Layout
    seconds: float
    faults: Mapping[str, int]
    restarts: Mapping[str, float]
    metrics: Mapping[str, float]
    full_syncs: Counter[str]
    events: Counter[str]
    stale: frozenset[str]
    diff: str

    def __str__(self) -> str:
        faults, restarts = sum(self.faults.values()), sum(self.restarts.values())
        return (
            f"{self.backend}, {self.layout}: {faults} faults struck, {restarts:g} watches begun anew, "
            f"{self.events['synced']} syncs, right after {self.seconds:.1f} s"
        )


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[int, Future[Storm]]]:
    """All seeds, under way side by side: they mostly wait."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        yield {seed: pool.submit(storm, seed, tmp_path_factory.mktemp(f"seed-{seed}-")) for seed in SEEDS}
        pool.shutdown(cancel_futures=True)


def test_there_were_faults(storms: Mapping[int, Future[Storm]]) -> None:
    """In one storm there may be none: they strike by chance, and an agent asks little."""
    assert sum(sum(one.result().faults.values()) for one in storms.values()) >= len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_after_the_storm_the_kernel_is_right(storms: Mapping[int, Future[Storm]], seed: int) -> None:
    end = storms[seed].result()
    print(f"seed {seed}, {end}")
    assert end.diff == "same\n"
    assert end.stale == set()
    assert sum(end.restarts.values()) >= 2
    # What was believed of the kernel was true all the time: every edit fitted.
    assert end.events["sync failed"] == end.events["rules refused, the old ones stay"] == 0
    assert end.events["rules repaired"] == 0
    assert set(end.full_syncs) <= {"start", "settings", "verification", "order"}


CENSUS = (range(230), range(5, 13), range(9, 150), range(140, 154))
"""Which Services there are: from many to so few that dispatch chains of `tree` are lists (16 entries), and back."""


@pytest.mark.parametrize("layout", Layout)
def test_hundreds_of_services_that_come_and_go_at_once_are_one_change(layout: Layout, tmp_path: Path) -> None:
    node, *objects = town(CENSUS[0].stop)
    by_service = [list(some) for _, some in groupby(objects, lambda one: one["metadata"]["name"][: len("svc-00000")])]
    for one in objects:
        if one["kind"] == "EndpointSlice":  # too many of them, and all rules lose their comments
            del one["endpoints"][2:]
    config = {"iptables": {"minSyncPeriod": "1s"}}
    with Namespace() as namespace, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        server.put(node)
        with AgentProcess(namespace, tmp_path, server, layout=layout, config=config) as agent:
            there: set[int] = set()
            for numbers in CENSUS:
                for name, net in (
                    ("first", 97),
                    ("second", 98),
                ):  # so that it can't sync at once when it hears of the first of many
                    server.put(service(name, f"10.{net}.0.{len(numbers)}"))
                    wait_until_converged(agent, server)
                for one in chain.from_iterable(by_service[number] for number in there - set(numbers)):
                    server.delete(one["kind"], one["metadata"]["namespace"], one["metadata"]["name"])
                server.put_all(chain.from_iterable(by_service[number] for number in set(numbers) - there))
                wait_until_converged(agent, server)
                there = set(numbers)
                assert stale_chains(agent, server.objects(*KINDS)) == set()
            changes = [one for one in agent.log("synced") if not one["full"]]
            assert sum(one["services"] > 100 for one in changes) >= 2
            assert agent.log("sync failed") == agent.log("rules repaired") == []
            assert {one["full"] for one in agent.log("synced")} <= {None, "start", "order"}


def storm(seed: int, folder: Path) -> Storm:
    """500 changes, then calm, until the kernel is right."""
    rng = random.Random(seed)
    backend, layout = tuple(Backend)[seed % 2], tuple(Layout)[seed // 2 % 3]
    promises = Promises(
        watch_list=rng.random() < 0.5, gone_as_status=rng.random() < 0.5, history=rng.choice((30, 10_000))
    )
    config = {"iptables": {"minSyncPeriod": "200ms"}, "detectLocalMode": "NodeCIDR"}
    with Namespace() as namespace, ApiServer(netns=namespace.path, promises=promises) as server:
        namespace.ip("link set lo up")
        server.put(node_objects(1)[0])
        with AgentProcess(namespace, folder, server, backend=backend, layout=layout, config=config) as agent:
            rage(server, rng)
            seconds = wait_until_converged(agent, server, PATIENCE)
            return report(agent, server, seconds)


def rage(server: ApiServer, rng: random.Random) -> None:
    """Let things change and go wrong; afterwards nothing does any more."""
    changes = churn(rng.randrange(1 << 30))
    phases = [*WEATHER, *WEATHER, *[CALM] * 8, rng.choice(SILENCE)]
    rng.shuffle(phases)
    for faults in phases:
        server.faults = replace(faults, seed=rng.randrange(1 << 30))
        rng.choice(BLOWS)(server)
        for change in islice(changes, CHANGES // len(phases)):
            server.change(*change)
            time.sleep(rng.expovariate(1 / PAUSE))
    server.faults = Faults()


def report(agent: AgentProcess, server: ApiServer, seconds: float) -> Storm:
    """Look at everything once more, the kernel by way of the command line."""
    items = json.dumps({"kind": "List", "items": server.objects(*KINDS)})
    diff = [
        sys.executable,
        "-m",
        "kpx",
        "diff",
        "-f",
        "-",
        "--family",
        "dual",
        "--backend",
        agent.backend,
        "--layout",
        agent.layout,
    ]
    done = agent.namespace.run([*diff, "--config", str(agent.config_file)], stdin=items, check=False, directory=ROOT)
    metrics = agent.metrics()
    log = agent.log()
    return Storm(
        agent.backend,
        agent.layout,
        seconds,
        server.stats.faults,
        {name: count for name, count in metrics.items() if name.startswith("kpx_watch_restarts")},
        metrics,
        Counter(entry["full"] for entry in log if entry.get("full")),
        Counter(entry["event"] for entry in log),
        frozenset(stale_chains(agent, server.objects(*KINDS))),
        done.stdout,
    )
