"""5,000 agents and one API server: what they do to it when all of them have the same trouble at the same moment.

The figures stand in tests/bench/README.md.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

from tests.bench import clusters

from . import herd
from .herd import PROMISES, Herd

COUNT = 5_000
FEW = 1_000
"""Where there is nothing to see but proportions."""
OBJECTS = 5
START = 20
"""When trouble begins, in seconds."""


async def settled(flock: Herd, limit: float = 300.0) -> float:
    """Wait until all of them follow; how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not flock.all_follow():
        assert loop.time() - began < limit, "they don't come back"
        await asyncio.sleep(0.5)
    return loop.time() - began


def simulate(
    folder: Path, trouble: Callable[[Herd], None], relief: Callable[[Herd], None], after: float, count: int = COUNT
) -> Herd:
    """Let all of them follow, then have trouble until there is relief `after` so many seconds, then follow again."""
    flock = Herd(count, folder, PROMISES)

    async def run() -> None:
        for number in range(OBJECTS):
            flock.put(clusters.endpoint_slice(number, 5))
        flock.start()
        await asyncio.sleep(START)
        assert flock.all_follow()
        flock.kinds.clear()
        trouble(flock)
        await asyncio.sleep(after)
        relief(flock)
        flock.put(clusters.endpoint_slice(0, 4))
        seconds = await settled(flock)
        last = START + int(after)
        all_seconds = range(START, last + 300)
        total = sum(flock.sent[second] for second in all_seconds)
        print(
            f"\n{flock.peak(START, last + 300)} requests/s at the peak, {flock.peak(last, last + 300)} after relief;"
            f" {sum(flock.requests[second] for second in all_seconds)} in all; {total / 1e6:.1f} MB;"
            f" all follow {seconds:.1f} s after the relief; {dict(flock.kinds)}"
        )

    herd.run(run())
    return flock


def test_a_start_of_all(tmp_path: Path) -> None:
    """One request each, from the cache, and nothing more while nothing happens."""
    flock = Herd(FEW, tmp_path, PROMISES)

    async def run() -> None:
        for number in range(OBJECTS):
            flock.put(clusters.endpoint_slice(number, 5))
        flock.start()
        assert await settled(flock) < 1
        await asyncio.sleep(200)

    herd.run(run())
    assert flock.kinds == {"initial": FEW}
    assert sum(flock.requests.values()) == FEW


def test_renewals_are_spread(tmp_path: Path) -> None:
    """The watches of all of them began at the same moment; they end over five minutes."""
    flock = Herd(FEW, tmp_path, PROMISES)

    async def run() -> None:
        flock.put(clusters.endpoint_slice(0, 5))
        flock.start()
        await asyncio.sleep(900)

    herd.run(run())
    print(f"\n{flock.peak(1, 900)} requests/s at the peak of {sum(flock.requests.values()) - FEW}")
    assert flock.kinds["watch"] >= FEW
    assert flock.peak(1, 900) < FEW / 300 * 5
    assert flock.kinds["etcd"] == flock.kinds["cached"] == 0


def test_a_rolling_restart(tmp_path: Path) -> None:
    """Another replica takes over at once: the watches go on from where they were, none of them begins anew."""
    flock = simulate(tmp_path, Herd.kill, lambda flock: flock.come_back(forgetful=False), 0.0)
    assert set(flock.kinds) == {"watch"}
    assert flock.peak(START, START + 300) < 0.45 * COUNT
    assert sum(flock.sent[second] for second in range(START, START + 300)) < 2_500 * COUNT


def test_a_server_that_leaves_in_good_order(tmp_path: Path) -> None:
    """It ends every watch as if its time were over, at the same moment."""
    flock = simulate(tmp_path, Herd.leave, lambda flock: flock.come_back(forgetful=False), 0.0, FEW)
    assert set(flock.kinds) == {"watch"}
    assert flock.peak(START, START + 300) < 0.5 * FEW


def test_a_server_that_is_away_for_a_while(tmp_path: Path) -> None:
    """Ten seconds without any replica."""
    flock = simulate(tmp_path, Herd.kill, lambda flock: flock.come_back(forgetful=False), 10.0, FEW)
    assert set(flock.kinds) == {"watch"}
    assert flock.peak(START, START + 300) < 0.6 * FEW
    assert flock.peak(START + 10, START + 300) < 0.25 * FEW


def test_410_for_all(tmp_path: Path) -> None:
    """Everything has to be told anew: from the cache, and not to all at once."""
    flock = simulate(tmp_path, Herd.kill, lambda flock: flock.come_back(forgetful=True), 0.0)
    assert flock.kinds["etcd"] == flock.kinds["cached"] == 0
    assert COUNT <= flock.kinds["initial"] < 1.1 * COUNT
    assert flock.peak(START, START + 300) < 0.75 * COUNT
    assert sum(flock.sent[second] for second in range(START, START + 300)) < 10_000 * COUNT


def test_a_minute_of_429(tmp_path: Path) -> None:
    """A server that is too busy is asked more and more slowly, and not by all at the moment when it has recovered."""

    def trouble(flock: Herd) -> None:
        flock.throttle(1.0)
        flock.kill()
        flock.come_back(forgetful=False)

    flock = simulate(tmp_path, trouble, lambda flock: flock.throttle(0.0), 60.0)
    assert set(flock.kinds) == {"watch"}
    assert flock.peak(START, START + 300) < 0.45 * COUNT
    assert flock.peak(START + 30, START + 300) < 0.1 * COUNT
    assert sum(flock.requests[second] for second in range(START, START + 60)) < 7 * COUNT


def test_servers_without_watch_list(tmp_path: Path) -> None:
    """410 for all: the lists come from the cache, too."""
    flock = Herd(500, tmp_path, dataclasses.replace(PROMISES, watch_list=False))

    async def run() -> None:
        flock.put(clusters.endpoint_slice(0, 5))
        flock.start()
        await asyncio.sleep(START)
        flock.kill()
        flock.come_back(forgetful=True)
        flock.put(clusters.endpoint_slice(0, 4))
        await settled(flock)

    herd.run(run())
    assert flock.kinds["etcd"] == 0
    assert flock.kinds["cached"] == 1000
