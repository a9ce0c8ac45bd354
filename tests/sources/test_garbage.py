"""Whatever a server says, in any place: it is counted, named and survived, and what it says later counts."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from kpx.agent.store import Store
from kpx.api import Object, parse_object
from kpx.sources.cluster import ClusterSource
from kpx.sources.events import Event, Gone, Put, Synced, Unsound
from kpx.sources.reflector import Pace
from tests.apiserver import Request
from tests.apiserver.wire import Connection

from .hostile import (
    JSON,
    KINDS,
    HostileServer,
    Sane,
    head,
    is_watch,
)
from .told import connected, running, until

RECORDINGS = Path(__file__).parent / "recordings"
QUICK = Pace(lifetime=(1, 2), patience=0.5, silence=0.1, proof=0.2, backoff=(0.001, 0.01))
NODE = "sample-node"
LATER = 10**9
"""The resourceVersion of the sane server: later than any of the recordings."""


class Knows:
    """What is known in the end, whatever came on the way; takes all of it into a `Store`, as the agent does."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.synced: set[str] = set()
        self.unsound: list[Unsound] = []
        self.troubles: Counter[tuple[str, str]] = Counter()
        self._store = Store(NODE)

    def __call__(self, event: Event) -> None:
        self._store.take(event)
        match event:
            case Put(found):
                kind = type(found).__name__
                self.objects[kind, "" if kind == "Node" else found.metadata.namespace, found.metadata.name] = found
            case Gone(kind, namespace, name):
                self.objects.pop((kind, namespace, name), None)
            case Unsound():
                self.unsound.append(event)
            case Synced(kind):
                self.synced.add(kind)

    def trouble(self, kind: str, reason: str) -> None:
        self.troubles[kind, reason] += 1


@asynccontextmanager
async def following(server: HostileServer, folder: Path, knows: Knows, pace: Pace = QUICK) -> Any:
    async with (
        connected(server.kubeconfig(folder / "kubeconfig")) as made,
        running(ClusterSource(made, NODE, knows.trouble, pace), knows) as task,
    ):
        yield task


def later(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The object as it is after everything that a server has said of it."""
    return {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(LATER)}}


def recorded() -> dict[str, list[dict[str, Any]]]:
    return {
        kind: [later(item) for item in json.loads((RECORDINGS / f"{plural}.list.json").read_bytes())["items"]]
        for plural, kind in KINDS.items()
    }


def wanted(objects: Mapping[str, list[dict[str, Any]]]) -> dict[tuple[str, str, str], Object]:
    return {
        (kind, raw["metadata"].get("namespace", ""), raw["metadata"]["name"]): parse_object(kind, raw)
        for kind, items in objects.items()
        for raw in items
    }


SANE = Sane(recorded(), LATER)
WANTED = wanted(recorded())


# Mutants of what a real server has said.

TOKENS = [
    *("null", "true", "[]", "{}", '""', "0", "7", "-1", "0.5", "1e999", "-1e999", "1e400", "NaN", "[null]", '[""]'),
    *("9" * 18, "9" * 25, "1" * 4200, '"7"', '"-1"', '"1e999"', '"' + "9" * 17 + '"', '"' + "9" * 400 + '"', '" 12"'),
    *('"١٢"', '"0x10"', '"12_0"', '"\\u0000"', '"\\ud83d\\ude00"', '"\\ud800"', '"a\\nb"', '"../x"', '"None"', '"Ü"'),
    *('"' + "x" * 3000 + '"', "[" * 150 + "]" * 150, '{"a":' * 150 + "1" + "}" * 150, '[{"metadata":7}]', "[[1],[2]]"),
    *('{"metadata":{"name":[]}}', '{"":""}', '{"k8s.io/initial-events-end":true}', '"true"', '"ERROR"', '"BOOKMARK"'),
    *('"DELETED"', '"Service"', '"Status"', '"Expired"', "410", "200", "-410", "1.5e3", '"410"', "[410]"),
]
STATUSES = [201, 204, 206, 301, 302, 307, 400, 401, 403, 404, 409, 410, 422, 429, 500, 503, 599, 999]
TYPES = ["text/html", "application/vnd.kubernetes.protobuf", "", "\xff", "application/json; charset=nothing"]
BODIES = sorted(file.name for file in RECORDINGS.iterdir() if file.suffix in (".json", ".protobuf"))


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    match data:
        case dict():
            for key in data:
                yield from places(data[key], (*path, key))
        case list():
            for index, item in enumerate(data):
                yield from places(item, (*path, index))


def mutated_json(text: bytes, rng: random.Random) -> bytes:
    """A JSON text with something else in one of its places, or without it, or with a key that is another."""
    data = json.loads(text)
    all_places = list(places(data))
    # The outer ones decide more, and are few.
    path = rng.choice([place for place in all_places if len(place) < 5] if rng.random() < 0.7 else all_places)
    if not path:
        return rng.choice(TOKENS).encode()
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    match rng.randrange(4):
        case 0:
            del inner[path[-1]]
        case 1 if isinstance(inner, dict):
            inner[rng.choice(["", "x", "name", "items", "\x00"])] = inner.pop(path[-1])
        case _:
            inner[path[-1]] = "@HERE@"
    return json.dumps(data, separators=(",", ":")).encode().replace(b'"@HERE@"', rng.choice(TOKENS).encode())


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them changed, lost, doubled; or with an end before their end."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.choice([1, 1, 50])]
            case 2:
                changed[at:at] = rng.choice([b"\n", b"\x00", b"\xff", b'"', b"}", b"[", b",", b"1e999", b"\r\n\r\n"])
            case 3:
                changed[at:at] = changed[at : at + rng.choice([1, 200])]
            case _:
                del changed[at:]
    return bytes(changed)


def mutated(name: str, rng: random.Random) -> bytes:
    body = (RECORDINGS / name).read_bytes()
    if name.endswith(".protobuf"):
        return body
    if ".watch." in name:
        lines = body.splitlines(keepends=True)
        if rng.random() < 0.6:
            at = rng.randrange(len(lines))
            lines[at] = mutated_json(lines[at], rng) + b"\n"
        if rng.random() < 0.2:
            rng.shuffle(lines)
        body = b"".join(lines)
    elif rng.random() < 0.6:
        body = mutated_json(body, rng)
    return mutated_bytes(body, rng) if rng.random() < 0.4 else body


class Mutants:
    """Answers every request with a mutant of what would be right, or of something else."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.left = 40

    async def __call__(self, request: Request, connection: Connection) -> None:
        rng = self._rng
        plural = request.path.rpartition("/")[2]
        name = f"{plural}.{'watch' if is_watch(request) else 'list'}.json"
        if rng.random() < 0.1:
            name = rng.choice(BODIES)
        code = rng.choice(STATUSES) if rng.random() < 0.1 else 200
        content_type = rng.choice(TYPES) if rng.random() < 0.05 else JSON
        answer = head(code, content_type) + mutated(name, rng)
        if rng.random() < 0.05:
            answer = mutated_bytes(answer, rng)
        self.left -= 1
        await connection.send(answer)
        if rng.random() < 0.2:
            await asyncio.sleep(0.02)


@given(st.integers(0, 2**32))
@settings(max_examples=120)
def test_mutants(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    async def run(server: HostileServer, mutants: Mutants) -> None:
        knows = Knows()
        async with following(server, tmp_path_factory.getbasetemp(), knows) as task:
            await until(lambda: task.done() or mutants.left <= 0, 30)
            server.answer = SANE
            await until(lambda: task.done() or (len(knows.synced) == 3 and knows.objects == WANTED), 30)

    mutants = Mutants(seed)
    with HostileServer(mutants) as server, structlog.testing.capture_logs():
        asyncio.run(run(server, mutants))
