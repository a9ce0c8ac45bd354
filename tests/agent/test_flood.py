"""Whoever reaches the agent's ports can't keep it from writing rules, nor kubelet from its probe."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from kpx.netfilter.tools import Backend
from tests.agent.harness import PATIENCE, AgentProcess, wait_until_converged
from tests.apiserver import ApiServer
from tests.kernel import needs_kernel
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service

pytestmark = [pytest.mark.kernel, needs_kernel]

PODS = ["10.244.0.10", "10.244.1.11", "10.244.1.12"]
HEALTH = 10256
FLOOD = 1300


@pytest.fixture(autouse=True)
def files() -> Iterator[None]:
    """As many files as the flood takes on its own side."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def running(folder: Path, files: int, objects: list[Manifest]) -> Iterator[tuple[AgentProcess, ApiServer]]:
    """An agent that may open so many files and no more."""
    prefix = ["prlimit", f"--nofile={files}:{files}"]
    with Namespace() as namespace, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        server.put_all(objects)
        with AgentProcess(namespace, folder, server, config={"iptables": {}}, prefix=prefix) as agent:
            wait_until_converged(agent, server)
            yield agent, server


def connect(agent: AgentProcess, port: int, text: bytes) -> socket.socket:
    with agent.namespace.entered():
        one = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    one.sendall(text)
    return one


def shop(pods: int) -> list[Manifest]:
    return [node(), service("web", "10.96.0.1"), endpoint_slice("web", PODS[:pods])]


@pytest.mark.parametrize("text", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"POST /healthz HTTP/1.1\r\n"])
def test_requests_that_are_never_finished_stop_nothing(tmp_path: Path, text: bytes) -> None:
    with running(tmp_path, 1024, shop(1)) as (agent, server), ExitStack() as open_ones:
        size = len(agent.log_text())
        for number in range(FLOOD):
            open_ones.enter_context(connect(agent, HEALTH if number % 4 else 10249, text))
        server.put(endpoint_slice("web", PODS))
        wait_until_converged(agent, server)
        agent.namespace.run([f"iptables-{Backend.NFT}", "-t", "nat", "-F", "KUBE-SERVICES"])
        wait_until_converged(agent, server)
        assert agent.get("/healthz", HEALTH)[0] == 200
        told = agent.log_text()[size:]
        assert "Traceback" not in told
        assert len(told) < 20_000
        assert len(agent.log("too many connections, the oldest are closed")) == 1
        assert len(list(Path(f"/proc/{agent.pid}/fd").iterdir())) < 1024 - 200


def test_a_connection_without_a_request_is_closed(tmp_path: Path) -> None:
    with running(tmp_path, 1024, shop(1)) as (agent, _), connect(agent, HEALTH, b"GET /heal") as one:
        assert one.recv(100) == b""


def edge(number: int) -> Manifest:
    """A load balancer with policy Local, and so with a port for health checks."""
    one = service(f"edge-{number}", f"10.97.{number // 250}.{number % 250 + 1}")
    one["spec"] |= {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30_000 + number,
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 31_500 + number}],
    }
    return one


@pytest.mark.parametrize("files", [1024, 4096])
def test_a_thousand_load_balancers_with_a_health_port_each(tmp_path: Path, files: int) -> None:
    many = [edge(number) for number in range(1100)]
    with running(tmp_path, files, [*shop(1), *many]) as (agent, server):
        server.put(endpoint_slice("web", PODS))
        wait_until_converged(agent, server)
        assert agent.get("/healthz", HEALTH)[0] == 200
        left_out = agent.log("health check node ports that can't be served")
        assert bool(left_out) == (files == 1024)
        assert len(left_out) <= 2
        if files == 4096:
            assert agent.get("/", 31_099)[0] == 503  # no endpoint here
        assert "Traceback" not in agent.log_text()


def test_a_flood_over_hundreds_of_ports(tmp_path: Path) -> None:
    many = [edge(number) for number in range(280)]
    with running(tmp_path, 1024, [*shop(1), *many]) as (agent, server), ExitStack() as open_ones:
        for _ in agent.patiently(PATIENCE, "all ports"):  # they are opened after the rules are written
            with suppress(OSError):
                if all(agent.get("/", 30_000 + number)[0] == 503 for number in range(280)):
                    break
        size = len(agent.log_text())
        for number in range(2 * FLOOD):
            open_ones.enter_context(connect(agent, 30_000 + number % 280, b"GET / HTTP/1.1\r\nX-Slow: "))
        server.put(endpoint_slice("web", PODS))
        wait_until_converged(agent, server)
        assert agent.get("/healthz", HEALTH)[0] == 200
        assert agent.get("/", 30_279)[0] == 503
        told = agent.log_text()[size:]
        assert "Traceback" not in told
        assert "can't be accepted" not in told
        assert len(agent.log("too many connections, the oldest are closed")) == 1
