"""Balancing by annotations: round robin, source hash, weights, affinity for a whole Service."""

import os
from collections import Counter

import pytest

from tests.chance import as_shared
from tests.lab import Host, Result, connect
from tests.packets.proxy import Proxy, connect_from, strangers
from tests.packets.web import Endpoint, FamilyName, Port, Web

CONNECTIONS = int(os.environ.get("KPX_CONNECTIONS", "1000"))


def weighted(hosts: tuple[Host, ...], *weights: int) -> list[Endpoint]:
    return [Endpoint(host, weight=str(weight)) for host, weight in zip(hosts, weights, strict=False)]


def shares(web: Web, result: Result, weights: list[int]) -> bool:
    """Whether all were answered, and the backends' shares are as their weights."""
    assert result.answered, result.outcomes
    counts = [result.backends[endpoint.host.name] for endpoint in web.endpoints]
    assert sum(counts) == len(result.attempts)
    return as_shared(counts, weights)


def test_round_robin_is_exact_however_many_ask_at_once(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:5]).annotated(balance="round-robin")
    proxy.apply(web)
    result = connect(proxy.client, web.cluster_ip, 80, count=500, parallel=8)
    assert result.answered
    assert set(result.backends.values()) == {100}


def test_round_robin_goes_round(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods).annotated(balance="round-robin")
    proxy.apply(web)
    result = connect(proxy.client, web.cluster_ip, 80, count=3 * len(proxy.pods), parallel=1)
    order = [attempt.answer.backend for attempt in result.attempts if attempt.answer]
    assert len(order) == 3 * len(proxy.pods)
    assert order[:7] == order[7:14] == order[14:]
    assert len(set(order[:7])) == 7


def test_every_way_in_shares_the_rounds(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:4], type="NodePort").annotated(balance="round-robin")
    proxy.apply(web)
    node = proxy.node.host.address(family)
    ways = [(web.cluster_ip, 80), (node, web.node_port)] * 2
    reached = [connect(proxy.client, address, port, parallel=1).backends for address, port in ways]
    assert sum(reached, Counter()) == {host.name: 1 for host in proxy.pods[:4]}


@pytest.mark.parametrize("weights", [(95, 5), (3, 1, 2, 0), (100, 1, 7)])
def test_round_robin_with_weights_is_exact(proxy: Proxy, family: FamilyName, weights: tuple[int, ...]) -> None:
    web = proxy.web(family, weighted(proxy.pods, *weights)).annotated(balance="round-robin")
    proxy.apply(web)
    unit = 5 if weights == (95, 5) else 1
    result = connect(proxy.client, web.cluster_ip, 80, count=3 * sum(weights) // unit, parallel=8)
    assert result.answered
    assert [result.backends[one.host.name] for one in web.endpoints] == [3 * one // unit for one in weights]


def test_random_follows_weights(proxy: Proxy, family: FamilyName) -> None:
    weights = [95, 5, 50, 0]
    web = proxy.web(family, weighted(proxy.pods, *weights))
    proxy.apply(web)
    result = connect(proxy.client, web.cluster_ip, 80, count=CONNECTIONS)
    assert result.backends[web.endpoints[3].host.name] == 0
    assert shares(Web(web.number, family, web.endpoints[:3]), result, weights[:3])


def test_endpoints_of_this_node_count_more(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, (proxy.local[0], proxy.remote[0], proxy.remote[1])).annotated(local_weight="200")
    proxy.apply(web)
    assert shares(web, connect(proxy.client, web.cluster_ip, 80, count=CONNECTIONS), [3, 1, 1])


def test_a_service_whose_endpoints_all_weigh_nothing_is_served(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, weighted(proxy.pods, 0, 0))
    proxy.apply(web)
    result = connect(proxy.client, web.cluster_ip, 80, count=60)
    assert result.answered
    assert len(result.backends) == 2


def test_a_client_always_comes_to_the_same_endpoint_by_its_address(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:4]).annotated(balance="source-hash")
    proxy.apply(web)
    sources = strangers(family, 40)
    first = [dict(one.backends) for one in connect_from(proxy.client, sources, web.cluster_ip, 80)]
    assert len({name for choice in first for name in choice}) == 4
    assert [dict(one.backends) for one in connect_from(proxy.client, sources, web.cluster_ip, 80)] == first
    # The endpoint goes: those who were there go elsewhere; what else moves is little, and comes back with it.
    gone = web.endpoints[1]
    proxy.apply(web.with_endpoints(*(one for one in web.endpoints if one is not gone)))
    after = [dict(one.backends) for one in connect_from(proxy.client, sources, web.cluster_ip, 80)]
    stayed = sum(a == b for a, b in zip(after, first, strict=True))
    assert not any(gone.host.name in choice for choice in after)
    assert stayed >= 40 - 2.5 * sum(gone.host.name in choice for choice in first)
    proxy.apply(web)
    assert [dict(one.backends) for one in connect_from(proxy.client, sources, web.cluster_ip, 80)] == first


def test_a_client_sticks_to_one_pod_across_ports(proxy: Proxy, family: FamilyName) -> None:
    ports = (Port(port=80, target=8080), Port(port=81, target=8081))
    web = proxy.web(family, proxy.pods, *ports, sessionAffinity="ClientIP").annotated(affinity_scope="service")
    proxy.apply(web)
    for source in strangers(family, 12):
        reached = {
            name
            for port in (80, 81, 80, 81)
            for name in connect(proxy.client, web.cluster_ip, port, source=(source, 0)).backends
        }
        assert len(reached) == 1


def test_a_typo_stops_nothing(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, weighted(proxy.pods, 100)).annotated(balance="robin", local_weight="-1")
    proxy.apply(web)
    assert connect(proxy.client, web.cluster_ip, 80, count=20).answered
