"""Every backend gets its even share."""

from collections.abc import Callable

import pytest
from scipy.stats import chisquare

from tests.lab import Result, connect
from tests.packets.proxy import Proxy, names
from tests.packets.web import FamilyName, Port, Web

CONNECTIONS = 3000
SIGNIFICANCE = 0.001


@pytest.mark.parametrize("backends", [3, 7])
def test_tcp_connections_spread_evenly(proxy: Proxy, family: FamilyName, backends: int) -> None:
    web = proxy.web(family, proxy.pods[:backends])
    proxy.apply(web)
    assert_even(web, lambda: connect(proxy.client, web.cluster_ip, 80, count=CONNECTIONS))


def test_udp_flows_spread_evenly(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:3], Port("UDP", 53, 8080))
    proxy.apply(web)
    assert_even(web, lambda: connect(proxy.pods[6], web.cluster_ip, 53, protocol="udp", count=CONNECTIONS))


def test_a_node_port_spreads_evenly(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:3], type="NodePort")
    proxy.apply(web)
    address = proxy.node.host.address(family)
    assert_even(web, lambda: connect(proxy.client, address, web.node_port, count=CONNECTIONS))


def assert_even(web: Web, run: Callable[[], Result]) -> None:
    """Fail only if two independent runs do: an even spread fails once in a million, not once in a thousand."""
    assert even(web, run()) or even(web, run())


def even(web: Web, result: Result) -> bool:
    """Whether all were answered, and the shares pass the chi-square test."""
    backends = [endpoint.host for endpoint in web.endpoints]
    assert result.answered, result.outcomes
    assert set(result.backends) <= names(backends)
    return bool(chisquare([result.backends[host.name] for host in backends]).pvalue > SIGNIFICANCE)
