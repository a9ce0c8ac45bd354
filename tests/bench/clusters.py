"""Generated clusters of any size, as `kubectl get -o json` would dump them."""

import json
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

NODE = "node-0"
CONFIG = (
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n"
    "kind: KubeProxyConfiguration\n"
    f"hostnameOverride: {NODE}\n"
    "clusterCIDR: 10.128.0.0/9\n"
)
_FIRST_VIP = int(IPv4Address("10.96.0.1"))
_FIRST_POD = int(IPv4Address("10.128.0.1"))


def service(number: int) -> dict[str, Any]:
    """A ClusterIP Service as an API server stores it, with the fields that real dumps carry along."""
    address = str(IPv4Address(_FIRST_VIP + number))
    name = f"svc-{number:05}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": f"team-{number % 50:02}",
            "uid": f"00000000-0000-4000-8000-{number:012}",
            "resourceVersion": str(1000 + number),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": name, "app.kubernetes.io/managed-by": "bench"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(number: int, endpoints: int) -> dict[str, Any]:
    """The EndpointSlice of that Service, with `endpoints` ready endpoints on a hundred nodes."""
    name = f"svc-{number:05}"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": f"{name}-abcde",
            "namespace": f"team-{number % 50:02}",
            "uid": f"00000000-0000-4000-9000-{number:012}",
            "resourceVersion": str(9_000_000 + number),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name,
            },
        },
        "endpoints": [_endpoint(number, endpoints, index) for index in range(endpoints)],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }


def _endpoint(number: int, endpoints: int, index: int) -> dict[str, Any]:
    pod = number * endpoints + index
    return {
        "addresses": [str(IPv4Address(_FIRST_POD + pod))],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"node-{pod % 100}",
        "targetRef": {
            "kind": "Pod",
            "name": f"svc-{number:05}-{index}",
            "namespace": f"team-{number % 50:02}",
            "uid": f"00000000-0000-4000-a000-{pod:012}",
        },
        "zone": f"zone-{pod % 3}",
    }


def objects(services: int, endpoints: int) -> Iterator[dict[str, Any]]:
    """`services` Services and their slices of `endpoints` endpoints each."""
    for number in range(services):
        yield service(number)
        yield endpoint_slice(number, endpoints)


def dump(services: int, endpoints: int) -> str:
    """The cluster as a `kind: List`, indented as kubectl prints it."""
    items = list(objects(services, endpoints))
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items, "metadata": {}}, indent=1)
