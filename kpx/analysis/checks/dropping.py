"""Is what Services refuse dropped, and nothing else?

Before 1.26 kube-proxy only marked it, and kubelet had what is marked dropped, in KUBE-FIREWALL.
"""

from collections.abc import Iterator

from kpx.analysis.checks.advice import LOST_MATCH, NEWER_PROXY
from kpx.analysis.checks.finding import Finding, Severity, Tables
from kpx.analysis.checks.marks import asks_for, is_used, marks_set
from kpx.netfilter.names import MARK_DROP

_EXECUTOR = "KUBE-FIREWALL"


def dropping(tables: Tables) -> Iterator[Finding]:
    """KUBE-MARK-DROP that marks nothing, or a mark that KUBE-FIREWALL doesn't drop, where rules send packets there."""
    if not is_used(tables, MARK_DROP):
        return
    marks = marks_set(tables, MARK_DROP)
    if not marks:
        yield _wrong("nat", MARK_DROP, "sets no mark")
    for mark in marks:
        drops = [tables.parsed(jump.rule) for jump in tables.of("filter", _EXECUTOR) if jump.target == "DROP"]
        if not any(any(match.module == "mark" for match in rule.matches) and asks_for(rule, mark) for rule in drops):
            yield _wrong("filter", _EXECUTOR, f"does not drop packets with the mark {mark:#x}, which {MARK_DROP} sets")


def lost_matches(tables: Tables) -> Iterator[Finding]:
    """Rules of KUBE-FIREWALL that drop every packet: their match was lost (kubernetes/kubernetes #112477)."""
    for jump in tables.of("filter", _EXECUTOR):
        rule = tables.parsed(jump.rule)
        if jump.target == "DROP" and not rule.head and all(match.module == "comment" for match in rule.matches):
            yield jump.found(
                "lost-match",
                Severity.ERROR,
                "drops every packet to and from the node, whatever it is: the match of a mark was lost",
                LOST_MATCH,
            )


def _wrong(table: str, chain: str, what: str) -> Finding:
    return Finding(
        "missing-drop",
        Severity.ERROR,
        table,
        chain,
        f"{what}; what Services refuse, such as clients outside of a load balancer's source ranges, is not dropped",
        NEWER_PROXY,
    )
