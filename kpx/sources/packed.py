"""Kubernetes objects as protobuf, read into what JSON would have said.

An object becomes the mapping that its JSON would be decoded to, as far as `kube.proto` knows its fields: what Go leaves
out of JSON where it is empty is left out here, what it always writes is always there. So the models' rules, and what
they say of a breach, are the same for both. Text that isn't UTF-8 comes as bytes, which no rule takes.

Framing, as kube-apiserver sends it: an object is `k8s` and a zero byte, then an `Envelope` around the object's own
message; a watch is a sequence of lengths, big-endian numbers of four bytes, each followed by a `WatchEvent`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from kpx.api.grammar import NOT_TOO_MANY
from kpx.sources import kube_pb2 as kube

MAGIC = b"k8s\0"

_Fields = dict[str, Any]
_M = TypeVar("_M", bound=Message)
_CACHED = 256
"""How many different ones are remembered of small messages that thousands of endpoints have in common."""
_MOST = NOT_TOO_MANY.items


class PackingError(ValueError):
    """Bytes that aren't the message that they should be."""


def unwrap(data: bytes) -> tuple[str, bytes]:
    """The kind that an envelope names, and what is in it. Raises `PackingError`."""
    if not data.startswith(MAGIC):
        raise PackingError("has no envelope")
    envelope = _decoded(kube.Envelope, data[len(MAGIC) :])
    if envelope.content_encoding:
        raise PackingError("has an encoding of its own")
    return envelope.type_meta.kind, envelope.raw


def a_type(data: bytes) -> str:
    """The kind that a `TypeMeta` names. Raises `PackingError`."""
    return _decoded(kube.TypeMeta, data).kind


def a_list_meta(data: bytes) -> _Fields:
    """The metadata of a list. Raises `PackingError`."""
    found = _decoded(kube.ListMeta, data)
    return _filled({"resourceVersion": found.resource_version, "continue": found.token})


def an_event(data: bytes) -> tuple[str, bytes]:
    """The type of a watch event and its object, in its envelope. Raises `PackingError`."""
    event = _decoded(kube.WatchEvent, data)
    return event.type, event.object.raw


def a_status(data: bytes) -> _Fields:
    """A Status, as far as it counts. Raises `PackingError`."""
    status = _decoded(kube.Status, data)
    return _filled({"message": status.message, "code": status.code})


def an_identity(data: bytes) -> _Fields:
    """The metadata of an object of any kind, as far as it tells it from others. Raises `PackingError`."""
    found = _decoded(kube.Object, data).metadata
    return _filled({"name": found.name, "namespace": found.namespace, "resourceVersion": found.resource_version})


def a_progress(data: bytes) -> _Fields:
    """The metadata of a bookmark's object. Raises `PackingError`."""
    return _meta(_decoded(kube.Marked, data).metadata)


def an_object(kind: str, data: bytes) -> Mapping[str, Any]:
    """An object of a kind that kpx reads. Raises `PackingError`."""
    return _KINDS[kind](data)


def _decoded(message: type[_M], data: bytes) -> _M:
    try:
        return message.FromString(data)
    except DecodeError:
        raise PackingError(f"is no {message.DESCRIPTOR.name} in protobuf") from None


def _filled(fields: _Fields) -> _Fields:
    """Without what is empty: Go's `omitempty`."""
    return {name: value for name, value in fields.items() if value}


def _several(items: Sequence[bytes], read: Callable[[bytes], _Fields]) -> list[Any]:
    """What is read of each; of more than a rule takes, only that it is more."""
    return [read(item) for item in items] if len(items) <= _MOST else [None] * (_MOST + 1)


def _mapping(pairs: Sequence[bytes]) -> dict[Any, Any]:
    if len(pairs) > _MOST:
        return dict.fromkeys(range(_MOST + 1))
    read = [_decoded(kube.Pair, pair) for pair in pairs]
    return {pair.key: pair.value for pair in read}


def _time(time: kube.Time) -> str | int | None:
    """RFC 3339 text, as JSON has it; a number where there is no such year."""
    seconds = time.seconds
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()[:19] + "Z" if seconds else None
    except (ValueError, OverflowError, OSError):
        return seconds


def _meta(meta: kube.ObjectMeta) -> _Fields:
    made: _Fields = {
        "name": meta.name,
        "namespace": meta.namespace,
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "labels": _mapping(meta.labels),
        "annotations": _mapping(meta.annotations),
        "creationTimestamp": _time(meta.creation_timestamp),
    }
    if meta.HasField("deletion_timestamp"):
        made["deletionTimestamp"] = _time(meta.deletion_timestamp)
    return _filled(made)


# Service.


def _service(data: bytes) -> _Fields:
    service = _decoded(kube.Service, data)
    ingress = _several(service.status.load_balancer.ingress, _ingress)
    balancer = {"ingress": ingress} if ingress else {}
    return {
        "metadata": _meta(service.metadata),
        "spec": _service_spec(service.spec),
        "status": {"loadBalancer": balancer},
    }


def _service_spec(spec: kube.ServiceSpec) -> _Fields:
    made: _Fields = {
        "type": spec.type,
        "clusterIP": spec.cluster_ip,
        "clusterIPs": list(spec.cluster_ips),
        "ports": _several(spec.ports, _service_port),
        "externalIPs": list(spec.external_ips),
        "selector": _mapping(spec.selector),
        "sessionAffinity": spec.session_affinity,
        "loadBalancerSourceRanges": list(spec.load_balancer_source_ranges),
        "externalTrafficPolicy": spec.external_traffic_policy,
        "internalTrafficPolicy": spec.internal_traffic_policy,
        "healthCheckNodePort": spec.health_check_node_port,
        "ipFamilies": list(spec.ip_families),
        "trafficDistribution": spec.traffic_distribution,
    }
    if spec.HasField("session_affinity_config"):
        made["sessionAffinityConfig"] = _affinity(spec.session_affinity_config)
    made = _filled(made)
    if spec.HasField("allocate_load_balancer_node_ports"):
        made["allocateLoadBalancerNodePorts"] = spec.allocate_load_balancer_node_ports
    return made


def _service_port(data: bytes) -> _Fields:
    port = _decoded(kube.ServicePort, data)
    target = port.target_port
    made = _filled({"name": port.name, "protocol": port.protocol, "nodePort": port.node_port})
    made["port"] = port.port
    made["targetPort"] = target.str_val if target.type == 1 else target.int_val
    return made


def _affinity(config: kube.SessionAffinityConfig) -> _Fields:
    if not config.HasField("client_ip"):
        return {}
    client = config.client_ip
    return {"clientIP": {"timeoutSeconds": client.timeout_seconds} if client.HasField("timeout_seconds") else {}}


def _ingress(data: bytes) -> _Fields:
    ingress = _decoded(kube.LoadBalancerIngress, data)
    return _filled({"ip": ingress.ip, "hostname": ingress.hostname, "ipMode": ingress.ip_mode})


# EndpointSlice.


def _slice(data: bytes) -> _Fields:
    found = _decoded(kube.EndpointSlice, data)
    return {
        "metadata": _meta(found.metadata),
        "addressType": found.address_type,
        "endpoints": _several(found.endpoints, _endpoint),
        "ports": _several(found.ports, _endpoint_port),
    }


def _endpoint(data: bytes) -> _Fields:
    endpoint = _decoded(kube.Endpoint, data)
    made: _Fields = {"addresses": list(endpoint.addresses), "conditions": _conditions(endpoint.conditions)}
    if node := endpoint.node_name:
        made["nodeName"] = node
    if zone := endpoint.zone:
        made["zone"] = zone
    if endpoint.HasField("target_ref"):
        target = endpoint.target_ref
        made["targetRef"] = {"kind": target.kind, "name": target.name}
    if endpoint.HasField("hints"):
        made["hints"] = _hints(endpoint.hints)
    return made


@lru_cache(_CACHED)
def _conditions(data: bytes) -> _Fields:
    given = _decoded(kube.EndpointConditions, data)
    return {name: getattr(given, name) for name in ("ready", "serving", "terminating") if given.HasField(name)}


@lru_cache(_CACHED)
def _hints(data: bytes) -> _Fields:
    hints = _decoded(kube.EndpointHints, data)
    return _filled({"forZones": _several(hints.for_zones, _hint), "forNodes": _several(hints.for_nodes, _hint)})


def _hint(data: bytes) -> _Fields:
    return {"name": _decoded(kube.Hint, data).name}


@lru_cache(_CACHED)
def _endpoint_port(data: bytes) -> _Fields:
    port = _decoded(kube.EndpointPort, data)
    made: _Fields = _filled({"name": port.name, "protocol": port.protocol})
    if port.HasField("port"):
        made["port"] = port.port
    return made


# Node.


def _node(data: bytes) -> _Fields:
    node = _decoded(kube.Node, data)
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
    address = _decoded(kube.NodeAddress, data)
    return {"type": address.type, "address": address.address}


def _taint(data: bytes) -> _Fields:
    taint = _decoded(kube.Taint, data)
    return {"key": taint.key, "effect": taint.effect, **_filled({"value": taint.value})}


_KINDS: Mapping[str, Callable[[bytes], _Fields]] = {"Service": _service, "EndpointSlice": _slice, "Node": _node}
