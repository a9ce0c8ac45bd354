"""Small manifests for tests, in the shape in which users write them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]


def service(name: str, cluster_ip: str, port: int = 80, **spec: Any) -> Manifest:
    """A Service in namespace shop with one TCP port called http."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": cluster_ip, "ports": [{"name": "http", "port": port, "targetPort": 8080}]} | spec,
    }


def endpoint_slice(name: str, addresses: Sequence[str], node_name: str = "node-1") -> Manifest:
    """The EndpointSlice of that Service: ready endpoints on port 8080."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-a", "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv6" if any(":" in one for one in addresses) else "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [one], "nodeName": node_name, "conditions": {"ready": True}} for one in addresses],
    }


def node(name: str = "node-0") -> Manifest:
    """A Node in zone-a."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.200.0.2"}]},
    }


def write(path: Path, objects: Iterable[Manifest]) -> Path:
    """Write objects as a JSON List."""
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
    return path
