"""Layout `classic`: kube-proxy's, with dispatch chains as long as there are Services."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from kpx.compiler import frame, names
from kpx.compiler.fragment import Entry, Fragment
from kpx.compiler.settings import Settings
from kpx.netfilter.ruleset import Rules, Ruleset, Table, TableName

_DISPATCH: dict[TableName, tuple[str, ...]] = {
    "filter": (names.EXTERNAL_SERVICES, names.NODEPORTS, names.PROXY_FIREWALL, names.SERVICES),
    "nat": (names.NODEPORTS, names.SERVICES),
}


def join(fragments: Iterable[Fragment], settings: Settings) -> Ruleset:
    """Join fragments, in their order, into a ruleset."""
    own: dict[str, Rules] = {}
    dispatch: dict[tuple[TableName, str], list[Entry]] = {
        (table, chain): [] for table, chains in _DISPATCH.items() for chain in chains
    }
    for fragment in fragments:
        own.update(fragment.chains)
        for entry in fragment.entries:
            dispatch[entry.table, entry.chain].append(entry)
    nat = _Joined("nat", {**frame.nat_chains(settings), **own})
    nat.add(names.NODEPORTS, dispatch["nat", names.NODEPORTS])
    nat.add(names.SERVICES, dispatch["nat", names.SERVICES], frame.node_port_jumps(settings))
    filter_ = _Joined("filter", frame.filter_chains(settings))
    for chain in _DISPATCH["filter"]:
        filter_.add(chain, dispatch["filter", chain])
    return Ruleset(settings.family, {"filter": filter_.table(), "nat": nat.table()})


class _Joined:
    """A table in the making."""

    def __init__(self, name: TableName, chains: dict[str, Rules]) -> None:
        self.name, self.chains = name, chains
        self.unordered: dict[str, int] = {}

    def add(self, chain: str, entries: Sequence[Entry], last: Rules = ()) -> None:
        rules = tuple(rule for entry in entries for rule in entry.rules)
        self.chains[chain] = rules + last
        if _disjoint(entries):
            self.unordered[chain] = len(rules)

    def table(self) -> Table:
        return Table(self.chains, frame.JUMPS[self.name], self.unordered)


def _disjoint(entries: Sequence[Entry]) -> bool:
    """Whether no packet can match two of `entries`."""
    keys = {(entry.address, entry.protocol, entry.port) for entry in entries}
    any_address = {(protocol, port) for address, protocol, port in keys if not address}
    return len(keys) == len(entries) and not any(
        address and (protocol, port) in any_address for address, protocol, port in keys
    )


_Chain = tuple[TableName, str]
_Group = tuple[TableName, str, str, int]
"""Table, chain, protocol and port: only entries of one group can match the same packet."""


class Clashes:
    """Where entries of a dispatch chain can match the same packet, kept fragment by fragment.

    In such a chain the order of rules counts, as it does in `join`: it is no longer enough to put new ones in front.
    """

    def __init__(self) -> None:
        self._addresses: dict[_Group, Counter[str]] = defaultdict(Counter)
        self._entries: Counter[_Group] = Counter()
        self._clashing: dict[_Chain, set[_Group]] = defaultdict(set)

    def update(self, before: Fragment | None, after: Fragment | None) -> bool:
        """Take over a change of one fragment; whether the order counts, or did, in a chain that changes by it."""
        old, new = (set(one.entries) if one else set() for one in (before, after))
        chains = {(entry.table, entry.chain) for entry in old ^ new}
        counted = any(self._clashing.get(chain) for chain in chains)
        for entries, difference in ((before.entries if before else (), -1), (after.entries if after else (), 1)):
            for entry in entries:
                self._count(entry, difference)
        return counted or any(self._clashing.get(chain) for chain in chains)

    def _count(self, entry: Entry, difference: int) -> None:
        group = entry.table, entry.chain, entry.protocol, entry.port
        addresses = self._addresses[group]
        addresses[entry.address] += difference
        self._entries[group] += difference
        if not addresses[entry.address]:
            del addresses[entry.address]
        clashes = self._entries[group] > len(addresses) or ("" in addresses and len(addresses) > 1)
        (self._clashing[group[:2]].add if clashes else self._clashing[group[:2]].discard)(group)
        if not addresses:
            del self._addresses[group], self._entries[group]
