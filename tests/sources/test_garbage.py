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
from kpx.sources.resource import Pace
from tests.apiserver import Request
from tests.apiserver.wire import Connection

from .hostile import (
    JSON,
    KINDS,
    Answer,
    HostileServer,
    Sane,
    bookmark,
    forever,
    head,
    is_census,
    is_watch,
    kind_of,
    line,
    listing,
    service,
    status,
)
from .told import connected, running, until

PACKED = "application/vnd.kubernetes.protobuf;stream=watch"
RECORDINGS = Path(__file__).parent / "recordings"
QUICK = Pace(lifetime=(1, 2), patience=0.5, silence=(0.1, 0.2), calm=(0.1, 0.2), backoff=(0.001, 0.01))
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
        return mutated_bytes(body, rng) if rng.random() < 0.7 else body
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
        spelled = rng.choice(["json", "protobuf"])
        name = f"{plural}.{'watch' if is_watch(request) else 'list'}.{spelled}"
        if rng.random() < 0.1:
            name = rng.choice(BODIES)
        code = rng.choice(STATUSES) if rng.random() < 0.1 else 200
        content_type = rng.choice(TYPES) if rng.random() < 0.05 else JSON if spelled == "json" else PACKED
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


# Single faults, one by one.

SHOP = {"Service": [service("web", "5"), service("shop", "6")]}
NODES = {"Node": [{"metadata": {"name": NODE, "resourceVersion": "7"}}]}
BEGINNING = Sane({**SHOP, **NODES}, 10)
HUGE = "9" * 17


def after() -> Sane:
    """The same cluster, somewhat later: `shop` has gone, `web` has another address."""
    return Sane({"Service": after_objects(), **NODES}, 20)


def raw(data: object) -> bytes:
    """JSON with numbers that JSON can't hold: `@1e999@` stands for itself."""
    return json.dumps(data).replace('"@', "").replace('@"', "").encode()


def for_services(bad: bytes, *, lists: bool) -> Answer:
    """To every list or watch of Services this is said; all else is as it should be."""

    async def answer(request: Request, connection: Connection) -> None:
        if kind_of(request) != "Service" or (is_watch(request) and is_census(request) is False and lists):
            await BEGINNING(request, connection)
        elif lists and is_watch(request):
            await connection.send(head(400))
        elif lists or not is_watch(request):
            await connection.send(head() + (bad if lists else listing("Service", SHOP["Service"])))
        elif is_census(request):
            await connection.send(head(400))
        else:
            await connection.send(head() + bad)
            await forever()

    return answer


def survived(folder: Path, bad: Answer, count: int = 4, reason: str = "garbage") -> list[Mapping[str, Any]]:
    """Follow a server while it is bad, until that was counted so often, and then while it isn't; what was logged."""

    async def run(server: HostileServer) -> None:
        knows = Knows()
        async with following(server, folder, knows) as task:
            await until(lambda: task.done() or knows.troubles["Service", reason] >= count, 30)
            await until(lambda: task.done() or ("Node", "", NODE) in knows.objects, 30)
            server.answer = after()
            final = wanted({"Service": after_objects(), "Node": NODES["Node"], "EndpointSlice": []})
            await until(lambda: task.done() or (len(knows.synced) == 3 and knows.objects == final), 30)

    with structlog.testing.capture_logs() as logged, HostileServer(bad) as server:
        asyncio.run(run(server))
    return list(logged)


def after_objects() -> list[dict[str, Any]]:
    return [service("web", "12", clusterIP="10.96.0.2")]


def details(logged: list[Mapping[str, Any]]) -> list[str]:
    return [line["detail"] for line in logged if line.get("reason") == "garbage" and line["kind"] == "Service"]


def a_list(**changed: object) -> bytes:
    words = {"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": []}
    return raw(words | changed)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (
            a_list(metadata={"resourceVersion": "@1e999@"}),
            "ServiceList: metadata.resourceVersion: must be a whole number",
        ),
        (a_list(metadata={"resourceVersion": "-1"}), "ServiceList: metadata.resourceVersion: must be a whole number"),
        (a_list(metadata=7), "ServiceList: metadata: must be a mapping (got 7)"),
        (a_list(metadata={"resourceVersion": "1", "continue": []}), "ServiceList: metadata.continue: must be a string"),
        (a_list(items=7), "ServiceList: items: must be a list (got 7)"),
        (a_list(items={}), "ServiceList: items: must be a list"),
        (a_list(kind="PodList"), "a PodList instead of a ServiceList"),
        (raw(status(200, "fine")), "ServiceList: metadata: is required"),
        (b"", "ServiceList: is not JSON: EOF while parsing a value at line 1 column 0; 0 bytes"),
        (b"7", "ServiceList: must be a mapping (got 7)"),
        (b"[" * 10_000, "ServiceList: is not JSON: recursion limit exceeded"),
        (b"\xff\xfe\x00", "ServiceList: is not JSON"),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, bad: bytes, named: str) -> None:
    told = details(survived(tmp_path, for_services(bad, lists=True)))
    assert told
    assert all(detail.startswith(named) for detail in told)


def an_event(**changed: object) -> bytes:
    metadata = {"name": "web", "namespace": "shop", "resourceVersion": "11"} | changed
    return raw({"type": "MODIFIED", "object": {**service("web"), "metadata": metadata}}) + b"\n"


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (an_event(resourceVersion="@1e999@"), "Service shop/web: metadata.resourceVersion: must be a whole number"),
        (an_event(resourceVersion=7), "Service shop/web: metadata.resourceVersion: must be a whole number"),
        (an_event(name=["web"]), "Service shop/(unnamed): metadata.name: must be a string"),
        (an_event(name="web\n"), "Service shop/'web\\n': metadata.name: must be a DNS name"),
        (an_event(namespace={}), "Service default/web: metadata.namespace: must be a string"),
        (an_event(namespace=None), "Service default/web: metadata.namespace: is required"),
        (
            bookmark("Service", "@1e999@").replace(b'"@', b"").replace(b'@"', b""),
            "a bookmark of Service: metadata.resou",
        ),
        (line("BOOKMARK", {"metadata": []}), "a bookmark of Service: metadata: must be a mapping"),
        (line("BOOKMARK", []), "a line of a watch of Service: object: must be a mapping"),
        (line("ADDED", {"kind": "Pod", "metadata": {}}), "Service default/(unnamed): metadata.name: is required"),
        (line("MODIFIED", {**service("web", "11"), "kind": "Pod"}), "an object of kind Pod instead of Service"),
        (line("BURNED", {}), "a line of a watch of Service: type: must be 'ADDED', 'MODIFIED'"),
        (b'{"type":"ERROR","object":7}\n', "a line of a watch of Service: object: must be a mapping"),
        (b'{"type":"ERROR","object":{"code":1e999}}\n', "Status: code: must be a whole number"),
        (b'{"type":"ERROR","object":{"code":410,"message":[]}}\n', "Status: message: must be a string"),
        (b"\n", "a line of a watch of Service: is not JSON"),
        (b"null\n", "a line of a watch of Service: must be a mapping"),
    ],
)
def test_a_line_that_is_none(tmp_path: Path, bad: bytes, named: str) -> None:
    told = details(survived(tmp_path, for_services(bad, lists=False)))
    assert told
    assert all(detail.startswith(named) for detail in told), (named, told[0])


@pytest.mark.parametrize("code", ["1e999", "[]", '"410"', "99999999999999999999999", "null", "true"])
def test_a_refusal_whose_status_makes_no_sense(tmp_path: Path, code: str) -> None:
    async def answer(request: Request, connection: Connection) -> None:
        await connection.send(head(500) + b'{"kind":"Status","message":{"a":1},"code":%b}' % code.encode())

    async def bad(request: Request, connection: Connection) -> None:
        await (answer if kind_of(request) == "Service" else BEGINNING)(request, connection)

    survived(tmp_path, bad, reason="failed")


@pytest.mark.parametrize(
    "item",
    [{"metadata": {"name": ["a"], "namespace": "shop", "resourceVersion": "5"}}, 7, None, {}, {"metadata": 7}, [[]]],
)
def test_an_object_without_a_name_costs_no_other(tmp_path: Path, item: Any) -> None:
    """It is left out; those that are known may be what it is, and stay."""

    async def bad(request: Request, connection: Connection) -> None:
        if kind_of(request) != "Service":
            await BEGINNING(request, connection)
        elif is_census(request):
            await connection.send(head(400))
        elif not is_watch(request):
            items = [service("new", "9"), item, service("web", "5")] if gone else [*SHOP["Service"], item]
            await connection.send(head() + listing("Service", items, "12" if gone else "10"))
        elif request.query["resourceVersion"] == "12":
            await connection.send(head())
            await forever()
        else:
            await connection.send(head(410))

    async def run(server: HostileServer) -> None:
        knows = Knows()
        async with following(server, tmp_path, knows) as task:
            await until(lambda: task.done() or {"web", "shop"} <= names(knows), 30)
            gone.append(True)
            await until(lambda: task.done() or "new" in names(knows), 30)
            assert names(knows) == {"new", "web", "shop"}
            assert knows.troubles["Service", "garbage"] >= 2
            server.answer = after()
            await until(lambda: task.done() or names(knows) == {"web"}, 30)

    gone: list[bool] = []
    with structlog.testing.capture_logs() as logged, HostileServer(bad) as server:
        asyncio.run(run(server))
    told = [line["problem"] for line in logged if line["event"] == "object skipped"]
    assert told
    assert all("items[" in problem and "Service" in problem for problem in told)


def names(knows: Knows) -> set[str]:
    return {name for kind, _, name in knows.objects if kind == "Service"}


POISON = {
    "list": listing("Service", SHOP["Service"], HUGE),
    "item": listing("Service", [service("web", HUGE), service("shop")]),
    "event": line("MODIFIED", service("web", HUGE)),
    "deletion": line("DELETED", service("web", HUGE)),
    "bookmark": bookmark("Service", HUGE),
    "bookmark and event": bookmark("Service", HUGE) + line("MODIFIED", service("web", "11")),
}


@pytest.mark.parametrize("where", POISON)
def test_a_resource_version_that_is_yet_to_come(tmp_path: Path, where: str) -> None:
    """Whoever believed it would take everything that the server says later for old news, and never notice."""
    lists = where in ("list", "item")
    asked: list[str] = []

    async def bad(request: Request, connection: Connection) -> None:
        asked.append(request.query.get("resourceVersion", ""))
        poisoned = HUGE in asked
        await (for_services(POISON[where], lists=lists) if not poisoned else after())(request, connection)

    survived(tmp_path, bad, count=1, reason="rewound")
