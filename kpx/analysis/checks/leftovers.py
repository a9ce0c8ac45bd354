"""What nobody needs: chains that no packet reaches, by whom they were made, and what older modes left."""

from collections.abc import Iterator, Mapping

from kpx.analysis.checks.advice import LEFT, OLD_MODE, UNUSED, held_by
from kpx.analysis.checks.finding import BUILT_IN, Finding, Jump, Severity, Tables
from kpx.netfilter.names import MARK_DROP, OWN, ours

_OLD = {
    "KUBE-PORTALS-": "the userspace mode of old kube-proxies",
    "KUBE-LOAD-BALANCER": "the IPVS mode of kube-proxy",
    "KUBE-NODE-PORT": "the IPVS mode of kube-proxy",
    "KUBE-IPVS-": "the IPVS mode of kube-proxy",
    "KUBE-SOURCE-RANGES-FIREWALL": "the IPVS mode of kube-proxy",
}
"""How chains of other modes are called."""

_STANDING = OWN | {MARK_DROP}
"""Chains that stand whether somebody jumps to them or not."""


_ENTERED = BUILT_IN | {"KUBE-NODEPORTS"}
"""From where chains are reached. A proxy that may use no address for node ports fills KUBE-NODEPORTS all the same."""


def unreachable_chains(tables: Tables) -> Iterator[Finding]:
    """Chains of Services that no packet can reach, and other chains with rules that none can reach."""
    for table, chains in tables.jumps.items():
        reached = _reached(chains)
        called = {jump.target for rules in chains.values() for jump in rules}
        for chain, rules in chains.items():
            if chain in reached or chain in _STANDING or _old_mode(chain):
                continue
            if ours(chain):
                yield _leftover(tables, table, chain, chain in called)
            elif rules:
                yield Finding(
                    "unreachable-chain",
                    Severity.WARNING,
                    table,
                    chain,
                    "holds rules, but no way leads there from a built-in chain",
                    UNUSED,
                )


def _leftover(tables: Tables, table: str, chain: str, called: bool) -> Finding:
    holder = next(_others_above(tables.jumps[table], chain), "")
    by_whom = "only chains that are out of reach themselves jump to it" if called else "no rule jumps to it"
    return Finding(
        "leftover",
        Severity.WARNING,
        table,
        chain,
        f"belongs to no Service any more: {by_whom}",
        held_by(holder) if holder else LEFT,
        owner=tables.owner(chain),
    )


def _others_above(chains: Mapping[str, tuple[Jump, ...]], chain: str) -> Iterator[str]:
    """Other programs' chains that lead to a chain, straight or through chains of ours."""
    edge, seen = [chain], {chain}
    while edge:
        below = edge.pop()
        for caller, rules in chains.items():
            if caller not in seen and any(jump.target == below for jump in rules):
                seen.add(caller)
                if ours(caller):
                    edge.append(caller)
                else:
                    yield caller


def older_modes(tables: Tables) -> Iterator[Finding]:
    """Chains that other proxy modes or versions left."""
    for table, chains in tables:
        for chain in chains:
            whose = _old_mode(chain)
            if whose:
                yield Finding(
                    "older-mode",
                    Severity.WARNING,
                    table,
                    chain,
                    f"was made by {whose}, and its rules may still act on packets",
                    OLD_MODE,
                )


def _old_mode(chain: str) -> str:
    return next((whose for prefix, whose in _OLD.items() if chain.startswith(prefix)), "")


def _reached(chains: Mapping[str, tuple[Jump, ...]]) -> set[str]:
    """The chains that a way leads to from a built-in chain."""
    found: set[str] = set()
    edge = [chain for chain in chains if chain in _ENTERED]
    while edge:
        chain = edge.pop()
        if chain not in found:
            found.add(chain)
            edge += (jump.target for jump in chains.get(chain, ()) if jump.target in chains)
    return found
