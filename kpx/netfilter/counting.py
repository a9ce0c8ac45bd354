"""Rules that only count packets, for kube-proxy's metrics: `-m nfacct`. Pure.

kube-proxy 1.36 counts, where the kernel has nfacct, in both families what it drops as INVALID, within the rule that
drops it, and, for IPv4, what comes to node ports on localhost, in a rule before each node port's own that leads to the
same chain. No packet meets another verdict by it.
"""

import re
from collections.abc import Iterator, Mapping

from kpx.netfilter.names import PER_PORT, ours
from kpx.netfilter.ruleset import Rules
from kpx.netfilter.save import Saved, SavedChain, SavedTable

INVALID_DROPPED = "ct_state_invalid_dropped_pkts"
LOCALHOST_ACCEPTED = "localhost_nps_accepted_pkts"
NAMES = (INVALID_DROPPED, LOCALHOST_ACCEPTED)
"""kube-proxy's counters, by their names in the kernel."""

LOCALHOST = "-d 127.0.0.0/8 "
_MATCH = re.compile(rf"-m nfacct --nfacct-name +(?:{'|'.join(NAMES)}) ")


def counted_by(name: str) -> str:
    """The match that counts, as iptables-save prints it, and a space."""
    return f"-m nfacct --nfacct-name  {name} "


def counts(rule: str) -> bool:
    """Whether a rule counts for kube-proxy's metrics; it has a target besides."""
    return _MATCH.search(rule) is not None


def any_counts(saved: Saved) -> bool:
    """Whether any rule of the chains that all Services share counts."""
    return any(
        counts(rule)
        for table in saved.values()
        for name in table.chains
        if ours(name) and not name.startswith(PER_PORT)
        for rule in table.chains[name].rules
    )


def uncounted(saved: Saved) -> Saved:
    """The same rules without what only counts."""
    return {name: SavedTable(_Uncounted(table.chains)) for name, table in saved.items()}


def without_counting(rules: Rules) -> Rules:
    """The rules of a chain without what only counts."""
    plain = tuple(_MATCH.sub("", rule) for rule in rules)
    if plain == rules:
        return rules
    known = frozenset(plain)
    return tuple(
        rule
        for rule, before in zip(plain, rules, strict=True)
        if rule == before or not rule.startswith(LOCALHOST) or rule.removeprefix(LOCALHOST) not in known
    )


class _Uncounted(Mapping[str, SavedChain]):
    """Chains without what only counts, each made when it is asked for."""

    def __init__(self, chains: Mapping[str, SavedChain]) -> None:
        self._chains = chains

    def __getitem__(self, name: str) -> SavedChain:
        chain = self._chains[name]
        rules = without_counting(chain.rules)
        if rules is chain.rules:
            return chain
        return SavedChain(chain.policy, chain.packets, chain.bytes, rules, None)

    def __contains__(self, name: object) -> bool:
        return name in self._chains

    def __iter__(self) -> Iterator[str]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)
