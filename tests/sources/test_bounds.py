"""A server that never stops sending: only so much of it is read, the connection is closed, memory stays as it was."""

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import pytest

from kpx.sources.body import LONGEST
from kpx.sources.wire import MOST_VALUES
from tests.apiserver import Request
from tests.apiserver.wire import Connection

from .follower import run
from .hostile import HostileServer, Sane, bookmark, head, is_census, is_watch, kind_of, line, listing, service

MEGABYTE = 1 << 20
SLACK = 20 * MEGABYTE
"""What may be on its way: in the sockets of both ends, and in the client's buffer."""
FILLER = b"x" * MEGABYTE


def endless(*start: bytes, then: bytes = FILLER) -> Iterator[bytes]:
    yield from start
    yield from itertools.repeat(then)


def bombed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A stream that is gzipped: a thousandth of what comes out."""
    packer = zlib.compressobj(wbits=31)
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed


ITEMS = listing("Service", []).removesuffix(b"]}")
ITEM = listing("Service", [service("a")]).partition(b'"items": [')[2].removesuffix(b"]}") + b","
LONG = b'{"type":"ADDED","object":{"metadata":{"annotations":{"a":"'

Flood = tuple[bytes, Callable[[], Iterator[bytes]]]
"""The head of an answer, and its body."""

LISTS: dict[str, Flood] = {
    "error": (head(500), lambda: endless()),
    "error, compressed": (head(404, Content_Encoding="gzip"), lambda: bombed(endless())),
    "page": (head(), lambda: endless(ITEMS, then=ITEM * 1000)),
    "page, compressed": (head(Content_Encoding="gzip"), lambda: bombed(endless(ITEMS, then=ITEM * 1000))),
    "blanks": (head(), lambda: endless(then=b" " * MEGABYTE)),
    "brackets": (head(), lambda: endless(then=b"[" * MEGABYTE)),
    "token": (head(), lambda: endless(b'{"metadata":{"continue":"')),
    "headers": (b"HTTP/1.1 200 OK\r\n", lambda: endless(then=b"X-More: of the same\r\n" * 1000)),
    "one header": (b"HTTP/1.1 200 OK\r\nX: ", lambda: endless()),
    "no line feed": (b"", lambda: endless()),
    "chunk size": (head(Transfer_Encoding="chunked"), lambda: endless(then=b"1" * MEGABYTE)),
    "chunk extension": (head(Transfer_Encoding="chunked") + b"1;", lambda: endless()),
    "trailers": (head(Transfer_Encoding="chunked") + b"0\r\n", lambda: endless(then=b"X-More: of it\r\n" * 1000)),
}
WATCHES: dict[str, Flood] = {
    "line": (head(), lambda: endless(LONG)),
    "line, compressed": (head(Content_Encoding="gzip"), lambda: bombed(endless(LONG))),
    "line after sound ones": (head(), lambda: endless(bookmark("Service", "10"), LONG)),
    "error": (head(410), lambda: endless()),
    "short lines": (head(), lambda: endless(then=b"{}\n" * 300_000)),
    "empty lines": (head(), lambda: endless(then=b"\n" * MEGABYTE)),
}


def flood(
    folder: Path,
    start: bytes,
    body: Callable[[], Iterator[bytes]],
    watches: bool,
    count: int,
    known: Collection[str] = ("node-0",),
) -> Counter[int]:
    """Answer like this to every list or watch of Services, until there was trouble so often; bytes by connection.

    What the source needs for that in memory is bounded, and others are served.
    """
    sane = Sane({"Node": [{"metadata": {"name": "node-0", "resourceVersion": "9"}}]}, 10)

    async def answer(request: Request, connection: Connection) -> None:
        if kind_of(request) != "Service" or (watches and not is_watch(request)):
            await sane(request, connection)
        elif is_watch(request) is not watches or is_census(request):
            await connection.send(head(400))
        else:
            await connection.send(start)
            for piece in body():
                await connection.send(piece)

    with HostileServer(answer) as server:
        found = run(server.kubeconfig(folder / "kubeconfig"), count)
    grown = (found["peak"] - found["before"]) / MEGABYTE
    print(f"\n{found['troubles']}, {server.sent.total() / MEGABYTE:.0f} MiB sent, {grown:.1f} MiB more")
    assert grown < 64
    assert found["known"] == list(known)
    return server.sent


@pytest.mark.parametrize("name", LISTS)
def test_lists_without_end(tmp_path: Path, name: str) -> None:
    sent = flood(tmp_path, *LISTS[name], watches=False, count=6)
    # Of chunks the client passes over what has no meaning, as long as it has patience.
    assert max(sent.values()) < LONGEST + SLACK or name == "chunk extension"


@pytest.mark.parametrize("name", WATCHES)
def test_watches_without_end(tmp_path: Path, name: str) -> None:
    sent = flood(tmp_path, *WATCHES[name], watches=True, count=6)
    assert max(sent.values()) < LONGEST + SLACK


def faulty(count: int) -> bytes:
    """A Service that has as many faults."""
    return line("ADDED", service("many", "11", ports=[{"port": 0}] * count))


BOMBS = {
    "lists in a list": b'{"type":"ADDED","object":{"a":[' + b"[]," * (LONGEST // 3 - 100) + b"0]}}\n",
    "as many as may be": b'{"type":"ADDED","object":{"a":[' + b"{}," * (MOST_VALUES // 2 - 100) + b"0]}}\n",
    "keys": b'{"type":"ADDED","object":{' + b",".join(b'"%d":{}' % n for n in range(MOST_VALUES // 2 - 9)) + b"}}\n",
    "digits": b'{"type":"ADDED","object":{"a":' + b"1" * (LONGEST - 100) + b"}}\n",
    "depth": b'{"type":"ADDED","object":' + b"[" * (LONGEST // 2) + b"\n",
    "faults": faulty(MOST_VALUES // 2 - 1000),
    "as many as may be told": faulty(999),
    "as many as a list may have": faulty(20_000),
    "text": line("ADDED", service("text", "11", clusterIP="x" * (LONGEST - 1000))),
    "label": line("ADDED", service("text", "11", selector={"x" * (LONGEST - 1000): "y"})),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_text_that_is_large_in_memory(tmp_path: Path, name: str) -> None:
    flood(tmp_path, head(), lambda: iter([BOMBS[name]]), watches=True, count=6)


def test_the_same_object_for_ever(tmp_path: Path) -> None:
    """Legitimate load: it takes no memory, and others get their turn."""
    same = line("MODIFIED", service("same", "11")) * 1000

    def body() -> Iterator[bytes]:
        return itertools.repeat(same, 100)

    sent = flood(tmp_path, head(), body, watches=True, count=3, known=["node-0", "same"])
    assert sent.total() >= 2 * 100 * len(same)
