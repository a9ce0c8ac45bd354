"""One connection: what HTTP/2 brings with it, from sound servers and from others."""

import asyncio
import random
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from hypothesis import given, settings
from hypothesis import strategies as st

from kpx.sources import http2
from kpx.sources.connection import Connection
from kpx.sources.trouble import TROUBLE, BrokenAnswerError
from tests.apiserver import ApiServer, Auth, Faults, Promises, node_objects, population
from tests.apiserver.access import Credentials
from tests.apiserver.listener import listen

from .told import STEADY, agreed, connected, following, until

PATH = "/api/v1/nodes"


async def fetched(made: Connection, path: str = PATH) -> bytes:
    async with made.get(path, {}) as answer:
        assert answer.status == 200
        return b"".join([chunk async for chunk in answer.body])


# Sound servers.


def test_one_connection_for_all(tmp_path: Path) -> None:
    async def run() -> None:
        async with following(server, tmp_path) as told:
            await agreed(told, server)
            await until(lambda: len(server.open_watches) == 3)
            assert told.counts["Put"] > 200
        assert server.stats.connections == 1
        await until(lambda: server.stats.open_connections == 0)

    with ApiServer(tls=True) as server:
        server.put_all(node_objects(2))
        server.put_all(population(100))
        asyncio.run(run())


@pytest.mark.parametrize("auth", list(Auth))
def test_servers_without_http2(tmp_path: Path, auth: Auth) -> None:
    """ALPN says so; then each watch has a connection of its own, and nothing else is different."""

    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig", auth)) as made:
            for _ in range(3):
                async with made.get(PATH, {}) as answer:
                    assert answer.status == (403 if auth is Auth.NONE else 200)
                    assert not answer.pinged
        assert server.stats.connections <= 5

    with ApiServer(tls=True, promises=Promises(http2=False)) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_a_server_that_learns_http2(tmp_path: Path) -> None:
    """Asked again once a connection fails: it may have been another's."""

    async def run() -> None:
        async with following(server, tmp_path) as told:
            await agreed(told, server)
            await until(lambda: len(server.open_watches) == 3)
            assert len({watch.connection for watch in server.open_watches}) == 3
            server.promises = Promises(http2=True)
            server.restart(down=0.3)
            server.put(node_objects()[0] | {"spec": {"podCIDR": "10.244.77.0/24"}})
            await agreed(told, server)
            await until(lambda: len(server.open_watches) == 3)
            await until(lambda: server.stats.open_connections == 1, 30)

    with ApiServer(tls=True, promises=Promises(http2=False)) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_goodbye_ends_no_answer(tmp_path: Path) -> None:
    """A server that leaves lets go on what is under way; what comes later is asked on another connection."""

    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as made:
            async with made.get(PATH, {"watch": "1"}) as answer:
                await anext(answer.body)
                server.say_goodbye()
                await asyncio.sleep(0.2)
                server.put(node_objects()[0] | {"spec": {"podCIDR": "10.244.77.0/24"}})
                assert b"MODIFIED" in await anext(answer.body)
                assert await fetched(made)
                assert server.stats.connections == 2
                assert await fetched(made)
                assert server.stats.connections == 2
            await until(lambda: server.stats.open_connections == 1)

    with ApiServer(tls=True) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_who_says_goodbye_all_the_time_is_followed(tmp_path: Path) -> None:
    async def run() -> None:
        pace = STEADY.__class__(lifetime=(1, 2), patience=60, silence=(60, 60), calm=(60, 60), backoff=(0.05, 0.2))
        async with following(server, tmp_path, pace) as told:
            for number in range(20):
                server.say_goodbye()
                server.put(node_objects()[0] | {"spec": {"podCIDR": f"10.244.{number}.0/24"}})
                await asyncio.sleep(0.1)
            await agreed(told, server)
            assert told.reasons() <= {"ended", "dropped"}

    with ApiServer(tls=True) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_as_many_streams_as_the_server_takes(tmp_path: Path) -> None:
    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as made:
            await fetched(made)
            server.limit_streams(2)
            await fetched(made)
            async with made.get(PATH, {"watch": "1"}) as one, made.get(PATH, {"watch": "1"}) as two:
                await anext(one.body)
                await anext(two.body)
                assert server.stats.connections == 1
                async with made.get(PATH, {"watch": "1"}) as three:
                    await anext(three.body)
                    assert server.stats.connections == 2
            assert await fetched(made)
            assert server.stats.connections == 2

    with ApiServer(tls=True) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_a_slow_reader_holds_up_the_server_and_nobody_else(tmp_path: Path) -> None:
    """What waits to be read has a bound, on our side, too."""

    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as made:
            slow = made.get("/api/v1/services", {"watch": "1"})
            answer = await slow.__aenter__()
            await anext(answer.body)
            for number in range(40):
                annotations = {"number": str(number), "a": "x" * 100_000}
                metadata = {"name": "web", "namespace": "shop", "annotations": annotations}
                server.put({"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": {}})
            await asyncio.sleep(0.5)
            assert server.stats.bytes_sent < 2 << 20
            for _ in range(5):
                assert await fetched(made)
            seen = b""
            async for chunk in answer.body:
                seen = seen[-100:] + chunk
                if b'"number":"39"' in seen:
                    break
            await slow.__aexit__(None, None, None)
            assert await fetched(made)
        assert server.stats.connections == 1
        assert server.stats.bytes_sent > 40 * 100_000

    with ApiServer(tls=True) as server:
        server.put_all(node_objects())
        server.put(
            {"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "shop"}, "spec": {}}
        )
        asyncio.run(run())


def test_answers_that_nobody_reads_cost_no_window(tmp_path: Path) -> None:
    """Each is given up with much of it unread; the windows are those of the connection, too."""

    async def run() -> None:
        async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as made:
            for _ in range(40):
                async with made.get("/apis/discovery.k8s.io/v1/endpointslices", {"watch": "1"}) as answer:
                    await anext(answer.body)
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(30):
                assert len(await fetched(made, "/apis/discovery.k8s.io/v1/endpointslices")) > 500_000
        assert server.stats.connections == 1

    with ApiServer(tls=True) as server:
        server.put_all(node_objects())
        server.put_all(population(700))
        asyncio.run(run())


def test_a_stream_that_is_reset_takes_no_other_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            connected(server.kubeconfig(tmp_path / "kubeconfig")) as made,
            made.get(PATH, {"watch": "1"}) as other,
        ):
            await anext(other.body)
            server.faults = Faults(reset=1.0, only=("list",))
            with pytest.raises(ConnectionResetError, match="reset the stream"):
                await fetched(made)
            server.faults = Faults()
            assert await fetched(made)
            server.put(node_objects()[0] | {"spec": {"podCIDR": "10.244.77.0/24"}})
            assert b"MODIFIED" in await anext(other.body)
        assert server.stats.connections == 1

    with ApiServer(tls=True) as server:
        server.put_all(node_objects())
        asyncio.run(run())


def test_a_proxy_is_asked_by_http1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        while await reader.readline() not in (b"\r\n", b""):
            pass
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"HTTP/1.1 200 Fine\r\n\r\n")

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(carry(reader, back), carry(there, writer))

    async def run() -> None:
        listening = await asyncio.start_server(proxy, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        path = server.kubeconfig(tmp_path / "kubeconfig")
        config = yaml.safe_load(path.read_text())
        config["clusters"][0]["cluster"]["proxy-url"] = f"http://127.0.0.1:{port}"
        path.write_text(yaml.safe_dump(config))
        async with connected(path) as made:
            assert await fetched(made)
        listening.close()

    with ApiServer(tls=True) as server:
        server.put_all(node_objects())
        asyncio.run(run())
    assert asked == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n".encode()]


# Others.

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def hostile(folder: Path, talk: Talk) -> AsyncIterator[Connection]:
    """A connection to a server that agrees to HTTP/2, and then talks as it likes."""
    directory = folder / "pki"
    directory.mkdir(exist_ok=True)
    credentials = Credentials(directory, not (directory / "ca.crt").exists())
    credentials.tls = True
    context = credentials.server_context(http2=True)
    assert context is not None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
            await asyncio.sleep(0.05)
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    sock = listen("127.0.0.1", 0, "")
    server = await asyncio.start_server(serve, sock=sock, ssl=context)
    path = folder / "kubeconfig"
    credentials.kubeconfig(path, f"https://127.0.0.1:{sock.getsockname()[1]}", Auth.TOKEN, 3600.0)
    async with connected(path) as made:
        yield made
    server.close()


class Server:
    """A sound server's half of a connection, as bytes."""

    def __init__(self) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False))
        self.h2.initiate_connection()

    def preface(self) -> bytes:
        return self.h2.data_to_send()

    async def request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Read up to the next request; its stream."""
        writer.write(self.h2.data_to_send())
        while True:
            data = await reader.read(65536)
            if not data:
                raise ConnectionResetError
            found = [event.stream_id for event in self.h2.receive_data(data) if isinstance(event, RequestReceived)]
            writer.write(self.h2.data_to_send())
            if found:
                return int(found[0] or 0)

    def answer(self, stream: int, body: bytes, *headers: tuple[str, str], end: bool = True) -> bytes:
        self.h2.send_headers(stream, [(":status", "200"), *headers])
        for start in range(0, len(body), 10_000):
            self.h2.send_data(stream, body[start : start + 10_000])
        if end:
            self.h2.end_stream(stream)
        return self.h2.data_to_send()


def frame(kind: int, flags: int, stream: int, content: bytes = b"", length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return size.to_bytes(3) + bytes([kind, flags]) + struct.pack(">I", stream) + content


DATA, HEADERS, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
NONSENSE = {
    "nothing": b"",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n" * 100,
    "data for nobody": frame(DATA, 0, 77, b"x"),
    "data for everybody": frame(DATA, 0, 0, b"x"),
    "data before a head": frame(DATA, 0, 1, b"x"),
    "a head that is none": frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"),
    "a head of nothing": frame(HEADERS, 4, 1, b""),
    "a head without end": frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b") * 20_000,
    "a head like a bomb": frame(HEADERS, 4, 1, b"\x40\x01a\x7f\xe0\x5f" + b"x" * 12_000 + b"\xbe" * 50_000),
    "a huge frame": frame(DATA, 0, 1, b"", length=0xFFFFFF),
    "a promise": frame(PUSH, 4, 1, b"\0\0\0\2\x88"),
    "a window of nothing": frame(WINDOW, 0, 0, b"\0\0\0\0"),
    "a window of too much": frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "settings of a wrong size": frame(SETTINGS, 0, 0, b"x"),
    "settings that can't be": frame(SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"),
    "pings": frame(PING, 0, 0, b"x" * 8) * 20_000,
    "settings": frame(SETTINGS, 0, 0) * 20_000,
    "a wrong ping": frame(PING, 0, 0, b"x"),
    "unknown frames": frame(99, 255, 7, b"x" * 1000) * 1000,
    "resets": frame(RESET, 0, 1, b"\0\0\0\0") * 10_000,
    "goodbye": frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0"),
    "goodbyes": frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0") * 10_000,
    "half a goodbye": frame(GOAWAY, 0, 0, b"\0"),
    "empty data": frame(HEADERS, 4, 1, b"\x88") + frame(DATA, 0, 1) * 50_000,
}


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("start", ["at once", "after the settings"])
def test_nonsense_is_trouble_and_nothing_else(tmp_path: Path, name: str, start: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server()
        if start != "at once":
            await server.request(reader, writer)
        writer.write(NONSENSE[name])
        await writer.drain()

    async def run() -> None:
        async with hostile(tmp_path, talk) as made:
            for _ in range(2):
                async with asyncio.timeout(20):
                    with pytest.raises((*TROUBLE, aiohttp.ClientError)):
                        await fetched(made)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "body", "complaint"),
    [
        ([("content-encoding", "br")], b"x", "content encoding br instead of gzip"),
        ([("content-encoding", "gzip")], b"no gzip", "no gzip: Error -3"),
        ([("content-encoding", "gzip")], b"", "no gzip: ends before its end"),
    ],
)
def test_bodies_that_are_not_what_they_say(tmp_path: Path, headers: Any, body: bytes, complaint: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server()
        writer.write(server.answer(await server.request(reader, writer), body, *headers))

    async def run() -> None:
        async with hostile(tmp_path, talk) as made:
            with pytest.raises(BrokenAnswerError, match=complaint):
                await fetched(made)

    asyncio.run(run())


def test_a_bomb_comes_in_pieces(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(bytes(100 << 20)) + packer.flush()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server()
        stream = await server.request(reader, writer)
        server.h2.send_headers(stream, [(":status", "200"), ("content-encoding", "gzip")])
        for start in range(0, len(bomb), 16_000):
            server.h2.send_data(stream, bomb[start : start + 16_000])
            writer.write(server.h2.data_to_send())
        server.h2.end_stream(stream)
        writer.write(server.h2.data_to_send())
        await writer.drain()
        await reader.read()

    async def run() -> None:
        async with hostile(tmp_path, talk) as made, made.get(PATH, {}) as answer:
            sizes = [len(chunk) async for chunk in answer.body]
            assert sum(sizes) == 100 << 20
            assert max(sizes) <= 256 << 10

    asyncio.run(run())


def test_a_server_that_heeds_no_window(tmp_path: Path) -> None:
    """What comes beyond is not kept: the connection ends."""
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        server = Server()
        stream = await server.request(reader, writer)
        writer.write(server.answer(stream, b"", end=False))
        while not writer.is_closing():
            writer.write(frame(DATA, 0, stream, b"x" * 16_000))
            sent += 16_000
            await writer.drain()
            await asyncio.sleep(0)  # drain alone needn't let anybody else run

    async def run() -> None:
        async with hostile(tmp_path, talk) as made, made.get(PATH, {}) as answer:
            await asyncio.sleep(1.0)
            with pytest.raises((BrokenAnswerError, OSError)):
                async for _ in answer.body:
                    pass
        assert sent < 20 << 20

    asyncio.run(run())


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_mutants(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """A sound server's bytes with some of them changed, lost, doubled: an answer, or trouble that is known."""
    rng = random.Random(seed)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server()
        first = bytearray(server.preface())
        stream = await server.request(reader, writer)
        said = bytearray(server.answer(stream, rng.randbytes(3000), ("content-type", "application/json")))
        said[:0] = first if rng.random() < 0.2 else b""
        for _ in range(rng.choice([1, 1, 3])):
            at = rng.randrange(len(said)) if rng.random() < 0.5 else rng.randrange(min(60, len(said)))
            match rng.randrange(4):
                case 0:
                    said[at] = rng.randrange(256)
                case 1:
                    del said[at : at + rng.choice([1, 9, 100])]
                case 2:
                    said[at:at] = rng.choice(list(NONSENSE.values()))[:5000]
                case _:
                    del said[at + 1 :]
            if not said:
                break
        writer.write(bytes(said))

    async def run() -> None:
        async with hostile(tmp_path_factory.getbasetemp(), talk) as made, asyncio.timeout(20):
            try:
                async with made.get(PATH, {}) as answer:
                    async for _ in answer.body:
                        pass
            except TROUBLE as error:
                if isinstance(error, TimeoutError):
                    raise

    asyncio.run(run())


def test_real_bounds() -> None:
    assert http2._WINDOW * 3 < http2._ALL_WINDOWS <= 4 << 20
