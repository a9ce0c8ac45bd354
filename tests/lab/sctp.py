"""SCTP without SCTP sockets: an INIT packet goes out raw, and raw sockets in the pods see where it arrives."""

import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from tests.lab.node import Host

_SCTP = socket.IPPROTO_SCTP
_POLYNOMIAL = 0x82F63B78  # CRC32c, RFC 3309, bits reversed


class Arrival(NamedTuple):
    """Where an INIT packet arrived, from which source address, on which port, and whether its checksum is right."""

    backend: str
    source: str
    port: int
    sound: bool


def send_sctp_init(
    client: Host, backends: Sequence[Host], address: str, port: int, *, source_port: int, patience: float = 0.9
) -> Arrival | None:
    """Send one SCTP INIT (RFC 9260 §3.3.2) and say which of the backends got it; None when none did in time."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    ears = {_raw_socket(host, family): host for host in backends}
    try:
        with _raw_socket(client, family) as sender:
            sender.sendto(init(source_port, port), (address, 0))
        return _first_arrival(ears, time.monotonic() + patience)
    finally:
        for ear in ears:
            ear.close()


def _raw_socket(host: Host, family: socket.AddressFamily) -> socket.socket:
    with host.namespace.entered():
        return socket.socket(family, socket.SOCK_RAW, _SCTP)


def _first_arrival(ears: dict[socket.socket, Host], deadline: float) -> Arrival | None:
    while (left := deadline - time.monotonic()) > 0:
        for ear in select.select(list(ears), [], [], left)[0]:
            packet, peer = ear.recvfrom(2048)
            segment = packet if ear.family == socket.AF_INET6 else packet[(packet[0] & 15) * 4 :]
            if _is_init(segment):
                return Arrival(ears[ear].name, peer[0], struct.unpack_from("!H", segment, 2)[0], _sound(segment))
    return None


def _is_init(segment: bytes) -> bool:
    return len(segment) == 32 and segment[12] == 1


def init(source_port: int, port: int, tag: int = 0x1234ABCD) -> bytes:
    """An SCTP packet with an INIT that proposes a tag."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, tag, 65536, 1, 1, 1)
    packet = struct.pack("!HHII", source_port, port, 0, 0) + chunk
    return packet[:8] + _crc32c(packet) + packet[12:]


def _sound(segment: bytes) -> bool:
    return segment[8:12] == _crc32c(segment[:8] + bytes(4) + segment[12:])


def _crc32c(data: bytes) -> bytes:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (_POLYNOMIAL if register & 1 else 0)
    return struct.pack("<I", register ^ 0xFFFFFFFF)
