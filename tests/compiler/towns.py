"""Large generated clusters with a bit of everything, spread as real ones are; the same for the same seed."""

import random
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tests import manifests as small

Manifest = dict[str, Any]

CONFIG: Manifest = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "hostnameOverride": "node-0",
    "clusterCIDR": "10.244.0.0/16,fd00:244::/48",
}
NODE_ADDRESSES = ("10.200.0.2", "fd00:200::2")
UNTOLD_ADDRESS = "10.200.0.9"
"""Another one of the node, which its Node object doesn't tell of."""
_VIPS = (int(IPv4Address("10.96.0.0")), int(IPv6Address("fd00:10:96::")))
_POOLS = ("203.0.113.{}", "198.51.100.{}", "192.0.2.{}", "100.64.7.{}")


def town(count: int, seed: int = 0) -> list[Manifest]:
    """`count` Services in both families, with their slices, and the node."""
    pick = random.Random(seed)
    vips = pick.sample(range(1, 1 << 20), count)
    return [node(), *(item for number, vip in enumerate(vips) for item in service(pick, number, vip))]


def node() -> Manifest:
    """The node, which owns an address that Services use as external IP."""
    addresses = [{"type": "InternalIP", "address": address} for address in NODE_ADDRESSES]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0"}, "status": {"addresses": addresses}}


def service(pick: random.Random, number: int, vip: int) -> Iterator[Manifest]:
    """One Service, and its slices if it has endpoints."""
    kind = pick.choices(["ClusterIP", "NodePort", "LoadBalancer"], [6, 2, 2])[0]
    ports = _ports(pick, number, kind)
    addresses = [str(IPv4Address(_VIPS[0] + vip)), str(IPv6Address(_VIPS[1] + vip))]
    spec: Manifest = {
        "type": kind,
        "clusterIP": addresses[0],
        "clusterIPs": addresses,
        "ports": ports,
        "internalTrafficPolicy": pick.choices(["Cluster", "Local"], [9, 1])[0],
        "sessionAffinity": pick.choices(["None", "ClientIP"], [9, 1])[0],
    }
    if pick.random() < 0.1:
        spec["externalIPs"] = [f"10.{pick.randrange(256)}.{number >> 8}.{number & 255}", f"2001:db8::{number:x}"]
    if kind != "ClusterIP" or "externalIPs" in spec:
        spec["externalTrafficPolicy"] = pick.choice(["Cluster", "Local"])
    metadata = {"name": f"svc-{number:05}", "namespace": f"team-{number % 7}"}
    status: Manifest = {"loadBalancer": {}}
    if kind == "LoadBalancer":
        pool, host = pick.choice(_POOLS), f"2001:db8:{pick.randrange(4)}::{number:x}"
        status["loadBalancer"]["ingress"] = [{"ip": pool.format(number % 250 + 1)}, {"ip": host}][: 1 + number % 2]
        spec["loadBalancerSourceRanges"] = pick.choice([[], [], ["192.0.2.0/24", "2001:db8::/64"]])
    yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}
    if pick.random() < 0.85:
        size = pick.choices([1, 3, 12, 40], [5, 10, 2, 1])[0]
        yield _slice(pick, number, metadata, ports, "IPv4", size)
        yield _slice(pick, number, metadata, ports, "IPv6", size)


def _ports(pick: random.Random, number: int, kind: str) -> list[Manifest]:
    """Mostly one port, or a range of them; LoadBalancers share addresses here, so they have ports of their own."""
    count = pick.choices([1, 2, 60 if kind == "ClusterIP" else 1], [80, 18, 2])[0]
    base = 1000 + number * 7 % 50_000 if kind == "LoadBalancer" else pick.choice([80, 443, 5000])
    protocol = pick.choices(["TCP", "UDP", "SCTP"], [8, 2, 1])[0]
    return [
        {"name": f"p{n}", "protocol": protocol, "port": base + n, "targetPort": 8000 + n}
        | ({"nodePort": 30_000 + 2 * number + n} if kind != "ClusterIP" else {})
        for n in range(count)
    ]


def _slice(
    pick: random.Random, number: int, metadata: Manifest, ports: list[Manifest], family: str, size: int
) -> Manifest:
    prefix = "10.244.{}.{}" if family == "IPv4" else "fd00:244:0:{:x}::{:x}"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": family,
        "metadata": {
            "name": f"{metadata['name']}-{family.lower()}",
            "namespace": metadata["namespace"],
            "labels": {"kubernetes.io/service-name": metadata["name"]},
        },
        "ports": [{"name": one["name"], "protocol": one["protocol"], "port": one["targetPort"]} for one in ports],
        "endpoints": [
            {
                "addresses": [prefix.format(place := pick.randrange(250), pick.randrange(1, 250))],
                "nodeName": f"node-{place % 9}",
                "conditions": {"ready": pick.random() < 0.9},
            }
            for _ in range(size)
        ],
    }


def rivals() -> list[Manifest]:
    """External addresses that are the node's own, with ports that are other Services' node ports as well.

    The Node object doesn't tell of these addresses: it can't be seen that the node ports are meant.
    One such pair has endpoints, so that it meets in the nat table; two have none here, so that they meet in the filter.
    """
    slices = [small.endpoint_slice(name, ["10.244.1.1"]) for name in ("a-node-port", "c-node-port")]
    local: dict[str, Any] = {"type": "NodePort", "externalTrafficPolicy": "Local"}
    ports = {"a-node-port": 31_000, "c-node-port": 32_000}
    return [
        node(),
        *slices,
        *(
            small.service(name, f"10.96.0.{number}", ports=[{"name": "http", "port": 80, "nodePort": port}], **local)
            for number, (name, port) in enumerate(ports.items(), 1)
        ),
        *(
            small.service(f"b-address-{port}", f"10.96.1.{port - 30_000 >> 8}", port, externalIPs=[UNTOLD_ADDRESS])
            for port in (31_000, 32_000)
        ),
    ]
