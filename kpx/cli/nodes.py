"""Is it known which node is meant, where that decides anything?"""

from collections.abc import Iterable, Iterator, Sequence

from kpx.api import EndpointSlice, Node, Object, Service
from kpx.model.balance import balancing

_SHOWN = 3


def unknown_node(objects: Sequence[Object], name: str) -> str:
    """What to warn of where nobody said which node this is, and its name is that of no node that objects tell of.

    Empty if a Node or an endpoint bears the name, or if no Service asks where its endpoints are.
    """
    nodes = {one.metadata.name for one in objects if isinstance(one, Node)}
    slices = [one for one in objects if isinstance(one, EndpointSlice)]
    of_endpoints = {end.node_name for one in slices for end in one.endpoints if end.node_name}
    if name in nodes | of_endpoints or not of_endpoints:
        return ""
    deciding = list(dict.fromkeys(_deciding(objects, slices)))
    if not deciding:
        return ""
    more = f" and {len(deciding) - _SHOWN} more" if len(deciding) > _SHOWN else ""
    return (
        f"without --node this is taken to be {name}, which no object names: all endpoints count as those of other "
        f"nodes, which decides on {', '.join(deciding[:_SHOWN])}{more}; the nodes here are "
        f"{', '.join(sorted(nodes | of_endpoints)[:_SHOWN])}{', …' if len(nodes | of_endpoints) > _SHOWN else ''}"
    )


def _deciding(objects: Iterable[Object], slices: Iterable[EndpointSlice]) -> Iterator[str]:
    """Services for which it makes a difference where their endpoints are, with what they ask for."""
    for one in objects:
        if isinstance(one, Service):
            whose = f"{one.metadata.namespace}/{one.metadata.name}"
            if one.spec.external_traffic_policy == "Local":
                yield f"{whose} (externalTrafficPolicy Local)"
            if one.spec.internal_traffic_policy == "Local":
                yield f"{whose} (internalTrafficPolicy Local)"
            if balancing(one).local_weight:
                yield f"{whose} (kpx.dev/local-weight)"
    for part in slices:
        if any(end.hints and end.hints.for_nodes for end in part.endpoints):
            yield f"EndpointSlice {part.metadata.namespace}/{part.metadata.name} (hints for nodes)"
