"""Other programs' rules that take Service traffic before ours see it."""

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_

from kpx.analysis.checks.finding import Finding, Jump, Severity, Tables
from kpx.analysis.checks.marks import marks_set
from kpx.analysis.equivalence.overlap import Overlaps
from kpx.netfilter.names import MARK_DROP, MARK_MASQ, ours

_ENTRANCES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "nat": {"PREROUTING": ("KUBE-SERVICES",), "OUTPUT": ("KUBE-SERVICES",)},
    "filter": {
        "INPUT": ("KUBE-PROXY-FIREWALL", "KUBE-EXTERNAL-SERVICES"),
        "FORWARD": ("KUBE-PROXY-FIREWALL", "KUBE-FORWARD", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"),
        "OUTPUT": ("KUBE-PROXY-FIREWALL", "KUBE-SERVICES"),
    },
}
"""The chains of ours that decide on new connections, by table and the built-in chain that leads there."""

_MARKERS = (MARK_MASQ, MARK_DROP)


def caught_before(tables: Tables) -> Iterator[Finding]:
    """Rules before our jumps that decide on packets, and otherwise than our chains would."""
    overlaps: Overlaps | None = None
    for table, entrances in _ENTRANCES.items():
        for entrance, chains in entrances.items():
            for chain in chains:
                for jump in _before(tables, table, entrance, chain):
                    overlaps = overlaps or Overlaps(tables.chains, tables.family, _marks(tables))
                    packet = overlaps.between(table, jump.rule, chain)
                    if packet:
                        yield _finding(jump, chain, packet.text, packet.certain)


def _marks(tables: Tables) -> int:
    """The bits of the mark that ours set, and so ask for."""
    return reduce(or_, (mark for chain in _MARKERS for mark in marks_set(tables, chain)), 0)


def _before(tables: Tables, table: str, entrance: str, chain: str) -> list[Jump]:
    """Others' rules in front of the jump to a chain of ours that holds rules."""
    rules = tables.of(table, entrance)
    at = next((jump.position for jump in rules if jump.target == chain), 0)
    if not tables.of(table, chain):
        return []
    return [jump for jump in rules[: max(at - 1, 0)] if not ours(jump.target)]


def _finding(jump: Jump, chain: str, packet: str, certain: bool) -> Finding:
    does = "takes" if certain else "may take"
    return jump.found(
        "caught-before",
        Severity.ERROR if certain else Severity.WARNING,
        f"{does} packets that {chain} would decide on otherwise, such as {packet}",
        f"Move the jump to {chain} before this rule (`kpx apply` puts it first), or narrow the rule.",
    )
