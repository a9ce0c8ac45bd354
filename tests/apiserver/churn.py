"""A cluster that never rests: an endless stream of valid, random, repeatable changes.

Users create, change and delete Services, pods come and go; a controller follows with EndpointSlices, one
slice at a time and in any order, so that Services and slices disagree for a while, as they do in a cluster.
"""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple

from .inventory import (
    PROXY_NAME,
    Pod,
    Pool,
    Registrar,
    Slice,
    cluster_address,
    node_objects,
    outside_address,
    pod_number,
    service_object,
    slice_object,
    with_manager,
)
from .resources import Object

__all__ = ["Change", "churn", "node_objects", "population"]

Verb = Literal["create", "update", "delete"]

_NAMESPACES = ("shop", "media", "bank")
_NAMES = ("web", "api", "dns", "cache", "queue", "mail", "auth", "feed")
_FAMILIES = ("IPv4", "IPv6")
_NODES = 5
_PER_SLICE = 4
_LAG = 6
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer")
_RANGES = ("192.0.2.0/24", "198.51.100.0/25", "203.0.113.7/32", "10.0.0.0/8", "0.0.0.0/0")
_RANGES_V6 = ("2001:db8:1::/48", "::/0")


class Change(NamedTuple):
    """One step: what is done, and the object as stored after it (before it, for a deletion)."""

    verb: Verb
    obj: Object


_ANNOTATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("test.invalid/note", ()),
    ("kpx.dev/balance", ("random", "round-robin", "source-hash", "robin")),
    ("kpx.dev/local-weight", ("0", "50", "200")),
    ("kpx.dev/affinity-scope", ("port", "service")),
)


@dataclass(slots=True, eq=False)
class _Service:
    """A Service as its owner sees it; `live` once it is published, `retiring` while its slices go first."""

    obj: Object
    pods: list[Pod] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    live: bool = False
    retiring: bool = False

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.obj["spec"]
        return spec

    @property
    def key(self) -> tuple[str, str]:
        return self.obj["metadata"]["namespace"], self.obj["metadata"]["name"]

    @property
    def families(self) -> list[str]:
        """The families that need slices."""
        return [] if self.spec["type"] == "ExternalName" else self.spec["ipFamilies"]

    @property
    def has_address(self) -> bool:
        return bool(self.spec.get("clusterIP", "None") != "None")


def churn(seed: int, *, services: int = 30, now: Callable[[], datetime] | None = None) -> Iterator[Change]:
    """Changes without end; the same arguments give the same ones.

    Between half and one and a half times `services` Services exist at a time, once there has been time to
    make them. clusterIPs, nodePorts and external addresses are unique at any moment. `now` stamps objects
    (and the trigger time of slices) with a real clock; then the stamps differ from run to run.
    """
    return iter(_Cluster(random.Random(seed), services, now))


def population(services: int, endpoints: int = 5, seed: int = 0) -> Iterator[Object]:
    """Plain ClusterIP Services in namespace `fleet`, each followed by its slice with ready endpoints.

    Their addresses (10.104.0.0/13, pods in 10.245.0.0/16) and names don't meet those of `churn`. At most
    64,000 endpoints in all.
    """
    rng = random.Random(seed)
    registrar = Registrar(rng, None)
    addresses = Pool(rng, range(1 << 19, 1 << 20), partial(cluster_address, "IPv4"))
    pods = Pool(rng, range(256, 1 << 16), pod_number)
    for number in range(services):
        spec: dict[str, Any] = {
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
        }
        spec["clusterIPs"] = [addresses.take()]
        spec["clusterIP"] = spec["clusterIPs"][0]
        service = service_object(registrar, "fleet", f"service-{number}", spec)
        piece = Slice(registrar.metadata("fleet", f"service-{number}-0"), "IPv4")
        piece.pods = [Pod(pods.take(), 245, registrar.uid(), _NODES) for _ in range(endpoints)]
        yield with_manager(service, "kubectl")
        yield slice_object(service, piece, registrar.now())


class _Cluster:
    """The state behind the stream; every method that returns a Change has made it already."""

    def __init__(self, rng: random.Random, size: int, now: Callable[[], datetime] | None) -> None:
        self._rng = rng
        self._size = size
        self._registrar = Registrar(rng, now)
        self._cluster_ips = {
            family: Pool(rng, range(256, 1 << 19), partial(cluster_address, family)) for family in _FAMILIES
        }
        self._outside = {
            (second, family): Pool(rng, range(256, 1 << 16), partial(outside_address, second, family))
            for second in (18, 19)
            for family in _FAMILIES
        }
        self._node_ports = Pool(rng, range(30_100, 32_768), int)
        self._pod_numbers = Pool(rng, range(256, 255 << 8), pod_number)
        self._services: list[_Service] = []
        self._dirty: list[tuple[_Service, Slice]] = []
        self._reborn: list[tuple[str, str]] = []
        self._serial = 0

    def __iter__(self) -> Iterator[Change]:
        while True:
            late = len(self._dirty)  # the later the controller is, the busier it gets
            change = self._control() if self._rng.random() < late / (late + _LAG) else self._use()
            if change is not None:
                yield change

    # The controller: slices follow what is.

    def _control(self) -> Change | None:
        """Publish one slice that is out of date."""
        service, piece = self._dirty.pop(self._rng.randrange(len(self._dirty)))
        if piece.doomed:
            if piece in service.slices:
                service.slices.remove(piece)
            before, piece.live = piece.live, None
            return self._write("delete", before) if before else None
        obj = slice_object(service.obj, piece, self._registrar.now())
        if piece.live is not None and _content(piece.live) == _content(obj):
            return None
        verb: Verb = "create" if piece.live is None else "update"
        piece.live = obj
        return self._write(verb, obj)

    def _touch(self, service: _Service, *pieces: Slice) -> None:
        known = {piece for _, piece in self._dirty}
        self._dirty += [(service, piece) for piece in pieces if piece not in known]

    def _doom(self, service: _Service, piece: Slice) -> None:
        piece.doomed = True
        piece.pods = []
        self._touch(service, piece)

    # The users.

    def _use(self) -> Change | None:
        """Something a user or a kubelet does; None if that only gives the controller work."""
        count = len(self._services)
        for service in self._services:
            if service.retiring and not service.slices:
                return self._remove(service)
            if not service.live and self._rng.random() < 0.1:
                return self._publish(service)
        if count < self._size // 2 or (count < self._size * 3 // 2 and self._rng.random() < 0.06):
            return self._create()
        service = self._rng.choice(self._services)
        if count > self._size // 2 and service.live and self._rng.random() < 0.07:
            return self._rng.choice([self._remove, self._retire, self._replace])(service)
        if service.live and not service.retiring and self._rng.random() < 0.25:
            return self._modify(service)
        if not service.retiring:
            self._rng.choice(self._pod_moves)(self, service)
        return None

    def _create(self) -> Change | None:
        namespace, name = self._new_name()
        service = _Service(service_object(self._registrar, namespace, name, self._new_spec()))
        self._services.append(service)
        self._settle(service)
        for _ in range(self._rng.choice((0, 1, 2, 3, 3, 5, 8))):
            self._add_pod(service)
        # Now and then somebody's slices are there before the Service is.
        return self._publish(service) if self._rng.random() < 0.8 else None

    def _publish(self, service: _Service) -> Change:
        service.live = True
        return self._write("create", self._published(service))

    def _remove(self, service: _Service) -> Change | None:
        """Delete the Service; its slices are collected afterwards, if they aren't gone yet."""
        self._services.remove(service)
        self._release(service)
        for pod in service.pods:
            self._pod_numbers.give(pod.number)
        for piece in service.slices:
            self._doom(service, piece)
        if self._rng.random() < 0.4:
            self._reborn.append(service.key)
        return self._write("delete", self._published(service)) if service.live else None

    def _retire(self, service: _Service) -> Change | None:
        """Let the slices go first; the Service follows when they are gone."""
        service.retiring = True
        for piece in service.slices:
            self._doom(service, piece)
        return None

    def _replace(self, service: _Service) -> Change | None:
        """Delete the Service; one of the same name, but with another uid and clusterIP, comes soon."""
        change = self._remove(service)
        if service.key not in self._reborn:
            self._reborn.append(service.key)
        return change

    def _modify(self, service: _Service) -> Change | None:
        before = copy.deepcopy(service.obj)
        self._rng.choice(self._service_moves)(self, service)
        self._settle(service)
        if service.obj == before:
            return None
        return self._write("update", self._published(service))

    def _write(self, verb: Verb, obj: Object) -> Change:
        fresh = copy.deepcopy(obj)
        fresh["metadata"]["resourceVersion"] = self._registrar.version()
        return Change(verb, fresh)

    def _published(self, service: _Service) -> Object:
        return with_manager(service.obj, "kubectl")

    def _new_name(self) -> tuple[str, str]:
        if self._reborn and self._rng.random() < 0.6:
            return self._reborn.pop(0)
        self._serial += 1
        return self._rng.choice(_NAMESPACES), f"{self._rng.choice(_NAMES)}-{self._serial}"

    def _new_spec(self) -> dict[str, Any]:
        rng = self._rng
        spec: dict[str, Any] = {"type": rng.choices((*_TYPES, "ExternalName"), (5, 3, 3, 0.5))[0]}
        policy = rng.choices(("SingleStack", "PreferDualStack", "RequireDualStack"), (6, 2, 1))[0]
        first = "IPv4" if rng.random() < 0.85 else "IPv6"
        spec |= {"ipFamilyPolicy": policy, "ipFamilies": [first], "sessionAffinity": "None", "ports": []}
        if spec["type"] == "ClusterIP" and rng.random() < 0.15:
            spec |= {"clusterIP": "None", "clusterIPs": ["None"]}
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _add_port(rng, spec)
        if rng.random() < 0.1:
            spec["publishNotReadyAddresses"] = True
        return spec

    # What may happen to a Service.

    def _annotate(self, service: _Service) -> None:
        name, values = self._rng.choice(_ANNOTATIONS)
        service.obj["metadata"].setdefault("annotations", {})[name] = self._rng.choice(
            values or (self._registrar.uid(),)
        )

    def _relabel(self, service: _Service) -> None:
        """Give the Service to another proxy, or take it back."""
        labels = service.obj["metadata"]["labels"]
        if labels.pop(PROXY_NAME, None) is None:
            labels[PROXY_NAME] = "another"

    def _retype(self, service: _Service) -> None:
        if service.has_address or service.spec["type"] == "ExternalName":
            service.spec["type"] = self._rng.choices((*_TYPES, "ExternalName"), (4, 4, 4, 1))[0]

    def _change_ports(self, service: _Service) -> None:
        ports = service.spec["ports"]
        port = self._rng.choice(ports)
        match self._rng.choice(("add", "remove", "retarget", "renumber")):
            case "add" if len(ports) < 4:
                _add_port(self._rng, service.spec)
            case "remove" if len(ports) > 1:
                ports.remove(port)
                self._free_port(port)
            case "retarget":
                port["targetPort"] = _target(self._rng, port.get("name", ""))
            case _:
                port["port"] = _free_number(self._rng, ports)

    def _toggle_affinity(self, service: _Service) -> None:
        spec = service.spec
        if spec["sessionAffinity"] == "None":
            spec["sessionAffinity"] = "ClientIP"
            seconds = self._rng.choice((10, 3600, 10800))
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": seconds}}
        else:
            spec["sessionAffinity"] = "None"
            del spec["sessionAffinityConfig"]

    def _toggle_external_policy(self, service: _Service) -> None:
        if "externalTrafficPolicy" in service.spec:
            _toggle(service.spec, "externalTrafficPolicy", "Cluster", "Local")

    def _toggle_internal_policy(self, service: _Service) -> None:
        if "internalTrafficPolicy" in service.spec:
            _toggle(service.spec, "internalTrafficPolicy", "Cluster", "Local")

    def _change_external_ips(self, service: _Service) -> None:
        held = service.spec.get("externalIPs", [])
        if held:
            self._give_outside(19, [held.pop()])
        elif service.has_address:
            service.spec["externalIPs"] = [self._outside[19, family].take() for family in service.families]

    def _change_ranges(self, service: _Service) -> None:
        if service.spec["type"] == "LoadBalancer":
            known = (*_RANGES, *_RANGES_V6)
            service.spec["loadBalancerSourceRanges"] = self._rng.sample(known, self._rng.randrange(4))

    def _change_ingress(self, service: _Service) -> None:
        """The cloud's controller writes the balancer's addresses, later than the Service came."""
        if service.spec["type"] != "LoadBalancer" or self._drop_ingress(service):
            return
        mode = self._rng.choice(("VIP", "VIP", "Proxy"))
        service.obj["status"]["loadBalancer"]["ingress"] = [
            {"ip": self._outside[18, family].take(), "ipMode": mode} for family in service.families
        ]

    def _spread(self, service: _Service) -> None:
        """Turn topology-aware routing on or off."""
        if not service.spec.pop("trafficDistribution", None):
            known = ("PreferClose", "PreferSameZone", "PreferSameNode")
            service.spec["trafficDistribution"] = self._rng.choice(known)

    def _change_families(self, service: _Service) -> None:
        if service.has_address:
            _toggle(service.spec, "ipFamilyPolicy", "SingleStack", "PreferDualStack")

    _service_moves = (
        _annotate,
        _relabel,
        _retype,
        _change_ports,
        _toggle_affinity,
        _toggle_external_policy,
        _toggle_internal_policy,
        _change_external_ips,
        _change_ranges,
        _change_ingress,
        _spread,
        _change_families,
    )

    # What the API server fills in, and takes away.

    def _settle(self, service: _Service) -> None:
        """Make the spec what the API server would store: addresses, ports, defaults; then tell the slices."""
        spec = service.spec
        outward = spec["type"] in ("NodePort", "LoadBalancer")
        balanced, alias = spec["type"] == "LoadBalancer", spec["type"] == "ExternalName"
        self._settle_addresses(service)
        if alias:
            self._give_outside(19, spec.pop("externalIPs", []))
        if not balanced:
            spec.pop("loadBalancerSourceRanges", None)
            self._drop_ingress(service)
        for name in ("externalIPs", "loadBalancerSourceRanges"):
            if name in spec and not spec[name]:
                del spec[name]
        _keep(spec, "externalTrafficPolicy", "Cluster", outward or "externalIPs" in spec)
        _keep(spec, "internalTrafficPolicy", "Cluster", not alias)
        _keep(spec, "allocateLoadBalancerNodePorts", True, balanced)
        _keep(spec, "externalName", "example.com", alias)
        self._settle_node_ports(spec, outward)
        self._settle_slices(service)

    def _settle_addresses(self, service: _Service) -> None:
        """As many clusterIPs as families; the first one stays."""
        spec = service.spec
        if spec["type"] == "ExternalName":
            self._give_cluster_ips(spec.get("clusterIPs", []))
            for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "trafficDistribution"):
                spec.pop(name, None)
            return
        first = spec.setdefault("ipFamilies", ["IPv4"])[0]
        count = 1 if spec.setdefault("ipFamilyPolicy", "SingleStack") == "SingleStack" else 2
        spec["ipFamilies"] = [first, "IPv6" if first == "IPv4" else "IPv4"][:count]
        if spec.get("clusterIP") == "None":
            return
        held = spec.get("clusterIPs", [])
        self._give_cluster_ips(held[count:])
        new = [self._cluster_ips[family].take() for family in spec["ipFamilies"][len(held) :]]
        spec["clusterIPs"] = held[:count] + new
        spec["clusterIP"] = spec["clusterIPs"][0]

    def _settle_node_ports(self, spec: dict[str, Any], outward: bool) -> None:
        for port in spec["ports"]:
            if outward and "nodePort" not in port:
                port["nodePort"] = self._node_ports.take()
            elif not outward:
                self._free_port(port)
        checked = spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
        if checked and "healthCheckNodePort" not in spec:
            spec["healthCheckNodePort"] = self._node_ports.take()
        elif not checked and "healthCheckNodePort" in spec:
            self._node_ports.give(spec.pop("healthCheckNodePort"))

    def _settle_slices(self, service: _Service) -> None:
        """Slices for every family and for no other; all of them may have to be written anew."""
        for piece in service.slices:
            if not piece.doomed and piece.family not in service.families:
                self._doom(service, piece)
        for family in service.families:
            if not _pieces(service, family):
                self._new_slice(service, family).pods = list(service.pods)
        self._touch(service, *(piece for piece in service.slices if not piece.doomed))

    def _new_slice(self, service: _Service, family: str) -> Slice:
        namespace, name = service.key
        suffix = "".join(self._rng.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        metadata = self._registrar.metadata(namespace, f"{name}-{suffix}")
        piece = Slice(metadata, family, self._rng.choice((0, 0, 100)), self._rng.random() < 0.1)
        service.slices.append(piece)
        return piece

    def _release(self, service: _Service) -> None:
        """Take back all that a deleted Service held; its object stays as it was."""
        spec = copy.deepcopy(service.spec)
        self._give_cluster_ips(spec.get("clusterIPs", []))
        self._give_outside(19, spec.get("externalIPs", []))
        self._give_outside(18, _ingress_ips(service))
        for port in spec["ports"]:
            self._free_port(port)
        if "healthCheckNodePort" in spec:
            self._node_ports.give(spec["healthCheckNodePort"])

    def _give_cluster_ips(self, addresses: list[str]) -> None:
        for address in addresses:
            if address != "None":
                self._cluster_ips[_family(address)].give(address)

    def _give_outside(self, second: int, addresses: list[str]) -> None:
        for address in addresses:
            self._outside[second, _family(address)].give(address)

    def _drop_ingress(self, service: _Service) -> bool:
        self._give_outside(18, _ingress_ips(service))
        return bool(service.obj["status"]["loadBalancer"].pop("ingress", None))

    def _free_port(self, port: dict[str, Any]) -> None:
        if "nodePort" in port:
            self._node_ports.give(port.pop("nodePort"))

    # What may happen to pods.

    def _add_pod(self, service: _Service) -> None:
        pod = Pod(self._pod_numbers.take(), 244, self._registrar.uid(), _NODES)
        pod.ready = self._rng.random() < 0.8
        service.pods.append(pod)
        for family in service.families:
            room = [piece for piece in _pieces(service, family) if len(piece.pods) < _PER_SLICE]
            if not room or self._rng.random() < 0.05:
                room = [self._new_slice(service, family)]
            piece = self._rng.choice(room)
            piece.pods.append(pod)
            self._touch(service, piece)

    def _lose_pod(self, service: _Service) -> None:
        """A pod goes: those that are terminating first."""
        if not service.pods:
            return
        pod = max(self._rng.sample(service.pods, len(service.pods)), key=lambda one: one.terminating)
        service.pods.remove(pod)
        self._pod_numbers.give(pod.number)
        for piece in _holding(service, pod):
            piece.pods.remove(pod)
            if piece.pods or len(_pieces(service, piece.family)) == 1:
                self._touch(service, piece)
            else:
                self._doom(service, piece)

    def _flip_readiness(self, service: _Service) -> None:
        for pod in self._some_pods(service):
            pod.ready = not pod.ready
            self._touch(service, *_holding(service, pod))

    def _terminate(self, service: _Service) -> None:
        for pod in self._some_pods(service):
            pod.terminating = True
            self._touch(service, *_holding(service, pod))

    def _move_endpoint(self, service: _Service) -> None:
        """Another slice takes an endpoint over; for a while both have it, or none."""
        for pod in self._some_pods(service):
            for piece in _holding(service, pod):
                others = [other for other in _pieces(service, piece.family) if other is not piece]
                if others:
                    other = self._rng.choice(others)
                    piece.pods.remove(pod)
                    other.pods.append(pod)
                    self._touch(service, piece, other)

    def _split_slice(self, service: _Service) -> None:
        """Half of a slice's endpoints go to a new one."""
        for piece in [piece for piece in service.slices if len(piece.pods) > 2][:1]:
            new = self._new_slice(service, piece.family)
            half = len(piece.pods) // 2
            new.pods, piece.pods = piece.pods[half:], piece.pods[:half]
            self._touch(service, piece, new)

    def _some_pods(self, service: _Service) -> list[Pod]:
        return self._rng.sample(service.pods, min(len(service.pods), self._rng.choice((1, 1, 2))))

    _pod_moves = (
        _add_pod,
        _add_pod,
        _lose_pod,
        _lose_pod,
        _flip_readiness,
        _flip_readiness,
        _terminate,
        _move_endpoint,
        _split_slice,
    )


def _pieces(service: _Service, family: str) -> list[Slice]:
    """The slices of a family that are to stay."""
    return [piece for piece in service.slices if piece.family == family and not piece.doomed]


def _holding(service: _Service, pod: Pod) -> list[Slice]:
    return [piece for piece in service.slices if pod in piece.pods]


def _add_port(rng: random.Random, spec: dict[str, Any]) -> None:
    """One more port. Only the first may be without a name, and only until there is a second."""
    ports = spec["ports"]
    for port in ports:
        port.setdefault("name", "first")
    name = f"p{rng.randrange(10**6)}"
    port = {"name": name, "protocol": rng.choices(("TCP", "UDP", "SCTP"), (7, 3, 1))[0]}
    port |= {"port": _free_number(rng, ports), "targetPort": _target(rng, name)}
    if not ports and rng.random() < 0.3:
        del port["name"]
    ports.append(port)


def _free_number(rng: random.Random, ports: list[dict[str, Any]]) -> int:
    return rng.choice([n for n in (53, 80, 443, 5432, 6379, 8443, 9090) if n not in {p["port"] for p in ports}])


def _target(rng: random.Random, name: str) -> int | str:
    return rng.choice((8080, 8081, 9000, name or "main"))


def _toggle(spec: dict[str, Any], name: str, one: str, other: str) -> None:
    spec[name] = other if spec[name] == one else one


def _keep(spec: dict[str, Any], name: str, default: object, wanted: bool) -> None:
    """A field that is there, with a default, exactly if it has a meaning."""
    if wanted:
        spec.setdefault(name, default)
    else:
        spec.pop(name, None)


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def _ingress_ips(service: _Service) -> list[str]:
    return [entry["ip"] for entry in service.obj["status"]["loadBalancer"].get("ingress", [])]


def _content(obj: Object) -> tuple[object, ...]:
    """What makes a controller write a slice again: not its stamps."""
    return obj["metadata"]["labels"], obj["endpoints"], obj["ports"]
