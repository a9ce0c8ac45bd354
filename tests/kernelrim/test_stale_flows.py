"""Which conntrack entries are stale: the pure part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.family import Family
from kpx.model.endpoint import Endpoint
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.conntrack import Flow, Frontends, frontends, stale

NODE = "192.0.2.10"
DNS = ServicePort(
    ServicePortName("kube-system", "dns", "dns", "udp"),
    "10.96.0.10",
    53,
    node_port=30053,
    external_ips=("198.51.100.1",),
    load_balancer_ips=("203.0.113.1",),
)
POD = Endpoint("10.128.0.5", 5353)
DRAINING = Endpoint("10.128.0.6", 5353, ready=False, serving=True, terminating=True)
DEAD = Endpoint("10.128.0.7", 5353, ready=False, serving=False, terminating=True)
KNOWN = frontends([(DNS, (POD, DRAINING, DEAD))], node_addresses=(NODE, "127.0.0.1"))


def flow(destination: str, port: int, reply: str, reply_port: int = 5353, protocol: str = "udp") -> Flow:
    return Flow(Family.IPV4, protocol, "10.128.9.9", 40000, destination, port, reply, reply_port)


@pytest.mark.parametrize("destination", [("10.96.0.10", 53), ("198.51.100.1", 53), ("203.0.113.1", 53), (NODE, 30053)])
@pytest.mark.parametrize(
    ("reply", "is_stale"),
    [
        (("10.128.0.5", 5353), False),
        (("10.128.0.6", 5353), False),  # drains: its flows are not cut
        (("10.128.0.7", 5353), True),  # no longer serving
        (("10.128.0.8", 5353), True),  # gone
        (("10.128.0.5", 53), True),  # the target port has changed
        (None, True),  # not translated: there was no endpoint when it began
    ],
)
def test_flows_to_a_frontend(destination: tuple[str, int], reply: tuple[str, int] | None, is_stale: bool) -> None:
    one = flow(*destination, *(reply or destination))
    assert stale([one], KNOWN) == ((one,) if is_stale else ())


@pytest.mark.parametrize(
    "one",
    [
        flow("10.96.0.10", 54, "10.96.0.10", 54),  # another port of the address
        flow("10.96.0.11", 53, "10.128.0.8"),  # another Service
        flow("8.8.8.8", 30053, "8.8.8.8", 30053),  # another host, whose port is a node port's number here
        flow("10.128.7.7", 30053, "10.128.7.7", 30053),
        flow(NODE, 53, NODE, 53),  # the node's own DNS server
        flow("10.96.0.10", 53, "10.128.0.8", protocol="tcp"),
        flow("10.96.0.10", 53, "10.128.0.8", protocol="sctp"),
    ],
)
def test_other_flows_are_left(one: Flow) -> None:
    assert stale([one], KNOWN) == ()


def test_without_serving_endpoints_no_flow_is_kept() -> None:
    known = frontends([(DNS, (DEAD,))], node_addresses=(NODE,))
    flows = (flow("10.96.0.10", 53, "10.128.0.7"), flow(NODE, 30053, "10.128.0.5"))
    assert stale(flows, known) == flows


def test_a_service_that_is_gone_keeps_no_flow_unless_another_has_its_place() -> None:
    web = ServicePort(ServicePortName("shop", "web", "quic", "udp"), "10.96.0.10", 53)
    flows = (flow("10.96.0.10", 53, "10.128.0.5"), flow(NODE, 30053, "10.128.0.5"))
    assert stale(flows, frontends([], [DNS], [NODE])) == flows
    assert stale(flows, frontends([(web, (POD,))], [DNS], [NODE])) == flows[1:]


def test_a_service_place_comes_before_a_node_port() -> None:
    high = ServicePort(ServicePortName("shop", "high", "", "udp"), "10.96.0.20", 30053, external_ips=(NODE,))
    known = frontends([(DNS, (POD,)), (high, (Endpoint("10.128.0.20", 1),))], node_addresses=(NODE,))
    assert stale([flow(NODE, 30053, "10.128.0.20", 1)], known) == ()


def test_only_udp_ports_are_frontends() -> None:
    tcp = ServicePort(ServicePortName("shop", "web", "", "tcp"), "10.96.0.30", 80, node_port=30080)
    assert frontends([(tcp, (POD,))], [tcp]) == Frontends({}, {}, frozenset())


def test_an_entry_listed_twice_is_deleted_once() -> None:
    one = flow("10.96.0.10", 53, "10.128.0.8")
    assert stale([one, one], KNOWN) == (one,)


@given(st.lists(st.sampled_from([POD, DRAINING, DEAD, Endpoint("10.128.0.8", 1)])), st.booleans())
def test_flows_to_serving_endpoints_are_never_stale(endpoints: list[Endpoint], was_gone: bool) -> None:
    known = frontends([(DNS, tuple(endpoints))], [DNS] if was_gone else [], [NODE])
    for destination in ((DNS.cluster_ip, 53), (NODE, 30053)):
        flows = [flow(*destination, one.address, one.port) for one in (POD, DRAINING, DEAD)]
        kept = set(flows) - set(stale(flows, known))
        assert {(one.reply_source, one.reply_source_port) for one in kept} == {
            (one.address, one.port) for one in endpoints if one.serving and one in (POD, DRAINING, DEAD)
        }
