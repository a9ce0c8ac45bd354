"""A node in a namespace with a link to its pods: all packets of a dump are sent at once, and each tells its end.

outer ns ──veth── node: eth0, the default route; ──veth── outer ns: the node's pods, under the name that rules know
"""

import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from kpx.analysis.packet import Origin, Packet
from tests.analysis.arena import _BUFFER, _ETHERTYPE, _FORCED_BUFFER, _MACS, Arena, Seen, _has_ports, _ip_packet, _token
from tests.analysis.census.dumps import NODE

PODS, GATEWAY = "10.244.0.0/24", "10.244.0.1"
"""The pods of this node, and its own address on the link to them, which masquerading puts in."""
_POD_MACS = ("02:00:00:00:00:03", "02:00:00:00:00:04")
_QUIET = 0.5
"""Seconds in which nothing is heard any more before what is missing counts as dropped."""


class Node(Arena):
    """The node. Use it as a context manager, with the name of the link to its pods."""

    def __init__(self, link: str) -> None:
        self.link = link

    def _build(self) -> None:
        super()._build()
        self.host.ip(
            f"address add {NODE}/32 dev lo",
            f"link add {self.link} address {_POD_MACS[0]} type veth peer name pods address {_POD_MACS[1]} "
            f"netns {self.outer.path}",
            f"address add {GATEWAY}/32 dev {self.link}",
            f"link set {self.link} up",
            f"neighbour add 169.254.1.2 lladdr {_POD_MACS[1]} nud permanent dev {self.link}",
            f"route add {PODS} via 169.254.1.2 dev {self.link} onlink",
        )
        self.outer.ip("link set pods up")

    def _open_ears(self) -> Iterator[socket.socket]:
        with self.outer.entered():
            self._pods = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE))
            self._pods.bind(("pods", _ETHERTYPE))
            self._pods.setsockopt(socket.SOL_SOCKET, _FORCED_BUFFER, _BUFFER)
        yield self._pods
        yield from super()._open_ears()

    def outcomes_of(self, packets: Sequence[Packet]) -> Sequence[Counter[Seen]]:
        """What became of each packet; one that stands there several times is several connections."""
        self._hear_all(0)
        sent: dict[int, int] = {}
        ports: dict[int, int] = {}
        for at, packet in enumerate(packets):
            self._sent += 1
            token, port = 0x4B000000 | self._sent & 0xFFFFFF, 20_000 + self._sent % 40_000
            sent[token], ports[port] = at, token
            self._let_loose(packet, token, port)
        ends: dict[int, Seen] = {}
        until = time.monotonic() + 10
        while time.monotonic() < until and (heard := self._hear_all(_QUIET)):
            for data in heard:
                token, seen = self._read(data, packets, sent, ports)
                if seen and (seen[0] == "arrived" or token not in ends):
                    ends[token] = seen
        found: list[Counter[Seen]] = [Counter() for _ in packets]
        for token, at in sent.items():
            found[at][ends.get(token, ("dropped", "", False))] += 1
        return found

    def _let_loose(self, packet: Packet, token: int, port: int) -> None:
        if packet.origin is not Origin.POD:
            if packet.origin is Origin.NODE:
                self._send(packet, token, port)
            else:
                self._put(self._wire, _MACS, packet, token, port)
        else:
            self._put(self._pods, _POD_MACS, packet, token, port)

    @staticmethod
    def _put(link: socket.socket, macs: Sequence[str], packet: Packet, token: int, port: int) -> None:
        head = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs) + struct.pack("!H", _ETHERTYPE)
        link.send(head + _ip_packet(packet, token, port))

    @staticmethod
    def _read(
        data: bytes, packets: Sequence[Packet], sent: dict[int, int], ports: dict[int, int]
    ) -> tuple[int, Seen | None]:
        """Which packet this is, or speaks of, and what became of it."""
        protocol, segment = data[9], data[(data[0] & 15) * 4 :]
        source, destination = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
        if protocol == 1 and segment[:1] == b"\x03":
            inner = segment[8:]
            token = ports.get(struct.unpack_from("!H", inner, (inner[0] & 15) * 4)[0], 0)
            return (token, ("rejected", "", False)) if token in sent else (0, None)
        token = _token(protocol, segment)
        if token not in sent:
            return 0, None
        packet = packets[sent[token]]
        where = f"{destination}:{struct.unpack_from('!H', segment, 2)[0]}" if _has_ports(packet) else destination
        return token, ("arrived", where, source != packet.source)

    def _hear_all(self, patience: float) -> list[bytes]:
        heard = []
        links = (self._wire, self._pods)
        ears = [ear for ear in self._ears if ear is not self._sender]
        ready = select.select(ears, [], [], patience)[0]
        while ready:
            for ear in ready:
                data, where = ear.recvfrom(4096)
                if ear not in links:
                    heard.append(data)
                elif where[2] != socket.PACKET_OUTGOING:
                    heard.append(data[14:])
            ready = select.select(ears, [], [], 0)[0]
        return heard
