"""Which endpoints of a service port this node may use, and for what traffic."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from kpx.model.endpoint import Endpoint, Endpoints
from kpx.model.node import NodeView
from kpx.model.service import ServicePort


class Topology(Enum):
    """How far hints narrow the Cluster policy on this node."""

    ANYWHERE = auto()
    SAME_NODE = auto()
    SAME_ZONE = auto()


@dataclass(frozen=True, slots=True)
class Selection:
    """The endpoints that take part on this node.

    `cluster` serves traffic under the Cluster policy, `local` under the Local policy (each empty if the
    service port never uses that policy); `reachable` is their union, in the order of their text.
    `anywhere` says whether some node of the cluster has a usable endpoint: without one traffic is rejected,
    with one but none here it is dropped.
    """

    cluster: Endpoints = ()
    local: Endpoints = ()
    reachable: Endpoints = ()
    anywhere: bool = False


def select(endpoints: Endpoints, port: ServicePort, node: NodeView) -> Selection:
    """Apply traffic policies, topology hints and readiness, as kube-proxy 1.36 does (`pkg/proxy/topology.go`).

    Ready endpoints are preferred; where there are none, those that serve while terminating step in,
    separately for each policy.
    """
    if not endpoints:
        return Selection()
    cluster: Endpoints = ()
    local: Endpoints = ()
    if port.uses_cluster_endpoints:
        wanted = _topology_filter(endpoints, node)
        cluster = _ready_or_draining(endpoints, lambda one: one.ready and wanted(one), lambda _: True)
    anywhere = bool(cluster)
    if port.uses_local_endpoints:
        local = _ready_or_draining(endpoints, lambda one: one.ready and one.local, lambda one: one.local)
        anywhere = anywhere or any(_usable(one) for one in endpoints)
    return Selection(cluster, local, _union(cluster, local), anywhere)


def topology(endpoints: Endpoints, node: NodeView) -> Topology:
    """How hints narrow the choice: only if every ready endpoint has one and one of them names this node or zone."""
    ready = [one for one in endpoints if one.ready]
    if not ready:
        return Topology.ANYWHERE
    if all(one.node_hints for one in ready) and any(node.name in one.node_hints for one in ready):
        return Topology.SAME_NODE
    if all(one.zone_hints for one in ready) and any(node.zone in one.zone_hints for one in ready):
        return Topology.SAME_ZONE
    return Topology.ANYWHERE


def _topology_filter(endpoints: Endpoints, node: NodeView) -> Callable[[Endpoint], bool]:
    match topology(endpoints, node):
        case Topology.SAME_NODE:
            return lambda one: node.name in one.node_hints
        case Topology.SAME_ZONE:
            return lambda one: node.zone in one.zone_hints
        case _:
            return lambda _: True


def _ready_or_draining(
    endpoints: Endpoints, ready: Callable[[Endpoint], bool], eligible: Callable[[Endpoint], bool]
) -> Endpoints:
    chosen = tuple(one for one in endpoints if ready(one))
    return chosen or tuple(one for one in endpoints if _draining(one) and eligible(one))


def _draining(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating


def _usable(endpoint: Endpoint) -> bool:
    return endpoint.ready or _draining(endpoint)


def _union(cluster: Endpoints, local: Endpoints) -> Endpoints:
    if not local or set(local) <= set(cluster):
        return cluster
    return tuple(sorted({*cluster, *local}, key=str))
