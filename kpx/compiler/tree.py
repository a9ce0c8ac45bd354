"""Layout `tree`: search trees for dispatch and choice, so that a packet passes O(log n) rules. `classic` if small."""

from collections.abc import Iterable, Iterator, Mapping

from kpx.compiler import frame, names
from kpx.compiler.choice import Grouped
from kpx.compiler.dispatch import DEFAULT, ChainChange, Dispatch, Look, Thresholds
from kpx.compiler.fragment import Entry, Fragment
from kpx.compiler.settings import Settings
from kpx.model.service import ServicePortName
from kpx.netfilter.ruleset import TABLES, Rules, Ruleset, Table, TableName

choose = Grouped()
"""How chains choose among endpoints in this layout."""

_PREFIXES: dict[TableName, dict[str, str]] = {
    "filter": {
        names.EXTERNAL_SERVICES: "KPX-E-",
        names.NODEPORTS: "KPX-N-",
        names.PROXY_FIREWALL: "KPX-F-",
        names.SERVICES: "KPX-S-",
    },
    "nat": {names.NODEPORTS: "KPX-N-", names.SERVICES: "KPX-S-"},
}
"""What the chains below each dispatch chain are called."""

Change = tuple[Fragment | None, Fragment | None]
"""A service port's fragment before and after; None where there is no such service port."""


def join(fragments: Iterable[Fragment], settings: Settings, thresholds: Thresholds = DEFAULT) -> Ruleset:
    """Join fragments, in whatever order they come, into a ruleset."""
    forest = Forest(settings, thresholds)
    own: dict[str, Rules] = {}
    for fragment in fragments:
        own.update(fragment.chains)
        forest.add(fragment)
    return forest.ruleset(own)


class Forest:
    """All dispatch chains with their trees, for a set of fragments that changes one by one.

    How they look is a function of that set, not of how it came about. What a change costs doesn't depend on how
    many fragments there are.
    """

    def __init__(self, settings: Settings, thresholds: Thresholds = DEFAULT) -> None:
        self.settings, self._thresholds = settings, thresholds
        self._dispatch = {
            table: {chain: self._make(table, chain, prefix) for chain, prefix in chains.items()}
            for table, chains in _PREFIXES.items()
        }

    def _make(self, table: TableName, chain: str, prefix: str) -> Dispatch:
        last = frame.node_port_jumps(self.settings) if (table, chain) == ("nat", names.SERVICES) else ()
        mixed = chain == names.EXTERNAL_SERVICES
        return Dispatch(chain, prefix, self.settings.family, self._thresholds, last, mixed)

    def add(self, fragment: Fragment) -> None:
        """Add the entries of a fragment."""
        for name, place, entry in _entries(fragment):
            self._dispatch[entry.table][entry.chain].add(name, place, entry)

    def update(self, changes: Iterable[Change]) -> Mapping[TableName, tuple[ChainChange, ...]]:
        """Take over changes of fragments. Returns what becomes of dispatch chains, bottom-up, and those that go last.

        Raises KeyError or ValueError if a fragment before isn't what is there.
        """
        for dispatches in self._dispatch.values():
            for dispatch in dispatches.values():
                dispatch.follow()
        for before, after in changes:
            old, new = set(_entries(before)), set(_entries(after))
            for name, place, entry in old - new:
                self._dispatch[entry.table][entry.chain].remove(name, place, entry)
            for name, place, entry in new - old:
                self._dispatch[entry.table][entry.chain].add(name, place, entry)
        return {
            table: tuple(change for dispatch in self._dispatch[table].values() for change in dispatch.changes())
            for table in TABLES
        }

    def ruleset(self, own: Mapping[str, Rules]) -> Ruleset:
        """The whole ruleset; `own` are the fragments' own chains."""
        nat = {**frame.nat_chains(self.settings), **own}
        return Ruleset(
            self.settings.family,
            {"filter": self._table("filter", frame.filter_chains(self.settings)), "nat": self._table("nat", nat)},
        )

    def _table(self, table: TableName, chains: dict[str, Rules]) -> Table:
        unordered: dict[str, int] = {}
        for name, look in self._looks(table):
            chains[name] = look.rules
            if look.free is not None:
                unordered[name] = look.free
        return Table(chains, frame.JUMPS[table], unordered)

    def _looks(self, table: TableName) -> Iterator[tuple[str, Look]]:
        for dispatch in self._dispatch[table].values():
            yield from dispatch.chains()


def _entries(fragment: Fragment | None) -> Iterator[tuple[ServicePortName, int, Entry]]:
    """The entries of a fragment, each with the place where it stands."""
    if fragment:
        yield from ((fragment.name, place, entry) for place, entry in enumerate(fragment.entries))
