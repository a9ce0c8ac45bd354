"""UDP clients with a fixed source port, real pods, and an agent between them: who is led where, and how soon.

conntrack remembers where the first packet of such a client went. Figures are printed (`pytest -s`); the bound in
the tests is a generous one, for machines that are busy.
"""

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from kpx.netfilter.tools import Backend
from tests.agent.harness import NODE, AgentProcess, wait_until_converged
from tests.apiserver import ApiServer
from tests.kernel import BACKENDS, needs_kernel
from tests.lab import Backends, Host, Node, connect, continuous
from tests.lab.node import CLIENT_ADDRESSES, NODE_ADDRESSES
from tests.manifests import Manifest, endpoint_slice, service
from tests.manifests import node as node_manifest

pytestmark = [pytest.mark.kernel, needs_kernel]

LIMIT = 60.0
"""Seconds within which a client has to be led elsewhere, at the very most."""
BRIEF = 0.2
"""Seconds to wait for an answer that may never come."""
PORT, TARGET, NODE_PORT = 53, 8080, 30053
EXTERNAL, LOAD_BALANCER = "203.0.113.53", "203.0.113.54"


@dataclass(frozen=True, slots=True)
class Name:
    """A UDP Service of one test. `ways` are the places where clients may send to."""

    name: str
    cluster_ip: str

    def service(self, **spec: Any) -> Manifest:
        port = {"name": "http", "protocol": "UDP", "port": PORT, "targetPort": TARGET}
        return service(self.name, self.cluster_ip, **({"ports": [port]} | spec))

    def outside(self) -> Manifest:
        """The Service with an address of every kind."""
        port = {"name": "http", "protocol": "UDP", "port": PORT, "targetPort": TARGET, "nodePort": NODE_PORT}
        manifest = self.service(type="LoadBalancer", externalIPs=[EXTERNAL], ports=[port])
        return manifest | {"status": {"loadBalancer": {"ingress": [{"ip": LOAD_BALANCER}]}}}

    def slice(self, *pods: Host, **conditions: bool) -> Manifest:
        """Its endpoints; `conditions` are those of the first."""
        found = endpoint_slice(self.name, [self.address(pod) for pod in pods])
        found["ports"][0]["protocol"] = "UDP"
        found["addressType"] = "IPv6" if ":" in self.cluster_ip else "IPv4"
        for endpoint in found["endpoints"][:1]:
            endpoint["conditions"] |= conditions
        return found

    def address(self, pod: Host) -> str:
        return pod.ipv6 if ":" in self.cluster_ip else pod.ipv4


@dataclass(slots=True, eq=False)
class World:
    """A node with an agent and three pods that answer, and a client outside."""

    node: Node
    server: ApiServer
    agent: AgentProcess
    pods: Sequence[Host]
    _ports: Iterator[int] = field(default_factory=lambda: count(20_000))

    def put(self, *objects: Manifest) -> None:
        for one in objects:
            self.server.put(one)

    def settle(self) -> None:
        wait_until_converged(self.agent, self.server)

    def client(self, address: str, port: int = PORT) -> "Client":
        """A client with a source port that nobody had before."""
        return Client(self, address, port, (CLIENT_ADDRESSES[":" in address], next(self._ports)))

    def pod(self, name: str) -> Host:
        return next(pod for pod in self.pods if pod.name == name)

    def others(self, pod: Host) -> list[Host]:
        return [one for one in self.pods if one is not pod]


@dataclass(frozen=True, slots=True)
class Client:
    """Sends to one place from one source port."""

    world: World
    address: str
    port: int
    source: tuple[str, int]

    def ask(self, patience: float = LIMIT) -> str:
        """Who answers; empty if nobody does within `patience` seconds."""
        options: Any = {"protocol": "udp", "source": self.source, "patience": patience}
        return "".join(connect(self.world.node.client, self.address, self.port, **options).backends)

    def wait_for(self, *names: str) -> float:
        """Send again and again until one of these answers ("": nobody); seconds until then."""
        start = time.monotonic()
        for _ in self.world.agent.patiently(LIMIT, f"an answer of {names}", pause=0.005):
            if self.ask(BRIEF) in names:
                break
        return time.monotonic() - start


@pytest.fixture(scope="module", params=BACKENDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    backend: Backend = request.param
    with ExitStack() as stack:
        node = stack.enter_context(Node())
        pods = [node.pod(f"pod-{n}", f"10.244.0.{10 + n}", f"fd00:10:244::{10 + n}") for n in range(3)]
        stack.enter_context(Backends(*pods, udp=[TARGET]))
        server = stack.enter_context(ApiServer(netns=node.host.namespace.path))
        addresses = [{"type": "InternalIP", "address": address} for address in NODE_ADDRESSES]
        server.put(node_manifest(NODE) | {"status": {"addresses": addresses}})
        folder = tmp_path_factory.mktemp(f"udp-{backend}")
        agent = stack.enter_context(AgentProcess(node.host.namespace, folder, server, backend=backend))
        agent.wait_for_log("synced", 2)
        yield World(node, server, agent, pods)


@pytest.fixture
def name(request: pytest.FixtureRequest, world: World) -> Iterator[Name]:
    """A name for the test's Service, which is gone afterwards."""
    number = next(world._ports) % 250
    one = Name(f"dns-{number}", f"10.96.0.{number}")
    yield one
    for kind, key in (("Service", one.name), ("EndpointSlice", f"{one.name}-a")):
        if world.server.get(kind, "shop", key):
            world.server.delete(kind, "shop", key)
    world.settle()


WAYS = {
    "cluster-ip": ("", PORT),
    "external-ip": (EXTERNAL, PORT),
    "load-balancer": (LOAD_BALANCER, PORT),
    "node-port": (NODE_ADDRESSES[0], NODE_PORT),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_client_stays_until_its_endpoint_goes(world: World, name: Name, way: str) -> None:
    world.put(name.outside(), name.slice(*world.pods))
    world.settle()
    client = world.client(WAYS[way][0] or name.cluster_ip, WAYS[way][1])
    mine = world.pod(client.ask())
    assert {client.ask() for _ in range(10)} == {mine.name}
    world.put(name.slice(*world.others(mine)))
    seconds = client.wait_for(*(pod.name for pod in world.others(mine)))
    print(f"\n{world.agent.backend}: {way} led elsewhere after {seconds:.2f} s")
    now = client.ask()
    world.put(name.slice(*world.pods))  # comes back: nobody is led back
    world.settle()
    assert client.ask() == now


def test_an_ipv6_client_stays_until_its_endpoint_goes(world: World, name: Name) -> None:
    six = Name(name.name, "fd00:96::53")
    world.put(six.service(), six.slice(*world.pods))
    world.settle()
    client = world.client(six.cluster_ip)
    mine = world.pod(client.ask())
    world.put(six.slice(*world.others(mine)))
    client.wait_for(*(pod.name for pod in world.others(mine)))


def test_unrelated_changes_move_nobody(world: World, name: Name) -> None:
    first, second, third = world.pods
    world.put(name.service(), name.slice(first, second))
    world.settle()
    with ExitStack() as stack:
        clients = [world.client(name.cluster_ip) for _ in range(6)]
        before = [client.ask() for client in clients]
        assert "" not in before
        source = clients[0].source
        options: Any = {"protocol": "udp", "source": source, "patience": LIMIT}
        traffic = stack.enter_context(continuous(world.node.client, name.cluster_ip, PORT, **options))
        other = Name("other", "10.96.1.1")
        for _ in range(3):
            world.put(other.service(), other.slice(*world.pods))
            world.put(name.slice(first, second, third))
            world.settle()
            world.put(other.slice(third), name.slice(second, first))
            world.settle()
            for kind, key in (("Service", "other"), ("EndpointSlice", "other-a")):
                world.server.delete(kind, "shop", key)
            world.settle()
        assert [client.ask() for client in clients[1:]] == before[1:]
    assert set(traffic.result.backends) == {before[0]}
    assert traffic.failures == ()


def test_an_endpoint_that_drains_keeps_its_clients_until_it_serves_no_more(world: World, name: Name) -> None:
    world.put(name.service(), name.slice(*world.pods))
    world.settle()
    client = world.client(name.cluster_ip)
    mine = world.pod(client.ask())
    pods = [mine, *world.others(mine)]
    world.put(name.slice(*pods, ready=False, serving=True, terminating=True))
    world.settle()
    assert {client.ask() for _ in range(5)} == {mine.name}
    world.put(name.slice(*pods, ready=False, serving=False, terminating=True))
    client.wait_for(*(pod.name for pod in world.others(mine)))


def test_only_the_clients_of_the_endpoint_that_goes_are_led_elsewhere(world: World, name: Name) -> None:
    world.put(name.service(), name.slice(*world.pods))
    world.settle()
    clients = [world.client(name.cluster_ip) for _ in range(12)]
    before = {client: client.ask() for client in clients}
    gone = world.pod(before[clients[0]])
    world.put(name.slice(*world.others(gone)))
    for client, pod in before.items():
        if pod == gone.name:
            client.wait_for(*(one.name for one in world.others(gone)))
        else:
            assert client.ask() == pod


def test_a_service_that_goes_lets_its_clients_go(world: World, name: Name) -> None:
    world.put(name.outside(), name.slice(*world.pods))
    world.settle()
    places = [(address or name.cluster_ip, port) for address, port in WAYS.values()]
    clients = [world.client(*place) for place in places]
    assert all(client.ask() for client in clients)
    world.server.delete("Service", "shop", name.name)
    for client in clients:
        client.wait_for("")
    moved = Name(name.name, "10.96.2.2")
    world.put(moved.service())
    world.settle()
    assert world.client(moved.cluster_ip).ask()
    assert [client.ask(BRIEF) for client in clients] == [""] * len(clients)


def test_a_service_that_gets_another_address_takes_no_client_along(world: World, name: Name) -> None:
    world.put(name.service(), name.slice(*world.pods))
    world.settle()
    client = world.client(name.cluster_ip)
    assert client.ask()
    moved = Name(name.name, "10.96.2.3")
    world.server.delete("Service", "shop", name.name)
    world.put(moved.service())  # at once: the agent may see both as one change
    client.wait_for("")
    other = Name("heir", name.cluster_ip)
    world.put(other.service(), other.slice(world.pods[0]))
    client.wait_for(world.pods[0].name)
    for kind, key in (("Service", "heir"), ("EndpointSlice", "heir-a")):
        world.server.delete(kind, "shop", key)


@pytest.mark.parametrize("way", WAYS)
def test_whoever_came_before_the_first_endpoint_is_served(world: World, name: Name, way: str) -> None:
    client = world.client(WAYS[way][0] or name.cluster_ip, WAYS[way][1])
    assert client.ask(BRIEF) == ""  # before the Service
    world.put(name.outside())
    world.settle()
    assert client.ask(BRIEF) == ""
    world.put(name.slice(world.pods[0]))
    seconds = client.wait_for(world.pods[0].name)
    print(f"\n{world.agent.backend}: {way} served {seconds:.2f} s after the first endpoint came")


def test_tcp_connections_are_left(world: World, name: Name) -> None:
    """To an endpoint that is gone, too: TCP finds out for itself."""
    first, second, _ = world.pods
    with ExitStack() as stack:
        with first.namespace.entered():
            listener = stack.enter_context(socket.create_server((first.ipv4, 9090)))
        tcp = service(name.name, name.cluster_ip, ports=[{"name": "http", "port": 80, "targetPort": 9090}])
        pieces = [endpoint_slice(name.name, [pod.ipv4]) for pod in (first, second)]
        for piece in pieces:
            piece["ports"][0]["port"] = 9090
        world.put(tcp, pieces[0])
        world.settle()
        with world.node.client.namespace.entered():
            ours = stack.enter_context(socket.create_connection((name.cluster_ip, 80), LIMIT))
        theirs, _ = listener.accept()
        stack.enter_context(theirs)
        for change in (pieces[1], None):
            if change:
                world.put(change)
            else:
                world.server.delete("Service", "shop", name.name)
            world.settle()
            ours.sendall(b"still there?")
            theirs.settimeout(LIMIT)
            assert theirs.recv(100) == b"still there?"
