"""Objects as an API server stores them: identities, addresses, defaults; the building blocks of `churn`.

Left free for a test's own objects: 10.96.0.0/24 and fd00:10:96::/120 (clusterIPs), 30000-30099 (nodePorts),
10.244.255.0/24 (pods).
"""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from .resources import Object

T = TypeVar("T")
ZONES = ("zone-a", "zone-b", "zone-c")
SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Pool(Generic[T]):
    """Values of a numbered range, each given out once at a time; one that came back is likely to go out next.

    `spell` makes the value of a number; numbers for which it gives None are left out.
    """

    def __init__(self, rng: random.Random, numbers: range, spell: Callable[[int], T | None]) -> None:
        self._rng = rng
        self._numbers = numbers
        self._spell = spell
        self._used: set[T] = set()
        self._back: list[T] = []

    def take(self) -> T:
        """A value that isn't in use. Raises RuntimeError if there seems to be none left."""
        value = self._back.pop() if self._back and self._rng.random() < 0.5 else self._fresh()
        self._used.add(value)
        return value

    def give(self, value: T) -> None:
        self._used.remove(value)
        self._back.append(value)

    def _fresh(self) -> T:
        for _ in range(10_000):
            value = self._spell(self._rng.choice(self._numbers))
            if value is not None and value not in self._used:
                if value in self._back:
                    self._back.remove(value)
                return value
        raise RuntimeError(f"nothing left in {self._numbers}")


class Registrar:
    """Gives out uids, resourceVersions and times; the same seed gives the same ones.

    `now` is the clock for timestamps; without one, time is simulated: it starts in 2026 and passes as objects
    are written.
    """

    def __init__(self, rng: random.Random, now: Callable[[], datetime] | None) -> None:
        self._rng = rng
        self._version = 0
        self._now = now

    def uid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def version(self) -> str:
        self._version += 1
        return str(self._version)

    def now(self) -> datetime:
        return self._now() if self._now else _EPOCH + timedelta(milliseconds=700 * self._version)

    def metadata(self, namespace: str, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "namespace": namespace,
            "uid": self.uid(),
            "creationTimestamp": f"{self.now():%Y-%m-%dT%H:%M:%SZ}",
        }


@dataclass(slots=True, eq=False)
class Pod:
    """A pod behind Services. `network` is the second half of its IPv4 network: 10.NETWORK.x.y."""

    number: int
    network: int
    uid: str
    nodes: int
    ready: bool = True
    terminating: bool = False

    @property
    def node(self) -> int:
        return (self.number >> 8) % self.nodes

    def address(self, family: str) -> str:
        high, low = self.number >> 8, self.number & 255
        if family == "IPv4":
            return f"10.{self.network}.{high}.{low}"
        return f"fd00:10:{self.network}::{high:x}:{low:x}"


@dataclass(slots=True, eq=False)
class Slice:
    """An EndpointSlice in the making. `offset` shifts named target ports, `bare` is a terse controller.

    `live` is what was published last, `doomed` means that it is to be deleted.
    """

    metadata: dict[str, Any]
    family: str
    offset: int = 0
    bare: bool = False
    pods: list[Pod] = field(default_factory=list)
    live: Object | None = None
    doomed: bool = False


def pod_number(number: int) -> int | None:
    """The number itself if its low byte makes a host address."""
    return number if 0 < number & 255 < 255 else None


def cluster_address(family: str, number: int) -> str:
    """Address `number` of the Service range: 10.96.0.0/12 or fd00:10:96::/108."""
    if family == "IPv4":
        return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    return f"fd00:10:96::{number >> 16:x}:{number & 65535:x}" if number >> 16 else f"fd00:10:96::{number:x}"


def outside_address(second: int, family: str, number: int) -> str:
    """An address of a load balancer (`second` 18) or an external IP (19)."""
    if family == "IPv4":
        return f"198.{second}.{number >> 8}.{number & 255}"
    return f"2001:db8:{second}::{number:x}"


def service_object(registrar: Registrar, namespace: str, name: str, spec: dict[str, Any]) -> Object:
    """A Service around a spec."""
    metadata = registrar.metadata(namespace, name) | {"labels": {"app": name}}
    status: Object = {"loadBalancer": {}}
    return {"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": status}


def slice_object(service: Object, piece: Slice, trigger: datetime) -> Object:
    """The EndpointSlice as its controller would write it for this state of the Service."""
    labels = dict(service["metadata"].get("labels", {}))
    labels |= {SERVICE_NAME: service["metadata"]["name"]}
    labels["endpointslice.kubernetes.io/managed-by"] = "endpointslice-controller.k8s.io"
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    owner = {"apiVersion": "v1", "kind": "Service", "name": service["metadata"]["name"]}
    owner |= {"uid": service["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}
    metadata = piece.metadata | {"labels": labels, "ownerReferences": [owner]}
    metadata["annotations"] = {TRIGGER_TIME: f"{trigger:%Y-%m-%dT%H:%M:%SZ}"}
    words = {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata}
    if not piece.pods:  # a placeholder, with nulls, as the real controller writes it
        return with_manager(
            words | {"addressType": piece.family, "endpoints": None, "ports": None}, "kube-controller-manager"
        )
    endpoints = [_endpoint(service, piece, pod) for pod in piece.pods]
    ports = [_slice_port(port, index, piece.offset) for index, port in enumerate(service["spec"]["ports"])]
    words |= {"addressType": piece.family, "endpoints": endpoints, "ports": ports}
    return with_manager(words, "kube-controller-manager")


def _endpoint(service: Object, piece: Slice, pod: Pod) -> dict[str, Any]:
    ready = pod.ready and not pod.terminating
    if service["spec"].get("publishNotReadyAddresses"):
        ready = True
    conditions = {"ready": ready, "serving": pod.ready, "terminating": pod.terminating}
    zone = ZONES[pod.node % len(ZONES)]
    target = {"kind": "Pod", "namespace": service["metadata"]["namespace"]}
    target |= {"name": f"{service['metadata']['name']}-{pod.number:x}", "uid": pod.uid}
    endpoint: dict[str, Any] = {
        "addresses": [pod.address(piece.family)],
        "conditions": {"ready": ready} if piece.bare else conditions,
        "targetRef": target,
        "nodeName": f"node-{pod.node}",
        "zone": zone,
    }
    spread = service["spec"].get("trafficDistribution")
    if spread and ready:
        endpoint["hints"] = {"forZones": [{"name": zone}]}
        if spread == "PreferSameNode":
            endpoint["hints"]["forNodes"] = [{"name": endpoint["nodeName"]}]
    return endpoint


def _slice_port(port: dict[str, Any], index: int, offset: int) -> dict[str, Any]:
    target = port["targetPort"]
    number = target if isinstance(target, int) else 8000 + index + offset
    return {"name": port.get("name", ""), "protocol": port["protocol"], "port": number}


def with_manager(obj: Object, manager: str) -> Object:
    """Add the managedFields that every stored object carries."""
    content = {name: value for name, value in obj.items() if name not in ("kind", "apiVersion", "metadata")}
    entry = {"manager": manager, "operation": "Update", "apiVersion": obj["apiVersion"]}
    entry |= {"time": obj["metadata"]["creationTimestamp"], "fieldsType": "FieldsV1"}
    metadata = obj["metadata"] | {"managedFields": [entry | {"fieldsV1": _owned(content)}]}
    return obj | {"metadata": metadata}


def _owned(value: Any) -> dict[str, Any]:
    return {f"f:{name}": _owned(inner) for name, inner in value.items()} if isinstance(value, dict) else {}


def node_objects(count: int = 5) -> list[Object]:
    """The Nodes that the pods of `churn` and `population` are on: node-0, node-1, ..."""
    return [_node(number) for number in range(count)]


def _node(number: int) -> Object:
    name = f"node-{number}"
    addresses = {"InternalIP": f"10.200.0.{number + 2}", "Hostname": name}
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": ZONES[number % 3]},
        },
        "spec": {
            "podCIDR": f"10.244.{number}.0/24",
            "podCIDRs": [f"10.244.{number}.0/24", f"fd00:10:244:{number:x}::/64"],
        },
        "status": {"addresses": [{"type": kind, "address": value} for kind, value in addresses.items()]},
    }
