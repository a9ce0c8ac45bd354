"""Whose address a backend sees: when packets are masqueraded, and when they must not be."""

from typing import Any

import pytest

from tests.lab import Host, connect
from tests.packets.proxy import Proxy, masqueraded, strangers
from tests.packets.web import FamilyName


def seen(host: Host, address: str, port: int = 80) -> dict[str, int]:
    return dict(connect(host, address, port, count=10).sources)


def test_a_pod_shows_its_own_address(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:2])
    proxy.apply(web)
    for pod in (proxy.pods[2], proxy.pods[6]):
        assert seen(pod, web.cluster_ip) == {pod.address(family): 10}


def test_a_client_outside_the_cluster_is_masqueraded_on_the_cluster_ip(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods)
    proxy.apply(web)
    assert seen(proxy.client, web.cluster_ip) == {masqueraded(family): 10}


def test_a_pod_reaches_itself_through_its_service(proxy: Proxy, family: FamilyName) -> None:
    pod = proxy.local[0]
    web = proxy.web(family, [pod])
    proxy.apply(web)
    result = connect(pod, web.cluster_ip, 80, count=10)
    assert result.backends == {pod.name: 10}
    assert result.sources == {masqueraded(family): 10}


def test_masquerade_all_hides_pods_too(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:2])
    proxy.apply(web, iptables={"masqueradeAll": True})
    assert seen(proxy.pods[2], web.cluster_ip) == {masqueraded(family): 10}


def test_the_masquerade_bit_can_be_moved(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:2])
    proxy.apply(web, iptables={"masqueradeBit": 5})
    assert seen(proxy.client, web.cluster_ip) == {masqueraded(family): 10}
    assert seen(proxy.pods[2], web.cluster_ip) == {proxy.pods[2].address(family): 10}


LOCAL_MODES = [
    ({"detectLocalMode": "NodeCIDR"}, {"local-0"}),
    ({"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth-local"}}, {"local-0"}),
    ({"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "veth-local-0"}}, {"local-0"}),
    ({"detectLocalMode": "ClusterCIDR"}, {"local-0", "remote-0"}),
    ({"detectLocalMode": "ClusterCIDR", "clusterCIDR": ""}, {"local-0", "remote-0", "client"}),
]


@pytest.mark.parametrize(("config", "local"), LOCAL_MODES)
def test_what_is_local_is_not_masqueraded(
    proxy: Proxy, family: FamilyName, config: dict[str, Any], local: set[str]
) -> None:
    web = proxy.web(family, proxy.pods[1:3])
    proxy.apply(web, **config)
    for host in (proxy.local[0], proxy.remote[0], proxy.client):
        own = host.address(family)
        expected = own if host.name in local else masqueraded(family)
        assert seen(host, web.cluster_ip) == {expected: 10}, host.name


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_the_cluster_policy_masquerades_clients_from_outside(proxy: Proxy, family: FamilyName, kind: str) -> None:
    web = proxy.web(family, proxy.pods, type=kind)
    proxy.apply(web)
    assert seen(proxy.client, proxy.node.host.address(family), web.node_port) == {masqueraded(family): 10}
    if kind == "LoadBalancer":
        assert seen(proxy.client, web.load_balancer_ip) == {masqueraded(family): 10}


def test_the_local_policy_keeps_the_source_address(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods, type="LoadBalancer", externalTrafficPolicy="Local")
    web = web.with_spec(externalIPs=[web.external_ip])
    proxy.apply(web)
    (stranger,) = strangers(family)
    ways_in = (
        (proxy.node.host.address(family), web.node_port),
        (web.load_balancer_ip, 80),
        (web.external_ip, 80),
    )
    for address, port in ways_in:
        for source in (proxy.client.address(family), stranger):
            result = connect(proxy.client, address, port, source=(source, 0), count=20)
            assert result.sources == {source: 20}
            assert set(result.backends) <= {pod.name for pod in proxy.local}
