"""Objects from the API server: Services, their EndpointSlices, this node."""

import asyncio
from collections.abc import Callable

from kpx.api import selection
from kpx.sources.connection import Connection
from kpx.sources.events import Sink
from kpx.sources.mirror import Mirror
from kpx.sources.reflector import Reflector
from kpx.sources.resource import Pace, Resource

_SERVICES = Resource(
    "Service",
    "/api/v1/services",
    {"labelSelector": selection.SERVICES.labels},
    page=500,
    wish={"fieldSelector": selection.SERVICES.fields},
)
SLICES = Resource(
    "EndpointSlice",
    "/apis/discovery.k8s.io/v1/endpointslices",
    {"labelSelector": selection.SLICES.labels},
    page=100,  # a slice may hold a hundred endpoints, 30 kB: a page has to be decoded in one go
)


def _node(name: str) -> Resource:
    return Resource("Node", "/api/v1/nodes", {"fieldSelector": f"metadata.name={name}"}, page=500)


class ClusterSource:
    """A `Source`: lists, then watches, forever.

    `on_trouble(kind, reason)` is called whenever a watch or a list has to be started again, and for each object of a
    list that has to be left out because nobody could tell it from others (`garbage`). `reason` is one of
    ended (its time was over), stalled, dropped, unreachable, timeout, garbage; expired (410), throttled (429),
    unauthorized (401), forbidden (403), failed (5xx), refused (other statuses); credentials (we have none), rewound
    (resourceVersions went back). A node that doesn't exist is complete without an object.
    """

    def __init__(
        self,
        connection: Connection,
        node_name: str,
        on_trouble: Callable[[str, str], None],
        pace: Pace | None = None,
    ) -> None:
        self._connection = connection
        self._resources = (_SERVICES, SLICES, _node(node_name))
        self._on_trouble = on_trouble
        self._pace = pace or Pace()

    async def run(self, sink: Sink) -> None:
        """Tell everything there is, then every change, until cancelled. The connection stays open."""
        async with asyncio.TaskGroup() as group:
            for resource in self._resources:
                mirror = Mirror(resource.kind, sink)
                reflector = Reflector(self._connection, resource, mirror, self._on_trouble, self._pace)
                group.create_task(reflector.run(), name=f"reflect {resource.kind}")
