"""NodePorts, external addresses, several ports, and protocols other than TCP."""

import pytest

from tests.lab import Outcome, Protocol, connect, send_sctp_init
from tests.packets.proxy import Proxy, masqueraded, names
from tests.packets.web import FamilyName, Port


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_node_port_answers_from_everywhere(proxy: Proxy, family: FamilyName, protocol: Protocol) -> None:
    web = proxy.web(family, proxy.pods[:2], Port(protocol.upper(), 80, 8080), type="NodePort")
    proxy.apply(web)
    address = proxy.node.host.address(family)
    for host in (proxy.client, proxy.local[2], proxy.remote[0], proxy.node.host):
        result = connect(host, address, web.node_port, protocol=protocol, count=40)
        assert result.answered, host.name
        assert set(result.backends) == names(proxy.pods[:2])


@pytest.mark.smoke
def test_a_node_port_answers_on_localhost(proxy: Proxy) -> None:
    web = proxy.web("ipv4", proxy.pods[:2], type="NodePort")
    proxy.apply(web)
    result = connect(proxy.node.host, "127.0.0.1", web.node_port, count=20)
    assert result.answered
    assert result.sources == {masqueraded("ipv4"): 20}


def test_localhost_node_ports_can_be_switched_off(proxy: Proxy) -> None:
    web = proxy.web("ipv4", proxy.pods[:2], type="NodePort")
    proxy.apply(web, iptables={"localhostNodePorts": False})
    assert connect(proxy.node.host, "127.0.0.1", web.node_port).all(Outcome.REFUSED)
    assert connect(proxy.node.host, proxy.node.host.ipv4, web.node_port).answered


@pytest.mark.parametrize("addresses", [["10.200.0.0/24", "fd00:200::/64"], ["primary"]])
def test_node_port_addresses_limit_where_node_ports_answer(
    proxy: Proxy, family: FamilyName, addresses: list[str]
) -> None:
    web = proxy.web(family, proxy.pods[:2], type="NodePort")
    proxy.apply(web)
    elsewhere = masqueraded(family)  # an address of the node, too
    assert connect(proxy.client, elsewhere, web.node_port).answered
    proxy.apply(web, nodePortAddresses=addresses)
    assert connect(proxy.client, elsewhere, web.node_port).all(Outcome.REFUSED)
    assert connect(proxy.client, proxy.node.host.address(family), web.node_port).answered


def test_a_load_balancer_address_and_external_ips_answer(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:2], type="LoadBalancer")
    web = web.with_spec(externalIPs=[web.external_ip])
    proxy.apply(web)
    for address in (web.load_balancer_ip, web.external_ip):
        for host in (proxy.client, proxy.local[2], proxy.node.host):
            result = connect(host, address, 80, count=40)
            assert set(result.backends) == names(proxy.pods[:2]), (address, host.name)
            assert result.answered


def test_every_port_has_its_own_target(proxy: Proxy, family: FamilyName) -> None:
    ports = (Port("TCP", 80, 8080), Port("TCP", 81, 8081), Port("UDP", 80, 8080))
    web = proxy.web(family, proxy.pods[:3], *ports, type="NodePort")
    proxy.apply(web)
    for n, port in enumerate(ports):
        protocol: Protocol = "udp" if port.protocol == "UDP" else "tcp"
        for address, number in ((web.cluster_ip, port.port), (proxy.node.host.address(family), web.node_port + n)):
            result = connect(proxy.client, address, number, protocol=protocol, count=60)
            assert result.ports == {port.target: 60}
            assert set(result.backends) == names(proxy.pods[:3])


def test_sctp_arrives_translated(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:2], Port("SCTP", 80, 7777), type="NodePort")
    proxy.apply(web)
    for address, port in ((web.cluster_ip, 80), (proxy.node.host.address(family), web.node_port)):
        arrivals = [send_sctp_init(proxy.client, proxy.pods, address, port, source_port=4000 + n) for n in range(20)]
        assert {arrival and arrival[1:] for arrival in arrivals} == {(masqueraded(family), 7777, True)}
        assert {arrival.backend for arrival in arrivals if arrival} == names(proxy.pods[:2])


def test_all_ways_in_lead_through_trees_here(proxy: Proxy, family: FamilyName) -> None:
    proxy.apply(proxy.web(family, proxy.pods[:1]))
    rules = proxy.node.rules(family=family, backend=proxy.backend)
    tables = {part.partition("\n")[0]: part for part in rules.split("\n*")}
    filter_, nat = tables["filter"], tables["nat"]
    assert all(f":KPX-{letter}-" in filter_ for letter in "SEFN")
    assert all(f":KPX-{letter}-" in nat for letter in "SN")
