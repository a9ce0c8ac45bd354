"""A sink that remembers what it is told and holds sources to their promises; and a source running into it."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from kpx.api import KubeProxyConfiguration, Node, Object, parse_object
from kpx.sources.cluster import ClusterSource
from kpx.sources.connection import Connection, connect
from kpx.sources.events import Event, Gone, Put, Sink, Source, Synced, Unsound
from kpx.sources.resource import Pace
from tests.apiserver import ApiServer, Auth
from tests.apiserver.inventory import HEADLESS, PROXY_NAME
from tests.apiserver.sabotage import PADDING

KINDS = ("EndpointSlice", "Node", "Service")
Key = tuple[str, str, str]

FAST = Pace(lifetime=(20, 30), patience=1.5, silence=(1.2, 1.5), calm=(1.3, 1.6), backoff=(0.05, 0.2))
"""For servers that fall silent. On a busy machine a sound one may seem to do so."""
STEADY = replace(FAST, patience=60, silence=(60, 60), calm=(60, 60))
"""Where a test counts on it that there is no trouble but the one that it makes."""


class Told:
    """The objects that are there, as far as told; checks that every event adds something to what was known."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.objects: dict[Key, Object] = {}
        self.unsound: dict[Key, Unsound] = {}
        self.synced: list[str] = []
        self.restarts: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.counts[type(event).__name__] += 1
        match event:
            case Put(found):
                key = type(found).__name__, *name(found)
                found = unpadded(found)
                assert key in self.unsound or self.objects.get(key) != found, f"told twice: {key}"
                self.objects[key] = found
                self.unsound.pop(key, None)
            case Gone(kind, namespace, of):
                key = kind, namespace, of
                assert key in self.objects or key in self.unsound, f"gone, but never there: {key}"
                self.objects.pop(key, None)
                self.unsound.pop(key, None)
            case Unsound(kind, namespace, of):
                self.unsound[kind, namespace, of] = event
            case Synced(kind):
                assert kind not in self.synced
                self.synced.append(kind)

    def restarted(self, kind: str, reason: str) -> None:
        self.restarts[kind, reason] += 1

    def reasons(self) -> set[str]:
        return {reason for _, reason in self.restarts}

    def complete(self) -> bool:
        return sorted(self.synced) == sorted(KINDS)

    def names(self) -> list[str]:
        return sorted(f"{kind} {of}" for kind, _, of in self.objects)


def unpadded(found: Object) -> Object:
    """The object without what the fault `oversize` puts in."""
    notes = {name: text for name, text in found.metadata.annotations.items() if name != PADDING}
    return found.model_copy(update={"metadata": found.metadata.model_copy(update={"annotations": notes})})


def name(found: Object) -> tuple[str, str]:
    return "" if isinstance(found, Node) else found.metadata.namespace, found.metadata.name


def expected(server: ApiServer, node: str = "node-0") -> dict[Key, Object]:
    """What a proxy on `node` should know of this server's objects; unsound ones are left out by the caller."""
    objects: dict[Key, Object] = {}
    for raw in server.objects():
        if raw["kind"] == "Node" and raw["metadata"]["name"] != node:
            continue
        labels = raw["metadata"].get("labels") or {}
        if raw["kind"] == "Service" and (PROXY_NAME in labels or raw["spec"].get("clusterIP") == "None"):
            continue
        if raw["kind"] == "EndpointSlice" and HEADLESS in labels:
            continue
        found = parse_object(raw["kind"], raw)
        objects[raw["kind"], *name(found)] = found
    return objects


async def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(source: Source, told: Sink) -> AsyncIterator[asyncio.Task[None]]:
    """Run a source into `told`; on the way out it must not have ended by itself, and end at once."""
    task = asyncio.create_task(source.run(told))
    try:
        yield task
    finally:
        if task.done():
            task.result()
            raise AssertionError("the source has ended")
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=30.0)
        assert done, "the source doesn't end"
        with contextlib.suppress(asyncio.CancelledError):
            task.result()


@contextlib.asynccontextmanager
async def following(
    server: ApiServer, directory: Path, pace: Pace = STEADY, auth: Auth = Auth.TOKEN, told: Told | None = None
) -> AsyncIterator[Told]:
    """A ClusterSource of `node-0` running against a server."""
    told = told or Told()
    async with (
        connected(server.kubeconfig(directory / "kubeconfig", auth)) as connection,
        running(ClusterSource(connection, "node-0", told.restarted, pace), told),
    ):
        yield told


@contextlib.asynccontextmanager
async def connected(kubeconfig: Path) -> AsyncIterator[Connection]:
    connection = await connect(str(kubeconfig), KubeProxyConfiguration())
    try:
        yield connection
    finally:
        await connection.close()


async def agreed(told: Told, server: ApiServer, seconds: float = 120.0) -> None:
    """Wait until all that is told is all there is."""
    await until(told.complete, seconds)
    version, objects = server.version, expected(server)

    def same() -> bool:
        nonlocal version, objects
        if version != server.version:
            version, objects = server.version, expected(server)
        return told.objects == objects

    await until(same, seconds)
