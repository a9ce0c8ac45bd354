"""sessionAffinity ClientIP: a client stays with its backend until its time is over."""

import time
from typing import Any

from tests.lab import connect
from tests.packets.proxy import Proxy, connect_from, strangers
from tests.packets.web import FamilyName

CLIENTS = 20


def affinity(seconds: int) -> dict[str, Any]:
    return {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}


def test_a_client_stays_with_its_backend(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods, **affinity(60))
    proxy.apply(web)
    for host in (proxy.client, proxy.local[0], proxy.node.host):
        # One by one: a second connection that comes before the first was remembered chooses for itself.
        result = connect(host, web.cluster_ip, 80, count=50, parallel=1)
        assert result.answered
        assert len(result.backends) == 1


def test_every_client_chooses_for_itself_and_anew_when_its_time_is_over(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods, **affinity(2))
    proxy.apply(web)
    sources = strangers(family, CLIENTS)

    def choices() -> list[dict[str, int]]:
        results = connect_from(proxy.client, sources, web.cluster_ip, 80)
        assert all(result.answered for result in results)
        return [dict(result.backends) for result in results]

    began = time.monotonic()
    first = choices()
    again = choices()
    assert again == first or time.monotonic() - began > 2  # a busy machine may be too slow for this
    assert any(choice != first[0] for choice in first), "20 clients of 7 backends all chose the same"
    time.sleep(2.1)
    assert choices() != again, "20 clients all chose the same again"


def test_removing_the_chosen_backend_moves_its_clients(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:2], **affinity(60))
    proxy.apply(web)
    (chosen,) = connect(proxy.client, web.cluster_ip, 80).backends
    (other,) = (endpoint for endpoint in web.endpoints if endpoint.host.name != chosen)
    proxy.apply(web.with_endpoints(other))
    assert connect(proxy.client, web.cluster_ip, 80, count=20).backends == {other.host.name: 20}
    proxy.apply(web)
    assert connect(proxy.client, web.cluster_ip, 80, count=20).backends == {other.host.name: 20}
