"""The plan: every edit that turns the live tables into the desired ruleset. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kpx.family import Family
from kpx.netfilter.names import KUBELET_HINTS, ours, shared
from kpx.netfilter.ruleset import TABLES, Rules, Ruleset, Table, TableName
from kpx.netfilter.save import Saved, SavedChain
from kpx.netfilter.text import comment_of, target_of
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
    planner = Planner(desired.family, live, keep)
    edits = planner.take(desired)
    gone, held = planner.finish()
    return Plan((*edits, *gone), held)


class Planner:
    """A plan in the making: takes the desired ruleset in parts, so that it need never be in memory as a whole.

    `keep` are chains of ours that are not ours alone, and stay with the jumps to them.
    """

    def __init__(self, family: Family, live: Saved, keep: frozenset[str] = frozenset()) -> None:
        self._tables = {
            name: _TablePlan(name, live[name].chains if name in live else {}, family, keep) for name in TABLES
        }

    def chains(self, table: TableName, chains: Mapping[str, Rules]) -> list[Edit]:
        """What becomes of these chains, whose order of rules counts. Each comes after those it jumps to.

        A chain that comes again, here or in `take`, is passed over.
        """
        edits = (self._tables[table].chain(chain, rules, None) for chain, rules in chains.items())
        return [one for one in edits if one]

    def take(self, ruleset: Ruleset) -> list[Edit]:
        """What becomes of the chains of this part, and of the jumps from built-in chains: to be given once."""
        edits: list[Edit | None] = []
        for name, plan in self._tables.items():
            table = ruleset.tables.get(name, _NOTHING)
            edits += (plan.chain(chain, rules, table.unordered.get(chain)) for chain, rules in table.chains.items())
            edits += plan.jumps(table.jumps)
        return [one for one in edits if one]

    def finish(self) -> tuple[list[Edit], tuple[tuple[TableName, str], ...]]:
        """What becomes of chains of ours that weren't taken; and which of them have to stay."""
        gone = [one for plan in self._tables.values() for one in plan.deletions()]
        return gone, tuple((plan.name, chain) for plan in self._tables.values() for chain in plan.held)


@dataclass(frozen=True, slots=True)
class _Mine:
    """The names of chains that are ours, but for some: also of those that `live` leaves out, as rules jump to them."""

    keep: frozenset[str]

    def __contains__(self, chain: object) -> bool:
        return isinstance(chain, str) and ours(chain) and chain not in self.keep


class _TablePlan:
    """One table's edits; some may be empty."""

    def __init__(self, name: TableName, live: Mapping[str, SavedChain], family: Family, keep: frozenset[str]) -> None:
        self.name, self.live, self.family = name, live, family
        self.mine = _Mine(keep)
        self.taken: set[str] = set()
        self.entered: frozenset[str] = frozenset()
        self.held: tuple[str, ...] = ()

    def chain(self, chain: str, rules: Rules, free: int | None) -> Edit | None:
        """What becomes of a chain of ours; `free` as in `Table.unordered`."""
        if chain in self.taken:
            return None
        self.taken.add(chain)
        existing = self.live.get(chain)
        if existing is None:
            return edit.create(self.name, chain, rules, separable=free is not None)
        return self._change(chain, existing.rules, rules, free) if existing.rules != rules else None

    def jumps(self, desired: Mapping[str, Rules]) -> Iterator[Edit]:
        """What becomes of the built-in chains."""
        self.entered = frozenset(desired)
        for chain in dict.fromkeys((*self.live, *desired)):
            if chain in desired or (not ours(chain) and self.live[chain].policy is not None):
                rules = self.live[chain].rules if chain in self.live else ()
                yield edit.change_jumps(self.name, chain, rules, desired.get(chain, ()), self.mine, self.family)

    def deletions(self) -> list[Edit]:
        """What becomes of the chains that weren't taken."""
        stale = [chain for chain in self.live if chain in self.mine and chain not in self.taken]
        needed = self._needed_by_others() if stale else frozenset()
        self.held = tuple(chain for chain in stale if chain in needed)
        return [Edit(self.name, chain, Step.DELETE, self.live[chain].rules) for chain in stale if chain not in needed]

    def _change(self, chain: str, live: Rules, desired: Rules, free: int | None) -> Edit:
        if shared(chain):
            return edit.change_shared(self.name, chain, live, desired, self.family)
        if free is not None:
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
            for chain in self.live
            if chain not in self.mine and chain not in self.entered and self.live[chain].policy is None
        ]
        while edge:
            targets = {target_of(rule) for chain in edge for rule in self.live[chain].rules}
            edge = [one for one in targets if one and one in self.mine and one in self.live and one not in needed]
            needed.update(edge)
        return frozenset(needed)
