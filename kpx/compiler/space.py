"""What a packet is dispatched by, as keys of bits: destination address, protocol and port, or protocol and port alone.

A prefix of such a key is a match that iptables knows: a network, one address and a protocol, a range of ports.
"""

import socket
from base64 import b32encode
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256

from kpx.compiler.prefix_tree import Prefix
from kpx.family import Family

PROTOCOLS = ("tcp", "udp", "sctp")

_STRIDE = 3
_PROTOCOL_BITS = 2
_PORT_BITS = 16
_LONGEST_LABEL = 22  # of the 28 characters of a chain's name


class Space:
    """The keys of one kind of dispatch: by address in `family`, or by port alone where `family` is None."""

    def __init__(self, family: Family | None) -> None:
        self._host_bits = family.host_bits if family else 0
        self._kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
        self.levels = tuple(self._levels())
        """The prefix lengths at which dispatch branches: eight ways, and never across two parts of the key."""
        self.shared = self._host_bits or self.levels[-1]
        """The prefix length from which on keys have the address in common."""

    def _levels(self) -> Iterator[int]:
        yield 0
        start = 0
        for bits in filter(None, (self._host_bits, _PROTOCOL_BITS, _PORT_BITS)):
            yield from range(start + (bits % _STRIDE or _STRIDE), start + bits + 1, _STRIDE)
            start += bits

    def key(self, address: str, protocol: str, port: int) -> int:
        """The key of an address (empty in a space of ports), protocol and port."""
        host = _packed(self._kind, address) if self._host_bits else 0
        return (host << _PROTOCOL_BITS | PROTOCOLS.index(protocol)) << _PORT_BITS | port

    def match(self, prefix: Prefix) -> str:
        """The match for all packets whose key has `prefix`, as iptables-save prints it."""
        host, protocol, ports = self._parts(prefix)
        words = [f"-d {host}"] if host else []
        if protocol:
            words.append(f"-p {protocol}")
        if ports:
            words.append(f"-m {protocol} --dport {ports[0]}:{ports[1]}")
        return " ".join(words)

    def label(self, prefix: Prefix) -> str:
        """A short name for `prefix`, for people and unlike any other one: `10.96.0.0-20`, `tcp-30208-30719`.

        Colons become dashes, and what is too long a hash.
        """
        host, protocol, ports = self._parts(prefix)
        words = [host.removesuffix(f"/{self._host_bits}") if protocol else host] if host else []
        if protocol:
            words.append(protocol)
        if ports:
            words.append(f"{ports[0]}-{ports[1]}")
        label = "-".join(words).replace("/", "-").replace(":", "-")
        return label if len(label) <= _LONGEST_LABEL else _hash(label)

    def _parts(self, prefix: Prefix) -> tuple[str, str, tuple[int, int] | None]:
        """Network, protocol and ports that a prefix stands for; empty or None where it doesn't reach so far."""
        network = ""
        if self._host_bits:
            fixed = min(prefix.length, self._host_bits)
            bits = prefix.bits >> (prefix.length - fixed)
            network = _network(self._kind, bits << (self._host_bits - fixed), fixed)
        rest = prefix.length - self._host_bits - _PROTOCOL_BITS
        if rest < 0:
            return network, "", None
        protocol = PROTOCOLS[prefix.bits >> rest & ((1 << _PROTOCOL_BITS) - 1)]
        if rest == 0:
            return network, protocol, None
        size = 1 << (_PORT_BITS - rest)
        first = (prefix.bits & ((1 << rest) - 1)) * size
        return network, protocol, (first, first + size - 1)


def without_address(key: int) -> int:
    """The key, in a space of ports, of the protocol and port in a key with an address."""
    return key & ((1 << (_PROTOCOL_BITS + _PORT_BITS)) - 1)


@lru_cache(maxsize=1024)
def _packed(kind: int, address: str) -> int:
    return int.from_bytes(socket.inet_pton(kind, address))


def _network(kind: int, bits: int, length: int) -> str:
    packed = bits.to_bytes(16 if kind == socket.AF_INET6 else 4)
    return f"{socket.inet_ntop(kind, packed)}/{length}"


def _hash(text: str) -> str:
    return b32encode(sha256(text.encode()).digest()[:10]).decode()
