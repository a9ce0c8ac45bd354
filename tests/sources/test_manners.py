"""A server is asked no more often than its answers are worth: each request either brings something or costs a wait.

Requests are counted against waits, which are counted too, and whose lengths are looked at instead of a clock.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from kpx.sources import trouble
from kpx.sources.resource import Pace
from tests.apiserver import Request
from tests.apiserver.wire import Connection

from .hostile import (
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
from .test_garbage import Knows, following
from .told import until

SANE = Sane({"Node": [{"metadata": {"name": "node-0", "resourceVersion": "9"}}]}, 10)
PACE = Pace(lifetime=(60, 60), patience=30, silence=(60, 60), calm=(60, 60), backoff=(0.02, 0.16))
"""Only Services are in trouble, so that whoever counts need not look at the others."""

OK = head()
WAITS = 8
Say = Callable[[Request, int], bytes]
"""What is said to a request for Services, which are counted from 0 on; the answer ends there."""


def lists(say: Callable[[Request, int], bytes]) -> Say:
    """This to lists; no WatchList, and watches that never say anything."""
    return lambda request, number: head(400) if is_watch(request) else say(request, number)


def watches(say: Callable[[Request, int], bytes]) -> Say:
    """This to watches; lists of one Service, no WatchList."""

    def answer(request: Request, number: int) -> bytes:
        if is_watch(request):
            return head(400) if is_census(request) else say(request, number)
        return OK + listing("Service", [service("web")], "10")

    return answer


def streams(say: Callable[[Request, int], bytes]) -> Say:
    """This after what there is at first, in one watch."""
    begun = line("ADDED", service("web")) + bookmark("Service", "10", end=True)
    return lambda request, number: (OK + begun if is_census(request) else b"") + say(request, number)


def page(token: str, *items: object) -> bytes:
    return OK + listing("Service", items, "10", token)  # type: ignore[arg-type]


SERVERS: dict[str, Say] = {
    "a watch brings a bookmark and ends": watches(lambda *_: OK + bookmark("Service", "10")),
    "a watch brings newer bookmarks and ends": watches(lambda _, n: OK + bookmark("Service", str(10 + n))),
    "a watch ends at once": watches(lambda *_: OK),
    "a watch brings what is known and ends": watches(lambda *_: OK + line("MODIFIED", service("web", "10"))),
    "a watch brings what was and ends": watches(lambda *_: OK + line("MODIFIED", service("web", "4"))),
    "a watch has news and ends": watches(lambda _, n: OK + line("MODIFIED", service("web", str(11 + n)))),
    "a watch is refused": watches(lambda *_: head(404)),
    "a watch is a bad request": watches(lambda *_: head(400)),
    "a watch is 410": watches(lambda *_: head(410)),
    "a watch is an ERROR with 410": watches(lambda *_: OK + line("ERROR", status(410, "old"))),
    "a watch is news and 410": watches(
        lambda _, n: OK + line("ADDED", service("x", str(11 + n))) + line("ERROR", status(410, "old"))
    ),
    "a watch is garbage": watches(lambda *_: OK + b"x\n"),
    "a watch is of another past": watches(lambda *_: OK + bookmark("Service", "3")),
    "a watch is somewhere else": watches(lambda *_: head(302, Location="/")),
    "a list is empty": lists(lambda *_: OK),
    "a list is no content": lists(lambda *_: head(204)),
    "a list is somewhere else": lists(lambda *_: head(301, Location="/api/v1/services")),
    "a list is 410": lists(lambda *_: head(410)),
    "a list is a bad request": lists(lambda *_: head(400)),
    "a token returns itself": lists(lambda *_: page("again", service("web"))),
    "tokens go round": lists(lambda _, n: page(f"round-{n % 3}", service("web"))),
    "tokens lead nowhere": lists(lambda _, n: page(f"token-{n}")),
    "tokens lead to the same": lists(lambda _, n: page(f"token-{n}", service("web"))),
    "tokens lead to nobody": lists(lambda _, n: page(f"token-{n}", {"metadata": 7})),
    "a page too large for one": lists(lambda *_: OK + b" " * (7 << 20)),
    "a stream ends after the beginning": streams(lambda *_: b""),
    "a stream is 410 after the beginning": streams(lambda *_: line("ERROR", status(410, "old"))),
    "a stream ends before the beginning": lambda *_: OK,
    "everything is nothing": lambda *_: b"",
    "everything is 401": lambda *_: head(401),
    "everything is 403": lambda *_: head(403),
    "everything is 500": lambda *_: head(500),
}


@pytest.mark.parametrize("name", SERVERS)
def test_no_busy_loop(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "random", type("Longest", (), {"uniform": staticmethod(lambda _, most: most)}))
    numbers = itertools.count()

    async def answer(request: Request, connection: Connection) -> None:
        if kind_of(request) != "Service":
            await SANE(request, connection)
        else:
            await connection.send(SERVERS[name](request, next(numbers)))

    async def run() -> None:
        knows = Knows()
        async with following(server, tmp_path, knows, PACE) as task:
            await until(lambda: task.done() or len(waits(logged)) >= WAITS, 20)

    with structlog.testing.capture_logs() as logged, HostileServer(answer) as server:
        asyncio.run(run())
    asked = sum(kind_of(request) == "Service" for request in server.requests)
    found = waits(logged)
    print(f"\n{asked} requests, {len(found)} waits: {found}")
    assert asked <= 2 * len(found) + 8  # a list and a watch; what an old server doesn't know; pages that are too large
    assert all(found)
    if "news" not in name:
        assert max(found) >= PACE.backoff[1] / 2


def waits(logged: Iterable[Mapping[str, Any]]) -> list[float]:
    """How long it was waited before Services were asked for again."""
    return [one["retry_seconds"] for one in logged if one["event"] == "watch interrupted" and one["kind"] == "Service"]


def test_a_server_without_bookmarks_is_asked_seldom_where_it_is(tmp_path: Path) -> None:
    """For each watch that was silent for too long there is a new one, and a list of one object."""

    async def answer(request: Request, connection: Connection) -> None:
        if not is_watch(request):
            await SANE(request, connection)
            return
        end = bookmark(kind_of(request), "10", end=True)
        await connection.send(head() + (end if is_census(request) else b""))
        await forever()

    async def run() -> None:
        knows = Knows()
        pace = Pace(lifetime=(60, 60), patience=30, silence=(1.2, 1.4), backoff=(0.02, 0.16))
        async with following(server, tmp_path, knows, pace) as task:
            await until(lambda: task.done() or knows.troubles["Service", "stalled"] >= 3, 60)
            asked = [request.query for request in server.requests if kind_of(request) == "Service"]
            assert len(asked) <= 2 * knows.troubles["Service", "stalled"] + 3
            assert sum("limit" in query for query in asked) >= 2
            assert set(knows.troubles) == {(kind, "stalled") for kind in ("Service", "EndpointSlice", "Node")}

    with HostileServer(answer) as server:
        asyncio.run(run())


# Elsewhere.


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("way", ["list", "watch"])
def test_redirects_are_not_followed(tmp_path: Path, code: int, way: str) -> None:
    """Neither to other hosts, where the token would be somebody else's, nor to this one."""

    async def nobody(request: Request, connection: Connection) -> None:
        await connection.send(head())

    async def answer(request: Request, connection: Connection) -> None:
        if kind_of(request) != "Service":
            await SANE(request, connection)
        elif is_watch(request) and (way == "list" or is_census(request)):
            await connection.send(head(400))
        elif is_watch(request) or way == "list":
            await connection.send(head(code, Location=f"http://localhost:{elsewhere.port}{request.path}?watch=1"))
        else:
            await connection.send(head() + listing("Service", [service("web")], "10"))

    async def run() -> None:
        knows = Knows()
        async with following(server, tmp_path, knows, PACE) as task:
            await until(lambda: task.done() or knows.troubles["Service", "refused"] >= 3, 20)

    with HostileServer(nobody) as elsewhere, HostileServer(answer) as server:
        with structlog.testing.capture_logs() as logged:
            asyncio.run(run())
        assert elsewhere.requests == []
        assert {request.path for request in server.requests if kind_of(request) == "Service"} == {"/api/v1/services"}
    (told,) = {one["detail"] for one in logged if one.get("reason") == "refused"}
    assert told.startswith(f"{code}: a redirect to http://localhost:{elsewhere.port}/api/v1/services")


def test_cookies_are_not_kept(tmp_path: Path) -> None:
    """A server that hands out ever new ones would fill the memory, and every request."""

    async def answer(request: Request, connection: Connection) -> None:
        name = f"c{len(server.requests)}"
        await connection.send(head(500, Set_Cookie=f"{name}={'x' * 3000}; Max-Age=9999999"))

    async def run() -> None:
        knows = Knows()
        async with following(server, tmp_path, knows, PACE) as task:
            await until(lambda: task.done() or knows.troubles["Service", "failed"] >= 3, 20)

    with HostileServer(answer) as server:
        asyncio.run(run())
        assert not any("cookie" in request.headers for request in server.requests)


# Servers that don't know everything.


@pytest.mark.parametrize("watch_list", [True, False])
@pytest.mark.parametrize("message", ["field label not supported: spec.clusterIP", "no", ""])
def test_a_server_that_does_not_know_the_field_selector(tmp_path: Path, watch_list: bool, message: str) -> None:
    """What comes without it does no harm: headless Services have no rules anyway."""
    services = [service("web"), service("headless", clusterIP="None")]
    sane = Sane({"Service": services, "Node": [{"metadata": {"name": "node-0", "resourceVersion": "9"}}]}, 10)

    async def answer(request: Request, connection: Connection) -> None:
        knows_not = "clusterIP" in request.query.get("fieldSelector", "")
        if knows_not or (is_census(request) and not watch_list):
            await connection.send(head(400) + json.dumps(status(400, message if knows_not else "no")).encode())
        else:
            await sane(request, connection)

    async def run() -> None:
        knows = Knows()
        async with following(server, tmp_path, knows, PACE) as task:
            await until(lambda: task.done() or len(knows.synced) == 3, 20)
            assert not knows.troubles
            assert {name for kind, _, name in knows.objects if kind == "Service"} == {"web", "headless"}

    with HostileServer(answer) as server:
        asyncio.run(run())
        of_services = [request.query for request in server.requests if kind_of(request) == "Service"]
        assert all(query["labelSelector"] == "!service.kubernetes.io/service-proxy-name" for query in of_services)
        assert of_services[0]["fieldSelector"] == "spec.clusterIP!=None"
        assert "fieldSelector" not in of_services[-1]
