"""Real sockets on loopback; a port conflict is a real one."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from structlog.typing import EventDict

from kpx.agent.health import Health
from kpx.agent.listener import Listener, Reply
from kpx.agent.metrics import Metrics
from kpx.agent.servers import HealthServer, MetricsServer, ServiceHealth, ServiceHealthServers, config_document
from kpx.api import KubeProxyConfiguration, Node, parse_config, parse_object
from kpx.compiler.compile import Layout
from kpx.errors import KpxError
from kpx.family import Family, host_port

WEB, API = ("shop", "web"), ("shop", "api")
ANY_LAYOUT = next(iter(Layout))


def asynchronous(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run a test in an event loop of its own; sockets that it leaves open fail it."""

    @wraps(test)
    def run() -> None:
        _OTHERS.clear()
        _OTHERS.update(every_port())
        asyncio.run(test())
        assert listening() == set()

    return run


def listening() -> set[int]:
    """The TCP ports on which this process has begun to listen since the test began, as the kernel has them."""
    return every_port() - _OTHERS


_OTHERS: set[int] = set()
"""Ports of other tests' servers in this process."""


def every_port() -> set[int]:
    mine = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            mine.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    return {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine}


_PORTS = iter(range(20_000 + os.getpid() % 9000, 31_000))


def free_port() -> int:
    """A port that nobody had before, and that the kernel gives no client of its own accord."""
    for port in _PORTS:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free port")


@contextmanager
def occupied(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that someone else listens on."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=kind) as other:
        yield other.getsockname()[1]


@dataclass(frozen=True, slots=True)
class Got:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


async def get(address: str, path: str, method: str = "GET") -> Got:
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.request(method, f"http://{address}{path}", headers={"Connection": "close"}) as response,
    ):
        return Got(response.status, response.headers, await response.read())


class Connection:
    """One connection that is kept for several requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, address: str) -> "Connection":
        host, port = address.rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port)))

    async def get(self, path: str) -> str:
        """The head of the answer."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        (length,) = (line.split()[1] for line in head.splitlines() if line.startswith("Content-Length:"))
        await self.reader.readexactly(int(length))
        return head


async def refused(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def served(address: str, path: str = "/", within: float = 60) -> Got:
    """The first answer there; whoever should listen may still be trying to."""
    deadline = time.monotonic() + within
    while await refused(address):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return await get(address, path)


# --- one listener


def hello(path: str) -> Reply | None:
    return Reply(path.encode()) if path.startswith("/hello") else None


def listener(address: str, hard_fail: bool = False, family: Family | None = None) -> Listener:
    return Listener(address, hello, hard_fail=hard_fail, family=family)


def complaints(logged: list[EventDict]) -> list[tuple[str, str, str | None]]:
    """What was said of ports that can't be had: address, error and Service."""
    return [(one["address"], one["error"], one["service"]) for one in logged if one["log_level"] == "warning"]


@asynchronous
async def test_get_and_head_are_answered_and_nothing_else() -> None:
    async with listener("127.0.0.1:0") as server:
        found = await get(server.bound, "/hello?x=1")
        assert (found.status, found.body) == (200, b"/hello")
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert found.headers["Server"] == "kpx"
        head = await get(server.bound, "/hello", "HEAD")
        assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "6")
        assert (await get(server.bound, "/other")).status == 404
        post = await get(server.bound, "/hello", "POST")
        assert (post.status, post.headers["Allow"]) == (405, "GET, HEAD")


@asynchronous
async def test_a_wildcard_means_both_families() -> None:
    for wildcard in ("0.0.0.0", "[::]"):
        port = free_port()
        async with listener(f"{wildcard}:{port}"):
            assert (await get(f"127.0.0.1:{port}", "/hello")).status == 200
            assert (await get(f"[::1]:{port}", "/hello")).status == 200


@asynchronous
async def test_a_wildcard_of_one_family_leaves_the_port_to_the_other() -> None:
    port = free_port()
    async with listener(f"[::]:{port}", family=Family.IPV6):
        assert await refused(f"127.0.0.1:{port}")
        async with listener(f"0.0.0.0:{port}", family=Family.IPV4):
            assert (await get(f"127.0.0.1:{port}", "/hello")).status == 200
            assert (await get(f"[::1]:{port}", "/hello")).status == 200


@asynchronous
async def test_a_port_in_use_is_reported_once_and_taken_when_it_is_free() -> None:
    with occupied() as port, capture_logs() as logged:
        server = listener(f"127.0.0.1:{port}")
        await server.open()
        assert server.bound == ""
        await asyncio.sleep(0.9)  # two more tries
        assert complaints(logged) == [(f"127.0.0.1:{port}", "Address already in use", None)]
    assert (await served(f"127.0.0.1:{port}", "/hello")).status == 200
    assert server.bound == f"127.0.0.1:{port}"
    await server.close()


@asynchronous
async def test_a_wildcard_waits_for_a_port_that_is_used_on_one_address() -> None:
    with occupied("::1") as port, capture_logs() as logged:
        server = listener(f"0.0.0.0:{port}")
        await server.open()
        assert len(complaints(logged)) == 1
    assert (await served(f"127.0.0.1:{port}", "/hello")).status == 200
    await server.close()


@asynchronous
async def test_an_address_that_the_host_lacks_is_no_end_either() -> None:
    with capture_logs() as logged:
        server = listener("192.0.2.77:4711")
        await server.open()
        assert server.bound == ""
        assert complaints(logged) == [("192.0.2.77:4711", "Cannot assign requested address", None)]
        await server.close()


@asynchronous
async def test_hard_fail() -> None:
    with occupied() as port, pytest.raises(KpxError, match=rf"127\.0\.0\.1:{port} .*Address already in use"):
        await listener(f"127.0.0.1:{port}", hard_fail=True).open()


@asynchronous
async def test_close_while_trying_ends_the_trying() -> None:
    with occupied() as port:
        server = listener(f"127.0.0.1:{port}")
        await server.open()
        await server.close()
    await asyncio.sleep(0.6)
    assert await refused(f"127.0.0.1:{port}")
    assert len(asyncio.all_tasks()) == 1


@asynchronous
async def test_close_is_quick_and_ends_connections() -> None:
    server = listener("127.0.0.1:0")
    await server.open()
    idle, slow = await Connection.to(server.bound), await Connection.to(server.bound)
    assert (await idle.get("/hello")).startswith("HTTP/1.1 200")
    slow.writer.write(b"GET /hello HTTP/1.1\r\nHo")
    await asyncio.sleep(0.05)
    address = server.bound
    await server.close()
    assert (await idle.reader.read(), await slow.reader.read()) == (b"", b"")
    assert await refused(address)
    idle.writer.close()
    slow.writer.close()


@asynchronous
async def test_open_again_after_close() -> None:
    server = listener(f"127.0.0.1:{free_port()}")
    for _ in range(3):
        async with server:
            assert (await get(server.address, "/hello")).status == 200
        assert await refused(server.address)


@asynchronous
async def test_move() -> None:
    port, other = free_port(), free_port()
    async with listener(f"0.0.0.0:{port}") as server:
        for address in (f"127.0.0.1:{port}", f"[::1]:{port}", f"127.0.0.1:{other}"):
            await server.move(address)
            assert server.bound == address
            assert (await get(address, "/hello")).status == 200
        assert await refused(f"127.0.0.1:{port}")
        assert listening() == {other}


@asynchronous
async def test_a_move_to_the_same_address_disturbs_nobody() -> None:
    async with listener(f"127.0.0.1:{free_port()}") as server:
        client = await Connection.to(server.address)
        await client.get("/hello")
        await server.move(server.address)
        assert (await client.get("/hello")).startswith("HTTP/1.1 200")
        client.writer.close()


def test_nonsense_is_refused_in_silence(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listener("127.0.0.1:0") as server:
            host, port = server.bound.split(":")
            for nonsense in (
                b"\x16\x03\x01\x02\x00\x01\x00",
                b"GET /hello HTTP/7\r\n\r\n",
                b"GET / HTTP/1.1\r\n: x\r\n\r\n",
            ):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(nonsense + b"\r\n\r\n")
                assert b" 400 " in await asyncio.wait_for(reader.readline(), 60)
                writer.close()
            assert (await get(server.bound, "/hello")).status == 200

    asyncio.run(run())
    assert caplog.records == []
    assert capfd.readouterr().err == ""


@asynchronous
async def test_an_answer_that_fails_is_a_500() -> None:
    def broken(path: str) -> Reply | None:
        raise ZeroDivisionError(path)

    async with Listener("127.0.0.1:0", broken) as server:
        found = await get(server.bound, "/")
        assert (found.status, found.body) == (500, b"500 internal server error\n")


@pytest.mark.parametrize(("host", "text"), [("10.0.0.1", "10.0.0.1:80"), ("fd00::1", "[fd00::1]:80")])
def test_host_port(host: str, text: str) -> None:
    assert host_port(host, 80) == text


# --- healthz


def tainted_node() -> Node:
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
    node = parse_object("Node", {"metadata": {"name": "node-0"}, "spec": {"taints": [taint]}})
    assert isinstance(node, Node)
    return node


@asynchronous
async def test_health_server() -> None:
    health, metrics, now = Health(60), Metrics(), [1000.0]
    health.updated(Family.IPV4, 1000)
    async with HealthServer(health, metrics, "127.0.0.1:0", clock=lambda: now[0]) as server:
        for path in ("/healthz", "/livez"):
            found = await get(server.bound, path)
            assert found.status == 200
            assert found.headers["X-Content-Type-Options"] == "nosniff"
        health.queued(Family.IPV4, 1000)
        now[0] = 1060.0
        found = await get(server.bound, "/healthz")
        assert found.status == 503
        assert found.json() == {
            "lastUpdated": "1970-01-01T00:16:40Z",
            "currentTime": "1970-01-01T00:17:40Z",
            "nodeEligible": True,
            "healthy": False,
            "status": {"IPv4": {"lastUpdated": "1970-01-01T00:16:40Z", "healthy": False}},
        }
        assert (await get(server.bound, "/livez")).status == 503
        health.updated(Family.IPV4, 1060)
        health.node(tainted_node())
        assert (await get(server.bound, "/healthz")).status == 503
        assert (await get(server.bound, "/livez")).status == 200
        assert (await get(server.bound, "/metrics")).status == 404
    text = metrics.exposition().decode()
    assert 'kubeproxy_proxy_healthz_total{code="503"} 2.0' in text
    assert 'kubeproxy_proxy_livez_total{code="200"} 2.0' in text


# --- metrics


CONFIG = b"""
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: node-0
clusterCIDR: 10.244.0.0/16,fd00:244::/64
clientConnection: {kubeconfig: /etc/kube.conf, qps: 7.5, burst: 20}
logging: {format: json, flushFrequency: 5s, verbosity: 2, options: {json: {infoBufferSize: "64Ki"}}}
iptables: {syncPeriod: 1m30s, minSyncPeriod: 250ms, masqueradeBit: 15}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 2h0m1.5s, udpTimeout: 1us}
nodePortAddresses: [10.0.0.0/8]
featureGates: {SomeGate: true}
bindAddressHardFail: true
"""


@asynchronous
async def test_metrics_server() -> None:
    config, _ = parse_config(CONFIG)
    async with MetricsServer(Metrics(), "127.0.0.1:0", config, ANY_LAYOUT) as server:
        metrics = await get(server.bound, "/metrics")
        assert metrics.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        names = {one.name for one in text_string_to_metric_families(metrics.body.decode())}
        assert names >= {"kpx_build_info", "kubeproxy_sync_proxy_rules_duration_seconds", "process_open_fds"}
        mode = await get(server.bound, "/proxyMode")
        assert (mode.body, mode.headers["Content-Type"]) == (b"iptables", "text/plain; charset=utf-8")
        assert (await get(server.bound, "/healthz")).body == b"ok"
        assert (await get(server.bound, "/livez")).status == 404


@asynchronous
async def test_configz_is_the_configuration_as_its_file_spells_it() -> None:
    config, _ = parse_config(CONFIG)
    async with MetricsServer(Metrics(), "127.0.0.1:0", config, ANY_LAYOUT) as server:
        found = (await get(server.bound, "/configz")).json()
        assert isinstance(found, dict)
        assert found["kpx"]["layout"] == ANY_LAYOUT.value
        document = found["kubeproxy.config.k8s.io"]
        assert document["clusterCIDR"] == "10.244.0.0/16,fd00:244::/64"
        assert document["iptables"]["syncPeriod"] == "1m30s"
        assert document["iptables"]["minSyncPeriod"] == "250ms"
        assert document["conntrack"]["tcpEstablishedTimeout"] == "2h0m1.5s"
        assert document["clientConnection"]["qps"] == 7.5
        assert parse_config(json.dumps(document).encode())[0] == config
        server.config = KubeProxyConfiguration()
        found = (await get(server.bound, "/configz")).json()
        assert isinstance(found, dict)
        assert parse_config(json.dumps(found["kubeproxy.config.k8s.io"]).encode())[0] == KubeProxyConfiguration()


@pytest.mark.parametrize("flush", ["0s", "-1.5s", "999.999999ms", "1h0m0.000000001s", "2562047h0m0s", "1ns"])
def test_durations_read_back_the_same(flush: str) -> None:
    config, _ = parse_config(f"logging: {{flushFrequency: {flush}}}".encode() + CONFIG.replace(b"logging:", b"#"))
    assert parse_config(json.dumps(config_document(config)).encode())[0] == config


@asynchronous
async def test_the_configuration_decides_whether_a_metrics_port_in_use_is_fatal() -> None:
    config, _ = parse_config(CONFIG)
    with occupied() as port, pytest.raises(KpxError, match="bindAddressHardFail"):
        await MetricsServer(Metrics(), f"127.0.0.1:{port}", config, ANY_LAYOUT).open()


# --- health checks of Services


def local_only() -> tuple[str, ...]:
    return ("127.0.0.1",)


def everywhere() -> None:
    return None


@asynchronous
async def test_service_health() -> None:
    health, now, port = Health(60), [1000.0], free_port()
    health.updated(Family.IPV4, 1000)
    async with ServiceHealthServers(Family.IPV4, health, local_only, clock=lambda: now[0]) as servers:
        await servers.sync({WEB: ServiceHealth(port, 2)})
        found = await get(f"127.0.0.1:{port}", "/any/path")
        assert found.status == 200
        assert found.headers["X-Load-Balancing-Endpoint-Weight"] == "2"
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert found.json() == {
            "service": {"namespace": "shop", "name": "web"},
            "localEndpoints": 2,
            "serviceProxyHealthy": True,
        }
        health.node(tainted_node())
        assert (await get(f"127.0.0.1:{port}", "/")).status == 200
        health.queued(Family.IPV4, 1000)
        now[0] = 1060.0
        late = await get(f"127.0.0.1:{port}", "/")
        assert late.status == 503
        assert late.headers["X-Load-Balancing-Endpoint-Weight"] == "2"
        assert b'"serviceProxyHealthy": false' in late.body
        health.updated(Family.IPV4, 1060)
        servers.tell({WEB: ServiceHealth(port, 0)})
        empty = await get(f"127.0.0.1:{port}", "/")
        assert (empty.status, empty.headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")


@asynchronous
async def test_ports_open_and_close_as_services_change() -> None:
    first, second, third = free_port(), free_port(), free_port()
    async with ServiceHealthServers(Family.IPV4, Health(60), local_only) as servers:
        assert listening() == set()
        await servers.sync({WEB: ServiceHealth(first, 1), API: ServiceHealth(second, 1)})
        assert listening() == {first, second}
        await servers.sync({WEB: ServiceHealth(third, 1), API: ServiceHealth(second, 1)})
        assert listening() == {second, third}
        # Another Service gets the port of one that goes, in the same sync.
        await servers.sync({API: ServiceHealth(third, 1)})
        assert listening() == {third}
        assert b'"api"' in (await get(f"127.0.0.1:{third}", "/")).body
        await servers.sync({})
        assert listening() == set()
        await servers.sync({WEB: ServiceHealth(first, 1)})


@asynchronous
async def test_what_stays_is_not_interrupted() -> None:
    first, second = free_port(), free_port()
    async with ServiceHealthServers(Family.IPV4, Health(60), local_only) as servers:
        await servers.sync({WEB: ServiceHealth(first, 1)})
        client = await Connection.to(f"127.0.0.1:{first}")
        assert "X-Load-Balancing-Endpoint-Weight: 1" in await client.get("/")
        await servers.sync({WEB: ServiceHealth(first, 3), API: ServiceHealth(second, 1)})
        assert "X-Load-Balancing-Endpoint-Weight: 3" in await client.get("/")
        client.writer.close()


@asynchronous
async def test_each_family_has_its_own_socket_and_count() -> None:
    port, health = free_port(), Health(60)
    async with (
        ServiceHealthServers(Family.IPV4, health, everywhere) as ipv4,
        ServiceHealthServers(Family.IPV6, health, everywhere) as ipv6,
    ):
        await ipv4.sync({WEB: ServiceHealth(port, 4)})
        assert await refused(f"[::1]:{port}")
        await ipv6.sync({WEB: ServiceHealth(port, 6)})
        for host, weight in (("127.0.0.1", "4"), ("[::1]", "6")):
            found = await get(f"{host}:{port}", "/")
            assert found.headers["X-Load-Balancing-Endpoint-Weight"] == weight


@asynchronous
async def test_node_port_addresses_may_change() -> None:
    port, hosts = free_port(), ["127.0.0.1", "127.0.0.2"]
    async with ServiceHealthServers(Family.IPV4, Health(60), lambda: hosts) as servers:
        for shown in (("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.3"), ()):
            hosts[:] = shown
            await servers.sync({WEB: ServiceHealth(port, 1)})
            open_now = [host for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3") if not await refused(f"{host}:{port}")]
            assert tuple(open_now) == shown


@asynchronous
async def test_a_port_in_use_concerns_its_service_only() -> None:
    port = free_port()
    async with ServiceHealthServers(Family.IPV4, Health(60), local_only) as servers:
        with occupied() as taken, capture_logs() as logged:
            checks = {API: ServiceHealth(taken, 1), WEB: ServiceHealth(port, 1)}
            await servers.sync(checks)
            await servers.sync(checks)
            address = f"127.0.0.1:{taken}"
            assert complaints(logged) == [(address, "Address already in use", "/".join(API))]
            assert (await get(f"127.0.0.1:{port}", "/")).status == 200
        assert b'"api"' in (await served(address)).body


@asynchronous
async def test_two_services_that_claim_one_port_take_it_in_turn() -> None:
    port = free_port()
    async with ServiceHealthServers(Family.IPV4, Health(60), local_only) as servers:
        with capture_logs() as logged:
            await servers.sync({WEB: ServiceHealth(port, 1), API: ServiceHealth(port, 1)})
        assert [service for _, _, service in complaints(logged)] == ["/".join(WEB)]
        await servers.sync({WEB: ServiceHealth(port, 1)})
        assert b'"web"' in (await served(f"127.0.0.1:{port}")).body


@asynchronous
async def test_many_services_leave_nothing_behind() -> None:
    ports, host = range(31000, 31300), "127.77.0.1"
    checks = {("shop", f"web-{port}"): ServiceHealth(port, 1) for port in ports}
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(ServiceHealthServers(Family.IPV4, Health(60), lambda: (host,)))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await servers.sync(checks)
            assert listening() == set(ports)
            client = await Connection.to(f"{host}:{ports[-1]}")
            await client.get("/")
            await servers.sync({})
            assert await client.reader.read() == b""
            client.writer.close()
            await client.writer.wait_closed()
            assert len(os.listdir("/proc/self/fd")) == before
    assert len(asyncio.all_tasks()) == 1
