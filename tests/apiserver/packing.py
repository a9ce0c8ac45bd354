"""JSON to Kubernetes' protobuf, by the rules of its Go code: what a real server sends of an object.

Written from the published generated.proto files and apart from what kpx reads with, so that each can be checked
by the other. What isn't in the tables is left out.
"""

import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from .resources import Object

MAGIC = b"k8s\0"
MEDIA_TYPE = "application/vnd.kubernetes.protobuf"

_Value = Callable[[Any], bytes]
_Field = tuple[int, int, _Value, bool]
"""Number, wire type, encoder, whether the zero value is written where JSON has nothing."""
_VARINT, _BYTES = 0, 2


def varint(number: int) -> bytes:
    """A base-128 varint; negative numbers in two's complement of 64 bits."""
    number &= (1 << 64) - 1
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def field(number: int, content: bytes, wire: int = _BYTES) -> bytes:
    """One field: its key, then its content, with its length where it has one."""
    key = varint(number << 3 | wire)
    return key + varint(len(content)) + content if wire == _BYTES else key + content


def _text(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


def _time(value: Any) -> bytes:
    return field(1, varint(int(datetime.fromisoformat(value).timestamp())), _VARINT)


def _target(value: Any) -> bytes:
    if isinstance(value, str):
        return field(1, varint(1), _VARINT) + field(2, varint(0), _VARINT) + field(3, value.encode())
    return field(1, varint(0), _VARINT) + field(2, varint(value), _VARINT) + field(3, b"")


def text(number: int, always: bool = True) -> _Field:
    """A string; a Go string is always written, a pointer to one only if there is one."""
    return number, _BYTES, _text, always


def number(of: int, always: bool = True) -> _Field:
    return of, _VARINT, lambda value: varint(int(value)), always


def message(of: int, fields: Mapping[str, _Field], always: bool = False) -> _Field:
    return of, _BYTES, lambda value: _message(value, fields), always


def _message(value: Mapping[str, Any], fields: Mapping[str, _Field]) -> bytes:
    made = []
    for name, (of, wire, encode, always) in sorted(fields.items(), key=lambda item: item[1][0]):
        found = value.get(name)
        if isinstance(found, list):
            made += [field(of, encode(one), wire) for one in found]
        elif isinstance(found, dict) and encode is _text:
            made += [field(of, field(1, _text(key)) + field(2, _text(found[key]))) for key in sorted(found)]
        elif found is not None:
            made.append(field(of, encode(found), wire))
        elif always:
            made.append(field(of, varint(0) if wire == _VARINT else b"", wire))
    return b"".join(made)


def several(of: int) -> _Field:
    """Strings, or a map of strings to strings."""
    return of, _BYTES, _text, False


_OWNER = {
    "kind": text(1),
    "name": text(3),
    "uid": text(4),
    "apiVersion": text(5),
    "controller": number(6, always=False),
    "blockOwnerDeletion": number(7, always=False),
}
_META = {
    "name": text(1),
    "generateName": text(2),
    "namespace": text(3),
    "selfLink": text(4),
    "uid": text(5),
    "resourceVersion": text(6),
    "generation": number(7),
    "creationTimestamp": (8, _BYTES, _time, True),
    "deletionTimestamp": (9, _BYTES, _time, False),
    "labels": several(11),
    "annotations": several(12),
    "ownerReferences": message(13, _OWNER),
    "finalizers": several(14),
}
_LIST_META = {
    "selfLink": text(1),
    "resourceVersion": text(2),
    "continue": text(3),
    "remainingItemCount": number(4, always=False),
}
_SERVICE_PORT = {
    "name": text(1),
    "protocol": text(2),
    "port": number(3),
    "targetPort": (4, _BYTES, _target, True),
    "nodePort": number(5),
    "appProtocol": text(6, always=False),
}
_CLIENT_IP = {"timeoutSeconds": number(1, always=False)}
_SERVICE_SPEC = {
    "ports": message(1, _SERVICE_PORT),
    "selector": several(2),
    "clusterIP": text(3),
    "type": text(4),
    "externalIPs": several(5),
    "sessionAffinity": text(7),
    "loadBalancerIP": text(8),
    "loadBalancerSourceRanges": several(9),
    "externalName": text(10),
    "externalTrafficPolicy": text(11),
    "healthCheckNodePort": number(12),
    "publishNotReadyAddresses": number(13),
    "sessionAffinityConfig": message(14, {"clientIP": message(1, _CLIENT_IP)}),
    "ipFamilyPolicy": text(17, always=False),
    "clusterIPs": several(18),
    "ipFamilies": several(19),
    "allocateLoadBalancerNodePorts": number(20, always=False),
    "loadBalancerClass": text(21, always=False),
    "internalTrafficPolicy": text(22, always=False),
    "trafficDistribution": text(23, always=False),
}
_INGRESS = {"ip": text(1), "hostname": text(2), "ipMode": text(3, always=False)}
_SERVICE = {
    "metadata": message(1, _META, always=True),
    "spec": message(2, _SERVICE_SPEC, always=True),
    "status": message(3, {"loadBalancer": message(1, {"ingress": message(1, _INGRESS)}, always=True)}, always=True),
}
_CONDITIONS = {name: number(of, always=False) for of, name in enumerate(("ready", "serving", "terminating"), 1)}
_HINT = {"name": text(1)}
_REFERENCE = {
    "kind": text(1),
    "namespace": text(2),
    "name": text(3),
    "uid": text(4),
    "apiVersion": text(5),
    "resourceVersion": text(6),
    "fieldPath": text(7),
}
_ENDPOINT = {
    "addresses": several(1),
    "conditions": message(2, _CONDITIONS, always=True),
    "hostname": text(3, always=False),
    "targetRef": message(4, _REFERENCE),
    "deprecatedTopology": several(5),
    "nodeName": text(6, always=False),
    "zone": text(7, always=False),
    "hints": message(8, {"forZones": message(1, _HINT), "forNodes": message(2, _HINT)}),
}
_ENDPOINT_PORT = {
    "name": text(1, always=False),
    "protocol": text(2, always=False),
    "port": number(3, always=False),
    "appProtocol": text(4, always=False),
}
_SLICE = {
    "metadata": message(1, _META, always=True),
    "endpoints": message(2, _ENDPOINT),
    "ports": message(3, _ENDPOINT_PORT),
    "addressType": text(4),
}
_NODE_SPEC = {
    "podCIDR": text(1),
    "externalID": text(2),
    "providerID": text(3),
    "unschedulable": number(4),
    "taints": message(5, {"key": text(1), "value": text(2), "effect": text(3), "timeAdded": (4, _BYTES, _time, False)}),
    "podCIDRs": several(7),
}
_NODE_STATUS = {"phase": text(3), "addresses": message(5, {"type": text(1), "address": text(2)})}
_NODE = {
    "metadata": message(1, _META, always=True),
    "spec": message(2, _NODE_SPEC, always=True),
    "status": message(3, _NODE_STATUS, always=True),
}
_CAUSE = {"reason": text(1), "message": text(2), "field": text(3)}
_DETAILS = {
    "name": text(1),
    "group": text(2),
    "kind": text(3),
    "causes": message(4, _CAUSE),
    "retryAfterSeconds": number(5),
    "uid": text(6),
}
_STATUS = {
    "metadata": message(1, _LIST_META, always=True),
    "status": text(2),
    "message": text(3),
    "reason": text(4),
    "details": message(5, _DETAILS),
    "code": number(6),
}
_KINDS = {"Service": _SERVICE, "EndpointSlice": _SLICE, "Node": _NODE, "Status": _STATUS}


def packed(kind: str, obj: Object) -> bytes:
    """An object's own message, as it stands in a list."""
    return _message(obj, _KINDS[kind])


def enveloped(kind: str, api_version: str, content: bytes) -> bytes:
    """A message behind what says what it is."""
    types = field(1, api_version.encode()) + field(2, kind.encode())
    return MAGIC + field(1, types) + field(2, content) + field(3, b"") + field(4, b"")


def list_head(metadata: Mapping[str, Any]) -> bytes:
    """A list's message before its items; each of these is `field(2, packed(...))`."""
    return field(1, _message(metadata, _LIST_META))


def frame(kind: str, content: bytes) -> bytes:
    """An event of a watch; `content` in its envelope."""
    event = field(1, kind.encode()) + field(2, field(1, content))
    return struct.pack(">I", len(event)) + event
