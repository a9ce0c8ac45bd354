"""Which conntrack entries are stale: the pure part."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.family import Family
from kpx.model.endpoint import Endpoint
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.flows import Flow, Frontends, Query, frontends, packed, queries
from kpx.netfilter.flows import stale as every_stale

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


def flow(destination: str, port: int, reply: str, reply_port: int = 5353) -> Flow:
    client = (packed("10.128.9.9"), 40000)
    return Flow(Family.IPV4, client, (packed(destination), port), (packed(reply), reply_port))


def stale(flows: Iterable[Flow], known: Frontends) -> tuple[Flow, ...]:
    return tuple(every_stale(flows, known))


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


@given(st.lists(st.sampled_from([POD, DRAINING, DEAD, Endpoint("10.128.0.8", 1)])), st.booleans())
def test_flows_to_serving_endpoints_are_never_stale(endpoints: list[Endpoint], was_gone: bool) -> None:
    known = frontends([(DNS, tuple(endpoints))], [DNS] if was_gone else [], [NODE])
    for destination in ((DNS.cluster_ip, 53), (NODE, 30053)):
        flows = [flow(*destination, one.address, one.port) for one in (POD, DRAINING, DEAD)]
        kept = set(flows) - set(stale(flows, known))
        assert {one.reply_source for one in kept} == {
            (packed(one.address), one.port) for one in endpoints if one.serving and one in (POD, DRAINING, DEAD)
        }


WEB = ServicePort(ServicePortName("shop", "web", "quic", "udp"), "10.96.0.30", 443)
MANY = 1_000_000
"""Entries: so many that any number of queries costs less than to have them all."""


def test_the_kernel_is_asked_for_one_address_and_port_where_that_is_all() -> None:
    assert queries(frontends([(WEB, ())]), MANY) == (Query(443, packed("10.96.0.30")),)


def test_several_addresses_with_one_port_are_one_query() -> None:
    assert queries(frontends([(WEB, ())], [replace(WEB, cluster_ip="10.96.0.31")]), MANY) == (Query(443),)
    assert queries(KNOWN, MANY) == (Query(53), Query(30053))


def test_a_node_port_is_asked_for_on_all_addresses() -> None:
    high = replace(WEB, port=30053)
    assert queries(frontends([(high, ())], [DNS]), MANY) == (Query(53), Query(30053))


def test_an_ipv6_address_is_never_asked_for() -> None:
    """Linux turns its comparison around."""
    assert queries(frontends([(replace(WEB, cluster_ip="fd00::30"), ())]), MANY) == (Query(443),)


def test_of_few_entries_all_are_asked_for_at_once() -> None:
    assert queries(KNOWN, 100) == (Query(),)
    assert queries(KNOWN, 10_000) == (Query(53), Query(30053))
    ports = [replace(WEB, port=port) for port in range(1, 100)]
    assert queries(frontends((port, ()) for port in ports), 150_000) == (Query(),)


@given(
    st.lists(st.sampled_from([DNS, WEB, replace(WEB, port=53), replace(DNS, port=443, node_port=0)])),
    st.sampled_from(["10.96.0.10", "10.96.0.30", "198.51.100.1", NODE, "8.8.8.8"]),
    st.sampled_from([53, 443, 30053, 9]),
    st.integers(0, 50_000),
)
def test_what_is_stale_is_always_asked_for(ports: list[ServicePort], address: str, port: int, entries: int) -> None:
    known = frontends([(one, ()) for one in ports], node_addresses=(NODE,))
    one = flow(address, port, address, port)
    asked = queries(known, entries)
    assert len(asked) == len(set(asked))
    if stale([one], known):
        assert any(query.takes(one) for query in asked)
