"""How many connections went to each endpoint, as the kernel's rules count them.

nat rules see the first packet of a connection only, so what a DNAT rule has counted are the connections to its
endpoint: the one in its KUBE-SEP chain or, in the layout `compact`, those that choose it, in chains of its Service. A
first packet that is lost on the way and sent again counts again.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kpx.netfilter import nft
from kpx.netfilter.names import CHOICES, ENDPOINT
from kpx.netfilter.reading import counted_rules
from kpx.netfilter.tools import Backend, Tools

Place = tuple[str, str]
"""A chain, and the endpoint that rules there translate to."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a chain's rules for an endpoint have counted since they were written; `endpoint` is `address:port`."""

    chain: str
    protocol: str
    endpoint: str
    connections: int

    @property
    def place(self) -> Place:
        """Where it was counted. Rules of one place count for the same endpoint of the same service port."""
        return self.chain, self.endpoint


_CHAINS = "|".join((ENDPOINT, *CHOICES))
_DNAT = re.compile(rf"\[(\d{{1,20}}):\d+\] -A ((?:{_CHAINS})\S+) -p (\S+) .*-j DNAT --to-destination (\S+)".encode())
_COUNTED = re.compile(r"(-A .*)( )-c (\d{1,20}) (\d{1,20}) (?=-j DNAT )")
_NONE = b"[0:0] "


def read_counters(tools: Tools, idle: bool = True, niceness: int = 0, choices: bool = True) -> Iterator[Counted]:
    """The counters of all endpoints in the kernel; without those that are 0 unless `idle`. Raises KpxError.

    Without `choices` only those of chains that endpoints have for themselves, which are all but in the layout
    `compact`.

    On nft chains are read in pieces, so that others' commits don't hold this up; on legacy `iptables-save -c` is read
    while it is being printed. So memory doesn't grow with the table.
    """
    if tools.backend is Backend.LEGACY:
        return parse_counters(tools.save_lines("nat", niceness), idle)
    wanted = (ENDPOINT, *CHOICES) if choices else ENDPOINT
    chains = [name for name in nft.chain_names(tools.family, "nat") if name.startswith(wanted)]
    lines = (_counted_first(line) for line in counted_rules(tools, "nat", chains, niceness))
    return parse_counters(lines, idle)


def _counted_first(line: str) -> bytes:
    """A rule as `iptables-save -c` prints it; `-S CHAIN -v` puts the counters before the target."""
    return _COUNTED.sub(r"[\3:\4] \1\2", line).encode(errors="surrogateescape")


def parse_counters(lines: Iterable[bytes], idle: bool = True) -> Iterator[Counted]:
    """The counters of all endpoints in lines of `iptables-save -c`: one for each rule that translates."""
    for line in lines:
        if line[:1] != b"[" or b"-j DNAT" not in line or (not idle and line.startswith(_NONE)):
            continue
        found = _DNAT.match(line)
        if found:
            connections, chain, protocol, endpoint = (one.decode(errors="replace") for one in found.groups())
            yield Counted(chain, protocol, endpoint, int(connections))


def by_place(counted: Iterable[Counted]) -> dict[Place, Counted]:
    """The counters of each place added up: who chooses in turn has several rules for one endpoint."""
    found: dict[Place, Counted] = {}
    for one in counted:
        before = found.get(one.place)
        found[one.place] = replace(one, connections=one.connections + before.connections) if before else one
    return found
