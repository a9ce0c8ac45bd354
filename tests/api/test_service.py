import json
from typing import Any

import pytest

from kpx.api import Service, parse_object
from kpx.errors import InputError, Problem
from tests.api.samples import SERVICE, Path, changed, without

PORT: Path = ("spec", "ports", 0)


def parse(data: dict[str, Any]) -> Service:
    service = parse_object("Service", data)
    assert isinstance(service, Service)
    assert parse_object("Service", json.dumps(data).encode()) == service
    return service


def problems(data: Any) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        parse_object("Service", data)
    return caught.value.problems


def only(data: Any) -> Problem:
    (problem,) = problems(data)
    return problem


def minimal(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.1.10", "ports": [{"port": 80}], **spec}}


def test_every_field() -> None:
    service = parse(SERVICE)
    assert service.metadata.annotations == {"note": "free text\nof any 'kind'"}
    assert service.metadata.deletion_timestamp == "2024-05-02T10:00:00.5+02:00"
    spec = service.spec
    assert (spec.type, spec.cluster_ip, spec.cluster_ips) == (
        "LoadBalancer",
        "10.96.1.10",
        ("10.96.1.10", "fd00:10:96::a"),
    )
    assert [(port.name, port.protocol, port.port, port.target_port, port.node_port) for port in spec.ports] == [
        ("http", "TCP", 80, "web", 30080),
        ("dns", "UDP", 53, 5353, 30053),
    ]
    assert spec.session_affinity_config.client_ip.timeout_seconds == 1800
    assert spec.external_traffic_policy == spec.internal_traffic_policy == "Local"
    ingress = service.status.load_balancer.ingress
    assert [(entry.ip, entry.hostname, entry.ip_mode) for entry in ingress] == [
        ("203.0.113.10", None, "VIP"),
        (None, "lb.example.com", "Proxy"),
    ]


def test_defaults_are_the_servers() -> None:
    service = parse(minimal())
    spec = service.spec
    assert service.metadata.namespace == "default"
    assert (spec.type, spec.session_affinity, spec.internal_traffic_policy) == ("ClusterIP", "None", "Cluster")
    assert spec.session_affinity_config.client_ip.timeout_seconds == 10800
    assert spec.cluster_ips == ("10.96.1.10",)
    assert spec.external_traffic_policy is None
    assert spec.allocate_load_balancer_node_ports is True
    assert (spec.ports[0].name, spec.ports[0].protocol, spec.ports[0].node_port) == ("", "TCP", 0)
    assert service.status.load_balancer.ingress == ()


@pytest.mark.parametrize("value", [None, {}])
def test_null_means_default(value: object) -> None:
    spec = minimal()["spec"] | {
        "type": None,
        "sessionAffinity": "",
        "externalIPs": None,
        "selector": None,
        "sessionAffinityConfig": {"clientIP": value},
        "internalTrafficPolicy": None,
        "ports": [{"port": 80, "name": None, "protocol": None, "targetPort": None, "nodePort": None}],
    }
    service = parse({"metadata": {"name": "web", "labels": None}, "spec": spec, "status": value})
    assert service == parse(minimal())


def test_cluster_ip_follows_from_cluster_ips() -> None:
    service = parse(minimal(clusterIP="", clusterIPs=["fd00::1", "10.0.0.1"]))
    assert service.spec.cluster_ip == "fd00::1"


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}, "Cluster"),
        ({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False}, "Cluster"),
        ({"externalIPs": ["192.0.2.1"]}, "Cluster"),
        ({}, None),
    ],
)
def test_external_traffic_policy(spec: dict[str, Any], policy: str | None) -> None:
    assert parse(minimal(**spec)).spec.external_traffic_policy == policy


@pytest.mark.parametrize("spec", [{"type": "ExternalName", "externalName": "example.com"}, {"clusterIP": "None"}])
def test_no_address_and_no_ports_needed(spec: dict[str, Any]) -> None:
    service = parse({"metadata": {"name": "web"}, "spec": spec})
    assert service.spec.ports == ()


def test_addresses_become_canonical() -> None:
    spec = parse(
        minimal(
            clusterIP="FD00:0::A",
            externalIPs=["192.000.002.001"],
            loadBalancerSourceRanges=[" 192.0.2.9/24 ", "0.0.0.0/0"],
        )
    ).spec
    assert (spec.cluster_ip, spec.cluster_ips) == ("fd00::a", ("fd00::a",))
    assert spec.external_ips == ("192.0.2.1",)
    assert spec.load_balancer_source_ranges == ("192.0.2.0/24", "0.0.0.0/0")


def test_python_names_do_not_work_in_objects() -> None:
    assert only({"metadata": {"name": "web"}, "spec": {"cluster_ip": "10.0.0.1", "ports": [{"port": 1}]}}) == Problem(
        "Service default/web", "is required: only an API server can allot one", "spec.clusterIP"
    )


def test_immutable() -> None:
    spec: Any = parse(SERVICE).spec
    with pytest.raises(ValueError, match="frozen"):
        spec.cluster_ip = "x"


def test_label_key() -> None:
    problem = only(changed(SERVICE, ("metadata", "labels", "a b\n"), "a"))
    assert (problem.path, problem.value) == ("metadata.labels['a b\\n']", "a b\n")
    assert "must be a label key" in problem.message


@pytest.mark.parametrize(
    ("path", "value", "where", "message"),
    [
        (("metadata", "name"), "We", "metadata.name", "must be a DNS label"),
        (("metadata", "name"), "web\n", "metadata.name", "must be a DNS label"),
        (("metadata", "name"), "a" * 64, "metadata.name", "at most 63 characters"),
        (("metadata", "name"), "a.b", "metadata.name", "must be a DNS label"),
        (("metadata", "name"), 7, "metadata.name", "must be a string"),
        (("metadata", "namespace"), "-j", "metadata.namespace", "must be a DNS label"),
        (("metadata", "labels", "app"), "a b", "metadata.labels.app", "must be a label value"),
        (("spec", "type"), "Other", "spec.type", "must be 'ClusterIP', 'NodePort', 'LoadBalancer' or"),
        (("spec", "clusterIP"), "10.96.1", "spec.clusterIP", 'must be an IP address or "None"'),
        (("spec", "clusterIPs", 1), "fe80::1%eth0", "spec.clusterIPs[1]", 'must be an IP address or "None"'),
        (("spec", "clusterIPs", 1), "", "spec.clusterIPs[1]", 'must be an IP address or "None"'),
        (("spec", "clusterIPs", 0), "10.96.1.11", "spec.clusterIPs[0]", "must equal spec.clusterIP"),
        (("spec", "externalIPs", 0), "127.0.0.1", "spec.externalIPs[0]", "must not be an unspecified, loopback"),
        (("spec", "loadBalancerSourceRanges", 0), "192.0.2.0", "spec.loadBalancerSourceRanges[0]", "must be a CIDR"),
        (("spec", "sessionAffinity"), "Cookie", "spec.sessionAffinity", "must be 'None' or 'ClientIP'"),
        (("spec", "externalTrafficPolicy"), "local", "spec.externalTrafficPolicy", "must be 'Cluster' or 'Local'"),
        (("spec", "internalTrafficPolicy"), 1, "spec.internalTrafficPolicy", "must be 'Cluster' or 'Local'"),
        (("spec", "healthCheckNodePort"), 65536, "spec.healthCheckNodePort", "must be at most 65535"),
        (("spec", "ipFamilies", 0), "ipv4", "spec.ipFamilies[0]", "must be 'IPv4' or 'IPv6'"),
        (("spec", "allocateLoadBalancerNodePorts"), "true", "spec.allocateLoadBalancerNodePorts", "true or false"),
        (("spec", "selector", "app"), 5, "spec.selector.app", "must be a string"),
        ((*PORT, "name"), "a_b", "spec.ports[0].name", "must be empty or a DNS label"),
        ((*PORT, "name"), "http\n", "spec.ports[0].name", "must be empty or a DNS label"),
        ((*PORT, "name"), "a" * 64, "spec.ports[0].name", "at most 63 characters"),
        ((*PORT, "protocol"), "tcp", "spec.ports[0].protocol", "must be 'TCP', 'UDP' or 'SCTP'"),
        ((*PORT, "port"), "80", "spec.ports[0].port", "must be a whole number"),
        ((*PORT, "port"), True, "spec.ports[0].port", "must be a whole number"),
        ((*PORT, "port"), 80.0, "spec.ports[0].port", "must be a whole number"),
        ((*PORT, "port"), 0, "spec.ports[0].port", "must be at least 1"),
        ((*PORT, "port"), 65536, "spec.ports[0].port", "must be at most 65535"),
        ((*PORT, "port"), 10**30, "spec.ports[0].port", "must be at most 65535"),
        ((*PORT, "targetPort"), 1.5, "spec.ports[0].targetPort", "must be a port number"),
        ((*PORT, "targetPort"), False, "spec.ports[0].targetPort", "must be a port number"),
        ((*PORT, "targetPort"), "a b", "spec.ports[0].targetPort", "must be a port number"),
        ((*PORT, "nodePort"), -1, "spec.ports[0].nodePort", "must be at least 0"),
        (PORT, 5, "spec.ports[0]", "must be a mapping"),
        (("spec", "ports"), {}, "spec.ports", "must be a list"),
        (
            ("spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"),
            86401,
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "must be at most 86400",
        ),
        (
            ("status", "loadBalancer", "ingress", 0, "ip"),
            "x",
            "status.loadBalancer.ingress[0].ip",
            "must be an IP address",
        ),
        (
            ("status", "loadBalancer", "ingress", 0, "ipMode"),
            "vip",
            "status.loadBalancer.ingress[0].ipMode",
            "must be 'VIP' or 'Proxy'",
        ),
    ],
)
def test_one_wrong_field(path: Path, value: object, where: str, message: str) -> None:
    problem = only(changed(SERVICE, path, value))
    assert problem.path == where
    assert message in problem.message
    assert problem.value == (None if isinstance(value, dict) else value)
    assert problem.subject.startswith("Service ")
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("data", "where", "message"),
    [
        (without(SERVICE, ("metadata", "name")), "metadata.name", "is required"),
        (without(SERVICE, ("spec",)), "spec", "is required"),
        (without(SERVICE, (*PORT, "port")), "spec.ports[0].port", "is required"),
        (minimal(clusterIP=None), "spec.clusterIP", "is required: only an API server can allot one"),
        (minimal(ports=[]), "spec.ports", "must hold at least one port"),
        (minimal(clusterIPs=["None"]), "spec.clusterIPs[0]", "must equal spec.clusterIP"),
        (minimal(clusterIP="None", clusterIPs=["None", "10.0.0.1"]), "spec.clusterIPs", "nothing else beside"),
        (
            minimal(clusterIPs=["10.96.1.10", "10.96.1.11"]),
            "spec.clusterIPs",
            "must hold at most one address of each family",
        ),
        (
            minimal(type="NodePort"),
            "spec.ports[0].nodePort",
            "is required: only an API server can allot one",
        ),
        (minimal(type="LoadBalancer"), "spec.ports[0].nodePort", "is required: only an API server can allot one"),
        (
            minimal(ports=[{"port": 80, "nodePort": 30080}]),
            "spec.ports[0].nodePort",
            "must not be set in a Service of type ClusterIP",
        ),
        (minimal(ports=[{"port": 80, "name": "a"}, {"port": 81}]), "spec.ports[1].name", "is required where"),
        (
            minimal(ports=[{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]),
            "spec.ports[1].name",
            "is taken by another port",
        ),
        (
            minimal(ports=[{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]),
            "spec.ports[1].port",
            "is taken by another port",
        ),
        (
            minimal(
                type="NodePort",
                ports=[{"port": 80, "name": "a", "nodePort": 30080}, {"port": 81, "name": "b", "nodePort": 30080}],
            ),
            "spec.ports[1].nodePort",
            "is taken by another port",
        ),
        (
            minimal(type="NodePort", clusterIP="None", ports=[{"port": 80, "nodePort": 30080}]),
            "spec.clusterIP",
            "must be an address in a Service of type NodePort",
        ),
    ],
)
def test_fields_that_contradict(data: dict[str, Any], where: str, message: str) -> None:
    problem = only(data)
    assert problem.path == where
    assert message in problem.message


def test_same_port_of_two_protocols_is_sound() -> None:
    ports = [{"port": 53, "name": "udp", "protocol": "UDP"}, {"port": 53, "name": "tcp"}]
    assert len(parse(minimal(ports=ports)).spec.ports) == 2


def test_all_problems_are_told() -> None:
    data = {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "NodePort",
            "externalIPs": ["x", "192.0.2.1", "y"],
            "ports": [{"port": 80, "name": "a"}, {"port": 80}],
        },
    }
    assert [str(problem) for problem in problems(data)] == [
        "Service shop/web: spec.externalIPs[0]: must be an IP address (got 'x')",
        "Service shop/web: spec.externalIPs[2]: must be an IP address (got 'y')",
        "Service shop/web: spec.clusterIP: is required: only an API server can allot one",
        "Service shop/web: spec.ports[0].nodePort: is required: only an API server can allot one",
        "Service shop/web: spec.ports[1].name: is required where a Service has several ports",
        "Service shop/web: spec.ports[1].port: is taken by another port of this Service (got 80)",
        "Service shop/web: spec.ports[1].nodePort: is required: only an API server can allot one",
    ]


def test_what_is_said_of_a_broken_field_is_not_said_twice() -> None:
    assert [p.path for p in problems(minimal(clusterIP="x"))] == ["spec.clusterIP"]
    assert [p.path for p in problems(minimal(clusterIP=None, clusterIPs=["x"]))] == ["spec.clusterIPs[0]"]
    assert [p.path for p in problems(minimal(type="x", clusterIP=None))] == ["spec.type"]


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        ({"metadata": {"name": "a\nb", "namespace": "shop"}, "spec": 0}, "Service shop/'a\\nb'"),
        ({"metadata": {"name": "web", "namespace": 5}, "spec": 0}, "Service 5/web"),
        ({"metadata": {"namespace": "shop"}, "spec": 0}, "Service shop/(unnamed)"),
        ({"metadata": [], "spec": 0}, "Service (unnamed)"),
        ([], "Service (unnamed)"),
        (b'{"metadata": {"name": "web"}}', "Service default/web"),
        (b"{", "Service"),
        (b"\xff", "Service"),
    ],
)
def test_subject(data: Any, subject: str) -> None:
    assert {problem.subject for problem in problems(data)} == {subject}


def test_unknown_kind() -> None:
    with pytest.raises(InputError, match="'Pod': is not a kind that kpx reads"):
        parse_object("Pod", {})
