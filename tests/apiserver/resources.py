"""The resources this server has, and how a path names one of them.

Paths and verbs follow "Kubernetes API Concepts" (kubernetes.io/docs/reference/using-api/api-concepts).
"""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON has it."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object under one group and version.

    `selectable` are the field paths that a field selector may name beyond `metadata.name` and
    `metadata.namespace`; `blank` is what a typed encoder writes after the metadata of an empty object, as
    it stands in a BOOKMARK.
    """

    kind: str
    plural: str
    group: str
    version: str
    namespaced: bool
    selectable: tuple[str, ...]
    blank: bytes

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def type_words(self) -> bytes:
        """The members that say what an object is; items of a list go without them."""
        return f'"kind":"{self.kind}","apiVersion":"{self.api_version}",'.encode()


SERVICES = Resource(
    "Service",
    "services",
    "",
    "v1",
    namespaced=True,
    selectable=("spec.clusterIP", "spec.type"),
    blank=b',"spec":{},"status":{"loadBalancer":{}}',
)
ENDPOINT_SLICES = Resource(
    "EndpointSlice",
    "endpointslices",
    "discovery.k8s.io",
    "v1",
    namespaced=True,
    selectable=(),
    blank=b',"addressType":"","endpoints":null,"ports":null',
)
NODES = Resource(
    "Node",
    "nodes",
    "",
    "v1",
    namespaced=False,
    selectable=("spec.unschedulable",),
    blank=b',"spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{}}',
)
RESOURCES = (SERVICES, ENDPOINT_SLICES, NODES)
BY_KIND = {resource.kind: resource for resource in RESOURCES}
_BY_PATH = {(resource.group, resource.version, resource.plural): resource for resource in RESOURCES}


@dataclass(frozen=True, slots=True)
class Target:
    """What a resource path points at. `name` is empty for a collection, `namespace` for all of them.

    `resource` is None where the path has the form of a resource path but the server has no such resource:
    authorisation comes before that is found out.
    """

    group: str
    plural: str
    namespace: str
    name: str
    subresource: str
    resource: Resource | None

    def verb(self, method: str, watch: bool) -> str:
        """The verb that authorisation knows this request by."""
        if method in ("GET", "HEAD"):
            return "get" if self.name else "watch" if watch else "list"
        if method == "DELETE" and not self.name:
            return "deletecollection"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, "")


def locate(path: str) -> Target | None:
    """Read `/api/v1/...` or `/apis/GROUP/VERSION/...`; None if the path names no resource at all."""
    match path.strip("/").split("/"):
        case ["api", version, *rest] if rest:
            group = ""
        case ["apis", group, version, *rest] if rest:
            pass
        case _:
            return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = (*rest, "", "")[:3]
    resource = _BY_PATH.get((group, version, plural))
    if resource is not None and (len(rest) > 2 or not _in_scope(resource, namespace, name)):
        resource = None
    return Target(group, plural, namespace, name, subresource, resource)


def _in_scope(resource: Resource, namespace: str, name: str) -> bool:
    if not resource.namespaced:
        return not namespace
    return bool(namespace) or not name
