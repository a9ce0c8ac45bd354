"""One dispatch chain as a tree of chains, kept up to date entry by entry. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kpx.compiler.fragment import Entry
from kpx.compiler.prefix_tree import ROOT, Held, Prefix, PrefixTree, Shape
from kpx.compiler.space import Space, without_address
from kpx.family import Family
from kpx.model.service import ServicePortName
from kpx.netfilter.ruleset import Rules


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A dispatch chain becomes a tree, of this shape, when it has more than `linear` entries."""

    linear: int
    shape: Shape


DEFAULT = Thresholds(linear=16, shape=Shape(leaf=8, crowd=64, inline=2, height=6))
"""Chosen by measurement: a packet to any of 10,000 Services is compared with 22 to 24 dispatch rules on average.

A rule that matches a network costs the kernel about 13 ns, an entry 50 ns, a range of ports 75 ns. So entries stand
in small buckets, but ports of one address together: splitting them would make the whole tree higher for a few
Services.

The height is bounded because nf_tables bounds it: a packet may pass 15 chains, one below the other, besides the
built-in one (`NFT_JUMP_STACK_SIZE` in the kernel's `nf_tables.h`; a goto counts as a jump does). The longest way is
KUBE-SERVICES, the tree, KUBE-FW, KUBE-EXT, KUBE-SVC, two groups of endpoints, KUBE-SEP and KUBE-MARK-MASQ; behind
KUBE-NODEPORTS there is no KUBE-FW. A height of 6 leaves one chain to others.
"""


@dataclass(frozen=True, slots=True)
class Look:
    """What a chain holds; its first `free` rules may stand in any order (None: order counts throughout).

    But for rules that only count: they stand before the one that they count for.
    """

    rules: Rules
    free: int | None


@dataclass(frozen=True, slots=True)
class ChainChange:
    """A chain's look before and after; None where there is no such chain."""

    chain: str
    before: Look | None
    after: Look | None


@dataclass(frozen=True, slots=True, order=True)
class _Item:
    """An entry's rules. Sorts as rules stand in a linear chain: by service port, then as in the fragment."""

    owner: ServicePortName
    place: int
    rules: Rules


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The entries that are told apart by one kind of key."""

    space: Space
    tree: PrefixTree[_Item]


_Node = tuple[_Part, Prefix]


class Dispatch:
    """The dispatch chain `name`, with the chains below it, which are called `prefix` and then by what leads there.

    `last` are the chain's last rules, for packets that match no entry.

    `mixed` says that entries for addresses and for node ports share the chain. Then a packet to one of the node's own
    addresses can match one of each: if that address and port is a Service's external one, and the port another
    Service's node port. The first in the order of service ports has to win, so the rules of an address are preceded by
    those of such node ports.
    """

    def __init__(
        self, name: str, prefix: str, family: Family, thresholds: Thresholds, last: Rules = (), mixed: bool = False
    ) -> None:
        self.name, self._prefix, self._last, self._linear = name, prefix, last, thresholds.linear
        spaces = (Space(family), Space(None))
        self._addresses, self._ports = (
            _Part(one, PrefixTree(one.levels, one.shared, thresholds.shape)) for one in spaces
        )
        self._rivals = _Rivals(self._addresses, self._ports) if mixed else None
        self._before: dict[_Node, Look | None] | None = None

    def __len__(self) -> int:
        """How many entries there are; those with the same key count once."""
        return len(self._addresses.tree) + len(self._ports.tree)

    # -- changes ---------------------------------------------------------------------------------------

    def add(self, owner: ServicePortName, place: int, entry: Entry) -> None:
        """Add the entry that stands at `place` in the fragment of `owner`."""
        part, key = self._where(entry)
        self._note(part, key)
        made = part.tree.add(key, _Item(owner, place, entry.rules))
        if self._rivals:
            self._rivals.update(part, key)
        if self._before is not None:
            for prefix in made:
                self._before.setdefault((part, prefix), None)

    def remove(self, owner: ServicePortName, place: int, entry: Entry) -> None:
        """Remove an entry. Raises KeyError or ValueError if it isn't there."""
        part, key = self._where(entry)
        self._note(part, key)
        part.tree.remove(key, _Item(owner, place, entry.rules))
        if self._rivals:
            self._rivals.update(part, key)

    def follow(self) -> None:
        """Note from now on what changes."""
        self._before = {}

    def changes(self) -> Iterator[ChainChange]:
        """What changed since `follow`: each chain after those it leads to, then what is gone, top-down."""
        noted, self._before = self._before or {}, None
        changed: list[ChainChange] = []
        gone: list[ChainChange] = []
        for (part, prefix), before in sorted(noted.items(), key=lambda one: -one[0][1].length):
            after = self._look(part, prefix)
            if after != before:
                change = ChainChange(self._chain(part, prefix), before, after)
                (changed if after else gone).append(change)
        yield from changed
        yield from reversed(gone)

    def _where(self, entry: Entry) -> tuple[_Part, int]:
        part = self._addresses if entry.address else self._ports
        return part, part.space.key(entry.address, entry.protocol, entry.port)

    def _note(self, part: _Part, key: int) -> None:
        """Note how those chains look that may be about to change."""
        if self._before is not None:
            for node in self._reach(part, key):
                if node not in self._before:
                    self._before[node] = self._look(*node)

    def _reach(self, part: _Part, key: int) -> Iterator[_Node]:
        """Whose look can change with an entry at `key`."""
        yield self._addresses, ROOT
        if len(self) <= self._linear + 1:  # a few entries: they may become a tree, or cease to be one
            parts = (self._addresses, self._ports)
            yield from ((one, prefix) for one in parts for prefix in one.tree.nodes() if prefix != ROOT)
        yield from ((part, prefix) for prefix in part.tree.reach(key) if prefix != ROOT)
        if part is self._ports and self._rivals:
            for rival in self._rivals.of(key):
                yield from ((self._addresses, prefix) for prefix in self._addresses.tree.reach(rival) if prefix != ROOT)

    # -- rules -----------------------------------------------------------------------------------------

    def chains(self) -> Iterator[tuple[str, Look]]:
        """All chains, each after those it leads to."""
        if len(self) > self._linear:
            for part in (self._addresses, self._ports):
                for prefix in part.tree.nodes():
                    if prefix != ROOT:
                        yield self._chain(part, prefix), self._listed(part, prefix)
        yield self.name, self._main()

    def _chain(self, part: _Part, prefix: Prefix) -> str:
        return self.name if prefix == ROOT else self._prefix + part.space.label(prefix)

    def _look(self, part: _Part, prefix: Prefix) -> Look | None:
        """How the chain of a prefix looks; None if it has none."""
        if prefix == ROOT:
            return self._main()
        look = self._listed(part, prefix) if len(self) > self._linear else None
        return look if look and look.rules else None

    def _main(self) -> Look:
        parts = (self._addresses, self._ports)
        if len(self) > self._linear:
            looks = [self._listed(part, ROOT) for part in parts]
            rules = looks[0].rules + looks[1].rules
            free = None not in (looks[0].free, looks[1].free)
        else:
            items = sorted(item for part in parts for item in part.tree.everything())
            rules = tuple(rule for item in items for rule in item.rules)
            free = len(items) == len(self)
        clashes = self._rivals is not None and self._rivals.clash
        return Look(rules + self._last, len(rules) if free and not clashes else None)

    def _listed(self, part: _Part, prefix: Prefix) -> Look:
        """What stands in a chain of the tree, the main one included. Within the tree, what leads on doesn't come back.

        So a packet that finds nothing there goes on in the main chain, right behind where it left.
        """
        arrow = "-j" if prefix == ROOT else "-g"
        rules: list[str] = []
        free = True
        for one in part.tree.look(prefix):
            if isinstance(one, Prefix):
                rules.append(f"{part.space.match(one)} {arrow} {self._chain(part, one)}")
            else:
                items = self._in_order(part, one)
                rules += (rule for item in items for rule in item.rules)
                free = free and len(items) == 1
        return Look(tuple(rules), len(rules) if free else None)

    def _in_order(self, part: _Part, held: Held[_Item]) -> Sequence[_Item]:
        items = sorted(held.items)
        if self._rivals and part is self._addresses:
            before = [one for one in self._ports.tree.items(without_address(held.key)) if one < items[-1]]
            items = sorted([*before, *items])
        return items


class _Rivals:
    """Which addresses, with their ports, share that port with a node port."""

    def __init__(self, addresses: _Part, ports: _Part) -> None:
        self._addresses, self._ports = addresses, ports
        self._by_port: dict[int, set[int]] = {}
        self._clashing: set[int] = set()

    def update(self, part: _Part, key: int) -> None:
        """An entry at `key` was added or removed."""
        port = without_address(key)
        rivals = self._by_port.setdefault(port, set())
        if part is self._addresses:
            (rivals.add if part.tree.items(key) else rivals.discard)(key)
        clash = rivals and self._ports.tree.items(port)
        (self._clashing.add if clash else self._clashing.discard)(port)
        if not rivals:
            del self._by_port[port]

    def of(self, port: int) -> Iterable[int]:
        """The keys of the addresses with this port."""
        return self._by_port.get(port, ())

    @property
    def clash(self) -> bool:
        """Whether there are any."""
        return bool(self._clashing)
