"""Which endpoints a packet may go to: traffic policies, short-circuits, readiness."""

import pytest

from tests.lab import Outcome, connect
from tests.packets.proxy import Proxy, masqueraded, names
from tests.packets.web import Endpoint, FamilyName, Web


def reached(proxy: Proxy, web: Web) -> set[str]:
    """Who answers on the cluster IP, with enough connections to miss none of up to seven backends."""
    result = connect(proxy.client, web.cluster_ip, 80, count=150)
    assert result.answered
    return set(result.backends)


def test_the_internal_policy_local_stays_on_the_node(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods, internalTrafficPolicy="Local")
    proxy.apply(web)
    assert reached(proxy, web) == names(proxy.local)


def test_the_internal_policy_local_without_local_endpoint_drops(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.remote, internalTrafficPolicy="Local")
    proxy.apply(web)
    for host in (proxy.local[0], proxy.node.host):
        assert connect(host, web.cluster_ip, 80, count=2, patience=0.3).all(Outcome.TIMED_OUT)


def test_the_external_policy_local_uses_local_endpoints_only(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods, type="LoadBalancer", externalTrafficPolicy="Local")
    proxy.apply(web)
    outside = connect(proxy.client, web.load_balancer_ip, 80, count=150)
    assert outside.answered
    assert set(outside.backends) == names(proxy.local)
    assert reached(proxy, web) == names(proxy.pods)


def test_the_external_policy_local_without_local_endpoint_drops(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.remote, type="LoadBalancer", externalTrafficPolicy="Local")
    web = web.with_spec(externalIPs=[web.external_ip])
    proxy.apply(web)
    ways_in = [
        (proxy.node.host.address(family), web.node_port),
        (web.load_balancer_ip, 80),
        (web.external_ip, 80),
    ]
    for address, port in ways_in:
        assert connect(proxy.client, address, port, count=2, patience=0.3).all(Outcome.TIMED_OUT), address


def test_a_pod_gets_past_the_external_policy(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.remote[:2], type="LoadBalancer", externalTrafficPolicy="Local")
    proxy.apply(web)
    pod = proxy.local[0]
    for address, port in ((web.load_balancer_ip, 80), (proxy.node.host.address(family), web.node_port)):
        result = connect(pod, address, port, count=40)
        assert set(result.backends) == names(proxy.remote[:2])
        assert result.sources == {pod.address(family): 40}


def test_the_node_gets_past_the_external_policy(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.remote[:2], type="LoadBalancer", externalTrafficPolicy="Local")
    proxy.apply(web)
    for address, port in ((web.load_balancer_ip, 80), (proxy.node.host.address(family), web.node_port)):
        result = connect(proxy.node.host, address, port, count=40)
        assert set(result.backends) == names(proxy.remote[:2])
        assert result.sources == {masqueraded(family): 40}


def test_an_endpoint_that_is_not_ready_gets_nothing(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, [proxy.pods[0], Endpoint(proxy.pods[1], ready=False, serving=False)])
    proxy.apply(web)
    assert reached(proxy, web) == names(proxy.pods[:1])


def terminating(*pods: int, proxy: Proxy, serving: bool = True) -> list[Endpoint]:
    return [Endpoint(proxy.pods[n], ready=False, serving=serving, terminating=True) for n in pods]


def test_terminating_endpoints_serve_while_there_is_no_other(proxy: Proxy, family: FamilyName) -> None:
    going = terminating(0, 1, proxy=proxy)
    web = proxy.web(family, [*going, *terminating(2, proxy=proxy, serving=False)])
    proxy.apply(web)
    assert reached(proxy, web) == names(proxy.pods[:2])
    proxy.apply(web.with_endpoints(*going, Endpoint(proxy.pods[3])))
    assert reached(proxy, web) == names(proxy.pods[3:4])


def test_for_the_local_policy_a_terminating_local_endpoint_serves(proxy: Proxy, family: FamilyName) -> None:
    endpoints = [*terminating(0, proxy=proxy), *map(Endpoint, proxy.remote)]
    web = proxy.web(family, endpoints, type="NodePort", externalTrafficPolicy="Local")
    proxy.apply(web)
    result = connect(proxy.client, proxy.node.host.address(family), web.node_port, count=20)
    assert result.backends == {proxy.pods[0].name: 20}
    assert reached(proxy, web) == names(proxy.remote)


@pytest.mark.parametrize("way_in", ["cluster IP", "node port"])
def test_the_node_itself_can_be_an_endpoint(proxy: Proxy, family: FamilyName, way_in: str) -> None:
    web = proxy.web(family, [proxy.node.host], type="NodePort")
    proxy.apply(web)
    address = (web.cluster_ip, 80) if way_in == "cluster IP" else (proxy.node.host.address(family), web.node_port)
    for host in (proxy.client, proxy.local[0], proxy.node.host):
        assert connect(host, *address, count=5).backends == {"node-0": 5}, host.name
