"""A packet, the host that it passes, and what becomes of it. Values."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kpx.analysis.origin import Origin as Origin
from kpx.family import Family, host_port


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection.

    `protocol` is in lower case, the destination port is 0 where it has none. What is None isn't known, which matters if
    a rule asks for it: the source port, interfaces, whether it came in through a port of a bridge. An interface that
    ends in a + is one whose name starts so. `state` is what conntrack says of it (`--ctstate`): nat is asked for the
    first packet of a connection only, and what rules ask of an earlier translation can't be known of others.
    """

    source: str
    destination: str
    protocol: str = "tcp"
    destination_port: int = 0
    source_port: int | None = None
    origin: Origin = Origin.OUTSIDE
    in_interface: str | None = None
    out_interface: str | None = None
    mark: int = 0
    state: str = "NEW"
    bridged: bool | None = None

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return Family.of(self.destination)


class Host:
    """What matters of the host: its own addresses, None if they aren't known. Loopback is always among them.

    `elsewhere` are addresses that are known, or taken, to be others', where its own aren't known.
    """

    def __init__(self, addresses: Iterable[str] | None = (), elsewhere: Iterable[str] = ()) -> None:
        self.known = addresses is not None
        self._own = frozenset((Family.of(one), number(one)) for one in (*(addresses or ()), "::1"))
        self._elsewhere = frozenset((Family.of(one), number(one)) for one in elsewhere)

    def addresses(self, family: Family) -> tuple[str, ...]:
        """Its addresses of a family, as far as they are known, without those of loopback."""
        own = (text(one, family) for of, one in sorted(self._own) if of is family)
        return tuple(one for one in own if one != "::1" and not one.startswith("127."))

    def is_local(self, address: int, family: Family) -> bool | None:
        """Whether the kernel delivers packets for this address here; None if that isn't known."""
        loopback = family is Family.IPV4 and address >> 24 == 127
        if loopback or (family, address) in self._own:
            return True
        return False if self.known or kind(address, family) or (family, address) in self._elsewhere else None


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


def kind(address: int, family: Family) -> str:
    """What an address is whatever host asks, in the words of `-m addrtype`: MULTICAST, BROADCAST or nothing special.

    See `__inet_dev_addr_type` in the kernel's net/ipv4/fib_frontend.c and `match_lookup_rt6` in xt_addrtype.c.
    """
    if family is Family.IPV6:
        return "MULTICAST" if address >> 120 == 0xFF else ""
    if address >> 28 == 0xE:
        return "MULTICAST"
    return "BROADCAST" if address >> 24 == 0 or address == 0xFFFFFFFF else ""


def number(address: str) -> int:
    """An address as a number."""
    return int.from_bytes(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))


def is_address(text: str) -> bool:
    """Whether a text is an address of either family."""
    try:
        number(text)
    except (OSError, ValueError):
        return False
    return True


def text(address: int, family: Family) -> str:
    """A number as an address."""
    kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    return socket.inet_ntop(kind, address.to_bytes(family.host_bits // 8))


def endpoint(address: int, port: int, family: Family) -> str:
    """A number and a port as `address:port`."""
    return host_port(text(address, family), port)
