"""What the agent knows of the cluster: sound objects by name, and which Services a change touches. Pure."""

from sys import intern

from kpx import api
from kpx.family import Family
from kpx.model.endpoint import Slice, slice_of
from kpx.model.service import ServicePort, service_ports
from kpx.sources.events import Event, Gone, Put

ServiceKey = tuple[str, str]
"""Namespace and name of a Service."""

Ports = tuple[ServicePort, ...]
Slices = tuple[Slice, ...]

_NO_PORTS: tuple[Ports, Ports] = ((), ())
_FAMILIES = tuple(Family)


class Store:
    """What counts of the objects as they came last, packed; no object is kept but this node's.

    The last good version of an object stays until a good one or its end comes.
    """

    def __init__(self, node_name: str) -> None:
        self.node_name = node_name
        self.node: api.Node | None = None
        self._ports: dict[ServiceKey, tuple[Ports, Ports]] = {}
        self._slices: dict[ServiceKey, Slices] = {}
        self._service_of_slice: dict[tuple[str, str], ServiceKey] = {}

    def take(self, event: Event) -> frozenset[ServiceKey]:
        """Take in an event; returns the Services whose rules it may change.

        A change of this node touches all of them.
        """
        if isinstance(event, Put):
            return self._put(event.object)
        if isinstance(event, Gone):
            return self._drop(event)
        return frozenset()

    def __contains__(self, key: object) -> bool:
        """Whether there is a Service of this key."""
        return key in self._ports

    def keys(self) -> frozenset[ServiceKey]:
        """Every Service that is known."""
        return frozenset(self._ports)

    def ports(self, key: ServiceKey, family: Family) -> Ports:
        """The service ports of a Service; none if there is no such Service."""
        return self._ports.get(key, _NO_PORTS)[_FAMILIES.index(family)]

    def slices(self, key: ServiceKey) -> Slices:
        """The EndpointSlices of a Service, of both families."""
        return self._slices.get(key, ())

    def counts(self) -> dict[str, int]:
        """How many objects of each kind are known."""
        return {
            "Service": len(self._ports),
            "EndpointSlice": len(self._service_of_slice),
            "Node": int(self.node is not None),
        }

    def _put(self, one: api.Object) -> frozenset[ServiceKey]:
        if isinstance(one, api.Service):
            key = (intern(one.metadata.namespace), intern(one.metadata.name))
            ipv4, ipv6 = (tuple(service_ports(one, family)) for family in _FAMILIES)
            self._ports[key] = (ipv4, ipv6) if ipv4 or ipv6 else _NO_PORTS
            return frozenset({key})
        if isinstance(one, api.EndpointSlice):
            return self._put_slice(one)
        return self._put_node(one)

    def _put_slice(self, one: api.EndpointSlice) -> frozenset[ServiceKey]:
        name = (intern(one.metadata.namespace), intern(one.metadata.name))
        packed = slice_of(one, self.node_name)
        if packed is None:
            return self._drop_slice(name)
        key = packed.service
        touched = self._drop_slice(name) if self._service_of_slice.get(name, key) != key else frozenset()
        self._slices[key] = (*(other for other in self.slices(key) if other.name != packed.name), packed)
        self._service_of_slice[name] = key
        return touched | {key}

    def _put_node(self, one: api.Node) -> frozenset[ServiceKey]:
        if one.metadata.name != self.node_name:
            return frozenset()
        before, self.node = self.node, one
        return self.keys() if before is None or _rules_depend(before) != _rules_depend(one) else frozenset()

    def _drop(self, event: Gone) -> frozenset[ServiceKey]:
        if event.kind == "Service":
            key = (event.namespace, event.name)
            return frozenset({key}) if self._ports.pop(key, None) else frozenset()
        if event.kind == "EndpointSlice":
            return self._drop_slice((event.namespace, event.name))
        if self.node is not None and event.name == self.node_name:
            self.node = None
            return self.keys()
        return frozenset()

    def _drop_slice(self, name: tuple[str, str]) -> frozenset[ServiceKey]:
        key = self._service_of_slice.pop(name, None)
        if key is None:
            return frozenset()
        left = tuple(one for one in self._slices.pop(key) if one.name != name[1])
        if left:
            self._slices[key] = left
        return frozenset({key})


def _rules_depend(node: api.Node) -> tuple[object, ...]:
    """What of a Node the rules depend on: kubelet updates the rest several times a minute."""
    return node.metadata.labels, node.spec.pod_cidr, node.spec.pod_cidrs, node.status.addresses
