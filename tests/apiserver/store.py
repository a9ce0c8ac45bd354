"""What the cluster holds, and what happened to it: objects, one resourceVersion for all, a log of events.

Objects are encoded once, when they are put; every list and every watch copies those bytes. All methods may
be called from any thread.
"""

import json
import threading
import time
import uuid
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import packing
from .resources import BY_KIND, RESOURCES, Object, Resource
from .selection import Selection

_FIRST_VERSION = 1000


class ExpiredError(Exception):
    """The asked resourceVersion lies before the oldest event that is still known (410)."""

    def __init__(self, version: int, floor: int) -> None:
        super().__init__(f"too old resource version: {version} ({floor})")


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of one object. `item` is its JSON without kind and apiVersion, as lists have it."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    created: str
    version: int
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    item: bytes
    kept: list[bytes] = field(default_factory=list, compare=False, repr=False)
    """Its protobuf, once that was asked for."""

    @property
    def packed(self) -> bytes:
        """Its message in protobuf, as lists have it."""
        if not self.kept:
            self.kept.append(packing.packed(self.resource.kind, self.decode()))
        return self.kept[0]

    @property
    def key(self) -> str:
        """The order of lists is that of these keys, as in etcd."""
        return f"{self.namespace}/{self.name}"

    @property
    def whole(self) -> bytes:
        """The JSON with kind and apiVersion, as watch events and single reads have it."""
        return b"{" + self.resource.type_words + self.item[1:]

    @property
    def content(self) -> bytes:
        """`item` behind the resourceVersion: equal for two versions that differ in nothing else."""
        return self.item[len(_head(self.version)) :]

    def at(self, version: int) -> "Stored":
        """The same object under another resourceVersion, as a DELETED event shows it."""
        return replace(self, version=version, item=_head(version) + self.content, kept=[])

    def matches(self, wanted: Selection) -> bool:
        return wanted.matches(self.namespace, self.labels, self.fields)

    def decode(self) -> Object:
        """A fresh dict, safe to change."""
        value: Object = json.loads(self.whole)
        return value


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `current` is None for a deletion, `previous` for a creation."""

    version: int
    current: Stored | None
    previous: Stored | None


@dataclass(frozen=True, slots=True)
class View:
    """All objects of a resource at one resourceVersion, in list order; `cursor` is where its log ends."""

    entries: list[Stored]
    version: int
    cursor: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events from a cursor on. `version` is what a bookmark after them may claim."""

    events: list[Event]
    cursor: int
    version: int


@dataclass(slots=True)
class _Collection:
    """One resource. `log[i]` is event number `base + i`; `floor` the newest version that is forgotten."""

    objects: dict[str, Stored] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    log: list[Event] = field(default_factory=list)
    base: int = 0
    floor: int = 0

    def record(self, event: Event, history: int) -> None:
        subject = event.current or event.previous
        assert subject is not None
        if event.current is not None:
            if event.previous is None:
                insort(self.order, subject.key)
            self.objects[subject.key] = event.current
        else:
            del self.objects[subject.key]
            del self.order[bisect_left(self.order, subject.key)]
        self.log.append(event)
        self.trim(history)

    def trim(self, history: int) -> None:
        """Forget all but the last `history` events."""
        spare = len(self.log) - history
        if spare > 0:
            self.floor = self.log[spare - 1].version
            self.base += spare
            del self.log[:spare]


class Store:
    """The objects and their history. `on_change` is called after every change, from the changing thread."""

    def __init__(self, history: int) -> None:
        self._lock = threading.Lock()
        self._collections = {resource: _Collection() for resource in RESOURCES}
        self._version = _FIRST_VERSION
        self._history = history
        self.on_change: Callable[[Resource], None] = lambda resource: None

    @property
    def version(self) -> int:
        """The newest resourceVersion."""
        return self._version

    def put(self, obj: Object) -> int:
        """Create or replace an object; the resourceVersion it has now.

        uid and creationTimestamp are kept from the version before, else from `obj`, else made. Another uid
        than the stored one means a new object of that name: DELETED, then ADDED. No difference, no event.
        Raises ValueError for a kind or a name the server can't keep.
        """
        resource, metadata = _identity(obj)
        key = f"{metadata['namespace']}/{metadata['name']}" if resource.namespaced else f"/{metadata['name']}"
        with self._lock:
            previous = self._collections[resource].objects.get(key)
            if previous is not None and metadata.get("uid", previous.uid) != previous.uid:
                self._remove(resource, previous)
                previous = None
            stored = _encode(resource, obj, metadata, self._version + 1, previous)
            if previous is not None and stored.content == previous.content:
                return previous.version
            self._version += 1
            self._collections[resource].record(Event(self._version, stored, previous), self._history)
        self.on_change(resource)
        return stored.version

    def delete(self, kind: str, namespace: str, name: str) -> int:
        """Delete an object; the resourceVersion of the deletion. Raises KeyError if there is none."""
        resource = BY_KIND[kind]
        with self._lock:
            self._remove(resource, self._collections[resource].objects[_key(resource, namespace, name)])
            version = self._version
        self.on_change(resource)
        return version

    def find(self, resource: Resource, namespace: str, name: str) -> Stored | None:
        with self._lock:
            return self._collections[resource].objects.get(_key(resource, namespace, name))

    def view(self, resource: Resource) -> View:
        """The newest state, and where to go on from there."""
        with self._lock:
            kept = self._collections[resource]
            return View([kept.objects[key] for key in kept.order], self._version, kept.base + len(kept.log))

    def view_at(self, resource: Resource, version: int) -> View:
        """The state at an earlier version, by undoing the log. Raises ExpiredError."""
        with self._lock:
            kept = self._collections[resource]
            cursor = self._position(kept, version)
            objects = dict(kept.objects)
            for event in reversed(kept.log[cursor - kept.base :]):
                if event.previous is not None:
                    objects[event.previous.key] = event.previous
                elif event.current is not None:
                    del objects[event.current.key]
            return View([objects[key] for key in sorted(objects)], version, cursor)

    def position(self, resource: Resource, version: int) -> int:
        """The cursor behind all events up to `version`. Raises ExpiredError."""
        with self._lock:
            return self._position(self._collections[resource], version)

    def since(self, resource: Resource, cursor: int, limit: int) -> Batch:
        """At most `limit` events from a cursor on. Raises ExpiredError if some of them are forgotten."""
        with self._lock:
            kept = self._collections[resource]
            if cursor < kept.base:
                raise ExpiredError(kept.floor - 1, kept.floor)
            start = cursor - kept.base
            events = kept.log[start : start + limit]
            at_end = start + len(events) == len(kept.log)
            return Batch(events, cursor + len(events), self._version if at_end else events[-1].version)

    def set_history(self, events: int) -> None:
        """How many events of each resource are remembered from now on."""
        with self._lock:
            self._history = events
            for kept in self._collections.values():
                kept.trim(events)

    def compact(self) -> None:
        """Forget all history, as a compaction or a new watch cache does."""
        with self._lock:
            for kept in self._collections.values():
                kept.trim(0)
                kept.floor = self._version

    def jump(self, by: int) -> None:
        """Let the resourceVersion leap, as much writing to other resources would."""
        with self._lock:
            self._version += by

    def _position(self, kept: _Collection, version: int) -> int:
        if version < kept.floor:
            raise ExpiredError(version, kept.floor)
        return kept.base + bisect_right(kept.log, version, key=lambda event: event.version)

    def _remove(self, resource: Resource, stored: Stored) -> None:
        self._version += 1
        self._collections[resource].record(Event(self._version, None, stored), self._history)


def _key(resource: Resource, namespace: str, name: str) -> str:
    return f"{namespace if resource.namespaced else ''}/{name}"


def _identity(obj: Object) -> tuple[Resource, dict[str, Any]]:
    resource = BY_KIND.get(obj.get("kind", ""))
    metadata = obj.get("metadata")
    if resource is None or not isinstance(metadata, dict) or not metadata.get("name"):
        raise ValueError(f"not an object this server can keep: {str(obj)[:200]}")
    metadata = dict(metadata)
    if resource.namespaced:
        metadata.setdefault("namespace", "default")
    return resource, metadata


def _encode(resource: Resource, obj: Object, metadata: dict[str, Any], version: int, previous: Stored | None) -> Stored:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    metadata.pop("resourceVersion", None)
    metadata["uid"] = previous.uid if previous else metadata.get("uid") or str(uuid.uuid4())
    metadata["creationTimestamp"] = previous.created if previous else metadata.get("creationTimestamp") or now
    rest = {name: value for name, value in obj.items() if name not in ("kind", "apiVersion", "metadata")}
    tail = _dump(metadata)[1:] + (b"," + _dump(rest)[1:] if rest else b"}")
    labels = metadata.get("labels")
    return Stored(
        resource=resource,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata["uid"],
        created=metadata["creationTimestamp"],
        version=version,
        labels=dict(labels) if isinstance(labels, dict) else {},
        fields=_fields(resource, metadata, obj),
        item=_head(version) + tail,
    )


def _fields(resource: Resource, metadata: dict[str, Any], obj: Object) -> dict[str, str]:
    fields = {"metadata.name": metadata["name"], "metadata.namespace": metadata.get("namespace", "")}
    for path in resource.selectable:
        part, name = path.split(".")
        value = (obj.get(part) or {}).get(name, "")
        fields[path] = str(value).lower() if isinstance(value, bool) else str(value)
    return fields


def _head(version: int) -> bytes:
    return b'{"metadata":{"resourceVersion":"%d",' % version


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
