"""Which endpoints of a service port this node may use, and for what traffic."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from math import gcd
from operator import attrgetter

from kpx.model.balance import Balancing
from kpx.model.endpoint import Endpoint, Endpoints
from kpx.model.node import NodeView
from kpx.model.service import ServicePort


class Topology(Enum):
    """How far hints narrow the Cluster policy on this node."""

    ANYWHERE = auto()
    SAME_NODE = auto()
    SAME_ZONE = auto()


class Exclusion(Enum):
    """What keeps an endpoint from taking part on this node."""

    NOT_READY = auto()
    NOT_DRAINING = auto()
    NO_WEIGHT = auto()
    OTHER_NODE = auto()
    OTHER_ZONE = auto()
    NOT_LOCAL = auto()


Demand = tuple[Exclusion, Callable[[Endpoint], bool]]
"""What an endpoint has to be, and the name for what it is otherwise."""

Demands = tuple[Demand, ...]


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

    def serves(self, local: bool) -> bool:
        """Whether traffic is served here under the Local policy, or under the Cluster policy."""
        return self.anywhere and bool(self.local or not local)


def select(endpoints: Endpoints, port: ServicePort, node: NodeView) -> Selection:
    """Apply traffic policies, topology hints and readiness, as kube-proxy 1.36 does (`pkg/proxy/topology.go`).

    Ready endpoints are preferred; where there are none, those that serve while terminating step in,
    separately for each policy. Endpoints of weight 0 take part only where all others are of weight 0, too.
    """
    if not endpoints:
        return Selection()
    cluster: Endpoints = ()
    local: Endpoints = ()
    if port.uses_cluster_endpoints:
        cluster = _choose(endpoints, _cluster_demands(endpoints, node))
    anywhere = bool(cluster)
    if port.uses_local_endpoints:
        local = _choose(endpoints, _LOCAL_DEMANDS)
        anywhere = anywhere or any(_usable(one) for one in endpoints)
    return Selection(cluster, local, _union(cluster, local), anywhere)


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Why endpoints don't take part on this node, by policy; those that aren't named do."""

    cluster: Mapping[Endpoint, Exclusion]
    local: Mapping[Endpoint, Exclusion]


def exclusions(endpoints: Endpoints, node: NodeView) -> Exclusions:
    """What keeps endpoints out of `select`, under either policy. Where none is ready, what keeps them from being so."""
    return Exclusions(
        _excluded(endpoints, _cluster_demands(endpoints, node)),
        _excluded(endpoints, _LOCAL_DEMANDS),
    )


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


def weights(endpoints: Endpoints, balancing: Balancing) -> tuple[int, ...]:
    """What share each of the chosen endpoints has of new connections, in the smallest whole numbers."""
    found = [one.weight * (100 + balancing.local_weight if one.local else 100) for one in endpoints]
    unit = gcd(*found)
    return tuple(weight // unit for weight in found) if unit else (1,) * len(found)


def _topology_demands(endpoints: Endpoints, node: NodeView) -> Demands:
    match topology(endpoints, node):
        case Topology.SAME_NODE:
            return ((Exclusion.OTHER_NODE, lambda one: node.name in one.node_hints),)
        case Topology.SAME_ZONE:
            return ((Exclusion.OTHER_ZONE, lambda one: node.zone in one.zone_hints),)
        case _:
            return ()


def _cluster_demands(endpoints: Endpoints, node: NodeView) -> tuple[Demands, ...]:
    """What the Cluster policy demands; the next demands only count where no endpoint meets those before."""
    near = _topology_demands(endpoints, node)
    return (_READY, *near, _WEIGHED), (_READY, _WEIGHED), (_READY, *near), (_DRAINING, _WEIGHED), (_DRAINING,)


def _choose(endpoints: Endpoints, demands: tuple[Demands, ...]) -> Endpoints:
    chosen: Endpoints = ()
    for some in demands:
        chosen = chosen or _meeting(endpoints, some)
    return chosen


def _meeting(endpoints: Endpoints, demands: Demands) -> Endpoints:
    for _, holds in demands:
        endpoints = tuple(filter(holds, endpoints))
    return endpoints


def _excluded(endpoints: Endpoints, demands: tuple[Demands, ...]) -> Mapping[Endpoint, Exclusion]:
    deciding = next((some for some in demands if _meeting(endpoints, some)), demands[0])
    failed = ((one, next((what for what, holds in deciding if not holds(one)), None)) for one in endpoints)
    return {one: what for one, what in failed if what is not None}


def _draining(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating


_READY: Demand = (Exclusion.NOT_READY, attrgetter("ready"))
_DRAINING: Demand = (Exclusion.NOT_DRAINING, _draining)
_LOCAL: Demand = (Exclusion.NOT_LOCAL, attrgetter("local"))
_WEIGHED: Demand = (Exclusion.NO_WEIGHT, attrgetter("weight"))
_LOCAL_DEMANDS: tuple[Demands, ...] = (
    *((_READY, _LOCAL, _WEIGHED), (_READY, _LOCAL)),
    *((_DRAINING, _LOCAL, _WEIGHED), (_DRAINING, _LOCAL)),
)


def _usable(endpoint: Endpoint) -> bool:
    return endpoint.ready or _draining(endpoint)


def _union(cluster: Endpoints, local: Endpoints) -> Endpoints:
    if not local or set(local) <= set(cluster):
        return cluster
    return tuple(sorted({*cluster, *local}, key=str))
