"""A ClusterSource in a process of its own: how much memory it takes is then its own doing.

`python -m tests.sources.follower KUBECONFIG COUNT` follows until so many times there was trouble, and prints one JSON
object: `before` and `peak` are RSS in bytes, `troubles` counts by reason, `known` are the objects at the end.
"""

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from kpx.api import KubeProxyConfiguration
from kpx.sources.cluster import ClusterSource
from kpx.sources.connection import connect
from kpx.sources.events import Event, Gone, Put, Unsound
from kpx.sources.resource import Pace
from tests.apiserver import ApiServer

PACE = Pace(lifetime=(60, 60), patience=3, silence=(60, 60), calm=(60, 60), backoff=(0.01, 0.02))
WARM = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node-0"}}


def run(kubeconfig: Path, count: int) -> Mapping[str, Any]:
    """Run it to its end."""
    command = [sys.executable, "-m", "tests.sources.follower", str(kubeconfig), str(count)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: Mapping[str, Any] = json.loads(done.stdout)
    return answer


async def _follow(kubeconfig: str, troubles: Counter[str], count: int) -> list[str]:
    known: set[str] = set()
    enough = asyncio.Event()

    def sink(event: Event) -> None:
        match event:
            case Put(found):
                known.add(found.metadata.name)
            case Gone(_, _, name):
                known.discard(name)
            case Unsound():
                troubles["unsound"] += 1

    def on_trouble(kind: str, reason: str) -> None:
        troubles[reason] += 1
        if troubles.total() >= count:
            enough.set()

    connection = await connect(kubeconfig, KubeProxyConfiguration())
    source = asyncio.create_task(ClusterSource(connection, "node-0", on_trouble, PACE).run(sink))
    waiting = asyncio.create_task(enough.wait() if count else _complete(known))
    await asyncio.wait({source, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if source.done():
        source.result()
    source.cancel()
    await asyncio.wait({source})
    await connection.close()
    return sorted(known)


async def _complete(known: set[str]) -> None:
    while not known:
        await asyncio.sleep(0.01)


def _memory(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with ApiServer() as server:  # what a sound server costs is no matter
        server.put(WARM)
        asyncio.run(_follow(str(server.kubeconfig(Path(sys.argv[1] + ".warm"))), Counter(), 0))
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
    before, troubles = _memory("VmRSS"), Counter[str]()
    known = asyncio.run(_follow(sys.argv[1], troubles, int(sys.argv[2])))
    print(json.dumps({"before": before, "peak": _memory("VmHWM"), "troubles": troubles, "known": known}))


if __name__ == "__main__":
    _main()
