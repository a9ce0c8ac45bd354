"""Two sets of rules side by side: the nft and the legacy tables both act on every packet."""

from collections.abc import Collection, Iterator, Mapping

from kpx.analysis.checks.advice import empty_backend
from kpx.analysis.checks.finding import Finding, Severity
from kpx.netfilter.names import ours


def both_backends(chains: Mapping[str, Collection[str]]) -> Iterator[Finding]:
    """Service rules in more than one backend. `chains` are the chains with rules of the nat table, by backend."""
    holding = {backend: sum(map(ours, names)) for backend, names in chains.items()}
    if sum(count > 0 for count in holding.values()) > 1:
        counts = " and ".join(f"{backend} ({count} chains)" for backend, count in holding.items() if count)
        yield Finding(
            "both-backends",
            Severity.ERROR,
            "nat",
            "KUBE-SERVICES",
            f"Service rules stand in two backends, {counts}; the kernel obeys both, whichever is up to date",
            empty_backend(" and ".join(backend for backend, count in holding.items() if count)),
        )
