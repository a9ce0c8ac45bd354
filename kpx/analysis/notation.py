"""How people write packets: `tcp 10.244.1.5 -> 10.96.1.10:80`."""

import re
from dataclasses import dataclass
from ipaddress import ip_address

from kpx.errors import KpxError
from kpx.family import Family, host_port
from kpx.netfilter.options import protocol
from kpx.printable import excerpt

WITH_PORTS = frozenset({"tcp", "udp", "sctp", "dccp", "udplite"})
EXAMPLE = "tcp 10.244.1.5 -> 10.96.1.10:80"

_FLOW = re.compile(r"\s*([A-Za-z0-9-]+)\s+(\S+)\s*(?:->|→|\bto\b)\s*(\S+)\s*")
_PORT = re.compile(":?([0-9]{1,5})")
_PLACE = re.compile(r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+)\]|(?P<plain>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Flow:
    """Who speaks to whom. Addresses are in canonical text; ports that aren't given are None."""

    protocol: str
    source: str
    source_port: int | None
    destination: str
    destination_port: int | None

    @property
    def family(self) -> Family:
        """The family of both addresses."""
        return Family.of(self.destination)


def parse_flow(text: str) -> Flow:
    """Read `PROTOCOL SOURCE[:PORT] -> DESTINATION[:PORT]`. IPv6 addresses before a port have brackets.

    Raises KpxError.
    """
    match = _FLOW.fullmatch(text)
    if match is None:
        raise KpxError(f"a packet is written like '{EXAMPLE}', in quotes: not '{excerpt(text.strip())}'")
    name = protocol(match[1], Family.IPV4)
    source, source_port = parse_place(match[2])
    destination, destination_port = parse_place(match[3])
    if Family.of(source) is not Family.of(destination):
        raise KpxError(f"{source} and {destination} are not of one family")
    if name in WITH_PORTS and destination_port is None:
        raise KpxError(f"{name} needs a port: {host_port(destination, 80)}")
    if name not in WITH_PORTS and (source_port, destination_port) != (None, None):
        raise KpxError(f"{name} has no ports")
    return Flow(name, source, source_port, destination, destination_port)


def parse_place(text: str) -> tuple[str, int | None]:
    """Read `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`. Raises KpxError."""
    match = _PLACE.fullmatch(text)
    host, port = (match["bracketed"] or match["plain"], match["port"]) if match else (text, None)
    try:
        address = unscoped(host)
    except ValueError:
        raise KpxError(f"not an address, or an address and port: '{excerpt(text)}'") from None
    if port is not None and int(port) > 65_535:
        raise KpxError(f"not a port: {port}")
    return address, int(port) if port is not None else None


def parse_port(text: str) -> int | None:
    """Read `PORT` or `:PORT`; None for another text."""
    match = _PORT.fullmatch(text)
    return int(match[1]) if match else None


def unscoped(text: str) -> str:
    """An address in canonical text. Raises ValueError; also for one with an interface behind it (`fe80::1%eth0`)."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone: rules know none")
    return str(ip_address(text))
