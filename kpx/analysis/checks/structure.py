"""Chains as a graph: jumps to nowhere, in circles, missing or twice; chains that nobody jumps to."""

from collections.abc import Iterator, Mapping

from kpx.analysis.checks.advice import CHAIN_AGAIN, JUMPS_AGAIN, REFUSED, REFUSED_OURS, Advice
from kpx.analysis.checks.finding import BUILT_IN, Finding, Jump, Severity, Tables
from kpx.netfilter.names import ours

_TARGETS = frozenset(
    {
        "ACCEPT", "DROP", "RETURN", "QUEUE", "AUDIT", "CHECKSUM", "CLASSIFY", "CLUSTERIP", "CONNMARK",
        "CONNSECMARK", "CT", "DNAT", "DNPT", "DSCP", "ECN", "HL", "HMARK", "IDLETIMER", "LED", "LOG", "MARK",
        "MASQUERADE", "NETMAP", "NFLOG", "NFQUEUE", "NOTRACK", "RATEEST", "REDIRECT", "REJECT", "SECMARK",
        "SET", "SNAT", "SNPT", "SYNPROXY", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TPROXY", "TRACE", "TTL",
        "ULOG",
    }
)  # fmt: skip
"""Verdicts, and the targets that come with iptables."""

_ENTRANCES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("nat", "KUBE-SERVICES"): ("PREROUTING", "OUTPUT"),
    ("nat", "KUBE-POSTROUTING"): ("POSTROUTING",),
    ("filter", "KUBE-SERVICES"): ("FORWARD", "OUTPUT"),
    ("filter", "KUBE-EXTERNAL-SERVICES"): ("INPUT", "FORWARD"),
    ("filter", "KUBE-PROXY-FIREWALL"): ("INPUT", "FORWARD", "OUTPUT"),
    ("filter", "KUBE-NODEPORTS"): ("INPUT",),
    ("filter", "KUBE-FORWARD"): ("FORWARD",),
    ("filter", "KUBE-FIREWALL"): ("INPUT", "OUTPUT"),
}
"""From where the kernel has to enter a chain of ours, if that chain holds rules."""


def dangling_jumps(tables: Tables) -> Iterator[Finding]:
    """Jumps to chains that aren't there. Only texts have them: the kernel takes none."""
    for table, chains in tables.jumps.items():
        for jump in (jump for rules in chains.values() for jump in rules):
            if jump.target and jump.target not in chains and jump.target not in _TARGETS:
                yield jump.found(
                    "dangling-jump",
                    Severity.ERROR,
                    f"jumps to {jump.target}, which is neither a chain of table {table} nor a target of iptables",
                    _refused(jump),
                )


def _refused(jump: Jump) -> Advice:
    """What a proxy has written, it should write again; nobody deletes that by hand."""
    return REFUSED_OURS if ours(jump.chain) else REFUSED


def empty_chains(tables: Tables) -> Iterator[Finding]:
    """Jumps into chains of a Service that hold no rule: packets come back untranslated."""
    chains = tables.jumps.get("nat", {})
    for jump in (jump for rules in chains.values() for jump in rules):
        if (
            jump.target.startswith(("KUBE-S", "KUBE-E", "KUBE-FW-", "KUBE-XLB-", "KPX-"))
            and chains.get(jump.target) == ()
        ):
            if jump.chain in BUILT_IN:
                continue  # no Service yet
            yield jump.found(
                "empty-chain",
                Severity.ERROR,
                f"jumps to {jump.target}, which is empty: what was meant for this Service goes on untranslated",
                CHAIN_AGAIN,
                tables.owner(jump.target),
            )


def loops(tables: Tables) -> Iterator[Finding]:
    """Jumps that lead back to their own chain. Only texts have them: the kernel takes none."""
    for chains in tables.jumps.values():
        for jump in _back_edges(chains):
            yield jump.found(
                "loop",
                Severity.ERROR,
                f"leads back to {jump.target}, from where it is reached",
                _refused(jump),
            )


def _back_edges(chains: Mapping[str, tuple[Jump, ...]]) -> Iterator[Jump]:
    """The jumps that close a circle, by a walk in depth without recursion."""
    done: set[str] = set()
    for start in chains:
        open_: dict[str, Iterator[Jump]] = {}
        if start not in done:
            open_[start] = iter(chains[start])
        while open_:
            chain, rest = next(reversed(open_.items()))
            jump = next(rest, None)
            if jump is None:
                done.add(chain)
                del open_[chain]
            elif jump.target in open_:
                yield jump
            elif jump.target in chains and jump.target not in done:
                open_[jump.target] = iter(chains[jump.target])


def missing_jumps(tables: Tables) -> Iterator[Finding]:
    """Built-in chains without their jump to a chain of ours that holds rules."""
    for (table, chain), entrances in _ENTRANCES.items():
        if not tables.of(table, chain):
            continue
        for entrance in entrances:
            if all(jump.target != chain for jump in tables.of(table, entrance)):
                yield Finding(
                    "missing-jump",
                    Severity.ERROR,
                    table,
                    entrance,
                    f"no rule of {entrance} jumps to {chain}: no packet that passes here meets its rules",
                    JUMPS_AGAIN,
                )
