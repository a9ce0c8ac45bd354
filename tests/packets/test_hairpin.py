"""A pod that a Service sends to itself gets an answer, in every layout and over every protocol."""

import pytest

from kpx.compiler.compile import Layout
from tests.lab import connect
from tests.lab.sctp import send_sctp_init
from tests.packets.proxy import Proxy, masqueraded
from tests.packets.web import FamilyName, Port, Web

LAYOUTS = pytest.mark.parametrize("layout", Layout)


@LAYOUTS
@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_a_pod_reaches_itself(proxy: Proxy, family: FamilyName, layout: Layout, affinity: str) -> None:
    pod = proxy.local[0]
    web = proxy.web(family, [pod], Port(), Port("UDP", 81), Port("SCTP", 82, 7777), sessionAffinity=affinity)
    proxy.apply(web, layout=layout)
    assert has_own_chain(proxy, web) == (layout is not Layout.COMPACT or affinity != "None")
    over_tcp = connect(pod, web.cluster_ip, 80, count=10)
    over_udp = connect(pod, web.cluster_ip, 81, count=10, protocol="udp")
    for result in (over_tcp, over_udp):
        assert result.backends == {pod.name: 10}
        assert result.sources == {masqueraded(family): 10}
    arrival = send_sctp_init(pod, [pod], web.cluster_ip, 82, source_port=4000 + web.number)
    assert arrival == (pod.name, masqueraded(family), 7777, True)


@LAYOUTS
@pytest.mark.parametrize("balance", ["random", "round-robin", "source-hash"])
def test_only_what_comes_back_to_its_sender_is_masqueraded(
    proxy: Proxy, family: FamilyName, layout: Layout, balance: str
) -> None:
    """However the endpoint is chosen, and from whatever chain: of many, groups choose."""
    pods = proxy.local[:2]
    ports = [Port("TCP", 80 + number, target) for number, target in enumerate((8080, 8081))]
    web = proxy.web(family, pods, *ports).annotated(balance=balance)
    proxy.apply(web, layout=layout)
    met = {}
    for port in ports:
        for sender in pods:
            for attempt in connect(sender, web.cluster_ip, port.port, count=12).attempts:
                assert attempt.answer is not None
                met[sender.name, attempt.answer.backend] = attempt.answer.source
    for (sender_name, backend), source in met.items():
        own = next(pod for pod in pods if pod.name == sender_name).address(family)
        assert source == (masqueraded(family) if sender_name == backend else own)
    if balance != "source-hash":
        assert len(met) == 4


@LAYOUTS
def test_the_node_itself_is_an_endpoint(proxy: Proxy, family: FamilyName, layout: Layout) -> None:
    web = proxy.web(family, [proxy.node.host])
    proxy.apply(web, layout=layout)
    assert connect(proxy.node.host, web.cluster_ip, 80, count=10).backends == {proxy.node.host.name: 10}
    assert connect(proxy.local[0], web.cluster_ip, 80, count=5).sources == {proxy.local[0].address(family): 5}


@LAYOUTS
def test_nothing_else_is_forwarded_and_the_bit_is_another(proxy: Proxy, family: FamilyName, layout: Layout) -> None:
    """Where the policy is to forward nothing, as with Docker, who reaches itself is let through all the same."""
    pod, other = proxy.local[:2]
    web, foreign = proxy.web(family, [pod]), proxy.web(family, [other])
    proxy.apply(web, foreign, layout=layout, iptables={"masqueradeBit": 5})
    try:
        proxy.node.load("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", family=family, backend=proxy.backend)
        own = connect(pod, web.cluster_ip, 80, count=10)
        assert own.sources == {masqueraded(family): 10}
        assert not connect(pod, foreign.cluster_ip, 80, patience=0.3).answered
    finally:
        proxy.node.load("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", family=family, backend=proxy.backend)


@LAYOUTS
def test_packets_that_are_marked_already(proxy: Proxy, family: FamilyName, layout: Layout) -> None:
    """By the proxy, as they come to a node port, and by others before."""
    pod = proxy.local[0]
    web = proxy.web(family, [pod], type="NodePort")
    proxy.apply(web, layout=layout)
    mark = "PREROUTING -p tcp -j MARK --set-xmark 0x4000/0x4000"
    for before in ("", f"*mangle\n-A {mark}\nCOMMIT\n"):
        proxy.node.load(before, family=family, backend=proxy.backend)
        for address, port in ((proxy.node.host.address(family), web.node_port), (web.cluster_ip, 80)):
            found = connect(pod, address, port, count=10)
            assert found.backends == {pod.name: 10}
            assert found.sources == {masqueraded(family): 10}
    proxy.node.load(f"*mangle\n-D {mark}\nCOMMIT\n", family=family, backend=proxy.backend)


def has_own_chain(proxy: Proxy, web: Web) -> bool:
    """Whether endpoints of a Service have chains of their own."""
    rules = proxy.node.rules(family=web.family, backend=proxy.backend)
    return any(line.startswith("-A KUBE-SEP-") and web.name in line for line in rules.splitlines())
