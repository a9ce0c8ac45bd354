"""Packets that tell rulesets apart: every class that a ruleset of Services makes, by the constants in its rules."""

import re
from collections.abc import Iterator
from itertools import product

from kpx.analysis.packet import Origin, Packet, number, text
from kpx.family import Family
from kpx.netfilter.ruleset import Ruleset

PROTOCOLS = ("tcp", "udp", "sctp")
OTHERS = {
    Family.IPV4: ("8.8.8.8", "127.0.0.1", "10.200.0.2", "10.244.0.1", "224.0.0.1"),
    Family.IPV6: ("2001:4860::8", "::1", "fd00:200::2", "fd00:244::1", "ff02::1"),
}
"""Destinations that are no Service's: outside, loopback, the node, a pod, multicast."""

SENDERS = {
    Family.IPV4: ("10.244.0.9", "10.245.0.9", "192.0.2.9", "198.51.100.7"),
    Family.IPV6: ("fd00:244::9", "fd00:245::9", "2001:db8::9", "2001:db8:9::7"),
}
"""Sources in the pods' range, just beside it, in ranges of load balancers and in none."""

_ENTRY = re.compile(r"(?:-d (?P<address>\S+)/(?:32|128) )?-p (?P<protocol>\S+) .*--dport (?P<port>\d+) ")
_DISPATCH = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL")
_NETWORK = re.compile(r"-d (\S+)/(\d+)")

Destination = tuple[str, str, int]


def entries(ruleset: Ruleset) -> list[Destination]:
    """What a ruleset of the layout `classic` dispatches: address (empty for a node port), protocol, port."""
    rules = [rule for table in ruleset.tables.values() for name in _DISPATCH for rule in table.chains.get(name, ())]
    found = [match for match in map(_ENTRY.match, rules) if match]
    return sorted({(match["address"] or "", match["protocol"], int(match["port"])) for match in found})


def around(entry: Destination, family: Family) -> Iterator[Destination]:
    """An entry's own destination and those beside it: other addresses, ports, protocols."""
    address, protocol, port = entry
    addresses = [address, *neighbours(address, family)] if address else OTHERS[family]
    for host, other, near in product(addresses, PROTOCOLS, (port - 1, port, port + 1)):
        if sum((host != addresses[0], other != protocol, near != port)) <= 1:
            yield host, other, near
    if not address:
        yield from ((host, protocol, port) for host in OTHERS[family])


def neighbours(address: str, family: Family) -> list[str]:
    """The addresses before and after."""
    value, last = number(address), (1 << family.host_bits) - 1
    return [text(min(max(value + step, 0), last), family) for step in (-1, 1)]


def borders(ruleset: Ruleset) -> list[str]:
    """The first and last addresses of all networks that rules send on, and those beside them."""
    rules = (rule for table in ruleset.tables.values() for chain in table.chains.values() for rule in chain)
    found: set[str] = set()
    for match in filter(None, map(_NETWORK.search, (rule for rule in rules if "KPX-" in rule))):
        size = ruleset.family.host_bits - int(match[2])
        first = number(match[1])
        for one in (first, first + (1 << size) - 1):
            found |= {text(one, ruleset.family), *neighbours(text(one, ruleset.family), ruleset.family)}
    return sorted(found)


def destinations(classic: Ruleset, tree: Ruleset) -> list[Destination]:
    """Every destination to try."""
    family = classic.family
    known = entries(classic)
    near = {one for entry in known for one in around(entry, family)}
    plain = {(address, "tcp", port) for address in OTHERS[family] for port in (80, 30_000)}
    edges = {(address, "tcp", 80) for address in borders(tree)}
    node_ports = {(address, protocol, port) for _, protocol, port in known for address in OTHERS[family][2:3]}
    return sorted(one for one in near | plain | edges | node_ports if 0 <= one[2] < 65_536)


def from_everywhere(destination: Destination, family: Family) -> Iterator[Packet]:
    """Packets to one destination, from pods, from outside, from the node and from a pod that may be its own backend."""
    address, protocol, port = destination
    pod, *outside = SENDERS[family]
    for source in (pod, OTHERS[family][3]):
        yield Packet(source, address, protocol, port, 40_000, Origin.POD, in_interface="cni0")
    for source in outside:
        yield Packet(source, address, protocol, port, 40_000, in_interface="eth0")
    yield Packet(OTHERS[family][2], address, protocol, port, 40_000, Origin.NODE)
