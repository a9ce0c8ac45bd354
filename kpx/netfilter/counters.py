"""How many connections went to each endpoint, as the kernel's rules count them.

nat rules see the first packet of a connection only, so what the DNAT rule of a KUBE-SEP chain has counted are the
connections to its endpoint. A first packet that is lost on the way and sent again counts again.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kpx.netfilter.tools import Tools


class Counted(NamedTuple):
    """What an endpoint chain has counted since its rule was written; `endpoint` is `address:port`."""

    chain: str
    protocol: str
    endpoint: str
    connections: int


_DNAT = re.compile(rb"\[(\d{1,20}):\d+\] -A (KUBE-SEP-\S+) -p (\S+) .*-j DNAT --to-destination (\S+)")
_NONE = b"[0:0] "


def read_counters(tools: Tools, idle: bool = True, niceness: int = 0) -> Iterator[Counted]:
    """The counters of all endpoint chains in the kernel; without those that are 0 unless `idle`. Raises KpxError.

    Reads `iptables-save -c` while it is being printed, so that memory doesn't grow with the table.
    """
    return parse_counters(tools.save_lines("nat", niceness), idle)


def parse_counters(lines: Iterable[bytes], idle: bool = True) -> Iterator[Counted]:
    """The counters of all endpoint chains in lines of `iptables-save -c`."""
    for line in lines:
        if line[:1] != b"[" or b"-j DNAT" not in line or (not idle and line.startswith(_NONE)):
            continue
        found = _DNAT.match(line)
        if found:
            connections, chain, protocol, endpoint = (one.decode(errors="replace") for one in found.groups())
            yield Counted(chain, protocol, endpoint, int(connections))
