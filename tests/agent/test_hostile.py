"""`kpx run` under API servers that have lost their mind: rules stay, health stays, memory stays; then it goes on."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kpx.family import Family
from kpx.netfilter.ruleset import Ruleset
from kpx.reconcile.plan import make_plan
from tests.apiserver import Request, node_objects
from tests.apiserver.wire import Connection
from tests.lab import Namespace
from tests.sources.hostile import (
    API_VERSIONS,
    Answer,
    HostileServer,
    Sane,
    bookmark,
    head,
    is_census,
    is_watch,
    kind_of,
    line,
    service,
)
from tests.sources.test_garbage import Mutants

from .harness import HEALTH_PORT, KINDS, AgentProcess, live, of_both_families, wait_for_rules

pytestmark = pytest.mark.kernel

MEGABYTE = 1 << 20
TROUBLES = 4
"""How often each kind is in trouble before the server comes to its senses."""


def cluster(version: int, *addresses: str) -> list[dict[str, Any]]:
    """A node, and a Service `shop/web` with these endpoints, changed at this resourceVersion."""
    web = service("web", str(version), clusterIP="10.96.0.9")
    labels = {"kubernetes.io/service-name": "web"}
    metadata = {"name": "web-a", "namespace": "shop", "resourceVersion": str(version), "labels": labels}
    piece = {
        "kind": "EndpointSlice",
        "apiVersion": API_VERSIONS["EndpointSlice"],
        "metadata": metadata,
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"port": 8080}],
    }
    (node,) = node_objects(1)
    node["metadata"]["resourceVersion"] = str(version)
    return [web, piece, node]


def sane(objects: list[dict[str, Any]], version: int) -> Sane:
    return Sane({kind: [one for one in objects if one["kind"] == kind] for kind in API_VERSIONS}, version)


BEFORE, LATER = cluster(5, "10.244.1.7"), cluster(10**9, "10.244.1.7", "10.244.1.8")


def say(*pieces: bytes, then: bytes = b"", to: Callable[[Request], bool] = lambda request: True) -> Answer:
    """These bytes to all requests that are such, with something repeated without end.

    Otherwise it is a server without WatchList, whose lists are sound and whose watches are too old.
    """
    lists = sane(BEFORE, 10)

    async def answer(request: Request, connection: Connection) -> None:
        if not to(request):
            await (too_old if is_watch(request) else lists)(request, connection)
            return
        for piece in itertools.chain(pieces, itertools.repeat(then) if then else ()):
            await connection.send(piece)

    async def too_old(request: Request, connection: Connection) -> None:
        await connection.send(head(400 if is_census(request) else 410))

    return answer


def is_change(request: Request) -> bool:
    """Whether this is a watch from a resourceVersion on."""
    return is_watch(request) and not is_census(request)


async def a_bookmark(request: Request, connection: Connection) -> None:
    kind = kind_of(request)
    await connection.send(head() + bookmark(kind, request.query.get("resourceVersion", "10")))


async def garbage(request: Request, connection: Connection) -> None:
    kind = kind_of(request)
    if is_watch(request):
        metadata = {"name": ["web"], "namespace": "shop", "resourceVersion": "11"}
        await connection.send(head() + line("MODIFIED", {"kind": kind, "metadata": metadata}))
    else:
        await connection.send(
            head() + b'{"kind":"%bList","metadata":{"resourceVersion":1e999},"items":7}' % kind.encode()
        )


FILLER = b"x" * MEGABYTE
SERVERS: Mapping[str, tuple[str, Callable[[], Answer]]] = {
    "garbage": ("garbage", lambda: garbage),
    "an error without end": ("failed", lambda: say(head(500), then=FILLER)),
    "a line without end": ("garbage", lambda: say(head(), b'{"type":"', then=FILLER, to=is_change)),
    "a page without end": ("garbage", lambda: say(head(), b'{"kind":"', then=FILLER, to=lambda one: not is_watch(one))),
    "elsewhere": ("refused", lambda: say(head(302, Location="http://localhost:1/"))),
    "a bookmark and the end": ("ended", lambda: a_bookmark),
}


@contextmanager
def running(folder: Path) -> Iterator[tuple[AgentProcess, HostileServer]]:
    """An agent that has written the rules of `BEFORE`."""
    with Namespace() as namespace:
        namespace.ip("link set lo up")
        with (
            HostileServer(sane(BEFORE, 10), str(namespace.path)) as server,
            AgentProcess(namespace, folder, server) as agent,
        ):
            wait_for_rules(agent, of_both_families(agent, BEFORE))
            yield agent, server


def comes_to_its_senses(agent: AgentProcess, server: HostileServer) -> None:
    """The server is well again, and more has happened meanwhile: the kernel is told."""
    server.answer = sane(LATER, 10**9)
    server.drop()
    wait_for_rules(agent, of_both_families(agent, LATER))
    for _ in agent.patiently(60, "healthy again"):  # the node may come back last
        if agent.get("/healthz", HEALTH_PORT)[0] == 200:
            break
    assert "Traceback" not in agent.log_text()


def assert_rules(agent: AgentProcess, wanted: Mapping[Family, Ruleset]) -> None:
    for family, ruleset in wanted.items():
        assert not make_plan(ruleset, live(agent.namespace, agent.backend, family))


def rss(agent: AgentProcess, field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{agent.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_without_its_senses(name: str, tmp_path: Path) -> None:
    reason, bad = SERVERS[name]
    with running(tmp_path) as (agent, server):
        memory, since = rss(agent, "VmRSS"), len(server.requests)
        Path(f"/proc/{agent.pid}/clear_refs").write_text("5")  # proc(5): the peak begins anew
        server.answer = bad()
        server.drop()
        for _ in agent.patiently(120, f"{TROUBLES} × {reason}", pause=0.2):
            assert agent.get("/healthz", HEALTH_PORT)[0] == 200
            found = agent.metrics()
            counted = [found.get(f'kpx_watch_restarts_total{{kind="{kind}",reason="{reason}"}}', 0) for kind in KINDS]
            if min(counted) >= TROUBLES:
                break
        asked = len(server.requests) - since
        restarts = agent.total("kpx_watch_restarts_total")
        grown = (rss(agent, "VmHWM") - memory) / MEGABYTE
        print(
            f"\n{asked} requests, {restarts} waits, {grown:.1f} MiB more, {server.sent.total() / MEGABYTE:.0f} MiB sent"
        )
        assert asked <= 2 * restarts + 9
        assert grown < 64
        assert_rules(agent, of_both_families(agent, BEFORE))
        comes_to_its_senses(agent, server)


@pytest.mark.parametrize("seed", [1, 2])
def test_mutants(seed: int, tmp_path: Path) -> None:
    with running(tmp_path) as (agent, server):
        server.answer = mutants = Mutants(seed)
        server.drop()
        for _ in agent.patiently(120, "many mutants", pause=0.2):
            assert agent.get("/livez", HEALTH_PORT)[0] == 200  # the node may be said to be gone
            if mutants.left <= 26:
                break
        comes_to_its_senses(agent, server)
