"""The plan: every edit that turns the live tables into the desired ruleset. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kpx.family import Family
from kpx.netfilter.names import KUBELET_HINTS, ours, shared
from kpx.netfilter.rule import comment_of, target_of
from kpx.netfilter.ruleset import TABLES, Rules, Ruleset, Table, TableName
from kpx.netfilter.save import Saved, SavedChain
from kpx.reconcile import edit
from kpx.reconcile.edit import Edit, Step

_NOTHING = Table({}, {})
_LOCALHOST_GUARD = "block incoming localnet connections"


@dataclass(frozen=True, slots=True)
class Plan:
    """Edits, and those stale chains that must stay because other programs' rules lead to them."""

    edits: tuple[Edit, ...] = ()
    held: tuple[tuple[TableName, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.edits)


def make_plan(desired: Ruleset, live: Saved) -> Plan:
    """The smallest change from `live` to `desired`, chain by chain; no edits if they mean the same."""
    return _plan(desired, live, frozenset())


def make_removal_plan(family: Family, live: Saved) -> Plan:
    """The plan that leaves nothing of ours.

    KUBE-FIREWALL stays where it is kubelet's: where kubelet's hint chains stand, or rules other than ours.
    """
    mangle = live["mangle"].chains if "mangle" in live else {}
    filter_ = live["filter"].chains if "filter" in live else {}
    kubelet = any(hint in mangle for hint in KUBELET_HINTS)
    keep = {
        chain
        for chain, one in filter_.items()
        if shared(chain) and (kubelet or any(comment_of(rule) != _LOCALHOST_GUARD for rule in one.rules))
    }
    return _plan(Ruleset(family, {}), live, frozenset(keep))


def _plan(desired: Ruleset, live: Saved, keep: frozenset[str]) -> Plan:
    tables = [
        _TablePlan(
            name,
            desired.tables.get(name, _NOTHING),
            live[name].chains if name in live else {},
            desired.family,
            keep,
        )
        for name in TABLES
    ]
    edits = tuple(one for table in tables for one in table.edits() if one)
    return Plan(edits, tuple((table.name, chain) for table in tables for chain in table.held))


class _TablePlan:
    """One table's edits. `keep` are chains of ours that are not ours alone, and stay with the jumps to them."""

    def __init__(
        self,
        name: TableName,
        desired: Table,
        live: Mapping[str, SavedChain],
        family: Family,
        keep: frozenset[str],
    ) -> None:
        self.name, self.desired, self.live, self.family = name, desired, live, family
        self.mine = frozenset(chain for chain in live if ours(chain)) | desired.chains.keys()
        self.mine -= keep
        stale = [chain for chain in live if chain in self.mine and chain not in desired.chains]
        needed = self._needed_by_others() if stale else frozenset()
        self.held = tuple(chain for chain in stale if chain in needed)
        self.stale = tuple(chain for chain in stale if chain not in needed)

    def edits(self) -> Iterator[Edit]:
        """All edits, some perhaps empty: chains bottom-up, the built-in ones, then what goes."""
        for chain, rules in self.desired.chains.items():
            existing = self.live.get(chain)
            if existing is None:
                yield edit.create(self.name, chain, rules, separable=chain in self.desired.unordered)
            elif existing.rules != rules:
                yield self._change(chain, existing.rules, rules)
        for chain in dict.fromkeys((*self.live, *self.desired.jumps)):
            if chain in self.desired.jumps or self.live[chain].policy is not None:
                rules = self.live[chain].rules if chain in self.live else ()
                jumps = self.desired.jumps.get(chain, ())
                yield edit.change_jumps(self.name, chain, rules, jumps, self.mine, self.family)
        for chain in self.stale:
            yield Edit(self.name, chain, Step.DELETE, self.live[chain].rules)

    def _change(self, chain: str, live: Rules, desired: Rules) -> Edit:
        if shared(chain):
            return edit.change_shared(self.name, chain, live, desired, self.family)
        if chain in self.desired.unordered:
            free = self.desired.unordered[chain]
            return edit.change_unordered(self.name, chain, live, desired, free, self.family)
        # Of rules that all accept it makes no difference which comes first, although several may match a packet: the
        # ports of a Service share one health check node port.
        if all(target_of(rule) == "ACCEPT" for rule in desired):
            return edit.change_unordered(self.name, chain, live, desired, len(desired), self.family)
        return edit.change_ordered(self.name, chain, live, desired, self.family)

    def _needed_by_others(self) -> frozenset[str]:
        """Chains that rules in other programs' chains lead to, straight or through chains of ours."""
        needed: set[str] = set()
        edge = [
            chain
            for chain, one in self.live.items()
            if one.policy is None and chain not in self.mine and chain not in self.desired.jumps
        ]
        while edge:
            targets = {target_of(rule) for chain in edge for rule in self.live[chain].rules}
            edge = [one for one in targets if one in self.mine and one in self.live and one not in needed]
            needed.update(edge)
        return frozenset(needed)
