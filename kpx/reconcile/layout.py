"""Which layout do rules have that are there? Pure."""

from collections.abc import Iterable

from kpx.compiler.compile import Layout
from kpx.compiler.names import POSTROUTING, SERVICES
from kpx.netfilter.names import CHOICES, TREE
from kpx.netfilter.save import Saved


def layout_of(live: Iterable[Saved]) -> Layout:
    """The layout of rules: kube-proxy's, unless it needs no lists or there are trees among them.

    `compact` shows itself by its rule for packets of pods to themselves; or, where that was lost, by a chain of a
    Service that translates.
    """
    every = tuple(live)
    nat = [item for saved in every if "nat" in saved for item in saved["nat"].chains.items()]
    if any(_is_compact(chain, rule) for chain, one in nat for rule in one.rules):
        return Layout.COMPACT
    chains = {chain for saved in every for table in saved.values() for chain in table.chains}
    trees = any(chain.startswith(TREE) for chain in chains)
    return Layout.CLASSIC if SERVICES in chains and not trees else Layout.TREE


def _is_compact(chain: str, rule: str) -> bool:
    """Whether only the layout `compact` has such a rule."""
    if chain == POSTROUTING:
        return "-m bpf" in rule
    return chain.startswith(CHOICES) and "-j DNAT " in rule
