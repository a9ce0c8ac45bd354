"""Clean-ups of stale UDP flows, beside syncs: what the kernel's table holds before and after."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
import structlog

from kpx.agent import stale
from kpx.agent.desired import Desired
from kpx.agent.metrics import Metrics
from kpx.agent.run import KINDS, Agent, FamilyProxy, Setup
from kpx.agent.stale import StaleFlows
from kpx.agent.store import Store
from kpx.agent.suspects import Culprit
from kpx.agent.sync import Synced
from kpx.api import KubeProxyConfiguration, parse_object
from kpx.compiler.compile import Layout, Target
from kpx.family import Family
from kpx.netfilter.conntrack import list_udp
from kpx.netfilter.flows import Flow, Query, packed
from kpx.netfilter.netlink import Netlink
from kpx.netfilter.tools import Backend
from kpx.sources.directory import DirectorySource
from kpx.sources.events import Event, Gone, Put
from kpx.sources.events import Synced as SourceSynced
from tests.kernel import needs_kernel
from tests.kernelrim.entries import Where, entry, insert
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service

pytestmark = [pytest.mark.kernel, needs_kernel]

NODE, CLIENT, NODE_IP, EXTERNAL = "node-0", "10.9.0.1", "192.0.2.10", "203.0.113.1"
DNS, WEB = "10.96.0.10", "10.96.0.20"
A, B, C = "10.244.0.11", "10.244.0.12", "10.244.0.13"
TARGET = 8080
PATIENCE = 60.0


def put(*manifests: Manifest) -> list[Event]:
    return [Put(parse_object(str(one["kind"]), one)) for one in manifests]


def udp_service(name: str, address: str, node_port: int = 0, port: int = 53, **spec: Any) -> Manifest:
    one: Manifest = {"name": "http", "protocol": "UDP", "port": port, "targetPort": TARGET}
    if node_port:
        spec |= {"type": "NodePort"}
        one |= {"nodePort": node_port}
    return service(name, address, ports=[one], **spec)


def udp_slice(name: str, *pods: str) -> Manifest:
    found = endpoint_slice(name, pods)
    found["ports"][0]["protocol"] = "UDP"
    return found


def gone(name: str) -> list[Event]:
    return [Gone("Service", "shop", name), Gone("EndpointSlice", "shop", f"{name}-a")]


_PORTS = count(10_000)


def flow(place: Where, pod: str) -> Where:
    """Make an entry from a client to a place, whose answers come from a pod; returns the client."""
    client = (CLIENT, next(_PORTS))
    insert([entry(client, place, (pod, TARGET))])
    return client


def clients() -> set[Where]:
    """Who has an entry."""
    return {(CLIENT, one.source[1]) for one in list_udp(Family.IPV4) if one.source[0] == packed(CLIENT)}


class World:
    """What the cluster asks for and clean-ups, in memory; the entries are the kernel's."""

    def __init__(self, *manifests: Manifest) -> None:
        self.store, self.metrics = Store(NODE), Metrics()
        self.desired = Desired(self.store, KubeProxyConfiguration(), Target(NODE, Family.IPV4, Layout.TREE))
        for event in put(node(), *manifests):
            self.store.take(event)
        self.desired.load_all()
        self.flows = StaleFlows(self.desired, self.metrics)

    def change(self, events: Iterable[Event]) -> None:
        """As a sync does."""
        touched = frozenset(key for event in events for key in self.store.take(event))
        self.desired.refresh(touched)
        self.flows.note(Synced(touched, full=False))

    def deleted(self) -> float:
        name = 'kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} '
        lines = self.metrics.exposition().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    """A network namespace that these tests, and threads that they start, are in."""
    with Namespace() as one:
        one.ip("link set lo up")
        one.ip(f"address add {NODE_IP}/32 dev lo")
        with one.entered():
            yield one


def test_what_changed_is_cleaned_up_when_asked_to_and_not_before() -> None:
    world = World(udp_service("dns", DNS), udp_slice("dns", A, B), udp_service("web", WEB), udp_slice("web", A))
    stays, goes, others = flow((DNS, 53), A), flow((DNS, 53), B), flow((WEB, 53), B)
    world.change(put(udp_slice("dns", A)))
    assert clients() == {stays, goes, others}
    asyncio.run(world.flows.clean())
    assert clients() == {stays, others}  # nothing was said of the other Service
    assert world.deleted() == 1


def test_after_a_full_sync_all_services_count() -> None:
    world = World(udp_service("dns", DNS), udp_slice("dns", A), udp_service("web", WEB), udp_slice("web", A))
    stale_ones = {flow((DNS, 53), B), flow((WEB, 53), C)}
    stays = flow((WEB, 53), A)
    assert stays in clients() > stale_ones
    world.flows.note(Synced(frozenset(), full=True))
    asyncio.run(world.flows.clean())
    assert clients() == {stays}


def test_a_service_that_is_gone_takes_its_flows_along_whoever_has_its_address_now() -> None:
    """The heir isn't what the sync was about."""
    world = World(
        udp_service("a", DNS, externalIPs=[EXTERNAL]),
        udp_slice("a", A),
        udp_service("b", WEB, externalIPs=[EXTERNAL]),
        udp_slice("b", B),
    )
    old, own = flow((EXTERNAL, 53), A), flow((DNS, 53), A)
    world.change(gone("a"))
    new = flow((EXTERNAL, 53), B)
    assert clients() == {old, own, new}
    asyncio.run(world.flows.clean())
    assert clients() == {new}


def test_a_node_port_leaves_what_is_another_services_place() -> None:
    """Whose Service may not be among those that changed."""
    world = World(
        udp_service("dns", DNS, node_port=30053),
        udp_slice("dns", A),
        udp_service("high", WEB, port=30053, externalIPs=[NODE_IP]),
        udp_slice("high", C),
    )
    high, old, far = flow((NODE_IP, 30053), C), flow(("127.0.0.1", 30053), B), flow(("198.51.100.9", 30053), B)
    world.change(put(udp_slice("dns", A, B)))
    world.change(put(udp_slice("dns", A)))
    asyncio.run(world.flows.clean())
    assert clients() == {high, far}
    assert old not in clients()


def test_an_endpoint_that_comes_while_entries_are_read_keeps_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(udp_service("dns", DNS), udp_slice("dns", A))
    old = flow((DNS, 53), B)
    new: list[Where] = []

    def slow(family: Family, queries: Iterable[Query]) -> Iterator[Flow]:
        world.change(put(udp_slice("dns", A, C)))
        new.append(flow((DNS, 53), C))
        return list_udp(family, queries)

    monkeypatch.setattr("kpx.netfilter.conntrack.list_udp", slow)
    world.flows.note(Synced(frozenset({("shop", "dns")}), full=False))
    asyncio.run(world.flows.clean())
    assert clients() == set(new)
    assert old not in clients()


def test_many_flows_are_deleted_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stale, "CHUNK", 10)
    world = World(udp_service("dns", DNS), udp_slice("dns", A))
    stays = {flow((DNS, 53), A) for _ in range(15)}
    goes = {flow((DNS, 53), B) for _ in range(35)}
    assert clients() == stays | goes
    world.change(put(udp_slice("dns", A, C)))
    asyncio.run(world.flows.clean())
    assert clients() == stays


def test_while_everything_is_loaded_anew_clean_ups_wait() -> None:
    world = World(udp_service("dns", DNS), udp_slice("dns", A), udp_service("web", WEB), udp_slice("web", A))
    stays, old, lost = flow((DNS, 53), A), flow((DNS, 53), B), flow((WEB, 53), A)
    world.flows.note(Synced(frozenset({("shop", "dns")}), full=False))
    for event in gone("web"):  # which no sync tells of: it has become part of the load
        world.store.take(event)
    keys = world.desired.begin()
    asyncio.run(world.flows.clean())
    assert clients() == {stays, old, lost}
    world.desired.prepare(keys)
    list(world.desired.load(world.desired.prepared()))
    world.desired.loaded()
    world.flows.note(Synced(keys, full=True))
    asyncio.run(world.flows.clean())
    assert clients() == {stays}


def test_a_load_that_begins_while_entries_are_read_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(
        udp_service("a", DNS, externalIPs=[EXTERNAL]),
        udp_slice("a", A),
        udp_service("b", WEB, externalIPs=[EXTERNAL]),
        udp_slice("b", B),
    )
    old = flow((DNS, 53), A)
    stays = flow((EXTERNAL, 53), B)
    world.change(gone("a"))

    def slow(family: Family, queries: Iterable[Query]) -> Iterator[Flow]:
        world.desired.begin()
        return list_udp(family, queries)

    with monkeypatch.context() as patch:
        patch.setattr("kpx.netfilter.conntrack.list_udp", slow)
        asyncio.run(world.flows.clean())
    assert clients() == {old, stays}  # nobody could tell whose they are
    world.desired.load_all()
    world.flows.note(Synced(frozenset(), full=True))
    asyncio.run(world.flows.clean())
    assert clients() == {stays}


# ---- the task ----


async def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


def running(world: World, work: Callable[[], Awaitable[None]]) -> None:
    """Do something while the task runs."""

    async def main() -> None:
        task = asyncio.create_task(world.flows.run())
        try:
            await work()
        finally:
            assert not task.done()
            task.cancel()

    asyncio.run(main())


def test_the_task_cleans_up_again_and_again() -> None:
    world = World(udp_service("dns", DNS), udp_slice("dns", A, B))

    async def work() -> None:
        for pods, other in (((A,), B), ((B,), A), ((A,), B)):
            old, stays = flow((DNS, 53), other), flow((DNS, 53), pods[0])
            world.change(put(udp_slice("dns", *pods)))
            await until(lambda old=old: old not in clients())  # type: ignore[misc]
            assert stays in clients()

    running(world, work)


def failing(monkeypatch: pytest.MonkeyPatch, *codes: int) -> None:
    """Let the next lists that clean-ups want fail for these reasons."""
    real, left = Netlink.dump, list(codes)

    def dump(self: Netlink, kind: int, body: bytes) -> Iterator[bytes]:
        if kind == 0x101 and left and threading.current_thread() is not threading.main_thread():
            code = left.pop(0)
            raise OSError(code, os.strerror(code))
        return real(self, kind, body)

    monkeypatch.setattr(Netlink, "dump", dump)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are followed by short pauses."""
    monkeypatch.setattr("kpx.agent.backlog.LONGEST_PAUSE", 0.01)
    monkeypatch.setattr("kpx.agent.backlog.FIRST_PAUSE", 0.01)


@pytest.mark.usefixtures("quickly")
def test_what_fails_is_told_once_for_each_reason_and_done_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(udp_service("dns", DNS), udp_slice("dns", A), udp_service("web", WEB), udp_slice("web", A))
    goes = {flow((DNS, 53), B), flow((WEB, 53), A)}
    stays = flow((DNS, 53), A)
    failing(monkeypatch, errno.EPERM, errno.EPERM, errno.ENOBUFS, errno.EPERM, errno.ENOMEM)

    async def work() -> None:
        world.change([*put(udp_slice("dns", A)), *gone("web")])
        await until(lambda: clients() == {stays})
        await until(lambda: world.deleted() == len(goes))
        await until(lambda: any("again" in one["event"] and "can be" in one["event"] for one in logs))

    with structlog.testing.capture_logs() as logs:
        running(world, work)
    errors = [str(one["error"]).partition(": ")[2] for one in logs if one["log_level"] == "error"]
    assert errors == [os.strerror(code) for code in (errno.EPERM, errno.ENOBUFS, errno.ENOMEM)]


@pytest.mark.usefixtures("quickly")
def test_a_flow_that_is_busy_is_deleted_later_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(udp_service("dns", DNS), udp_slice("dns", A))
    busy = flow((DNS, 53), B)
    for _ in range(5):
        flow((DNS, 53), B)
    real, seen, free = Netlink.acknowledged, list[int](), threading.Event()

    def acknowledged(self: Netlink, messages: Sequence[bytes]) -> Iterator[int]:
        """The kernel with the busy one in a flow table."""
        port = busy[1].to_bytes(2, "big")
        for one in messages:
            refused = not free.is_set() and port in one
            yield errno.EBUSY if refused else next(real(self, [one]))
        seen.append(len(messages))

    monkeypatch.setattr(Netlink, "acknowledged", acknowledged)

    async def work() -> None:
        world.change(put(udp_slice("dns", A, C)))
        await until(lambda: clients() == {busy} and len(seen) > 2)
        free.set()
        await until(lambda: not clients() and world.deleted() == 6)

    running(world, work)


def test_clean_ups_of_others_do_not_wait_for_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose next try is a long way off."""
    monkeypatch.setattr("kpx.agent.backlog.FIRST_PAUSE", 1000.0)
    monkeypatch.setattr("kpx.agent.backlog.LONGEST_PAUSE", 1000.0)
    world = World(udp_service("dns", DNS), udp_slice("dns", A), udp_service("web", WEB), udp_slice("web", A))
    failing(monkeypatch, errno.EPERM)
    first, second = flow((DNS, 53), B), flow((WEB, 53), B)

    async def work() -> None:
        world.change(put(udp_slice("dns", A)))
        await until(lambda: any(one["log_level"] == "error" for one in logs))
        world.change(put(udp_slice("web", A)))
        await until(lambda: second not in clients())
        assert first in clients()

    with structlog.testing.capture_logs() as logs:
        running(world, work)


# ---- beside syncs ----


def proxy(*manifests: Manifest) -> tuple[Agent, FamilyProxy]:
    """An agent's IPv4 part, which nobody has started."""
    config = KubeProxyConfiguration.model_validate({"iptables": {"minSyncPeriod": "0s"}})
    agent = Agent(Setup(config, NODE, Layout.TREE, Backend.NFT), DirectorySource("/nowhere"), Metrics())
    for event in put(node(), *manifests):
        agent.take(event)
    for kind in KINDS:
        agent.take(SourceSynced(kind))
    return agent, next(one for one in agent.proxies if one.family is Family.IPV4)


def test_no_sync_waits_for_a_clean_up_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, ipv4 = proxy(udp_service("dns", DNS), udp_slice("dns", A), service("web", WEB), endpoint_slice("web", [A]))
    old, stays = flow((DNS, 53), B), flow((DNS, 53), A)
    hangs, on = threading.Event(), threading.Event()

    def slow(family: Family, queries: Iterable[Query]) -> Iterator[Flow]:
        hangs.set()
        assert on.wait(PATIENCE)
        return list_udp(family, queries)

    monkeypatch.setattr("kpx.netfilter.conntrack.list_udp", slow)

    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []
        ipv4.start(lambda one: tasks.append(asyncio.create_task(one)))
        await until(hangs.is_set)
        for pod in (B, C):
            for event in put(endpoint_slice("web", [pod]), udp_slice("dns", A, C)):
                agent.take(event)
            await until(lambda pod=pod: f"{pod}:8080" in ipv4.tools.save("nat"))  # type: ignore[misc]
            assert old in clients()
        on.set()
        await until(lambda: clients() == {stays})
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_flows_that_began_while_rules_were_damaged_are_deleted_after_the_repair() -> None:
    """A client whose first packet met no rule would never meet one."""
    _, ipv4 = proxy(udp_service("dns", DNS), udp_slice("dns", A))

    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []
        ipv4.start(lambda one: tasks.append(asyncio.create_task(one)))
        marker = flow((DNS, 53), B)
        await until(lambda: marker not in clients())  # the first clean-up is over
        await asyncio.to_thread(ipv4.tools.restore, "*nat\n-F KUBE-SERVICES\nCOMMIT\n")
        stays = flow((DNS, 53), A)
        insert([entry((CLIENT, 9_999), (DNS, 53), (DNS, 53))])
        ipv4.sync.repairs.suspect([("nat", "KUBE-SERVICES")], Culprit())
        await until(lambda: DNS in ipv4.tools.save("nat"))
        await until(lambda: clients() == {stays})
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_once_is_not_over_before_flows_are_cleaned_up() -> None:
    _, ipv4 = proxy(udp_service("dns", DNS), udp_slice("dns", A))
    flow((DNS, 53), B)
    stays = flow((DNS, 53), A)
    assert asyncio.run(ipv4.once())
    assert clients() == {stays}
