"""Getting along with rules of other people."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab import Backends, Outcome, connect
from tests.packets.proxy import Proxy
from tests.packets.web import FamilyName

HEALTH_PORT = 32111


def test_health_checks_get_past_a_closed_input_chain(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(
        family,
        proxy.local,
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=HEALTH_PORT,
    )
    host, ports = proxy.node.host, (HEALTH_PORT, HEALTH_PORT + 1)
    closed = f"INPUT -p tcp -m tcp --dport {ports[0]}:{ports[1]} -j REJECT"
    with foreign_rule(proxy, family, closed), Backends(host, tcp=ports):
        proxy.apply(web)
        assert connect(proxy.client, host.address(family), ports[0]).answered
        assert connect(proxy.client, host.address(family), ports[1]).all(Outcome.REFUSED)


def test_service_packets_get_past_a_closed_forward_chain(proxy: Proxy, family: FamilyName) -> None:
    """Masqueraded packets and all replies are accepted before a later rule that drops what is left."""
    web = proxy.web(family, proxy.pods[:2])
    proxy.apply(web)
    with foreign_rule(proxy, family, "FORWARD -j DROP"):
        assert connect(proxy.client, web.cluster_ip, 80, count=10).answered
        direct = connect(proxy.client, proxy.pods[0].address(family), 8080, count=2, patience=0.3)
        assert direct.all(Outcome.TIMED_OUT)


def test_cleanup_leaves_the_node_as_it_was(proxy: Proxy, family: FamilyName) -> None:
    web = proxy.web(family, proxy.pods[:2])
    proxy.apply(web)
    assert connect(proxy.client, web.cluster_ip, 80).answered
    proxy.clean()
    assert not connect(proxy.client, web.cluster_ip, 80, patience=0.3).answered
    assert connect(proxy.client, proxy.pods[0].address(family), 8080).answered
    assert "KUBE-" not in proxy.node.rules(family=family, backend=proxy.backend)


@contextmanager
def foreign_rule(proxy: Proxy, family: FamilyName, rule: str) -> Iterator[None]:
    """Someone else's rule at the end of a chain of the filter table."""
    proxy.node.load(f"*filter\n-A {rule}\nCOMMIT\n", family=family, backend=proxy.backend)
    try:
        yield
    finally:
        proxy.node.load(f"*filter\n-D {rule}\nCOMMIT\n", family=family, backend=proxy.backend)
