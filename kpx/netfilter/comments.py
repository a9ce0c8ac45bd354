"""Rules that are the same but that one has a comment and the other has none. Pure.

kube-proxy leaves comments off while a family has more than 1,000 endpoints. It writes a chain again only when its
Service changes, so that on a node whose cluster has grown or shrunk there are some of both kinds. No packet meets
anything else by it.
"""

import re
from collections.abc import Iterator, Mapping

from kpx.netfilter.ruleset import Rules, Ruleset, Table
from kpx.netfilter.save import Saved, SavedChain, SavedTable

_COMMENT = re.compile(r'-m comment --comment (?:"(?:[^"\\]|\\.)*"|[^\s"]+) ')


def bare(rule: str) -> str:
    """A rule without its comment."""
    return _COMMENT.sub("", rule)


def commented_alike(saved: Saved, desired: Ruleset) -> Saved:
    """The same rules, with comments as `desired` has them where only one of both has any."""
    wanted: Mapping[str, Table] = dict(desired.tables.items())
    return {
        name: SavedTable(_Alike(table.chains, wanted[name])) if name in wanted else table
        for name, table in saved.items()
    }


class _Alike(Mapping[str, SavedChain]):
    """Chains with their comments as those of a table, each made when it is asked for."""

    def __init__(self, chains: Mapping[str, SavedChain], desired: Table) -> None:
        self._chains, self._desired = chains, desired

    def __getitem__(self, name: str) -> SavedChain:
        chain = self._chains[name]
        wanted = self._desired.chains.get(name, ()) or self._desired.jumps.get(name, ())
        rules = _alike(chain.rules, wanted) if wanted and chain.rules != wanted else chain.rules
        if rules is chain.rules:
            return chain
        return SavedChain(chain.policy, chain.packets, chain.bytes, rules, chain.counters)

    def __contains__(self, name: object) -> bool:
        return name in self._chains

    def __iter__(self) -> Iterator[str]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)


def _alike(rules: Rules, wanted: Rules) -> Rules:
    same = frozenset(wanted)
    others = {bare(rule): rule for rule in wanted}
    found = tuple(rule if rule in same else _counterpart(rule, others) for rule in rules)
    return found if found != rules else rules


def _counterpart(rule: str, others: Mapping[str, str]) -> str:
    plain = bare(rule)
    other = others.get(plain, rule)
    return other if (plain == rule) != (plain == other) else rule
