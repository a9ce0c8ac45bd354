"""Packets that must not get through, and how soon their senders hear of it."""

from itertools import product

import pytest

from tests.lab import Outcome, Protocol, connect
from tests.packets.proxy import Proxy, strangers
from tests.packets.web import FamilyName, Port

AT_ONCE = 0.5  # seconds: far from the second that TCP would wait before it tries again


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_service_without_endpoints_refuses_at_once(proxy: Proxy, family: FamilyName, protocol: Protocol) -> None:
    web = proxy.web(family, [], Port(protocol.upper(), 80, 8080), type="LoadBalancer")
    web = web.with_spec(externalIPs=[web.external_ip])
    proxy.apply(web)
    everywhere = ((web.cluster_ip, 80), (proxy.node.host.address(family), web.node_port))
    routed = ((web.load_balancer_ip, 80), (web.external_ip, 80))  # the node itself just sends these out, as ever
    hosts = (proxy.client, proxy.local[0])
    for host, (address, port) in [*product((*hosts, proxy.node.host), everywhere), *product(hosts, routed)]:
        result = connect(host, address, port, protocol=protocol, count=5, patience=AT_ONCE)
        assert result.all(Outcome.REFUSED), (host.name, address, result.outcomes)
        assert result.icmp_unreachable == 5


def test_source_ranges_let_in_whom_they_name(proxy: Proxy, family: FamilyName) -> None:
    client, (stranger,) = proxy.client.address(family), strangers(family)
    web = proxy.web(family, proxy.pods[:2], type="LoadBalancer", loadBalancerSourceRanges=[alone(client)])
    proxy.apply(web)

    def arrives(address: str, port: int, source: str) -> bool:
        result = connect(proxy.client, address, port, source=(source, 0), count=2, patience=0.3)
        assert result.answered or result.all(Outcome.TIMED_OUT)
        return result.answered

    assert arrives(web.load_balancer_ip, 80, client)
    assert not arrives(web.load_balancer_ip, 80, stranger)
    assert arrives(proxy.node.host.address(family), web.node_port, stranger), "ranges are for the load balancer only"
    assert arrives(web.cluster_ip, 80, stranger)
    proxy.apply(web.with_spec(loadBalancerSourceRanges=[alone(client), alone(stranger)]))
    assert arrives(web.load_balancer_ip, 80, stranger)


def test_source_ranges_hold_for_pods_and_the_node(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:2], type="LoadBalancer")
    pod, node = proxy.local[2], proxy.node.host
    for allowed, refused in ((pod, node), (node, pod)):
        proxy.apply(web.with_spec(loadBalancerSourceRanges=[alone(allowed.address(family))]))
        assert connect(allowed, web.load_balancer_ip, 80, count=5).answered
        assert connect(refused, web.load_balancer_ip, 80, count=2, patience=0.3).all(Outcome.TIMED_OUT)


def test_a_node_in_the_ranges_reaches_an_address_that_it_holds_itself(proxy: Proxy, family: FamilyName) -> None:
    """Some load balancers put their address on the node, which then connects from that very address."""
    web = proxy.web(family, proxy.pods[:2], type="LoadBalancer")
    node = proxy.node.host
    node.namespace.ip(f"address add {web.load_balancer_ip} dev eth0 nodad")
    try:
        proxy.apply(web.with_spec(loadBalancerSourceRanges=[alone(node.address(family))]))
        assert connect(node, web.load_balancer_ip, 80, source=(web.load_balancer_ip, 0), count=5).answered
        proxy.apply(web.with_spec(loadBalancerSourceRanges=[alone(proxy.client.address(family))]))
        outcome = connect(node, web.load_balancer_ip, 80, source=(web.load_balancer_ip, 0), count=2, patience=0.3)
        assert outcome.all(Outcome.TIMED_OUT)
    finally:
        node.namespace.ip(f"address del {web.load_balancer_ip} dev eth0")


def alone(address: str) -> str:
    """The CIDR of one address."""
    return f"{address}/{128 if ':' in address else 32}"
