import asyncio
import dataclasses
import gc
import os
import random
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from kpx.api import KubeProxyConfiguration
from kpx.sources import connection, http2, requests
from kpx.sources.body import LONGEST, LineSplitter
from kpx.sources.cluster import ClusterSource
from kpx.sources.connection import connect
from kpx.sources.events import Event, Gone, Put, Synced, Unsound
from kpx.sources.lister import Lister
from kpx.sources.mirror import Mirror
from kpx.sources.resource import Pace
from kpx.sources.trouble import BrokenAnswerError, RefusedError, RewoundError
from kpx.sources.wire import JSON, PROTOBUF, Entry, decode_line
from tests.apiserver import (
    ALLOW_ALL,
    NODE_PROXIER,
    ApiServer,
    ApiServerProcess,
    Faults,
    Next,
    Promises,
    churn,
    node_objects,
    population,
)
from tests.apiserver.faults import BODY, BOOKMARK, DELIVERY, REQUEST

from .told import FAST, STEADY, Told, agreed, connected, expected, following, running, until

Test = Callable[[ApiServer, Told], Coroutine[Any, Any, None]]

LISTS = Promises(watch_list=False, bookmark_interval=0.3)
STREAMS = Promises(watch_list=True, bookmark_interval=0.3)
SUSPICIOUS = dataclasses.replace(STEADY, silence=FAST.silence, calm=FAST.calm)
MILD = {"drip_rate": 200_000, "hold_seconds": 0.4, "freeze_seconds": 0.2, "oversize_bytes": 1 << 20}


def service(name: str, **spec: Any) -> dict[str, Any]:
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]} | spec
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def labelled(name: str, *labels: str) -> dict[str, Any]:
    made = service(name)
    made["metadata"]["labels"] = dict.fromkeys(labels, "")
    return made


HEADLESS = "service.kubernetes.io/headless"
PROXIED = "service.kubernetes.io/service-proxy-name"


def check(
    directory: Path,
    test: Test,
    *,
    promises: Promises = STREAMS,
    tls: bool = False,
    pace: Pace = STEADY,
    count: int = 40,
) -> Told:
    """Run a test while a source follows a server with some objects, and until both agree in the end."""

    async def run(server: ApiServer) -> Told:
        async with following(server, directory, pace) as told:
            await test(server, told)
            await agreed(told, server)
        return told

    with ApiServer(promises=promises, tls=tls) as server:
        server.put_all(node_objects(2))
        for verb, obj in islice(churn(1), count):
            server.change(verb, obj)
        return asyncio.run(run(server))


async def nothing(server: ApiServer, told: Told) -> None:
    """Only agree."""


# What is on the wire.


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), min_size=1), st.data())
def test_lines_come_whole_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"unfinished"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    splitter = LineSplitter()
    found = [line for start, end in pairwise([0, *cuts, len(stream)]) for line in splitter.feed(stream[start:end])]
    assert found == lines


def test_endless_line() -> None:
    splitter, half = LineSplitter(), b"x" * (LONGEST // 2)
    assert list(splitter.feed(half)) == list(splitter.feed(half)) == []
    with pytest.raises(BrokenAnswerError, match="a line of over"):
        list(splitter.feed(b"x"))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\x00",
        b'{"type":"ADDED"}',
        b'{"type":"ADDED","object":null}',
        b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}',
        b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"x"}}}',
        b'{"type":"BOOKMARK","object":{"metadata":{}}}',
        b'{"type":"BOOKMARK","object":{}}',
        b'{"type":"CHANGED","object":{"metadata":{"name":"a","resourceVersion":"1"}}}',
        b'{"type":"ERROR","object":[]}',
    ],
)
def test_lines_that_are_none(line: bytes) -> None:
    with pytest.raises(BrokenAnswerError):
        decode_line("Service", line)


def test_error_lines() -> None:
    with pytest.raises(RefusedError, match="too old") as raised:
        decode_line("Service", b'{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}')
    assert raised.value.status == 410
    with pytest.raises(RefusedError) as raised:
        decode_line("Service", b'{"type":"ERROR","object":{}}')
    assert raised.value.status == 500


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"metadata":null}', b'{"metadata":{"resourceVersion":""}}'])
def test_lists_that_are_none(body: bytes) -> None:
    reader = JSON.reader("Service")
    list(reader.feed(body))
    with pytest.raises(BrokenAnswerError):
        list(reader.rest())


# What is news.


class Heard(list[Event]):
    """Events in short: `+web` is there, `-web` is gone, `!web` is unsound, `Service` is complete."""

    def short(self) -> str:
        marks = {Gone: "-", Unsound: "!"}
        words = []
        for event in self:
            match event:
                case Put(found):
                    words.append(f"+{found.metadata.name}{found.metadata.resource_version}")
                case Synced(kind):
                    words.append(kind)
                case Gone(_, _, name) | Unsound(_, _, name):
                    words.append(f"{marks[type(event)]}{name}")
        self.clear()
        return " ".join(words)


def entry(name: str, version: int, **spec: Any) -> Entry:
    made = service(name, **spec)
    made["metadata"]["resourceVersion"] = str(version)
    return Entry.of("Service", made)


def mirror(**versions: int) -> tuple[Mirror, Heard]:
    """A mirror after a first census that came across these objects."""
    heard = Heard()
    made = Mirror("Service", heard.append)
    made.begin()
    for name, version in versions.items():
        made.put(entry(name, version))
    made.finish(10)
    return made, heard


def test_first_census() -> None:
    made, heard = mirror(a=1, b=2)
    assert heard.short() == "+a1 +b2 Service"
    assert (made.version, len(made)) == (10, 2)


def test_second_census_tells_the_difference() -> None:
    made, heard = mirror(a=1, b=2, c=3)
    heard.clear()
    made.begin()
    assert made.version is None
    for name, version in (("b", 2), ("c", 11), ("d", 12)):
        made.put(entry(name, version))
    made.finish(12)
    assert heard.short() == "+c11 +d12 -a"


def test_census_that_breaks_off_is_worth_nothing() -> None:
    made, heard = mirror(a=1, b=2)
    heard.clear()
    made.begin()
    made.put(entry("b", 11))
    made.begin()
    made.put(entry("a", 1))
    made.finish(12)
    assert heard.short() == "+b11 -b"


def test_changes_during_a_census() -> None:
    """Initial events may lag behind what we know, and be followed by changes before they are complete."""
    made, heard = mirror(a=1, b=8, c=9)
    heard.clear()
    made.begin()
    for found in (entry("a", 1), entry("b", 2), entry("c", 9)):
        made.put(found)
    made.remove(entry("a", 7))
    made.put(entry("b", 8))
    made.remove(entry("c", 11))
    made.put(entry("c", 12))
    made.finish(12)
    assert heard.short() == "-a -c +c12"


def test_old_news_is_no_news() -> None:
    made, heard = mirror(a=1)
    heard.clear()
    made.put(entry("a", 11))
    made.put(entry("a", 11))
    made.put(entry("a", 10))
    made.remove(entry("a", 10))
    assert heard.short() == "+a11"
    made.remove(entry("a", 12))
    made.put(entry("a", 11))  # a connection of before
    made.remove(entry("a", 12))
    made.remove(entry("never", 13))
    assert heard.short() == "-a"
    assert made.version == 13
    made.bookmark(12)
    assert made.version == 13
    made.bookmark(20)
    assert made.version == 20


def test_unsound_objects_are_told_once_a_version() -> None:
    made, heard = mirror(a=1)
    heard.clear()
    bad: list[dict[str, Any]] = [{"port": 0}]
    made.put(entry("a", 11, ports=bad))
    made.put(entry("b", 12, ports=bad))
    made.begin()
    made.put(entry("a", 11, ports=bad))
    made.finish(13)
    made.put(entry("a", 14))
    assert heard.short() == "!a !b -b +a14"


def test_a_server_with_another_past() -> None:
    made, heard = mirror(a=5, b=6, c=7)
    heard.clear()
    made.begin()
    made.put(entry("a", 4))
    made.put(entry("b", 6))
    with pytest.raises(RewoundError):
        made.finish(8)
    made.begin()
    made.put(entry("a", 4))
    made.put(entry("b", 6))
    made.finish(8)
    assert heard.short() == "+a4 +b6 -c"
    made.put(entry("b", 9))
    assert heard.short() == "+b9"


@given(st.integers(), st.integers(1, 60))
def test_mirror_converges(seed: int, steps: int) -> None:
    """Whatever is repeated, lags behind or breaks off: what was told is in the end what is there."""
    rng = random.Random(seed)
    told = Told()
    made = Mirror("Service", told)
    log: list[tuple[int, str, bool]] = []
    state: dict[str, int] = {}
    history: list[dict[str, int]] = [{}]
    for version in range(1, steps + 1):
        name = rng.choice("abcd")
        there = name not in state or rng.random() < 0.6
        state = {**state, name: version} if there else {key: value for key, value in state.items() if key != name}
        log.append((version, name, there))
        history.append(state)

    def replay(since: int, until_: int) -> None:
        for version, name, there in log[since:until_]:
            (made.put if there else made.remove)(entry(name, version))

    now = 0
    while now < steps or made.version != steps:
        now = min(steps, now + rng.randrange(4))
        if made.version is None:
            made.begin()
            since = rng.randint(0, now)
            for name, version in history[since].items():
                made.put(entry(name, version))
            replay(since, now)
            if rng.random() < 0.7:
                made.finish(now)
        else:
            replay(max(0, made.version - rng.randrange(3)), now)
            if rng.random() < 0.2:
                made.expire()
    assert {name: found.metadata.resource_version for (_, _, name), found in told.objects.items()} == {
        name: str(version) for name, version in state.items()
    }


# A sound server.


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("promises", [LISTS, STREAMS], ids=["lists", "streams"])
def test_initial_state_then_changes(tmp_path: Path, promises: Promises, tls: bool) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        assert told.counts["Put"] == len(told.objects)
        last = {kind: told.events.index(Synced(kind)) for kind in told.synced}
        for index, event in enumerate(told.events):
            if isinstance(event, Put):
                assert index < last[type(event.object).__name__]
        for verb, obj in islice(churn(1), 40, 140):
            server.change(verb, obj)
        await agreed(told, server)
        assert told.restarts == {}
        requests = [request.query for request in server.requests]
        watches = [query for query in requests if "watch" in query]
        assert all(query["allowWatchBookmarks"] == "true" for query in watches)
        lists = [query for query in requests if "watch" not in query]
        assert bool(lists) is (promises is LISTS)
        assert all(query["resourceVersion"] == "0" for query in lists)  # from the cache

    check(tmp_path, test, promises=promises, tls=tls)


def test_the_whole_list_from_the_cache(tmp_path: Path) -> None:
    """In one piece, gzipped by the server, taken apart as it comes."""

    async def run() -> None:
        async with following(server, tmp_path) as told:
            await agreed(told, server)
            assert told.counts["Put"] == 1203
        lists = [request.query for request in server.requests if "watch" not in request.query]
        assert len(lists) == 3
        assert all("limit" not in query and query["resourceVersion"] == "0" for query in lists)
        assert server.stats.bytes_sent < 400_000

    with ApiServer(promises=LISTS) as server:
        server.put_all(node_objects(2))
        server.put_all(population(601))
        asyncio.run(run())


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if lists were too large to come from the cache in one piece."""
    monkeypatch.setattr(Lister, "_cached", False)


@pytest.mark.usefixtures("paged")
def test_pages(tmp_path: Path) -> None:
    """More than a page of each kind."""

    async def run() -> None:
        async with following(server, tmp_path) as told:
            await agreed(told, server)
            assert told.counts["Put"] == 1203
        requests = [request for request in server.requests if "limit" in request.query]
        paths = [request.path for request in requests]
        assert [paths.count(path) for path in ("/api/v1/services", "/api/v1/nodes")] == [2, 1]
        assert len(requests) == 2 + 1 + 7
        assert len({request.connection for request in requests}) <= 3
        assert server.stats.bytes_sent < 800_000

    with ApiServer(promises=LISTS) as server:
        server.put_all(node_objects(2))
        server.put_all(population(601))
        asyncio.run(run())


def test_what_is_not_ours(tmp_path: Path) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        server.put(service("headless", clusterIP="None"))
        server.put(labelled("proxied", PROXIED))
        server.put(labelled("ours", HEADLESS))  # the label is for slices
        await agreed(told, server)
        assert {name for _, _, name in told.objects} & {"headless", "proxied", "ours"} == {"ours"}
        server.put(labelled("ours", "app", PROXIED))
        await until(lambda: ("Service", "shop", "ours") not in told.objects)
        server.put(service("headless"))
        await until(lambda: ("Service", "shop", "headless") in told.objects)
        nodes = [name for kind, _, name in told.objects if kind == "Node"]
        assert nodes == ["node-0"]
        server.delete("Node", "", "node-0")
        await until(lambda: Gone("Node", "", "node-0") in told.events)

    check(tmp_path, test)


def test_unknown_node_is_complete(tmp_path: Path) -> None:
    async def run() -> None:
        told = Told()
        async with (
            connected(server.kubeconfig(tmp_path / "kubeconfig")) as made,
            running(ClusterSource(made, "elsewhere", told.restarted, FAST), told),
        ):
            await until(told.complete)

    with ApiServer() as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_watches_end_by_themselves(tmp_path: Path) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        since = len(server.requests)
        events = len(told.events)
        await until(lambda: told.restarts["Node", "ended"] >= 2)
        assert told.reasons() == {"ended"}
        assert len(told.events) == events
        again = server.requests[since:]
        assert all(int(request.query["resourceVersion"]) >= server.version - 1 for request in again)
        assert all(request.query["timeoutSeconds"] == "1" for request in again)

    check(tmp_path, test, pace=dataclasses.replace(STEADY, lifetime=(0.6, 1.4)))


def test_unsound_object_and_its_recovery(tmp_path: Path) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        server.put(service("bad"))
        await until(lambda: ("Service", "shop", "bad") in told.objects)
        server.put(service("bad", ports=[{"port": 0}]))
        await until(lambda: told.unsound)
        (unsound,) = told.unsound.values()
        assert [problem.path for problem in unsound.problems] == ["spec.ports[0].port"]
        assert ("Service", "shop", "bad") in told.objects
        server.refuse()
        server.drop_connections()
        await until(lambda: not server.open_watches)
        server.put(service("other"))  # what the watch has missed when history is forgotten
        server.compact()
        server.accept()
        await until(lambda: ("Service", "shop", "other") in told.objects)
        assert told.restarts["Service", "expired"] == 1
        assert told.counts["Unsound"] == 1
        server.put(service("bad", ports=[{"port": 81}]))

    told = check(tmp_path, test)
    assert told.unsound == {}


# Trouble.


@pytest.mark.parametrize("promises", [LISTS, STREAMS], ids=["lists", "streams"])
def test_relist_tells_only_what_differs(tmp_path: Path, promises: Promises) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        server.put(service("one"))
        server.put(service("two"))
        await agreed(told, server)
        told.events.clear()
        server.refuse()
        server.drop_connections()
        await until(lambda: not server.open_watches)
        server.delete("Service", "shop", "one")
        server.put(service("two", clusterIP="10.96.0.2"))
        server.put(service("three"))
        server.compact()
        await until(lambda: {"dropped", "unreachable"} <= told.reasons())
        server.accept()
        await agreed(told, server)
        assert told.restarts["Service", "expired"] == 1
        names = sorted(event.object.metadata.name for event in told.events if isinstance(event, Put))
        assert names == ["three", "two"]
        assert [event for event in told.events if isinstance(event, Gone)] == [Gone("Service", "shop", "one")]
        assert len(told.events) == 3

    check(tmp_path, test, promises=promises)


@pytest.mark.usefixtures("paged")
def test_list_expires_between_pages(tmp_path: Path) -> None:
    async def run() -> None:
        told = Told()

        def sink(event: Event) -> None:
            if told.counts["Put"] == 50:
                server.put(service("late"))
                server.compact()
            told(event)

        async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as made:
            source = ClusterSource(made, "node-0", told.restarted, FAST)
            task = asyncio.create_task(source.run(sink))
            await agreed(told, server)
            task.cancel()
        assert told.restarts["Service", "expired"] + told.restarts["EndpointSlice", "expired"] >= 1

    with ApiServer(promises=LISTS) as server:
        server.put_all(node_objects())
        server.put_all(population(700))
        asyncio.run(run())


@pytest.mark.usefixtures("paged")
def test_a_page_that_is_refused_costs_no_other(tmp_path: Path) -> None:
    """Every other page is: who began anew each time would have to be lucky seven times in a row."""

    async def run() -> None:
        async with following(server, tmp_path, FAST) as told:
            await agreed(told, server)
        asked = [request.query for request in server.requests if request.path.endswith("/endpointslices")]
        pages = [query.get("continue", "") for query in asked if "limit" in query]
        assert len(set(pages)) == 7
        assert pages == sorted(pages, key=pages.index)  # none is asked for after a later one
        assert len(pages) > 7

    with ApiServer(promises=LISTS) as server:
        server.put_all(node_objects())
        server.put_all(population(601))
        server.faults = Faults(unavailable=0.25, reset=0.25, seed=1, only=("list", "endpointslices"))
        asyncio.run(run())


@pytest.fixture(params=["http1, json", "http1, protobuf", "http2, json", "http2, protobuf"])
def tls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each transport with each content type; whether the server has TLS, and so HTTP/2."""
    transport, spelled = request.param.split(", ")
    if spelled == "json":
        monkeypatch.setattr(requests, "PROTOBUF", dataclasses.replace(PROTOBUF, wish=JSON.wish, stream=JSON.stream))
    return bool(transport == "http2")


@pytest.mark.parametrize("fault", sorted({*REQUEST, *BODY, *DELIVERY, *BOOKMARK}))
def test_every_fault(tmp_path: Path, fault: str, tls: bool) -> None:
    """Three times at the start, and three times while objects change; with lists and with streams."""

    async def run(server: ApiServer, directory: Path) -> None:
        changes = churn(2)
        for verb, obj in islice(changes, 60):
            server.change(verb, obj)
        faults = Faults(**{fault: Next(3)}, **MILD, seed=3)  # type: ignore[arg-type]
        server.faults = faults
        directory.mkdir()
        async with following(server, directory, FAST) as told:
            await agreed(told, server)
            server.faults = faults
            for verb, obj in islice(changes, 30):
                server.change(verb, obj)
                await asyncio.sleep(0.002)
            server.drop_watches()
            await agreed(told, server)
            if fault not in BODY or server is lists or fault in DELIVERY:
                # A watch that came through before the fault's turn meets it no more: a new one does, or one with news.
                for _ in range(12):
                    with suppress(AssertionError):
                        await until(lambda: server.stats.faults.get(fault, 0) >= 3, 5.0)
                        break
                    server.drop_watches()
                    for verb, obj in islice(changes, 3):
                        server.change(verb, obj)
                assert server.stats.faults.get(fault, 0) >= 3
                await agreed(told, server)

    async def both() -> None:
        await asyncio.gather(run(lists, tmp_path / "lists"), run(streams, tmp_path / "streams"))

    with ApiServer(promises=LISTS, tls=tls) as lists, ApiServer(promises=STREAMS, tls=tls) as streams:
        for server in (lists, streams):
            server.put_all(node_objects(2))
        asyncio.run(both())


@pytest.mark.parametrize("seed", range(4))
def test_all_faults_at_once(tmp_path: Path, seed: int) -> None:
    names = (*REQUEST, *BODY, *DELIVERY, *BOOKMARK)
    promises = Promises(watch_list=seed % 2 == 0, gone_as_status=seed > 1, bookmark_interval=0.2, history=60)

    async def run() -> None:
        changes = churn(seed)
        for verb, obj in islice(changes, 60):
            server.change(verb, obj)
        mild = MILD | {"oversize_bytes": 1 << 16}  # for what drips takes its time
        server.faults = Faults(**dict.fromkeys(names, 0.025), **mild, seed=seed)  # type: ignore[arg-type]
        async with following(server, tmp_path, FAST) as told:
            for step, (verb, obj) in enumerate(islice(changes, 200)):
                server.change(verb, obj)
                await asyncio.sleep(0.01)
                match step % 60:
                    case 10:
                        server.compact()
                    case 20:
                        server.drop_watches()
                    case 30:
                        server.jump(1000)
                    case 40:
                        server.restart(keep_history=step > 100)
            await agreed(told, server)
        assert sum(told.restarts.values()) > 10

    with ApiServer(promises=promises, tls=seed % 2 == 1) as server:
        server.put_all(node_objects(2))
        asyncio.run(run())


@pytest.mark.parametrize("promises", [LISTS, STREAMS], ids=["lists", "streams"])
def test_storm_of_410(tmp_path: Path, promises: Promises) -> None:
    """Every watch ends with 410 after a change: censuses back off, and the server gets some rest."""

    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        server.faults = Faults(gone_event=1.0)
        began, since = time.monotonic(), len(server.requests)
        for number in range(40):
            server.put(service("busy", clusterIP=f"10.96.0.{number + 1}"))
            await asyncio.sleep(0.05)
        asked = len([r for r in server.requests[since:] if r.path == "/api/v1/services"])
        assert asked < 60 * (time.monotonic() - began)
        server.faults = Faults()

    check(tmp_path, test, promises=promises)


@pytest.mark.parametrize("tls", [False, True], ids=["http1", "http2"])
def test_stalled_watch_is_found_out(tmp_path: Path, tls: bool) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        await asyncio.sleep(0.3)  # a bookmark
        server.stall_watches()
        server.put(service("news"))
        await until(lambda: ("Service", "shop", "news") in told.objects)
        assert {reason for _, reason in told.restarts} == {"stalled"}

    check(tmp_path, test, promises=Promises(bookmark_interval=0.2), pace=SUSPICIOUS, tls=tls)


@pytest.mark.parametrize("tls", [False, True], ids=["http1", "http2"])
def test_where_nothing_happens_nothing_is_asked(tmp_path: Path, tls: bool) -> None:
    """Also while the server would refuse to answer."""

    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        await until(lambda: len(server.open_watches) == 3)
        before, asked = {watch.connection for watch in server.open_watches}, len(server.requests)
        await asyncio.sleep(2.0)
        server.faults = Faults(unavailable=0.4, mute=0.4, reset=0.4)
        await asyncio.sleep(2.0)
        assert before == {watch.connection for watch in server.open_watches}
        assert len(server.requests) == asked
        assert told.restarts == {}
        assert server.stats.connections == (1 if tls else 3)
        server.faults = Faults()

    check(tmp_path, test, promises=Promises(bookmark_interval=0.2), pace=SUSPICIOUS, tls=tls)


def test_a_server_that_hangs_does_not_answer_a_ping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel acknowledges what comes, and TCP is content."""
    monkeypatch.setattr(http2, "PING_AFTER", 0.5)
    monkeypatch.setattr(http2, "PING_PATIENCE", 0.5)

    async def run() -> None:
        told = Told()
        async with (
            connected(server.kubeconfig(tmp_path / "kubeconfig")) as made,
            running(ClusterSource(made, "node-0", told.restarted, STEADY), told),
        ):
            await until(told.complete)
            await asyncio.sleep(2.0)
            assert told.restarts == {}  # it answers
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await until(lambda: sum(told.restarts.values()) >= 3, 30)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert told.reasons() == {"stalled"}
            server.put(service("news"))
            await until(lambda: ("Service", "shop", "news") in told.objects)

    with ApiServerProcess(tls=True) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_real_times() -> None:
    """As kube-proxy asks; and bookmarks come about once a minute, some of them a few seconds later."""
    pace = Pace()
    assert (http2.PING_AFTER, http2.PING_PATIENCE) == (30.0, 15.0)
    assert 75 < min(pace.silence) <= max(pace.silence) <= 90
    assert max(pace.calm) < min(pace.lifetime)
    assert connection._RENEWAL_SECONDS < pace.patience < 30  # old credentials are used before patience is lost


def test_throttling_is_obeyed(tmp_path: Path) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        server.faults = Faults(throttle=Next(3), retry_after=1)
        since = len(server.requests)
        server.drop_watches()
        await until(lambda: len(server.requests) - since == 6)  # three watches, and one more after each refusal
        times = defaultdict[str, list[float]](list)
        for request in server.requests[since:]:
            times[request.path].append(request.time)
        assert all(later - sooner >= 1.0 for of_path in times.values() for sooner, later in pairwise(of_path))
        assert server.stats.faults["throttle"] == 3
        assert told.reasons() == {"dropped", "throttled"}

    check(tmp_path, test, promises=Promises(), pace=STEADY)


def retries(logged: Iterable[Mapping[str, Any]], reason: str, kind: str = "Service") -> list[float]:
    """The delays before which what was in trouble for this reason was asked for again."""
    return [line["retry_seconds"] for line in logged if (line.get("reason"), line.get("kind")) == (reason, kind)]


def test_forbidden_until_allowed(tmp_path: Path) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        await until(lambda: told.restarts["Service", "forbidden"] >= 2)
        assert told.reasons() == {"forbidden"}
        assert any("services is forbidden" in line["detail"] for line in logged)
        server.promises = dataclasses.replace(server.promises, rules=NODE_PROXIER)

    with structlog.testing.capture_logs() as logged:
        check(tmp_path, test, promises=dataclasses.replace(STREAMS, rules=()))


def test_a_server_that_has_just_started_is_asked_again_soon(tmp_path: Path) -> None:
    """kube-apiserver forbids everything until it has read its roles, and then has forgotten what was before."""

    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        server.refuse()
        server.drop_connections()
        server.promises = dataclasses.replace(server.promises, rules=())
        await until(lambda: told.restarts["Service", "unreachable"] >= 4)
        server.put(service("news"))
        server.compact()
        server.accept()
        await until(lambda: told.restarts["Service", "forbidden"] >= 1)
        server.promises = dataclasses.replace(server.promises, rules=NODE_PROXIER)
        await agreed(told, server)
        (before,) = retries(logged, "expired")
        assert before <= STEADY.backoff[0]

    with structlog.testing.capture_logs() as logged:
        check(tmp_path, test)


def test_who_is_told_410_again_and_again_asks_slower(tmp_path: Path) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        server.faults = Faults(gone=1.0, only=("list", "services"))
        server.refuse()
        server.drop_connections()
        server.put(service("news"))
        server.compact()
        server.accept()
        await until(lambda: told.restarts["Service", "expired"] >= 12)
        server.faults = Faults()
        assert max(retries(logged, "expired")) > STEADY.backoff[0]

    with structlog.testing.capture_logs() as logged:
        check(tmp_path, test, promises=LISTS)


@pytest.mark.parametrize("status", [400, 422])
def test_watch_list_refused(tmp_path: Path, status: int) -> None:
    async def test(server: ApiServer, told: Told) -> None:
        await agreed(told, server)
        assert told.restarts == {}
        assert server.stats.answers[status] == 3
        server.compact()
        server.drop_watches()
        server.put(service("new"))
        await agreed(told, server)
        assert server.stats.answers[status] == 3  # once is enough

    check(tmp_path, test, promises=Promises(watch_list=False, watch_list_refusal=status, rules=ALLOW_ALL))


def test_oversized_objects(tmp_path: Path) -> None:
    for promises in (LISTS, STREAMS):

        async def test(server: ApiServer, told: Told) -> None:
            server.faults = Faults(oversize=Next(2), oversize_bytes=2 << 20)
            server.put(service("large"))
            server.put(service("larger"))
            await until(lambda: server.stats.faults.get("oversize") == 2)

        check(tmp_path, test, promises=promises)


def test_server_comes_late_and_leaves(tmp_path: Path) -> None:
    async def run() -> None:
        server.refuse()
        async with following(server, tmp_path) as told:
            await until(lambda: told.restarts["Node", "unreachable"] >= 2)
            server.accept()
            await agreed(told, server)
            for down in (0.0, 0.3):
                server.restart(down=down, keep_history=bool(down))
                server.put(service(f"after-{down}".replace(".", "-")))
                await agreed(told, server)

    with ApiServer() as server:
        server.put_all(node_objects())
        asyncio.run(run())


def garbage(answers: list[bytes], done: threading.Event) -> int:
    """A server that gives these bytes, one after the other, to whoever connects; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        turn = 0
        while not done.is_set():
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(answers[turn % len(answers)])
            turn += 1
        listener.close()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_what_is_no_http(tmp_path: Path) -> None:
    answers = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: nowhere://at.all\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 503 No\r\nContent-Length: 4\r\nRetry-After: soon\r\n\r\nbusy",
        b"",
    ]
    done = threading.Event()
    port = garbage(answers, done)

    async def run() -> None:
        (tmp_path / "kubeconfig").write_text(
            "{current-context: a, contexts: [{name: a, context: {cluster: a}}], "
            f"clusters: [{{name: a, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]}}"
        )
        told = Told()
        async with (
            connected(tmp_path / "kubeconfig") as made,
            running(ClusterSource(made, "node-0", told.restarted, FAST), told),
        ):
            await until(lambda: sum(told.restarts.values()) > 4 * len(answers))
            done.set()

    asyncio.run(run())


# Manners.


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ApiServerProcess]:
    """A server in a process of its own, so that what this one has open and does is the source's."""
    with ApiServerProcess(tls=True) as server:
        server.put_all(node_objects())
        server.put_all(population(3000))
        yield server


STATES = {
    "watching": Faults(),
    "waiting for an answer": Faults(mute=1.0),
    "stalled": Faults(stall=1.0),
    "backing off": Faults(unavailable=1.0),
    "reading slowly": Faults(drip=1.0, drip_rate=100),
}


@pytest.mark.parametrize("faults", STATES.values(), ids=STATES)
@pytest.mark.parametrize("promises", [LISTS, STREAMS], ids=["lists", "streams"])
def test_stops_at_once_and_leaves_nothing(
    tmp_path: Path, elsewhere: ApiServerProcess, faults: Faults, promises: Promises
) -> None:
    async def run() -> None:
        await asyncio.to_thread(os.getpid)  # so that the pool of threads is there
        descriptors = 0
        for turn in range(3):
            made = await connect(str(kubeconfig), KubeProxyConfiguration())
            task = asyncio.create_task(ClusterSource(made, "node-0", lambda *_: None).run(Told()))
            await asyncio.sleep(0.2)
            task.cancel()
            await asyncio.wait({task}, timeout=30)
            assert task.cancelled()
            async with asyncio.timeout(30):
                await made.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            if turn == 0:
                descriptors = len(os.listdir("/proc/self/fd"))
        await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)

    elsewhere.promises, elsewhere.faults = promises, faults
    kubeconfig = elsewhere.kubeconfig(tmp_path / "kubeconfig")
    asyncio.run(run())


@pytest.mark.parametrize("promises", [LISTS, STREAMS], ids=["lists", "streams"])
def test_much_at_once_starves_nobody(tmp_path: Path, elsewhere: ApiServerProcess, promises: Promises) -> None:
    """Others get their turn while 6,000 objects come in, and not after all of them.

    Without the garbage collector, which is whoever's business makes the process.
    """
    most = 0
    told = Told()

    async def tick() -> None:
        nonlocal most
        while True:
            before = told.counts["Put"]
            await asyncio.sleep(0)
            most = max(most, told.counts["Put"] - before)

    async def run() -> None:
        async with connected(elsewhere.kubeconfig(tmp_path / "kubeconfig")) as made:
            ticking = asyncio.create_task(tick())
            async with running(ClusterSource(made, "node-0", told.restarted), told):
                await until(told.complete)
            ticking.cancel()
        assert told.counts["Put"] == 6001

    elsewhere.promises, elsewhere.faults = promises, Faults()
    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()
    assert 0 < most < 3_000


def test_two_runs_of_one_source(tmp_path: Path) -> None:
    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as made:
            source = ClusterSource(made, "node-0", lambda kind, reason: None, FAST)
            for _ in range(2):
                told = Told()
                async with running(source, told):
                    await agreed(told, server)
                assert told.objects == expected(server)

    with ApiServer() as server:
        server.put_all(node_objects())
        server.put(service("web"))
        asyncio.run(run())
