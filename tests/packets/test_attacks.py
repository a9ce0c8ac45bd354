"""What the static rules keep away from the node and its pods."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import Backends, Host, Outcome, connect
from tests.lab.node import POD_GATEWAYS
from tests.packets.proxy import Proxy
from tests.packets.web import FamilyName

SECRET_PORT = 9999
SYN, SYN_ACK = 0x02, 0x12


@pytest.fixture(scope="module")
def attacker(proxy: Proxy) -> Host:
    """A neighbour that sends packets for 127.0.0.1 to the node instead of to itself (CVE-2020-8558)."""
    host = proxy.node.pod("attacker", "10.244.0.66", "fd00:244::66")
    host.namespace.sysctl(ipv4__conf__all__route_localnet=1)
    host.namespace.ip(
        "address del 127.0.0.1/8 dev lo",
        f"route add 127.0.0.1 via {POD_GATEWAYS[0]} dev eth0 onlink",
    )
    return host


def test_the_loopback_address_is_out_of_reach_of_neighbours(proxy: Proxy, attacker: Host) -> None:
    source = (attacker.ipv4, 0)
    with Backends(proxy.node.host, tcp=[SECRET_PORT], addresses=["127.0.0.1"]):
        proxy.clean()
        assert connect(attacker, "127.0.0.1", SECRET_PORT, source=source).answered, "the attack should work at first"
        proxy.apply()
        blocked = connect(attacker, "127.0.0.1", SECRET_PORT, source=source, count=2, patience=0.3)
        assert blocked.all(Outcome.TIMED_OUT)
        assert connect(proxy.node.host, "127.0.0.1", SECRET_PORT).answered


def test_invalid_segments_are_not_forwarded(proxy: Proxy, family: FamilyName) -> None:
    """An answer to nothing, which conntrack calls INVALID, must not leave with the pod's own address."""
    proxy.clean()
    assert arriving(proxy, family) == [SYN_ACK, SYN]
    proxy.apply()
    assert arriving(proxy, family) == [SYN]


def test_invalid_segments_pass_where_conntrack_is_liberal(proxy: Proxy, family: FamilyName) -> None:
    with liberal_conntrack(proxy):
        proxy.apply()
        assert arriving(proxy, family) == [SYN_ACK, SYN]


@contextmanager
def liberal_conntrack(proxy: Proxy) -> Iterator[None]:
    proxy.node.host.namespace.sysctl(netfilter__nf_conntrack_tcp_be_liberal=1)
    try:
        yield
    finally:
        proxy.node.host.namespace.sysctl(netfilter__nf_conntrack_tcp_be_liberal=0)


def arriving(proxy: Proxy, family: FamilyName) -> list[int]:
    """The flags of what arrives at the client when a pod sends a SYN/ACK out of the blue, and then a SYN."""
    pod, client = proxy.local[0], proxy.client
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    with raw_socket(client, kind) as ear, raw_socket(pod, kind) as sender:
        port = next(_ports)
        for flags in (SYN_ACK, SYN):
            sender.sendto(
                segment(pod.address(family), client.address(family), port, flags), (client.address(family), 0)
            )
        return list(flags_until_syn(ear, port))


def flags_until_syn(ear: socket.socket, port: int) -> Iterator[int]:
    flags = 0
    while flags != SYN:
        packet = ear.recv(2048)
        tcp = packet if ear.family == socket.AF_INET6 else packet[(packet[0] & 15) * 4 :]
        if struct.unpack_from("!H", tcp)[0] == port:
            flags = tcp[13]
            yield flags


def raw_socket(host: Host, kind: socket.AddressFamily) -> socket.socket:
    with host.namespace.entered():
        sock = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_TCP)
    sock.settimeout(60)
    return sock


def segment(source: str, target: str, port: int, flags: int) -> bytes:
    """A TCP header from `port` to port 9, with its checksum (RFC 9293 §3.1), without options and data."""
    header = struct.pack("!HHIIBBHHH", port, 9, 1, 1, 5 << 4, flags, 1024, 0, 0)
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    addresses = socket.inet_pton(kind, source) + socket.inet_pton(kind, target)
    total = sum(struct.unpack(f"!{len(addresses + header) // 2}H", addresses + header)) + len(header) + 6
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:]


_ports = iter(range(40000, 41000))
