"""Random clusters whose pods are real: the lab's, under addresses and ports on which something answers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kpx.analysis.packet import Origin, Packet
from kpx.family import Family
from tests import lab
from tests.lab.node import NODE_ADDRESSES, POD_GATEWAYS
from tests.manifests import Manifest, node

PODS = {
    "here-0": ("10.244.0.10", "fd00:244::10", "node-0"),
    "here-1": ("10.244.0.11", "fd00:244::11", "node-0"),
    "there-0": ("10.244.1.10", "fd00:244:0:1::10", "node-1"),
    "there-1": ("10.244.1.11", "fd00:244:0:1::11", "node-1"),
}
PORTS = range(8000, 8004)
HOST_PORT = 8100
"""A port on which the node itself answers, as a pod in its network namespace would."""

STRANGERS = {
    Family.IPV4: ("198.51.100.7", "192.0.2.9", "192.0.2.10", "192.0.2.11"),
    Family.IPV6: ("2001:db8::7", "2001:db8:1::9", "2001:db8:1::a", "2001:db8:1::b"),
}
RANGES = ("192.0.2.8/30", "2001:db8:1::8/126", "10.244.0.0/24", "fd00:244::/64", "10.200.0.0/24", "fd00:200::/64")
HOST = (*NODE_ADDRESSES, *POD_GATEWAYS)


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends, from which of its addresses; `name` is the lab's, empty for the client."""

    name: str
    origin: Origin
    address: str


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection to be made."""

    sender: Sender
    address: str
    port: int
    protocol: lab.Protocol

    def packet(self) -> Packet:
        """Its first packet."""
        come = {Origin.OUTSIDE: "eth0", Origin.POD: f"veth-{self.sender.name}"}.get(self.sender.origin)
        return Packet(
            self.sender.address,
            self.address,
            self.protocol,
            self.port,
            origin=self.sender.origin,
            in_interface=come,
            bridged=False,
        )


class Town:
    """A random cluster, the same for the same seed, and ways into it."""

    def __init__(self, seed: int) -> None:
        self.pick = pick = random.Random(seed)
        self.family = pick.choice(tuple(Family))
        self.config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "hostnameOverride": "node-0",
            "clusterCIDR": "10.244.0.0/16,fd00:244::/48",
            "iptables": {"masqueradeAll": pick.random() < 0.1},
        }
        self.ways: list[tuple[str, int, lab.Protocol]] = []
        here = node() | {"status": {"addresses": [{"type": "InternalIP", "address": one} for one in NODE_ADDRESSES]}}
        self.objects: list[Manifest] = [here]
        for number in range(pick.randrange(3, 8)):
            self.objects += self._service(number)

    @property
    def _six(self) -> bool:
        return self.family is Family.IPV6

    def _service(self, number: int) -> Iterator[Manifest]:
        pick = self.pick
        protocol = pick.choice(["TCP", "TCP", "UDP"])
        name, vip = f"svc-{number}", self._address(96, number)
        kind = pick.choice(["ClusterIP", "NodePort", "LoadBalancer"])
        port: Manifest = {"name": "http", "port": 80 + number, "targetPort": 8000, "protocol": protocol}
        spec: Manifest = {
            "type": kind,
            "clusterIP": vip,
            "ports": [port],
            "internalTrafficPolicy": pick.choices(["Cluster", "Local"], [3, 1])[0],
            "sessionAffinity": pick.choices(["None", "ClientIP"], [3, 1])[0],
        }
        status: Manifest = {"loadBalancer": {}}
        known = protocol.lower()
        ways = [(vip, port["port"])]
        if kind != "ClusterIP":
            port["nodePort"] = 30_000 + number
            own = NODE_ADDRESSES[self._six]
            ways += [(own, port["nodePort"])] * 2 + [("127.0.0.1", port["nodePort"])] * (not self._six)
        if pick.random() < 0.4:
            spec["externalIPs"] = [self._address(97, number)]
            ways.append((spec["externalIPs"][0], port["port"]))
        if kind == "LoadBalancer":
            status["loadBalancer"]["ingress"] = [{"ip": self._address(98, number)}]
            spec["loadBalancerSourceRanges"] = pick.sample(RANGES, pick.choice([0, 2, 4]))
            ways += [(self._address(98, number), port["port"])] * 2
        if kind != "ClusterIP" or "externalIPs" in spec:
            spec["externalTrafficPolicy"] = pick.choice(["Cluster", "Local"])
        self.ways += [(address, at, "udp" if known == "udp" else "tcp") for address, at in ways]
        metadata = {"name": name, "namespace": "shop"}
        yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}
        for at in pick.sample(PORTS, pick.choice([0, 1, 1, 2, 4])):
            yield self._slice(name, at, protocol, list(PODS))
        if pick.random() < 0.2:
            yield self._slice(name, HOST_PORT, protocol, ["node-0"])

    def _address(self, network: int, number: int) -> str:
        return f"fd00:10:{network}::{number + 1:x}" if self._six else f"10.{network}.0.{number + 1}"

    def _slice(self, name: str, port: int, protocol: str, pods: Sequence[str]) -> Manifest:
        pick = self.pick
        some = pick.sample(pods, pick.randrange(1, len(pods) + 1))
        hinted = pick.random() < 0.3
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{port}",
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv6" if self._six else "IPv4",
            "ports": [{"name": "http", "port": port, "protocol": protocol}],
            "endpoints": [self._endpoint(one, hinted) for one in some],
        }

    def _endpoint(self, pod: str, hinted: bool) -> Manifest:
        pick = self.pick
        ipv4, ipv6, where = PODS.get(pod, (*NODE_ADDRESSES, "node-0"))
        states = [{}, {"ready": False}, {"ready": False, "serving": True, "terminating": True}]
        hints = {"hints": {"forZones": [{"name": pick.choice(["zone-a", "zone-b"])}]}} if hinted else {}
        return {
            "addresses": [ipv6 if self._six else ipv4],
            "nodeName": where,
            "conditions": pick.choices(states, [5, 1, 1])[0],
            **hints,
        }

    def flows(self, count: int) -> Iterator[Flow]:
        """Connections from everywhere, most of them to Services, some beside them, some straight to pods."""
        pick = self.pick
        for _ in range(count):
            sender = self._sender()
            address, port, protocol = pick.choice(self.ways)
            if pick.random() < 0.06:
                port += 100
            elif pick.random() < 0.06 and sender.origin is not Origin.NODE:
                address, port = PODS[pick.choice(list(PODS))][self._six], pick.choice(PORTS)
            if address == "127.0.0.1":
                sender = Sender("node-0", Origin.NODE, "127.0.0.1")
            yield Flow(sender, address, port, protocol)

    def _sender(self) -> Sender:
        pick = self.pick
        origin = pick.choice(list(Origin))
        if origin is Origin.NODE:
            return Sender("node-0", origin, NODE_ADDRESSES[self._six])
        if origin is Origin.POD:
            name = pick.choice(list(PODS))
            return Sender(name, origin, PODS[name][self._six])
        return Sender("", origin, pick.choice(STRANGERS[self.family]))
