"""Every backend gets its even share."""

import pytest

from tests.chance import as_shared
from tests.lab import Result, connect
from tests.packets.proxy import Proxy, names
from tests.packets.web import FamilyName, Port, Web

CONNECTIONS = 3000


@pytest.mark.parametrize("backends", [3, 7])
def test_tcp_connections_spread_evenly(proxy: Proxy, family: FamilyName, backends: int) -> None:
    web = proxy.web(family, proxy.pods[:backends])
    proxy.apply(web)
    assert even(web, connect(proxy.client, web.cluster_ip, 80, count=CONNECTIONS))


def test_udp_flows_spread_evenly(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:3], Port("UDP", 53, 8080))
    proxy.apply(web)
    assert even(web, connect(proxy.pods[6], web.cluster_ip, 53, protocol="udp", count=CONNECTIONS))


def test_a_node_port_spreads_evenly(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:3], type="NodePort")
    proxy.apply(web)
    address = proxy.node.host.address(family)
    assert even(web, connect(proxy.client, address, web.node_port, count=CONNECTIONS))


def even(web: Web, result: Result) -> bool:
    """Whether all were answered, by each as often as by the others."""
    backends = [endpoint.host for endpoint in web.endpoints]
    assert result.answered, result.outcomes
    assert set(result.backends) <= names(backends)
    return as_shared([result.backends[host.name] for host in backends], [1] * len(backends))
