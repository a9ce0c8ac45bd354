"""The node under test with its pods, and the Services that are put on it."""

import json
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from kpx.compiler.compile import Layout
from tests import manifests
from tests.lab import Backend, Host, Node, Result, connect
from tests.lab.kpx import kpx
from tests.lab.node import CLIENT_NETWORKS, NODE_ADDRESSES, POD_GATEWAYS
from tests.packets.web import Endpoint, FamilyName, Manifest, Port, Web

TCP_PORTS = (8080, 8081)
UDP_PORTS = (8080,)
_LOCAL_PODS, _REMOTE_PODS = 3, 4
_NEIGHBOURS = 20

_NODE: Manifest = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-0"},
    "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:244::/64"]},
    "status": {"addresses": [{"type": "InternalIP", "address": address} for address in NODE_ADDRESSES]},
}
_CONFIG: Manifest = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "clusterCIDR": "10.244.0.0/16,fd00:244::/48",
}


class Proxy:
    """A node with three pods on it, four on other nodes, and rules that `kpx apply` writes for one backend.

    The Services under test have neighbours that nobody connects to, so many that all dispatch chains are trees.
    """

    def __init__(self, node: Node, backend: Backend, config: Path) -> None:
        self.node = node
        self.backend = backend
        self.client = node.client
        self.local = tuple(
            node.pod(f"local-{n}", f"10.244.0.{10 + n}", f"fd00:244::{10 + n}") for n in range(_LOCAL_PODS)
        )
        self.remote = tuple(
            node.pod(f"remote-{n}", f"10.244.1.{10 + n}", f"fd00:244:0:1::{10 + n}", on="node-1")
            for n in range(_REMOTE_PODS)
        )
        self.pods = self.local + self.remote
        self._config = config
        self._numbers = count(1)

    def web(self, family: FamilyName, endpoints: Sequence[Host | Endpoint], *ports: Port, **spec: Any) -> Web:
        """A new Service in front of these endpoints, with port 80 unless others are given."""
        given = tuple(item if isinstance(item, Endpoint) else Endpoint(item) for item in endpoints)
        return Web(next(self._numbers), family, given, ports or (Port(),), spec)

    def apply(self, *webs: Web, layout: Layout = Layout.TREE, **config: Any) -> None:
        """Make these Services all there are in their family; `config` goes into the KubeProxyConfiguration."""
        self._config.write_text(json.dumps(_CONFIG | config))
        families = {web.family for web in webs}
        others = [manifest for family in sorted(families) for manifest in _neighbours(family)]
        items = [_NODE, *others, *(manifest for web in webs for manifest in web.manifests())]
        family = families.pop() if len(families) == 1 else "dual"
        options = ("--node", "node-0", "--config", self._config, "--family", family, "--layout", layout)
        kpx(
            self.node,
            "apply",
            "-f",
            "-",
            *options,
            "--backend",
            self.backend,
            stdin=json.dumps({"kind": "List", "items": items}),
        )

    def clean(self) -> None:
        """Take all of kpx's rules away."""
        kpx(self.node, "cleanup", "--backend", self.backend)


def _neighbours(family: FamilyName) -> Iterator[Manifest]:
    """Services in every dispatch chain: without endpoints, and load balancers with source ranges but no local pod."""
    for n in range(_NEIGHBOURS):
        six = family == "ipv6"
        addresses = [f"fd00:96::{n:x}:{n:x}", f"fd00:97::{n:x}"] if six else [f"10.98.0.{n}", f"10.97.{n}.{n}"]
        yield manifests.service(f"{family}-closed-{n}", addresses[0])
        ports = [{"name": "http", "port": 80, "nodePort": 31_000 + n + _NEIGHBOURS * six}]
        name, balancer = f"{family}-remote-{n}", f"2001:db8:203::{n:x}:1" if six else f"198.19.{n}.{n}"
        spec: Manifest = {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 31_500 + n + _NEIGHBOURS * six,
            "loadBalancerSourceRanges": ["2001:db8:9::/48" if six else "192.0.2.0/24"],
            "ports": ports,
        }
        status = {"loadBalancer": {"ingress": [{"ip": balancer}]}}
        yield manifests.service(name, addresses[1], **spec) | {"status": status}
        yield manifests.endpoint_slice(name, ["fd00:244:9::1" if six else "10.244.9.1"])


def masqueraded(family: FamilyName) -> str:
    """What a pod sees as the source of masqueraded packets: the node's address on the pod's link."""
    return POD_GATEWAYS[family == "ipv6"]


def strangers(family: FamilyName, number: int = 1) -> list[str]:
    """Addresses of the client in another network than its first."""
    network = CLIENT_NETWORKS[family == "ipv6"]
    prefix = network.removesuffix("/64") if family == "ipv6" else network.removesuffix("0/24")
    return [f"{prefix}{n}" for n in range(10, 10 + number)]


def connect_from(host: Host, sources: Sequence[str], address: str, port: int) -> list[Result]:
    """One connection from each source address, in their order."""
    return [connect(host, address, port, source=(source, 0)) for source in sources]


def names(hosts: Sequence[Host]) -> set[str]:
    """Their names, to compare with who answered."""
    return {host.name for host in hosts}
