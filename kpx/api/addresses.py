"""IP addresses and CIDRs in canonical text, read as leniently as Kubernetes reads them.

Kubernetes parses with `k8s.io/utils/net`: `ParseIPSloppy` and `ParseCIDRSloppy` take IPv4 octets with leading
zeros for decimal, and Go's `net.IP` prints an IPv4-mapped IPv6 address as IPv4.
"""

import re
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

from kpx.family import Family

_MAPPED = bytes(10) + b"\xff\xff"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_CANONICAL_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
_OCTETS = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20}){3}")
_SPECIAL = re.compile(r"(?:0\.0\.0\.0|::1?)\Z|127\.|169\.254\.|224\.0\.0\.|fe[89ab][0-9a-f]:|ff02:")
NOT_SPECIAL: Final = "must not be an unspecified, loopback or link-local address"
_PREFIX = re.compile(r"[0-9]{1,3}")


def canonical(text: str) -> str | None:
    """The address in canonical text, or None if it isn't one; zone ids are none.

    >>> canonical("010.0.0.1"), canonical("FD00:0::1"), canonical("::ffff:1.2.3.4"), canonical("fe80::1%eth0")
    ('10.0.0.1', 'fd00::1', '1.2.3.4', None)
    """
    if _CANONICAL_IPV4.fullmatch(text):  # as nearly all are
        return text
    packed = _packed(text)
    if packed is None:
        return None
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def canonical_cidr(text: str) -> str | None:
    """The network in canonical text, host bits cleared, or None: `10.1.2.3/8` -> `10.0.0.0/8`."""
    address, slash, prefix = text.partition("/")
    packed = _packed(address)
    if packed is None or not slash or not _PREFIX.fullmatch(prefix):
        return None
    # The prefix length counts in the notation that was written, also for an IPv4-mapped address.
    bits, length = len(packed) * 8, int(prefix) - (96 if ":" in address and len(packed) == 4 else 0)
    if not 0 <= length <= bits:
        return None
    network = int.from_bytes(packed) >> (bits - length) << (bits - length)
    return f"{inet_ntop(AF_INET if bits == 32 else AF_INET6, network.to_bytes(bits // 8))}/{length}"


def is_special(address: str) -> bool:
    """Whether this canonical address is unspecified, loopback or link-local.

    The API server takes none of these for an endpoint or an external IP (`ValidateNonSpecialIP`).
    """
    return _SPECIAL.match(address) is not None


def is_usual_ipv4(address: str) -> bool:
    """Whether this is an IPv4 address in canonical text that isn't special: at a glance, for what there is most of."""
    return _CANONICAL_IPV4.fullmatch(address) is not None and _SPECIAL.match(address) is None


def _packed(text: str) -> bytes | None:
    """4 or 16 bytes."""
    if ":" not in text:
        return _pton(AF_INET, text) or _pton(AF_INET, _decimal(text))
    head, _, tail = text.rpartition(":")
    packed = _pton(AF_INET6, text) or _pton(AF_INET6, f"{head}:{_decimal(tail)}")
    return packed[12:] if packed and packed.startswith(_MAPPED) else packed


def _pton(family: int, text: str) -> bytes | None:
    try:
        return inet_pton(family, text)
    except (OSError, ValueError):
        return None


def _decimal(text: str) -> str:
    """A dotted quad without leading zeros; any other text as it is."""
    return ".".join(str(int(octet)) for octet in text.split(".")) if _OCTETS.fullmatch(text) else text


def _address(text: str) -> str:
    address = canonical(text)
    if address is None:
        raise PydanticCustomError("address", "must be an IP address")
    return address


def _usual_address(text: str) -> str:
    address = _address(text)
    if is_special(address):
        raise PydanticCustomError("address", NOT_SPECIAL)
    return address


def _cidr(text: str) -> str:
    cidr = canonical_cidr(text)
    if cidr is None:
        raise PydanticCustomError("cidr", "must be a CIDR such as 10.0.0.0/8 or fd00::/8")
    return cidr


_Text = Annotated[str, StringConstraints(strict=True)]
Address = Annotated[_Text, AfterValidator(_address)]
UsualAddress = Annotated[_Text, AfterValidator(_usual_address)]
"""An address that is neither loopback nor link-local nor unspecified."""
Cidr = Annotated[_Text, AfterValidator(_cidr)]
SpacedCidr = Annotated[str, StringConstraints(strict=True, strip_whitespace=True), AfterValidator(_cidr)]


def one_per_family(addresses: tuple[str, ...]) -> bool:
    """Whether no two of these addresses or CIDRs are of one family."""
    return len({Family.of(address) for address in addresses}) == len(addresses)
