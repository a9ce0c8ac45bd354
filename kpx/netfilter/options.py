"""Options of iptables rules, and the one spelling of each.

iptables takes many spellings of one option and prints another; versions and backends differ in what they
print. Here every module whose options the kernel stores in a known way gets one spelling. The facts are
those of the save functions in iptables' `extensions/` and of the kernel's `net/netfilter/xt_*.c`, tried out
on both backends. Modules that stand in no table here stay as they are.
"""

import math
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from kpx.family import Family


@dataclass(frozen=True, slots=True)
class Option:
    """One option with its values: `! --ctstate NEW` is `Option("--ctstate", ("NEW",), negated=True)`."""

    name: str
    values: tuple[str, ...] = ()
    negated: bool = False


Options = tuple[Option, ...]
Spell = Callable[[str, Family], str]

WORD = 0xFFFFFFFF

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_PORT = re.compile(r"[0-9]{1,5}")

PROTOCOLS = {
    "icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "rsvp": 46, "gre": 47,
    "esp": 50, "ah": 51, "ipv6-icmp": 58, "eigrp": 88, "ospf": 89, "ipip": 94, "pim": 103, "vrrp": 112,
    "sctp": 132, "ipv6-mh": 135, "udplite": 136,
}  # fmt: skip
"""Numbers of protocols; a host without them in /etc/protocols prints the numbers."""

_OTHER_NAMES = {"icmpv6": "ipv6-icmp", "mh": "ipv6-mh", "mobility-header": "ipv6-mh"}
_PROTOCOL_NAMES = {str(number): name for name, number in PROTOCOLS.items()} | _OTHER_NAMES


# ---- one value ----


def protocol(value: str, family: Family) -> str:
    """`6`, `TCP` -> `tcp`; `58`, `icmpv6` -> `ipv6-icmp`."""
    name = value.lower()
    return _PROTOCOL_NAMES.get(name, name)


def address(value: str, family: Family) -> str:
    """An address in the kernel's spelling; what is none stays as it is."""
    kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    try:
        return socket.inet_ntop(kind, socket.inet_pton(kind, value))
    except (OSError, ValueError):
        return value


def network(value: str, family: Family) -> str:
    """`10.0.0.1` -> `10.0.0.1/32`, `10.1.2.3/255.255.0.0` -> `10.1.0.0/16`."""
    kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    host, _, mask = value.partition("/")
    try:
        packed = int.from_bytes(socket.inet_pton(kind, host))
        bits = _mask(mask, family, kind)
    except (OSError, ValueError):
        return value
    size = family.host_bits
    ones = bits.bit_count()
    contiguous = bits == ((1 << ones) - 1) << (size - ones)
    masked = socket.inet_ntop(kind, (packed & bits).to_bytes(size // 8))
    return f"{masked}/{ones if contiguous else socket.inet_ntop(kind, bits.to_bytes(size // 8))}"


def _mask(mask: str, family: Family, kind: int) -> int:
    size = family.host_bits
    if mask == "":
        return (1 << size) - 1
    if not mask.isdecimal():
        return int.from_bytes(socket.inet_pton(kind, mask))
    if int(mask) > size:
        raise ValueError(mask)
    return ((1 << int(mask)) - 1) << (size - int(mask))


def number(text: str) -> int:
    """A number as strtoul(…, 0) reads it: decimal, 0x hexadecimal, 0 octal. Raises ValueError."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number: {text!r}")
    return int(text, 16 if text[:2] in ("0x", "0X") else 8 if text[0] == "0" else 10)


def masked_number(value: str, family: Family) -> str:
    """`16384/0xFFFFFFFF` -> `0x4000`: a value and the mask that says which of its bits count."""
    try:
        stored, mask = _value_and_mask(value)
    except ValueError:
        return value
    return f"{stored:#x}" if mask == WORD else f"{stored:#x}/{mask:#x}"


def _value_and_mask(value: str) -> tuple[int, int]:
    stored, slash, mask = value.partition("/")
    return number(stored), number(mask) if slash else WORD


def probability(value: str, family: Family) -> str:
    """xt_statistic keeps lround(p * 2^31); iptables prints that with 11 digits."""
    try:
        stored = math.floor(float(value) * 0x80000000 + 0.5)
    except (ValueError, OverflowError):
        return value
    return f"{stored / 0x80000000:.11f}"


def ports(value: str, family: Family) -> str:
    """`80:80` -> `80`, `:80` -> `0:80`, `80:` -> `80:65535`.

    Names of services stay, and so do numbers with a leading 0: some options take them for octal, some don't.
    """
    first, colon, last = value.partition(":")
    low, high = first or "0", last or "65535"
    return f"{low}:{high}" if colon and low != high else low


def port_set(value: str, family: Family) -> str:
    """A comma list of ports and ranges, as a set."""
    return ",".join(sorted({ports(item, family) for item in value.split(",")}))


def word_set(value: str, family: Family) -> str:
    """A comma list of words, as a set."""
    return ",".join(sorted({item.upper() for item in value.split(",")}))


def address_range(value: str, family: Family) -> str:
    """`FIRST-LAST`, or a single address, in the kernel's spelling."""
    return "-".join(address(item, family) for item in value.split("-"))


def endpoint(value: str, family: Family) -> str:
    """What NAT puts in: `ADDRESSES`, `ADDRESSES:PORTS`, `:PORTS`, with IPv6 addresses in brackets before ports."""
    if family is Family.IPV4:
        host, colon, port = value.partition(":")
        return f"{address_range(host, family)}{colon}{port}"
    if value.startswith("["):
        host, _, port = value[1:].partition("]")
        return f"[{address_range(host, family)}]{port}" if port else address_range(host, family)
    return address_range(value, family)


_TCP_FLAGS = {"ALL": "ACK,FIN,PSH,RST,SYN,URG", "NONE": "NONE"}


def tcp_flags(value: str, family: Family) -> str:
    """A comma list of TCP flags, as a set; ALL spelled out."""
    return _TCP_FLAGS.get(value.upper()) or word_set(value, family)


# ---- the options of a module ----

ALIASES = {
    "--source": "-s", "--src": "-s", "--destination": "-d", "--dst": "-d", "--in-interface": "-i",
    "--out-interface": "-o", "--protocol": "-p", "--fragment": "-f", "--match": "-m", "--jump": "-j",
    "--goto": "-g", "--source-port": "--sport", "--destination-port": "--dport",
    "--source-ports": "--sports", "--destination-ports": "--dports",
}  # fmt: skip
"""Long spellings that iptables takes for an option whatever the module."""

_PORTS: Mapping[str, Spell] = {"--sport": ports, "--dport": ports}

_SPELLINGS: Mapping[str, Mapping[str, Spell]] = {
    "tcp": {**_PORTS, "--tcp-flags": tcp_flags},
    "udp": _PORTS,
    "sctp": _PORTS,
    "dccp": _PORTS,
    "udplite": _PORTS,
    "multiport": {"--sports": port_set, "--dports": port_set, "--ports": port_set},
    "comment": {},
    "mark": {"--mark": masked_number},
    "connmark": {"--mark": masked_number},
    "conntrack": {
        "--ctstate": word_set, "--ctstatus": word_set, "--ctproto": protocol,
        "--ctorigsrc": network, "--ctorigdst": network, "--ctreplsrc": network, "--ctrepldst": network,
        "--ctorigsrcport": ports, "--ctorigdstport": ports,
        "--ctreplsrcport": ports, "--ctrepldstport": ports,
    },
    "state": {"--state": word_set},
    "addrtype": {"--src-type": word_set, "--dst-type": word_set},
    "nfacct": {},
    "statistic": {"--probability": probability},
    "recent": {"--mask": address},
    "iprange": {"--src-range": address_range, "--dst-range": address_range},
}  # fmt: skip

_SYN = ("FIN,SYN,RST,ACK", "SYN")


def spelled(option: Option, spell: Spell, family: Family) -> Option:
    """The option with its values in their one spelling."""
    values = tuple(spell(value, family) for value in option.values)
    if values == option.values or any(value[:1] == "-" for value in values):  # put in order, it may look like an option
        return option
    return Option(option.name, values, option.negated)


def match_options(module: str, options: Options, family: Family) -> Options:
    """The options of a `-m module` group in their one spelling and order; unknown modules' as they are."""
    spellings = _SPELLINGS.get(module)
    if spellings is None:
        return options
    return tuple(sorted(_spelled(_complete(module, options, family), spellings, family), key=_order))


def _complete(module: str, options: Options, family: Family) -> Options:
    """With the defaults and the abbreviations written out, as they are printed."""
    given = {option.name for option in options}
    if module == "tcp" and "--syn" in given:
        return tuple(replace(o, name="--tcp-flags", values=_SYN) if o.name == "--syn" else o for o in options)
    if module == "recent":
        everything = "255.255.255.255" if family is Family.IPV4 else "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        defaults = {"--name": ("DEFAULT",), "--mask": (everything,)}
        added = [Option(name, values) for name, values in defaults.items() if name not in given]
        side = [] if given & {"--rsource", "--rdest"} else [Option("--rsource")]
        return (*options, *added, *side)
    return options


def _spelled(options: Options, spellings: Mapping[str, Spell], family: Family) -> Options:
    found = []
    for option in options:
        spell = spellings.get(option.name)
        if spell is not None:
            option = spelled(option, spell, family)
        if option.name in _PORTS:
            if option.values == ("0:65535",) and not option.negated:
                continue  # every port: never printed
            option = _without_negation(option)
        found.append(option)
    return tuple(found)


def _without_negation(option: Option) -> Option:
    """`! --dport 0:79` as `--dport 80:65535`: the nft backend prints all but the ports at one end like that."""
    low, _, high = option.values[0].partition(":") if len(option.values) == 1 else ("", "", "")
    high = high or low
    whole = _PORT.fullmatch(low) and _PORT.fullmatch(high)
    if not (option.negated and whole) or (low == "0") == (high == "65535"):
        return option
    rest = f"{int(high) + 1}:65535" if low == "0" else f"0:{int(low) - 1}"
    return Option(option.name, (ports(rest, Family.IPV4),))


def _order(option: Option) -> tuple[str, tuple[str, ...], bool]:
    return option.name, option.values, option.negated


# ---- the options of a target ----

_REJECTIONS = {
    Family.IPV4: {
        "net-unreach": "icmp-net-unreachable", "host-unreach": "icmp-host-unreachable",
        "proto-unreach": "icmp-proto-unreachable", "port-unreach": "icmp-port-unreachable",
        "net-prohib": "icmp-net-prohibited", "host-prohib": "icmp-host-prohibited",
        "admin-prohib": "icmp-admin-prohibited", "tcp-rst": "tcp-reset",
    },
    Family.IPV6: {
        "no-route": "icmp6-no-route", "adm-prohibited": "icmp6-adm-prohibited",
        "addr-unreach": "icmp6-addr-unreachable", "port-unreach": "icmp6-port-unreachable",
        "policy-fail": "icmp6-policy-fail", "reject-route": "icmp6-reject-route",
    },
}  # fmt: skip
_REJECTION = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}


def target_options(target: str, options: Options, family: Family) -> Options:
    """The options of a target in their one spelling and order; of an unknown target as they are."""
    if target in ("MARK", "CONNMARK"):
        found = tuple(_set_xmark(option) for option in options)
    elif target == "REJECT":
        found = _rejection(options, family)
    elif target in ("DNAT", "SNAT"):
        to = {"--to-destination": endpoint, "--to-source": endpoint}
        found = _spelled(options, to, family)
    elif target == "MASQUERADE":
        found = options
    else:
        return options
    return tuple(sorted(found, key=_order))


def _rejection(options: Options, family: Family) -> Options:
    names = _REJECTIONS[family]
    given = options or (Option("--reject-with", (_REJECTION[family],)),)
    return tuple(replace(o, values=tuple(names.get(value, value) for value in o.values)) for o in given)


def _set_xmark(option: Option) -> Option:
    """Every way to write a mark as the one that is stored: clear the mask's bits, then XOR the value."""
    if len(option.values) != 1:
        return option
    try:
        value, mask = _value_and_mask(option.values[0])
    except ValueError:
        return option
    match option.name:
        case "--set-xmark":
            pass
        case "--set-mark":
            mask |= value
        case "--or-mark":
            mask = value
        case "--xor-mark":
            mask = 0
        case "--and-mark":
            value, mask = 0, ~value & WORD
        case _:
            return option
    return Option("--set-xmark", (f"{value:#x}/{mask:#x}",), option.negated)
