"""Kubernetes objects as protobuf, read into what JSON would have said.

An object becomes the mapping that its JSON would be decoded to, as far as `kube.proto` knows its fields: what Go leaves
out of JSON where it is empty is left out here, what it always writes is always there. So the models' rules, and what
they say of a breach, are the same for both. Text that isn't UTF-8 comes as bytes, which no rule takes.

Framing, as kube-apiserver sends it: an object is `k8s` and a zero byte, then an `Envelope` around the object's own
message; a watch is a sequence of lengths, big-endian numbers of four bytes, each followed by a `WatchEvent`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from google.protobuf.message import DecodeError
from pydantic import TypeAdapter, ValidationError

from kpx.api.endpointslice import Conditions, EndpointPort, Hints
from kpx.api.grammar import NOT_TOO_MANY
from kpx.api.service import ServicePort
from kpx.sources import kube_pb2 as kube

MAGIC = b"k8s\0"

_Fields = dict[str, Any]
_Given = ParamSpec("_Given")
_Read = TypeVar("_Read")
_Model = TypeVar("_Model", Conditions, Hints, EndpointPort, ServicePort)
_VALIDATORS: Mapping[Any, TypeAdapter[Any]] = {
    model: TypeAdapter(model) for model in (Conditions, Hints, EndpointPort, ServicePort)
}
_CACHED = 256
"""How many different ones are remembered of small messages that thousands of endpoints have in common."""
_MANY = 1024
_SHORT = 128
"""Bytes of a label or an annotation that is remembered."""
_LARGE = 16 << 10
"""Bytes of an object after which nothing of what came before is remembered: it might be parts as large as that."""
_MOST = NOT_TOO_MANY.items
_TYPE = re.compile(r"kpx\.sources\.(\w+)")


class PackingError(ValueError):
    """Bytes that aren't the message that they should be."""


def _decoding(read: Callable[_Given, _Read]) -> Callable[_Given, _Read]:
    """Say what something was no message of."""

    @wraps(read)
    def reading(*arguments: _Given.args, **named: _Given.kwargs) -> _Read:
        try:
            return read(*arguments, **named)
        except DecodeError as error:
            found = _TYPE.search(str(error))
            raise PackingError(f"is no {found[1] if found else 'message'} in protobuf") from None

    return reading


@_decoding
def unwrap(data: bytes) -> tuple[str, bytes]:
    """The kind that an envelope names, and what is in it. Raises `PackingError`."""
    if not data.startswith(MAGIC):
        raise PackingError("has no envelope")
    envelope = kube.Envelope.FromString(data[len(MAGIC) :])
    if envelope.content_encoding:
        raise PackingError("has an encoding of its own")
    return envelope.type_meta.kind, envelope.raw


@_decoding
def a_type(data: bytes) -> str:
    """The kind that a `TypeMeta` names. Raises `PackingError`."""
    return kube.TypeMeta.FromString(data).kind


@_decoding
def a_list_meta(data: bytes) -> _Fields:
    """The metadata of a list. Raises `PackingError`."""
    found = kube.ListMeta.FromString(data)
    return _filled({"resourceVersion": found.resource_version, "continue": found.token})


@_decoding
def an_event(data: bytes) -> tuple[str, bytes]:
    """The type of a watch event and its object, in its envelope. Raises `PackingError`."""
    event = kube.WatchEvent.FromString(data)
    return event.type, event.object.raw


@_decoding
def a_status(data: bytes) -> _Fields:
    """A Status, as far as it counts. Raises `PackingError`."""
    status = kube.Status.FromString(data)
    return _filled({"message": status.message, "code": status.code})


@_decoding
def an_identity(data: bytes) -> _Fields:
    """The metadata of an object of any kind, as far as it tells it from others. Raises `PackingError`."""
    found = kube.Object.FromString(data).metadata
    return _filled({"name": found.name, "namespace": found.namespace, "resourceVersion": found.resource_version})


@_decoding
def a_progress(data: bytes) -> _Fields:
    """The metadata of a bookmark's object. Raises `PackingError`."""
    return _meta(kube.Marked.FromString(data).metadata)


@_decoding
def an_object(kind: str, data: bytes) -> Mapping[str, Any]:
    """An object of a kind that kpx reads. Raises `PackingError`."""
    try:
        return _KINDS[kind](data)
    finally:
        if len(data) > _LARGE:
            for cache in _CACHES:
                cache.cache_clear()


@lru_cache(_MANY)
def _shared(text: str) -> str:
    """The same text as one object: zones, nodes and labels are in thousands of objects, and each takes memory."""
    return text


def _filled(fields: _Fields) -> _Fields:
    """Without what is empty: Go's `omitempty`."""
    return {name: value for name, value in fields.items() if value}


def _several(items: Sequence[bytes], read: Callable[[bytes], object]) -> list[Any]:
    """What is read of each; of more than a rule takes, only that it is more."""
    return [read(item) for item in items] if len(items) <= _MOST else [None] * (_MOST + 1)


def _mapping(pairs: Sequence[bytes]) -> dict[Any, Any]:
    if len(pairs) > _MOST:
        return dict.fromkeys(range(_MOST + 1))
    return dict([_pair(pair) if len(pair) <= _SHORT else _new_pair(pair) for pair in pairs])


def _new_pair(data: bytes) -> tuple[str, str]:
    pair = kube.Pair.FromString(data)
    return pair.key, pair.value


_pair = lru_cache(_MANY)(_new_pair)


def _known(model: type[_Model], fields: _Fields) -> _Model | _Fields:
    """A part that is valid by itself, made once for all objects that have it; else what it is made of, which is told.

    pydantic takes parts that it has made before as they are.
    """
    try:
        made: _Model = _VALIDATORS[model].validate_python(fields, by_alias=True, by_name=False)
    except ValidationError:
        return fields
    return made


@lru_cache(_CACHED)
def _time(data: bytes) -> str | int | None:
    """RFC 3339 text, as JSON has it; a number where there is no such year."""
    seconds = kube.Time.FromString(data).seconds
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()[:19] + "Z" if seconds else None
    except (ValueError, OverflowError, OSError):
        return seconds


def _meta(meta: kube.ObjectMeta) -> _Fields:
    made: _Fields = {"name": meta.name, "uid": meta.uid, "resourceVersion": meta.resource_version}
    if namespace := meta.namespace:
        made["namespace"] = _shared(namespace)
    if labels := meta.labels:
        made["labels"] = _mapping(labels)
    if annotations := meta.annotations:
        made["annotations"] = _mapping(annotations)
    if created := meta.creation_timestamp:
        made["creationTimestamp"] = _time(created)
    if deleted := meta.deletion_timestamp:
        made["deletionTimestamp"] = _time(deleted)
    return made


# Service.


def _service(data: bytes) -> _Fields:
    service = kube.Service.FromString(data)
    ingress = _several(service.status.load_balancer.ingress, _ingress)
    balancer = {"ingress": ingress} if ingress else {}
    return {
        "metadata": _meta(service.metadata),
        "spec": _service_spec(service.spec),
        "status": {"loadBalancer": balancer},
    }


def _service_spec(spec: kube.ServiceSpec) -> _Fields:
    made: _Fields = {
        "type": _shared(spec.type),
        "clusterIP": spec.cluster_ip,
        "clusterIPs": list(spec.cluster_ips),
        "ports": _several(spec.ports, _service_port),
        "externalIPs": list(spec.external_ips),
        "selector": _mapping(spec.selector),
        "sessionAffinity": _shared(spec.session_affinity),
        "loadBalancerSourceRanges": list(spec.load_balancer_source_ranges),
        "externalTrafficPolicy": _shared(spec.external_traffic_policy),
        "internalTrafficPolicy": _shared(spec.internal_traffic_policy),
        "healthCheckNodePort": spec.health_check_node_port,
        "ipFamilies": [_shared(family) for family in spec.ip_families],
        "trafficDistribution": spec.traffic_distribution,
    }
    if spec.HasField("session_affinity_config"):
        made["sessionAffinityConfig"] = _affinity(spec.session_affinity_config)
    made = _filled(made)
    if spec.HasField("allocate_load_balancer_node_ports"):
        made["allocateLoadBalancerNodePorts"] = spec.allocate_load_balancer_node_ports
    return made


@lru_cache(_CACHED)
def _service_port(data: bytes) -> ServicePort | _Fields:
    port = kube.ServicePort.FromString(data)
    target = port.target_port
    made = _filled({"name": _shared(port.name), "protocol": _shared(port.protocol), "nodePort": port.node_port})
    made["port"] = port.port
    made["targetPort"] = target.str_val if target.type == 1 else target.int_val
    return _known(ServicePort, made)


def _affinity(config: kube.SessionAffinityConfig) -> _Fields:
    if not config.HasField("client_ip"):
        return {}
    client = config.client_ip
    return {"clientIP": {"timeoutSeconds": client.timeout_seconds} if client.HasField("timeout_seconds") else {}}


def _ingress(data: bytes) -> _Fields:
    ingress = kube.LoadBalancerIngress.FromString(data)
    return _filled({"ip": ingress.ip, "hostname": ingress.hostname, "ipMode": ingress.ip_mode})


# EndpointSlice.


def _slice(data: bytes) -> _Fields:
    found = kube.EndpointSlice.FromString(data)
    return {
        "metadata": _meta(found.metadata),
        "addressType": _shared(found.address_type),
        "endpoints": _several(found.endpoints, _endpoint),
        "ports": _several(found.ports, _endpoint_port),
    }


def _endpoint(data: bytes) -> _Fields:
    endpoint = kube.Endpoint.FromString(data)
    made: _Fields = {"addresses": list(endpoint.addresses), "conditions": _conditions(endpoint.conditions)}
    if node := endpoint.node_name:
        made["nodeName"] = _shared(node)
    if zone := endpoint.zone:
        made["zone"] = _shared(zone)
    if endpoint.HasField("target_ref"):
        target = endpoint.target_ref
        made["targetRef"] = {"kind": _shared(target.kind), "name": target.name}
    if endpoint.HasField("hints"):
        made["hints"] = _hints(endpoint.hints)
    return made


@lru_cache(_CACHED)
def _conditions(data: bytes) -> Conditions | _Fields:
    given = kube.EndpointConditions.FromString(data)
    names = ("ready", "serving", "terminating")
    return _known(Conditions, {name: getattr(given, name) for name in names if given.HasField(name)})


@lru_cache(_CACHED)
def _hints(data: bytes) -> Hints | _Fields:
    hints = kube.EndpointHints.FromString(data)
    nodes = _several(hints.for_nodes, _hint)
    return _known(Hints, _filled({"forZones": _several(hints.for_zones, _hint), "forNodes": nodes}))


def _hint(data: bytes) -> _Fields:
    return {"name": kube.Hint.FromString(data).name}


@lru_cache(_CACHED)
def _endpoint_port(data: bytes) -> EndpointPort | _Fields:
    port = kube.EndpointPort.FromString(data)
    made: _Fields = _filled({"name": port.name, "protocol": port.protocol})
    if port.HasField("port"):
        made["port"] = port.port
    return _known(EndpointPort, made)


# Node.


def _node(data: bytes) -> _Fields:
    node = kube.Node.FromString(data)
    spec, status = node.spec, node.status
    addresses = _several(status.addresses, _address)
    return {
        "metadata": _meta(node.metadata),
        "spec": _filled(
            {
                "podCIDR": spec.pod_cidr,
                "podCIDRs": list(spec.pod_cidrs),
                "taints": _several(spec.taints, _taint),
            }
        ),
        "status": _filled({"addresses": addresses}),
    }


def _address(data: bytes) -> _Fields:
    address = kube.NodeAddress.FromString(data)
    return {"type": address.type, "address": address.address}


def _taint(data: bytes) -> _Fields:
    taint = kube.Taint.FromString(data)
    return {"key": taint.key, "effect": taint.effect, **_filled({"value": taint.value})}


_KINDS: Mapping[str, Callable[[bytes], _Fields]] = {"Service": _service, "EndpointSlice": _slice, "Node": _node}


_CACHES = (_shared, _pair, _time, _conditions, _hints, _endpoint_port, _service_port)
