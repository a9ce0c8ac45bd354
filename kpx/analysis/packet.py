"""A packet, the host that it passes, and what becomes of it. Values."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kpx.family import Family


class Origin(StrEnum):
    """Where a packet comes from: it enters the host from a pod or from outside, or the host itself sends it."""

    POD = "pod"
    OUTSIDE = "outside"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection.

    `protocol` is in lower case. Interfaces that aren't given are unknown, which matters if a rule asks for them.
    `state` is what conntrack says of it; only a NEW packet passes the nat table.
    """

    source: str
    destination: str
    protocol: str = "tcp"
    destination_port: int = 0
    source_port: int = 0
    origin: Origin = Origin.OUTSIDE
    in_interface: str | None = None
    out_interface: str | None = None
    mark: int = 0
    state: str = "NEW"

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return Family.of(self.destination)


class Host:
    """What matters of the host: its own addresses. Loopback is among them without being named."""

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._own = frozenset((Family.of(one), number(one)) for one in (*addresses, "::1"))

    def is_local(self, address: int, family: Family) -> bool:
        """Whether the kernel delivers packets for this address here."""
        loopback = family is Family.IPV4 and address >> 24 == 127
        return loopback or (family, address) in self._own


class Fate(StrEnum):
    """What becomes of a packet. UNTOUCHED means that it passes to where it was sent."""

    TRANSLATED = "translated"
    UNTOUCHED = "untouched"
    REJECTED = "rejected"
    DROPPED = "dropped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True)
class Outcome:
    """What becomes of a packet, and where a translated one arrives (`address:port`).

    `detail` is the kind of rejection, or the rule that can't be judged: one that asks for what isn't known, or that
    has a match or target which isn't.
    """

    fate: Fate
    destination: str = ""
    masqueraded: bool = False
    detail: str = ""

    def __str__(self) -> str:
        words = [self.fate.value, self.destination, "masqueraded" if self.masqueraded else "", self.detail]
        return " ".join(filter(None, words))


def number(address: str) -> int:
    """An address as a number."""
    return int.from_bytes(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))


def text(address: int, family: Family) -> str:
    """A number as an address."""
    kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    return socket.inet_ntop(kind, address.to_bytes(family.host_bits // 8))


def endpoint(address: int, port: int, family: Family) -> str:
    """`address:port`, with brackets around an IPv6 address."""
    host = text(address, family)
    return f"[{host}]:{port}" if family is Family.IPV6 else f"{host}:{port}"
