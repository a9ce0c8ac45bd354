"""From each layout to each other one, under continuous connections: none fails, none moves."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import pytest

from tests import manifests
from tests.lab import Backend, Backends, Node, Traffic, continuous
from tests.lab.kpx import kpx
from tests.lab.node import NODE_ADDRESSES
from tests.packets.proxy import strangers
from tests.packets.web import FamilyName

PORTS = range(8000, 8024)
NEIGHBOURS = 40
CONNECTIONS = 20  # of each client, between the changes
WAYS_IN = (
    # from, to, port
    ("client", "10.96.9.1", 80),  # many endpoints
    ("web-0", "10.96.0.9", 80),  # its own and only endpoint
    ("client", NODE_ADDRESSES[0], 30_011),
    ("node", "fd00:10:96::7", 80),
)
STICKY_ENDPOINTS = 2 * 3 * len(PORTS)
STICKY = ("10.96.9.2", "fd00:10:96::9:2")


@pytest.fixture(params=get_args(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    return name


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as node:
        pods = [node.pod(f"web-{n}", f"10.244.{n // 2}.{10 + n}", f"fd00:244::{10 + n}") for n in range(3)]
        with Backends(*pods, tcp=PORTS):
            yield node


def objects(node: Node) -> Iterator[dict[str, Any]]:
    """Enough Services for trees of addresses and of node ports, and two with 72 endpoints, one with affinity."""
    pods = list(node.pods.values())
    yield manifests.node()
    many = [("web", "1", {}), ("sticky", "2", {"sessionAffinity": "ClientIP"})]
    for name, last, spec in many:
        yield dual(name, (f"10.96.9.{last}", f"fd00:10:96::9:{last}"), **spec)
        for port in PORTS:
            yield from slices(name, f"{name}-{port}", pods, port)
    for n in range(NEIGHBOURS):
        ports = [{"name": "http", "port": 80, "nodePort": 30_000 + n}]
        name = f"neighbour-{n}"
        yield dual(name, (f"10.96.0.{n}", f"fd00:10:96::{n:x}"), ports=ports, type="NodePort")
        yield from slices(name, name, [pods[n % 3]], PORTS[n % 24])


def dual(name: str, addresses: tuple[str, str], **spec: Any) -> dict[str, Any]:
    return manifests.service(name, addresses[0], clusterIPs=list(addresses), **spec)


def slices(service: str, name: str, pods: list[Any], port: int) -> Iterator[dict[str, Any]]:
    for family in ("ipv4", "ipv6"):
        one = manifests.endpoint_slice(service, [pod.address(family) for pod in pods])
        one["metadata"]["name"], one["ports"] = f"{name}-{family}", [{"name": "http", "port": port}]
        yield one


def test_no_connection_fails_or_moves_between_layouts(node: Node, backend: Backend, tmp_path: Path) -> None:
    dump = manifests.write(tmp_path / "cluster.json", objects(node))
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}))
    options = ("-f", dump, "--config", config, "--node", "node-0", "--family", "dual", "--backend", backend)
    kpx(node, "apply", *options, "--layout", "classic")
    with ExitStack() as stack:
        flows = [stack.enter_context(traffic) for traffic in clients(node)]
        for layout in ("tree", "compact", "classic", "compact", "tree", "classic"):
            keep_flowing(flows)
            done = kpx(node, "apply", *options, "--layout", layout)
            assert done.stdout.count("lines written") == 2
            assert has_trees(node, backend) == [layout != "classic"] * 2
            assert (endpoint_chains(node, backend) == STICKY_ENDPOINTS) == (layout == "compact")
            assert kpx(node, "diff", *options).stdout == "same\n"
        keep_flowing(flows)
    assert [flow.failures for flow in flows] == [()] * len(flows)
    assert all(flow.result.answered for flow in flows)
    for flow in flows[len(WAYS_IN) :]:
        assert (
            len({(answer.answer.backend, answer.answer.port) for answer in flow.result.attempts if answer.answer}) == 1
        )
    kpx(node, "cleanup", "--backend", backend)
    for family in ("ipv4", "ipv6"):
        left = node.rules(family=family, backend=backend)
        assert "KPX-" not in left
        assert "KUBE-" not in left


def clients(node: Node) -> Iterator[Any]:
    """One for each way in, and two in each family that a Service with affinity knows."""
    hosts = {"client": node.client, "node": node.host, **node.pods}
    for sender, address, port in WAYS_IN:
        yield continuous(hosts[sender], address, port)
    for family, address in zip(get_args(FamilyName), STICKY, strict=True):
        for source in strangers(family, 2):
            yield continuous(node.client, address, 80, source=(source, 0))


def endpoint_chains(node: Node, backend: Backend) -> int:
    """How many endpoints have a chain of their own, in both families."""
    return sum(node.rules(family=family, backend=backend).count(":KUBE-SEP-") for family in ("ipv4", "ipv6"))


def keep_flowing(flows: list[Traffic]) -> None:
    for flow in flows:
        flow.wait_for(CONNECTIONS)


def has_trees(node: Node, backend: Backend) -> list[bool]:
    return [":KPX-" in node.rules(family=family, backend=backend) for family in ("ipv4", "ipv6")]
