import json
from typing import Any

import pytest

from kpx.api import EndpointSlice, parse_object
from kpx.api.endpointslice import Conditions
from kpx.errors import InputError, Problem
from tests.api.samples import SLICE, Path, changed, without

ENDPOINT: Path = ("endpoints", 0)


def parse(data: dict[str, Any]) -> EndpointSlice:
    found = parse_object("EndpointSlice", data)
    assert isinstance(found, EndpointSlice)
    assert parse_object("EndpointSlice", json.dumps(data).encode()) == found
    return found


def problems(data: Any) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        parse_object("EndpointSlice", data)
    return caught.value.problems


def slice_of(address_type: str, *addresses: str) -> dict[str, Any]:
    return {"metadata": {"name": "a"}, "addressType": address_type, "endpoints": [{"addresses": list(addresses)}]}


def test_every_field() -> None:
    found = parse(SLICE)
    assert (found.address_type, found.metadata.labels) == ("IPv4", {"kubernetes.io/service-name": "web"})
    (endpoint,) = found.endpoints
    assert endpoint.addresses == ("10.244.1.10", "10.244.1.11")
    assert endpoint.conditions == Conditions(ready=True, serving=True, terminating=False)
    assert (endpoint.node_name, endpoint.zone) == ("node-1", "zone-a")
    assert endpoint.hints is not None
    assert [zone.name for zone in endpoint.hints.for_zones] == ["zone-a"]
    assert [node.name for node in endpoint.hints.for_nodes] == ["node-1"]
    assert endpoint.target_ref is not None
    assert (endpoint.target_ref.kind, endpoint.target_ref.name) == ("Pod", "web-abc")
    assert [(port.name, port.protocol, port.port) for port in found.ports] == [("http", "TCP", 8080)]


def test_null_means_default() -> None:
    nothing = parse({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": None, "ports": None})
    assert (nothing.endpoints, nothing.ports) == ((), ())
    fields = ("conditions", "nodeName", "zone", "hints", "targetRef")
    data = slice_of("IPv4", "10.0.0.1") | {"ports": [{"name": None, "protocol": None, "port": None}]}
    bare = parse(data)
    assert (bare.ports[0].name, bare.ports[0].protocol, bare.ports[0].port) == ("", "TCP", None)
    (endpoint,) = bare.endpoints
    assert (endpoint.conditions, endpoint.hints, endpoint.target_ref) == (Conditions(), None, None)
    assert (endpoint.node_name, endpoint.zone, endpoint.conditions.ready) == (None, None, None)
    assert parse(changed(data, ENDPOINT, {"addresses": ["10.0.0.1"]} | dict.fromkeys(fields))) == bare


def test_port_zero_leads_nowhere() -> None:
    assert parse(changed(SLICE, ("ports", 0, "port"), 0)).ports[0].port is None


def test_addresses_become_canonical() -> None:
    assert parse(slice_of("IPv4", "010.0.0.1", "::ffff:10.0.0.2")).endpoints[0].addresses == ("10.0.0.1", "10.0.0.2")
    assert parse(slice_of("IPv6", "FD00::0:1")).endpoints[0].addresses == ("fd00::1",)


def test_host_names_stay() -> None:
    assert parse(slice_of("FQDN", "web.example.com", "a-1")).endpoints[0].addresses == ("web.example.com", "a-1")


def test_slice_without_a_service() -> None:
    assert parse(changed(SLICE, ("metadata", "labels"), {"kubernetes.io/service-name": ""})).metadata.labels


@pytest.mark.parametrize(
    ("address_type", "address", "message"),
    [
        ("IPv4", "fd00::1", "must be an IPv4 address"),
        ("IPv6", "10.0.0.1", "must be an IPv6 address"),
        ("IPv6", "::ffff:10.0.0.1", "must be an IPv6 address"),
        ("IPv4", "web.example.com", "must be an IPv4 address"),
        ("IPv4", "10.0.0.300", "must be an IPv4 address"),
        ("IPv4", "127.0.0.1", "must not be an unspecified, loopback or link-local address"),
        ("IPv6", "fe80::1", "must not be an unspecified, loopback or link-local address"),
        ("IPv6", "fe80::1%eth0", "must be an IP address"),
        ("IPv4", "10.0.0.1\n", "must be an IP address"),
        ("FQDN", "web.example.com\n", "must be an IP address"),
        ("FQDN", "-j", "must be an IP address"),
        ("FQDN", "a" * 254, "must be an IP address"),
    ],
)
def test_address_of_the_wrong_kind(address_type: str, address: str, message: str) -> None:
    good = {"IPv4": "10.0.0.9", "IPv6": "fd00::9", "FQDN": "a"}[address_type]
    (problem,) = problems(slice_of(address_type, good, address))
    assert problem.path == "endpoints[0].addresses[1]"
    assert message in problem.message
    assert problem.subject == "EndpointSlice default/a"


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        (("metadata", "name"), "a_b", "metadata.name", "must be a DNS name"),
        (("metadata", "name"), "a." * 127, "metadata.name", "at most 253 characters"),
        (("addressType",), "ipv4", "addressType", "must be 'IPv4', 'IPv6' or 'FQDN'"),
        ((*ENDPOINT, "addresses"), [], "endpoints[0].addresses", "must have at least 1 item"),
        ((*ENDPOINT, "addresses", 0), 5, "endpoints[0].addresses[0]", "must be a string"),
        ((*ENDPOINT, "conditions", "ready"), "yes", "endpoints[0].conditions.ready", "must be true or false"),
        ((*ENDPOINT, "conditions"), 1, "endpoints[0].conditions", "must be a mapping"),
        ((*ENDPOINT, "nodeName"), "Node_1", "endpoints[0].nodeName", "must be a DNS name"),
        ((*ENDPOINT, "nodeName"), "node-1\n", "endpoints[0].nodeName", "must be a DNS name"),
        ((*ENDPOINT, "zone"), "a b", "endpoints[0].zone", "must be a label value"),
        ((*ENDPOINT, "hints", "forZones", 0, "name"), "-j", "endpoints[0].hints.forZones[0].name", "a label value"),
        ((*ENDPOINT, "hints", "forNodes", 0, "name"), "-j", "endpoints[0].hints.forNodes[0].name", "a DNS name"),
        (("ports", 0, "name"), "HTTP", "ports[0].name", "must be empty or a DNS label"),
        (("ports", 0, "protocol"), "ICMP", "ports[0].protocol", "must be 'TCP', 'UDP' or 'SCTP'"),
        (("ports", 0, "port"), "8080", "ports[0].port", "must be a whole number"),
        (("ports", 0, "port"), True, "ports[0].port", "must be a whole number"),
        (("ports", 0, "port"), 65536, "ports[0].port", "must be at most 65535"),
        (
            ("metadata", "labels", "kubernetes.io/service-name"),
            "Web_1",
            "metadata.labels['kubernetes.io/service-name']",
            "must be the name of a Service",
        ),
    ],
)
def test_one_wrong_field(path: Path, value: object, where: str, message: str) -> None:
    (problem,) = problems(changed(SLICE, path, value))
    assert problem.path == where
    assert message in problem.message
    assert problem.value == (None if isinstance(value, list) else value)


def test_missing_fields() -> None:
    assert [p.path for p in problems({})] == ["metadata", "addressType"]
    assert [p.path for p in problems(without(SLICE, (*ENDPOINT, "addresses")))] == ["endpoints[0].addresses"]


def test_all_problems_are_told() -> None:
    data = changed(SLICE, ("ports", 0, "port"), -1)
    data = changed(data, (*ENDPOINT, "addresses"), ["10.0.0.1", "fd00::1", "fd00::2"])
    assert [(p.path, p.value) for p in problems(data)] == [
        ("ports[0].port", -1),
        ("endpoints[0].addresses[1]", "fd00::1"),
        ("endpoints[0].addresses[2]", "fd00::2"),
    ]
    data = changed(data, (*ENDPOINT, "addresses"), ["x y"])
    assert [p.path for p in problems(data)] == ["endpoints[0].addresses[0]", "ports[0].port"]
