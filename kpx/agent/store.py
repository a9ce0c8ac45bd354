"""What the agent knows of the cluster: sound objects by name, and which Services a change touches. Pure."""

from collections import defaultdict
from collections.abc import Iterable

from kpx import api
from kpx.family import Family
from kpx.model.endpoint import Endpoints, merge_slices, service_of
from kpx.model.service import ServicePort, ServicePortName, service_ports
from kpx.sources.events import Event, Gone, Put

ServiceKey = tuple[str, str]
"""Namespace and name of a Service."""


class Store:
    """Objects as they came last. The last good version of an object stays until a good one or its end comes."""

    def __init__(self, node_name: str) -> None:
        self.node_name = node_name
        self.node: api.Node | None = None
        self.services: dict[ServiceKey, api.Service] = {}
        self._slices: dict[ServiceKey, dict[str, api.EndpointSlice]] = defaultdict(dict)
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

    def keys(self) -> frozenset[ServiceKey]:
        """Every Service that is known."""
        return frozenset(self.services)

    def ports(self, key: ServiceKey, family: Family) -> tuple[ServicePort, ...]:
        """The service ports of a Service; none if there is no such Service."""
        service = self.services.get(key)
        return tuple(service_ports(service, family)) if service else ()

    def endpoints(self, key: ServiceKey, family: Family) -> dict[ServicePortName, Endpoints]:
        """The endpoints of a Service by service port."""
        return dict(merge_slices(self.slices(key), family, self.node_name))

    def slices(self, key: ServiceKey) -> Iterable[api.EndpointSlice]:
        """The EndpointSlices of a Service."""
        return self._slices[key].values() if key in self._slices else ()

    def counts(self) -> dict[str, int]:
        """How many objects of each kind are known."""
        return {
            "Service": len(self.services),
            "EndpointSlice": len(self._service_of_slice),
            "Node": int(self.node is not None),
        }

    def _put(self, one: api.Object) -> frozenset[ServiceKey]:
        if isinstance(one, api.Service):
            key = (one.metadata.namespace, one.metadata.name)
            self.services[key] = one
            return frozenset({key})
        if isinstance(one, api.EndpointSlice):
            return self._put_slice(one)
        return self._put_node(one)

    def _put_slice(self, one: api.EndpointSlice) -> frozenset[ServiceKey]:
        name = (one.metadata.namespace, one.metadata.name)
        touched = self._drop_slice(name)
        key = service_of(one)
        if key is None:
            return touched
        self._slices[key][one.metadata.name] = one
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
            return frozenset({key}) if self.services.pop(key, None) else frozenset()
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
        of_service = self._slices[key]
        del of_service[name[1]]
        if not of_service:
            del self._slices[key]
        return frozenset({key})


def _rules_depend(node: api.Node) -> tuple[object, ...]:
    """What of a Node the rules depend on: kubelet updates the rest several times a minute."""
    return node.metadata.labels, node.spec.pod_cidr, node.spec.pod_cidrs, node.status.addresses
