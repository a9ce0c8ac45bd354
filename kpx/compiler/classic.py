"""Layout `classic`: kube-proxy's, with dispatch chains as long as there are Services."""

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
        self.chains[chain] = tuple(entry.rule for entry in entries) + last
        if _disjoint(entries):
            self.unordered[chain] = len(entries)

    def table(self) -> Table:
        return Table(self.chains, frame.JUMPS[self.name], self.unordered)


def _disjoint(entries: Sequence[Entry]) -> bool:
    """Whether no packet can match two of `entries`."""
    keys = {(entry.address, entry.protocol, entry.port) for entry in entries}
    any_address = {(protocol, port) for address, protocol, port in keys if not address}
    return len(keys) == len(entries) and not any(
        address and (protocol, port) in any_address for address, protocol, port in keys
    )
