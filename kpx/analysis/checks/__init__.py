"""Static checks: what can be wrong with the rules for Services, whatever the Services are. Pure.

Each check is a function from tables to findings. None of them says anything of what kube-proxy 1.36 or kpx writes.
"""

from collections.abc import Callable, Iterable, Iterator

from kpx.analysis.checks import dropping, foreign, leftovers, masquerade, order, repeated, services, structure
from kpx.analysis.checks.finding import Finding, Severity, Tables

__all__ = ["CHECKS", "Finding", "Severity", "Tables", "findings"]

CHECKS: tuple[Callable[[Tables], Iterator[Finding]], ...] = (
    structure.dangling_jumps,
    structure.loops,
    structure.missing_jumps,
    structure.empty_chains,
    repeated.repeated_rules,
    order.node_ports_last,
    order.shadowed_rules,
    services.unequal_shares,
    services.endpoint_chains,
    masquerade.masquerade,
    masquerade.hairpins,
    masquerade.external_masquerade,
    dropping.dropping,
    dropping.lost_matches,
    foreign.caught_before,
    leftovers.unreachable_chains,
    leftovers.older_modes,
)


def findings(tables: Tables, checks: Iterable[Callable[[Tables], Iterator[Finding]]] = CHECKS) -> list[Finding]:
    """Everything that checks find, the gravest first, else in the order of checks."""
    return sorted(
        (one for check in checks for one in check(tables)), key=lambda one: list(Severity).index(one.severity)
    )
