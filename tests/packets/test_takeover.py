"""Taking over from kube-proxy, and changing rules later, under continuous connections: none fails."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.kernel import KUBE_PROXY_1_20, case_path
from tests.lab import Backend, Backends, Host, Node, Protocol, Traffic, connect, continuous
from tests.lab.kpx import kpx, start_kpx

# The endpoints of the conformance cases: name, IPv4, IPv6, node.
PODS = (
    ("web-1", "10.244.1.10", "fd00:244:1::10", "node-1"),
    ("web-2", "10.244.2.11", "fd00:244:2::11", "node-2"),
    ("web-3", "10.244.0.12", "fd00:244::12", "node-0"),
    ("dns-1", "10.244.1.3", "fd00:244:1::3", "node-1"),
    ("dns-2", "10.244.2.3", "fd00:244:2::3", "node-2"),
)
TCP_PORTS, UDP_PORTS = (53, 8080, 8443, 9153), (53,)
CONNECTIONS = 60  # of each client, before, between and after the changes


@dataclass(frozen=True, slots=True)
class WayIn:
    """How clients get to a Service: from `client`, `node` or a pod."""

    sender: str
    address: str
    port: int
    protocol: Protocol = "tcp"


@dataclass(frozen=True, slots=True)
class Takeover:
    """What kube-proxy left behind, and who keeps connecting meanwhile."""

    case: Path
    ways_in: tuple[WayIn, ...]


TAKEOVERS = (
    Takeover(
        case_path("nodeport-cluster"),
        (WayIn("client", "10.200.0.2", 30080), WayIn("web-3", "10.96.1.10", 80), WayIn("node", "10.96.1.10", 80)),
    ),
    Takeover(
        case_path("loadbalancer-source-ranges"),
        (
            WayIn("client", "203.0.113.10", 443),
            WayIn("client", "10.200.0.2", 30443),
            WayIn("web-1", "10.96.1.10", 443),
        ),
    ),
    Takeover(case_path("dual-stack"), (WayIn("web-3", "10.96.1.10", 80), WayIn("client", "fd00:10:96::a", 80))),
    Takeover(
        case_path("multi-port-dns"),
        (
            WayIn("web-3", "10.96.0.10", 53, "udp"),
            WayIn("web-1", "10.96.0.10", 53),
            WayIn("client", "10.96.0.10", 9153),
        ),
    ),
    Takeover(case_path("session-affinity"), (WayIn("client", "10.96.1.20", 80), WayIn("web-1", "10.96.1.20", 80))),
    Takeover(
        KUBE_PROXY_1_20,
        (
            WayIn("client", "10.200.0.2", 30080),
            WayIn("client", "203.0.113.10", 443),
            WayIn("client", "203.0.113.11", 80),
            WayIn("client", "2001:db8:0:11::1", 80),
            WayIn("client", "203.0.113.50", 80),
            WayIn("node", "10.96.1.12", 80),
            WayIn("web-1", "10.96.1.20", 80),
            WayIn("web-3", "10.96.0.10", 53, "udp"),
        ),
    ),
)


@pytest.fixture(params=get_args(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    return name


@pytest.fixture
def node() -> Iterator[Node]:
    """A node with the pods of the conformance cases."""
    with Node() as node:
        pods = [node.pod(name, ipv4, ipv6, on=on) for name, ipv4, ipv6, on in PODS]
        with Backends(*pods, tcp=TCP_PORTS, udp=UDP_PORTS):
            yield node


@pytest.mark.parametrize("takeover", TAKEOVERS, ids=lambda takeover: takeover.case.name)
def test_no_connection_fails(node: Node, backend: Backend, takeover: Takeover, tmp_path: Path) -> None:
    leave_behind(node, backend, takeover.case)
    same = takeover.case / "cluster.yaml"
    changed = write_changed(same, tmp_path / "changed.yaml")
    with traffic(node, takeover.ways_in) as flows:
        for manifests in (same, changed, same):
            keep_flowing(flows)
            apply(node, backend, takeover.case, manifests)
            if manifests == changed:
                assert connect(node.client, EXTRA_IP, 80).answered
            else:
                assert not connect(node.client, EXTRA_IP, 80, patience=0.3).answered
        keep_flowing(flows)
    for way_in, flow in zip(takeover.ways_in, flows, strict=True):
        assert flow.failures == (), way_in
        assert flow.result.answered


def test_clients_stay_with_their_backends(node: Node, backend: Backend) -> None:
    case = case_path("session-affinity")
    leave_behind(node, backend, case)
    ways_in = [WayIn(sender, "10.96.1.20", 80) for sender in ("client", "node", "web-1", "web-2")]
    with traffic(node, ways_in) as flows:
        keep_flowing(flows)
        apply(node, backend, case, case / "cluster.yaml")
        keep_flowing(flows)
    for way_in, flow in zip(ways_in, flows, strict=True):
        assert len(flow.result.backends) == 1, way_in


def test_no_connection_fails_when_apply_is_killed(node: Node, backend: Backend, tmp_path: Path) -> None:
    takeover = TAKEOVERS[0]
    leave_behind(node, backend, takeover.case)
    same = takeover.case / "cluster.yaml"
    changed = write_changed(same, tmp_path / "changed.yaml")
    with traffic(node, takeover.ways_in) as flows:
        began = time.monotonic()
        apply(node, backend, takeover.case, same)
        whole = time.monotonic() - began
        for n in range(1, 6):
            kill_apply(node, backend, takeover.case, (changed, same)[n % 2], after=whole * (0.4 + 0.1 * n))
            keep_flowing(flows)
        apply(node, backend, takeover.case, changed)
        assert connect(node.client, EXTRA_IP, 80).answered
    assert [flow.failures for flow in flows] == [()] * len(flows)


EXTRA_IP = "10.96.9.9"
EXTRA: Sequence[dict[str, Any]] = (
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "extra", "namespace": "shop"},
        "spec": {"clusterIP": EXTRA_IP, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "extra-a", "namespace": "shop", "labels": {"kubernetes.io/service-name": "extra"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.0.12"], "nodeName": "node-0", "conditions": {"ready": True}}],
    },
)


def write_changed(manifests: Path, changed: Path) -> Path:
    """The same cluster with one endpoint less in every slice, and one Service more."""
    objects = list(yaml.safe_load_all(manifests.read_text()))
    for one in objects:
        if one["kind"] == "EndpointSlice":
            del one["endpoints"][0]
    changed.write_text(yaml.safe_dump_all([*objects, *EXTRA]))
    return changed


def leave_behind(node: Node, backend: Backend, case: Path) -> None:
    """Load what kube-proxy wrote, so that it looks as if it had just been stopped."""
    for family in ("ipv4", "ipv6"):
        node.load((case / f"{family}.save").read_text(), family=family, backend=backend)


def apply_arguments(backend: Backend, case: Path, manifests: Path) -> tuple[str | Path, ...]:
    config = case / "config.yaml"
    return ("apply", "-f", manifests, "--config", config, "--family", "dual", "--backend", backend)


def apply(node: Node, backend: Backend, case: Path, manifests: Path) -> None:
    kpx(node, *apply_arguments(backend, case, manifests))


def kill_apply(node: Node, backend: Backend, case: Path, manifests: Path, after: float) -> None:
    """Start it and kill it with all its children after so many seconds."""
    process = start_kpx(node, *apply_arguments(backend, case, manifests))
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def traffic(node: Node, ways_in: Sequence[WayIn]) -> Iterator[list[Traffic]]:
    hosts: dict[str, Host] = {"client": node.client, "node": node.host, **node.pods}
    with ExitStack() as flows:
        yield [
            flows.enter_context(continuous(hosts[way.sender], way.address, way.port, protocol=way.protocol))
            for way in ways_in
        ]


def keep_flowing(flows: Sequence[Traffic]) -> None:
    """Wait until every client made a number of connections."""
    for flow in flows:
        flow.wait_for(CONNECTIONS)
