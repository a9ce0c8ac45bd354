"""Real UDP flows through real DNAT rules: a client with a fixed port moves when, and only when, it must."""

import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kpx.family import Family
from kpx.model.endpoint import Endpoint
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.conntrack import Deleted, count_entries, delete, list_udp
from kpx.netfilter.flows import Flow, Frontends, Place, frontends, packed, queries, stale
from kpx.netfilter.tools import Backend, Tools
from tests.kernel import BACKENDS, FAMILIES, needs_kernel

pytestmark = [pytest.mark.kernel, needs_kernel]

PORT, TARGET = 53, 5353


class Net:
    """One family's addresses on one interface, the rules of one Service, and sockets on all of that."""

    def __init__(self, family: Family, backend: Backend, stack: ExitStack) -> None:
        v4 = family is Family.IPV4
        self.family, self.tools, self._stack = family, Tools(backend, family), stack
        self.client, self.service, *self.pods = (
            f"{'10.0.0.' if v4 else 'fd00::'}{number}" for number in (1, 10, 21, 22)
        )
        for address in (self.client, *self.pods):
            self.ip("address", "add", f"{address}/{family.host_bits}", "dev", "lo", *([] if v4 else ["nodad"]))
        # A way out, so that packets to the Service's own address leave and make an entry if no rule translates.
        self.ip("link", "add", "kpxnl-a", "type", "veth", "peer", "name", "kpxnl-b")
        self.ip("link", "set", "kpxnl-a", "up")
        self.ip("link", "set", "kpxnl-b", "up")
        self.ip("route", "add", "default", "dev", "kpxnl-a", *(["src", self.client] if v4 else []))
        # Without a rule that asks for it, the kernel tracks nothing.
        self.tools.restore("*filter\n-A OUTPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n")
        self.port = ServicePort(ServicePortName("kube-system", "dns", "", "udp"), self.service, PORT, node_port=30053)

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *(["-6"] if self.family is Family.IPV6 else []), *words], check=True)

    def route_to(self, *pods: str, protocol: str = "udp") -> None:
        """Make the rules send the Service, and its node port, to the first pod."""
        bits = self.family.host_bits
        target = f"[{pods[0]}]" if pods and ":" in pods[0] else "".join(pods[:1])
        dnat = f"-j DNAT --to-destination {target}:{TARGET}"
        head = f"-p {protocol} -m {protocol} --dport"
        rules = [
            f"-A KUBE-SERVICES -d {self.service}/{bits} {head} {PORT} {dnat}",
            f"-A KUBE-SERVICES -d {self.client}/{bits} {head} 30053 {dnat}",
        ]
        lines = ["*nat", ":KUBE-SERVICES - [0:0]", ":OUTPUT ACCEPT [0:0]", "-F OUTPUT", "-A OUTPUT -j KUBE-SERVICES"]
        self.tools.restore("\n".join([*lines, *(rules if pods else []), "COMMIT", ""]))

    def socket(self, address: str = "", port: int = 0, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        family = socket.AF_INET if self.family is Family.IPV4 else socket.AF_INET6
        one = self._stack.enter_context(socket.socket(family, kind))
        one.bind((address or self.client, port))
        return one

    def clean(self, *pods: str, gone: tuple[ServicePort, ...] = ()) -> int:
        """Delete what is stale if the Service has these pods."""
        known = self.known(*pods, gone=gone)
        deleted = delete(stale(list_udp(self.family, queries(known, count_entries())), known))
        assert deleted.error is None
        return deleted.count

    def known(self, *pods: str, gone: tuple[ServicePort, ...] = ()) -> Frontends:
        """What there is to know if the Service has these pods."""
        live = [] if gone else [(self.port, tuple(Endpoint(pod, TARGET) for pod in pods))]
        return frontends(live, gone, (self.client,))

    def flows(self) -> list[Flow]:
        return [one for one in list_udp(self.family) if one.destination[1] in (PORT, 30053)]


@pytest.fixture
def make(own_network: None) -> Iterator[Callable[[Family, Backend], Net]]:
    with ExitStack() as stack:
        yield lambda family, backend: Net(family, backend, stack)


def place(address: str, port: int) -> Place:
    return packed(address), port


Make = Callable[[Family, Backend], Net]


def receives(servers: list[socket.socket], within: float = 30.0) -> int | None:
    """Which server gets a datagram; None if nobody does."""
    ready, _, _ = select.select(servers, [], [], within)
    if not ready:
        return None
    ready[0].recv(100)
    return servers.index(ready[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("node_port", [False, True], ids=["clusterIP", "nodePort"])
def test_a_client_moves_when_its_endpoint_goes_and_not_before(
    make: Make, family: Family, backend: Backend, node_port: bool
) -> None:
    net = make(family, backend)
    a, b = net.pods
    servers, client = [net.socket(pod, TARGET) for pod in (a, b)], net.socket()
    target = (net.client, 30053) if node_port else (net.service, PORT)
    net.route_to(a)
    client.sendto(b"1", target)
    assert receives(servers) == 0
    (before,) = net.flows()
    assert before.destination == place(*target)
    assert before.reply_source == place(a, TARGET)
    assert before.source == place(net.client, client.getsockname()[1])

    net.route_to(b)  # the rules alone move nobody
    client.sendto(b"2", target)
    assert receives(servers) == 0
    assert net.clean(a, b) == 0  # its endpoint still serves
    client.sendto(b"3", target)
    assert receives(servers) == 0
    assert net.flows() == [before]

    assert net.clean(b) == 1
    client.sendto(b"4", target)
    assert receives(servers) == 1
    assert net.clean(b) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_client_that_was_there_first_reaches_the_first_endpoint(make: Make, backend: Backend) -> None:
    net = make(Family.IPV4, backend)
    a, _ = net.pods
    server, client = net.socket(a, TARGET), net.socket()
    net.route_to()
    for destination in ((net.service, PORT), (net.client, 30053)):
        client.sendto(b"0", destination)
    assert {one.reply_source for one in net.flows()} == {place(net.service, PORT), place(net.client, 30053)}
    net.route_to(a)
    client.sendto(b"1", (net.service, PORT))
    assert receives([server], 0.3) is None  # still nowhere
    assert net.clean(a) == 2
    for destination in ((net.service, PORT), (net.client, 30053)):
        client.sendto(b"2", destination)
        assert receives([server]) == 0


def test_a_service_that_is_gone_takes_its_flows_along(make: Make) -> None:
    net = make(Family.IPV4, Backend.NFT)
    a, _ = net.pods
    server, client = net.socket(a, TARGET), net.socket()
    net.route_to(a)
    client.sendto(b"1", (net.service, PORT))
    assert receives([server]) == 0
    net.route_to()
    assert net.clean(gone=(net.port,)) == 1
    client.sendto(b"2", (net.service, PORT))
    assert receives([server], 0.3) is None


def test_flows_to_other_hosts_on_a_node_ports_number_are_left(make: Make) -> None:
    net = make(Family.IPV4, Backend.NFT)
    net.route_to(net.pods[0])
    net.socket().sendto(b"1", ("8.8.8.8", 30053))
    (before,) = net.flows()
    assert net.clean(net.pods[0]) == 0
    assert net.flows() == [before]


def test_tcp_is_neither_listed_nor_cut(make: Make) -> None:
    net = make(Family.IPV4, Backend.NFT)
    a, b = net.pods
    net.route_to(a, protocol="tcp")
    listener, client = net.socket(a, TARGET, socket.SOCK_STREAM), net.socket(kind=socket.SOCK_STREAM)
    listener.listen()
    client.connect((net.service, PORT))
    server, _ = listener.accept()
    with server:
        assert net.flows() == []
        assert net.clean(b) == 0
        client.send(b"still here")
        assert server.recv(100) == b"still here"
    assert _dumped_protocols() == {6}


def _dumped_protocols() -> set[int]:
    """The protocols that conntrack knows entries of."""
    with open("/proc/net/nf_conntrack") as entries:
        return {int(line.split()[3]) for line in entries}


def test_an_entry_that_another_has_replaced_is_not_deleted(make: Make) -> None:
    net = make(Family.IPV4, Backend.NFT)
    a, b = net.pods
    servers, client = [net.socket(pod, TARGET) for pod in (a, b)], net.socket()
    net.route_to(a)
    client.sendto(b"1", (net.service, PORT))
    assert receives(servers) == 0
    old = net.flows()
    assert delete(old) == Deleted(1)
    assert delete(old) == Deleted(0)  # gone already
    net.route_to(b)
    client.sendto(b"2", (net.service, PORT))
    assert receives(servers) == 1
    assert delete(old) == Deleted(0)  # the same client and Service, but another entry
    assert [one.reply_source for one in net.flows()] == [place(b, TARGET)]


@pytest.mark.parametrize("option", ["--zone", "--zone-orig", "--zone-reply"])
def test_entries_of_a_zone_are_listed_and_deleted_there(make: Make, option: str) -> None:
    net = make(Family.IPV4, Backend.NFT)
    a, b = net.pods
    net.tools.restore(f"*raw\n-A OUTPUT -p udp -j CT {option} 7\nCOMMIT\n")
    net.route_to(a)
    for _ in range(2):
        net.socket().sendto(b"1", (net.service, PORT))
    assert [one.reply_source for one in net.flows()] == [place(a, TARGET)] * 2
    assert net.clean(b) == 2
    assert net.flows() == []


def test_a_flow_that_the_kernel_never_told_is_never_sent_to_it() -> None:
    with pytest.raises(ValueError, match="not an entry of the kernel"):
        delete([Flow(Family.IPV4, place("10.0.0.1", 1), place("10.0.0.2", 2), place("10.0.0.2", 2))])


def test_many_entries_are_deleted_and_only_those(make: Make) -> None:
    net = make(Family.IPV4, Backend.NFT)
    a, b = net.pods
    net.socket(a, TARGET)
    net.route_to(a)
    clients = [net.socket() for _ in range(300)]
    for client in clients:
        client.sendto(b"1", (net.service, PORT))
    net.socket().sendto(b"1", ("8.8.8.8", PORT))
    assert len(net.flows()) == 301
    assert net.clean(b) == 300
    assert [one.destination for one in net.flows()] == [place("8.8.8.8", PORT)]


def test_what_the_kernel_refuses_is_an_error(make: Make) -> None:
    make(Family.IPV4, Backend.NFT)
    code = (
        "from kpx import Family, KpxError; from kpx.netfilter.conntrack import list_udp\n"
        "try: list(list_udp(Family.IPV4))\n"
        "except KpxError as error: print(error)"
    )
    command = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "can't list conntrack entries: Operation not permitted\n", done.stderr
