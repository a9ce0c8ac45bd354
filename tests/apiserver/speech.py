"""How the server says things: JSON or protobuf, for lists, single objects, refusals and events of watches."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import packing
from .refusals import RefusalError
from .resources import Object, Resource
from .store import Stored

PADDING = "test.invalid/padding"
_END_ANNOTATION = {"k8s.io/initial-events-end": "true"}


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a watch: its type, and what it is about: an object, a bookmark, a refusal."""

    kind: str
    resource: Resource
    stored: Stored | None = None
    version: int = 0
    end_of_initial: bool = False
    refusal: RefusalError | None = None


@dataclass(frozen=True, slots=True)
class Speech:
    """One content type. `event` makes the bytes of an event, `padded` those of one whose object is so much larger."""

    media_type: str
    stream_type: str
    page: Callable[[Resource, dict[str, Any], Sequence[Stored], tuple[int, int]], bytes]
    one: Callable[[Stored], bytes]
    status: Callable[[RefusalError], bytes]
    event: Callable[[Event, int], bytes]
    garbage: bytes
    halved: Callable[[bytes], bytes]


def pad(obj: Object, size: int) -> None:
    """Give an object an annotation of `size` bytes."""
    metadata = obj["metadata"]
    metadata["annotations"] = {**(metadata.get("annotations") or {}), PADDING: "x" * size}


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _padded(stored: Stored, size: int) -> Object:
    obj = stored.decode()
    pad(obj, size)
    return obj


# JSON.


def _json_page(
    resource: Resource, metadata: dict[str, Any], entries: Sequence[Stored], padding: tuple[int, int]
) -> bytes:
    items = [stored.item for stored in entries]
    at, size = padding
    if size and items:
        items[at] = compact(_padded(entries[at], size))
    words = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
    return compact(words)[:-1] + b',"items":[' + b",".join(items) + b"]}"


def _json_event(event: Event, padding: int) -> bytes:
    if event.refusal is not None:
        content = event.refusal.status
    elif event.stored is not None:
        content = compact(_padded(event.stored, padding)) if padding else event.stored.whole
    else:
        end = b'"annotations":{"k8s.io/initial-events-end":"true"},' if event.end_of_initial else b""
        metadata = b'"metadata":{%b"resourceVersion":"%d"}' % (end, event.version)
        content = b"{" + event.resource.type_words + metadata + event.resource.blank + b"}"
    return b'{"type":"%b","object":%b}\n' % (event.kind.encode(), content)


JSON = Speech(
    "application/json",
    "application/json",
    _json_page,
    lambda stored: stored.whole,
    lambda refusal: refusal.status,
    _json_event,
    b'\x00\xff}{"type":"ADDED" nonsense\n',
    lambda line: line[: len(line) // 2] + b"\n",
)


# Protobuf.


def _packed_page(
    resource: Resource, metadata: dict[str, Any], entries: Sequence[Stored], padding: tuple[int, int]
) -> bytes:
    items = [stored.packed for stored in entries]
    at, size = padding
    if size and items:
        items[at] = packing.packed(resource.kind, _padded(entries[at], size))
    content = packing.list_head(metadata) + b"".join(packing.field(2, item) for item in items)
    return packing.enveloped(f"{resource.kind}List", resource.api_version, content)


def _packed_one(stored: Stored) -> bytes:
    return packing.enveloped(stored.resource.kind, stored.resource.api_version, stored.packed)


def _packed_status(refusal: RefusalError) -> bytes:
    return packing.enveloped("Status", "v1", packing.packed("Status", json.loads(refusal.status)))


def _packed_event(event: Event, padding: int) -> bytes:
    resource = event.resource
    if event.refusal is not None:
        return packing.frame(event.kind, _packed_status(event.refusal))
    if event.stored is not None:
        item = packing.packed(resource.kind, _padded(event.stored, padding)) if padding else event.stored.packed
    else:
        annotations = {"annotations": _END_ANNOTATION} if event.end_of_initial else {}
        item = packing.packed(resource.kind, {"metadata": {"resourceVersion": str(event.version), **annotations}})
    return packing.frame(event.kind, packing.enveloped(resource.kind, resource.api_version, item))


def _half_frame(frame: bytes) -> bytes:
    """A frame of half the length: what it holds ends in the middle."""
    content = frame[4:]
    half = content[: len(content) // 2]
    return len(half).to_bytes(4) + half


PROTOBUF = Speech(
    packing.MEDIA_TYPE,
    f"{packing.MEDIA_TYPE};stream=watch",
    _packed_page,
    _packed_one,
    _packed_status,
    _packed_event,
    (9).to_bytes(4) + b"\x00\xff nonsens"[:9],
    _half_frame,
)


def negotiate(accept: str, offered: bool) -> Speech | None:
    """What is spoken to a client that accepts this; None if it accepts nothing that is offered.

    Quality values count, else the order; `Table`s and the like aren't offered.
    """
    wishes: list[tuple[float, Speech]] = []
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        if "as" in given:
            continue
        quality = float(given.get("q", "1"))
        if media in ("application/json", "application/*", "*/*"):
            wishes.append((quality, JSON))
        elif media == packing.MEDIA_TYPE and offered:
            wishes.append((quality, PROTOBUF))
    return max(wishes, key=lambda wish: wish[0])[1] if wishes else None
