"""A host in a namespace, on which any packet can be let loose, and what its kernel does with it.

    outer ns ──veth── host: eth0, the default route; forwards; has the addresses that a packet needs

Packets are made by hand and sent from outer, or by the host through a raw socket; so their source can be anybody.
Sniffing at the other end of the link and raw sockets on the host tell what became of them.
"""

import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from kpx.analysis.packet import Origin, Outcome, Packet
from kpx.analysis.simulate import Policies, Tables
from tests.lab.namespace import Namespace
from tests.lab.sctp import init

OWN = "10.200.0.2"
"""The host's address on its link, which masquerading puts in."""

_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}
_MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
_ETHERTYPE = 0x0800
_FIRST_PORT = 20_000
_BATCH = 1000
_BUFFER = 32 << 20
_FORCED_BUFFER = 33  # SO_RCVBUFFORCE, which Python has no name for

Seen = tuple[str, str, bool]
"""What became of a packet: `arrived ADDRESS:PORT`, `rejected` or `dropped`, and whether its source was replaced."""


class Arena:
    """The host. Use it as a context manager."""

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.host, self.outer = (undo.enter_context(Namespace()) for _ in range(2))
            self._build()
            self._ears = [undo.enter_context(ear) for ear in self._open_ears()]
            self._stack = undo.pop_all()
        self._sent = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _build(self) -> None:
        self.outer.sysctl(ipv6__conf__default__disable_ipv6=1)
        self.host.sysctl(
            ipv6__conf__default__disable_ipv6=1,
            ipv4__ip_forward=1,
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
            ipv4__conf__all__accept_local=1,
            ipv4__conf__all__route_localnet=1,
            ipv4__conf__all__send_redirects=0,
            ipv4__conf__default__send_redirects=0,
            ipv4__icmp_ratemask=0,
        )
        self.host.ip(
            "link set lo up",
            f"link add eth0 address {_MACS[0]} type veth peer name peer address {_MACS[1]} netns {self.outer.path}",
            f"address add {OWN}/32 dev eth0",
            "link set eth0 up",
            f"neighbour add 169.254.1.1 lladdr {_MACS[1]} nud permanent dev eth0",
            "route add default via 169.254.1.1 dev eth0 onlink",
        )
        self.outer.ip("link set lo up", "link set peer up")

    def _open_ears(self) -> Iterator[socket.socket]:
        with self.outer.entered():
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE))
            self._wire.bind(("peer", _ETHERTYPE))
            self._wire.setsockopt(socket.SOL_SOCKET, _FORCED_BUFFER, _BUFFER)
        yield self._wire
        with self.host.entered():
            for number in _NUMBERS.values():
                ear = socket.socket(socket.AF_INET, socket.SOCK_RAW, number)
                ear.setsockopt(socket.SOL_SOCKET, _FORCED_BUFFER, _BUFFER)
                yield ear
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        yield self._sender

    def load(self, tables: Tables, policies: Policies) -> None:
        """Give the kernel these tables, in place of what it has."""
        lines = []
        for table, chains in tables.items():
            lines.append(f"*{table}")
            built_in = {chain: "ACCEPT" for chain in chains if chain.isupper() and "-" not in chain}
            policy = built_in | {chain: one for (where, chain), one in policies.items() if where == table}
            lines += (f":{chain} {policy.get(chain, '-')} [0:0]" for chain in {**chains, **policy})
            lines += (f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules)
            lines.append("COMMIT")
        self.host.run(["iptables-nft-restore"], stdin="\n".join(lines) + "\n")

    @contextmanager
    def prepared(self, addresses: tuple[str, ...], known: Mapping[str, float], packet: Packet) -> Iterator[None]:
        """The host has these addresses, its lists know the sender, packets come with the right mark."""
        mine = [one for one in addresses if one != OWN and not one.startswith("127.")]
        changes = [f"address {{}} {one}/32 dev lo" for one in mine]
        mangle = ["iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-i", "eth0", "-j", "MARK"]
        self._known = known
        try:
            if changes:
                self.host.ip(*(one.format("add") for one in changes))
            if packet.mark:
                self.host.run([*mangle, "--set-mark", str(packet.mark)])
            yield
        finally:
            if changes:
                self.host.ip(*(one.format("del") for one in changes))
            self.host.run(["iptables-nft", "-t", "mangle", "-F"])

    def outcomes(self, packet: Packet, expected: Mapping[Seen, float], count: int) -> Counter[Seen]:
        """Send a packet `count` times, each as a new connection, and see what becomes of it.

        Waits for what is expected to arrive, and a moment longer for what isn't.
        """
        found: Counter[Seen] = Counter()
        for batch in range(0, count, _BATCH):
            found += self._batch(packet, expected, min(_BATCH, count - batch))
        return found

    def _batch(self, packet: Packet, expected: Mapping[Seen, float], count: int) -> Counter[Seen]:
        self.host.run(["conntrack", "-F"])
        self._hear(0)
        tokens = {}
        lists = self._lists()
        for _ in range(count):
            for name, file in lists.items():
                os.write(file, b"/")
                if name in self._known:
                    os.write(file, f"+{packet.source}".encode())
            self._sent += 1
            token = 0x4B000000 | self._sent & 0xFFFFFF
            tokens[token] = _FIRST_PORT + self._sent % 40_000
            self._send(packet, token, tokens[token])
        for file in lists.values():
            os.close(file)
        arriving = count if all(one[0] != "dropped" for one in expected) else 0
        seen: dict[int, Seen] = {}
        deadline, quiet = time.monotonic() + (5 if arriving else 0.3), 0.3
        while len(seen) < count and (time.monotonic() < deadline):
            heard = self._hear(quiet if not arriving else 0.05)
            for token, what in filter(None, (_understood(data, packet, tokens) for data in heard)):
                if what[0] == "arrived" or token not in seen:  # where nobody listens, it arrives and is rejected
                    seen[token] = what
            if heard and not arriving:
                deadline = time.monotonic() + quiet
        return Counter(seen.values()) + Counter({("dropped", "", False): count - len(seen)})

    # -- sending -------------------------------------------------------------------------------------------

    def _send(self, packet: Packet, token: int, port: int) -> None:
        data = _ip_packet(packet, token, _fixed_port(packet) or port)
        if packet.origin is Origin.NODE:
            with suppress(PermissionError):  # a rule of the host's own, found while sending
                self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, packet.mark)
                self._sender.sendto(data, (packet.destination, 0))
        else:
            macs = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in _MACS)
            self._wire.send(macs + struct.pack("!H", _ETHERTYPE) + data)

    def _lists(self) -> Mapping[str, int]:
        """The lists of xt_recent, open for writing."""
        with self.host.entered():
            folder = Path("/proc/thread-self/net/xt_recent")
            return {path.name: os.open(path, os.O_WRONLY) for path in folder.iterdir()} if folder.exists() else {}

    # -- hearing -------------------------------------------------------------------------------------------

    def _hear(self, patience: float) -> list[bytes]:
        """The IP packets that are heard on the wire, from the host, and on the host itself."""
        heard = []
        ears = self._ears[:-1]
        ready = select.select(ears, [], [], patience)[0]
        while ready:
            for ear in ready:
                data, where = ear.recvfrom(4096)
                if ear is not self._wire:
                    heard.append(data)
                elif where[2] != socket.PACKET_OUTGOING:
                    heard.append(data[14:])
            ready = select.select(ears, [], [], 0)[0]
        return heard


def _understood(data: bytes, packet: Packet, tokens: Mapping[int, int]) -> tuple[int, Seen] | None:
    """Which of the packets that were sent this is, or speaks of, and what became of it."""
    header = (data[0] & 15) * 4
    protocol, source, destination = data[9], socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    segment = data[header:]
    if protocol == 1 and packet.protocol != "icmp":
        if segment[:1] != b"\x03":
            return None
        inner = segment[8:]
        port = struct.unpack_from("!H", inner, (inner[0] & 15) * 4)[0]
        only = next(iter(tokens)) if _fixed_port(packet) else 0
        token = next((token for token, one in tokens.items() if one == port), only)
        return (token, ("rejected", "", False)) if token else None
    token = _token(protocol, segment)
    if token not in tokens:
        return None
    where = f"{destination}:{struct.unpack_from('!H', segment, 2)[0]}" if _has_ports(packet) else destination
    return token, ("arrived", where, source != packet.source)


def seen_as(outcome: Outcome, packet: Packet) -> Seen:
    """How an outcome that the simulator, or a proof, tells looks from here."""
    masqueraded = outcome.masqueraded and packet.source != OWN
    match outcome.fate.value:
        case "translated":
            return "arrived", outcome.destination, masqueraded
        case "untouched":
            where = f"{packet.destination}:{packet.destination_port}" if _has_ports(packet) else packet.destination
            return "arrived", where, masqueraded
        case fate:
            return fate, "", False


# ---- packets ----


def _has_ports(packet: Packet) -> bool:
    return packet.protocol in ("tcp", "udp", "sctp")


def _fixed_port(packet: Packet) -> int:
    """The source port, where it is none that could be any other one."""
    return packet.source_port if packet.source_port and packet.source_port < 1024 else 0


def _ip_packet(packet: Packet, token: int, port: int) -> bytes:
    number = _NUMBERS.get(packet.protocol) or int(packet.protocol)
    source, destination = socket.inet_aton(packet.source), socket.inet_aton(packet.destination)
    segment = _segment(packet, number, token, port, source + destination)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), token & 0xFFFF, 0, 64, number, 0)
    header += source + destination
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + segment


def _segment(packet: Packet, number: int, token: int, port: int, addresses: bytes) -> bytes:
    damage = 0x5555 if packet.state == "INVALID" else 0  # conntrack calls wrong checksums invalid
    if number == 132:
        whole = init(port, packet.destination_port, token)
        return whole[:8] + bytes([whole[8] ^ (damage & 0xFF)]) + whole[9:]
    ports = struct.pack("!HH", port, packet.destination_port)
    if number == 6:
        raw = ports + struct.pack("!IIBBHHH", token, 0, 0x50, 2, 8192, 0, 0)
        at = 16
    elif number == 17:
        raw = ports + struct.pack("!HHI", 12, 0, token)
        at = 6
    else:
        return struct.pack("!I", token) * 2
    pseudo = addresses + struct.pack("!BBH", 0, number, len(raw))
    checksum = _checksum(pseudo + raw) ^ damage
    return raw[:at] + struct.pack("!H", checksum) + raw[at + 2 :]


def _token(protocol: int, segment: bytes) -> int:
    at = {6: 4, 17: 8, 132: 16}.get(protocol, 0)
    return int(struct.unpack_from("!I", segment, at)[0]) if len(segment) >= at + 4 else 0


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
