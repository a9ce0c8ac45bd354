"""How many connections went to each endpoint, as the kernel's rules count them.

nat rules see the first packet of a connection only, so what the DNAT rule of a KUBE-SEP chain has counted are the
connections to its endpoint. A first packet that is lost on the way and sent again counts again.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kpx.netfilter import nft
from kpx.netfilter.reading import counted_rules
from kpx.netfilter.tools import Backend, Tools


class Counted(NamedTuple):
    """What an endpoint chain has counted since its rule was written; `endpoint` is `address:port`."""

    chain: str
    protocol: str
    endpoint: str
    connections: int


_DNAT = re.compile(rb"\[(\d{1,20}):\d+\] -A (KUBE-SEP-\S+) -p (\S+) .*-j DNAT --to-destination (\S+)")
_COUNTED = re.compile(r"(-A .*)( )-c (\d{1,20}) (\d{1,20}) (?=-j DNAT )")
_NONE = b"[0:0] "


def read_counters(tools: Tools, idle: bool = True, niceness: int = 0) -> Iterator[Counted]:
    """The counters of all endpoint chains in the kernel; without those that are 0 unless `idle`. Raises KpxError.

    On nft chains are read in pieces, so that others' commits don't hold this up; on legacy `iptables-save -c` is read
    while it is being printed. So memory doesn't grow with the table.
    """
    if tools.backend is Backend.LEGACY:
        return parse_counters(tools.save_lines("nat", niceness), idle)
    chains = [name for name in nft.chain_names(tools.family, "nat") if name.startswith("KUBE-SEP-")]
    lines = (_counted_first(line) for line in counted_rules(tools, "nat", chains, niceness))
    return parse_counters(lines, idle)


def _counted_first(line: str) -> bytes:
    """A rule as `iptables-save -c` prints it; `-S CHAIN -v` puts the counters before the target."""
    return _COUNTED.sub(r"[\3:\4] \1\2", line).encode(errors="surrogateescape")


def parse_counters(lines: Iterable[bytes], idle: bool = True) -> Iterator[Counted]:
    """The counters of all endpoint chains in lines of `iptables-save -c`."""
    for line in lines:
        if line[:1] != b"[" or b"-j DNAT" not in line or (not idle and line.startswith(_NONE)):
            continue
        found = _DNAT.match(line)
        if found:
            connections, chain, protocol, endpoint = (one.decode(errors="replace") for one in found.groups())
            yield Counted(chain, protocol, endpoint, int(connections))
