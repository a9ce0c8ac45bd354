"""Packets on which a rule and a chain both decide, and differently."""

import re
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from itertools import product

from kpx.analysis.equivalence import fields
from kpx.analysis.equivalence.chains import Chains, Shared
from kpx.analysis.equivalence.comparison import Box, deep, interfaces, rule_count
from kpx.analysis.equivalence.diagram import LEAF, Diagram, Diagrams, zipped
from kpx.analysis.equivalence.exits import ON, Exit, Exits, Kind, trait
from kpx.analysis.equivalence.fields import Fields
from kpx.analysis.equivalence.rules import Rules
from kpx.analysis.packet import text
from kpx.family import Family

_DESTINATION = re.compile(r"(?:.* )?(?<!! )-d (\S+)/([0-9]{1,3}) ")


_OF_PODS = ("br-", "cali", "cbr", "cilium", "cni", "docker", "flannel", "lxc", "tunl", "veth", "vxlan", "weave")
"""How interfaces are called that lead to pods and containers here, or to those of other nodes."""


@dataclass(frozen=True, slots=True)
class Met:
    """A packet, in words; `certain` unless it depends on a match of which nothing is known."""

    text: str
    certain: bool


class Weighed(Enum):
    """What of a rule counts as a decision: all; that it refuses; that it accepts; that it refuses or keeps from
    conntrack; or whether it replaces the source.
    """

    ALL = auto()
    REFUSALS = auto()
    ACCEPTS = auto()
    UNTRACKED = auto()
    SOURCES = auto()


def _weigh(weighed: Weighed, end: Hashable) -> Hashable:
    """How a packet leaves a rule, as far as it counts."""
    if not isinstance(end, Exit) or weighed is Weighed.ALL:
        return end
    match weighed:
        case Weighed.SOURCES if end.kind in (Kind.ACCEPT, Kind.BACK):
            return Exit(Kind.END, why="masqueraded" if end.change.source else "kept")
        case Weighed.UNTRACKED if not end.change.tracked:
            return Exit(Kind.END, why="not tracked")
        case Weighed.ACCEPTS:
            return ON if end.kind is Kind.END else end
    return end if end.kind is Kind.END else ON


class Overlaps:
    """Looks for such packets in tables of one family."""

    def __init__(
        self,
        tables: Mapping[str, Mapping[str, tuple[str, ...]]],
        family: Family,
        marks: int,
        own: Collection[str] | None = None,
    ) -> None:
        """`marks` are the bits of the mark that count; who sets others has judged the packet before.

        `own` are the addresses of the node, None if they aren't known.
        """
        self._own = own
        self._marks = {fields.MARK + bit: 0 for bit in range(32) if not marks >> bit & 1}
        self._fields = Fields(Diagrams(trait, rule_count(tables)), family, interfaces(tables))
        self._exits = Exits(self._fields)
        self._chains = Chains(tables, {}, Rules(self._exits), Shared())
        self._seen: set[tuple[Diagram, Diagram]] = set()
        """Pairs without such a packet, whatever is known of it from above."""
        self._bounded = False
        """Whether something that is known from above has mattered."""

    def between(self, table: str, rule: str, of_table: str, chain: str, weighed: Weighed = Weighed.ALL) -> Met | None:
        """A packet that begins a connection and on which a rule decides otherwise than a chain, of a table behind it.

        A rule for a network isn't taken to be one for the node's own addresses. What comes from or goes to an interface
        of pods is for those to filter who made it; and nobody means what the node sends to itself.
        """
        translated = int(of_table == "filter" or chain == "KUBE-POSTROUTING")
        begins = {fields.STATE: fields.NEW, fields.TRANSLATED: translated, fields.REPLACED: 0, **self._marks}
        with deep():
            one = self._exits.fixed(self._chains.part(table, (rule,)), begins)
            if table == "filter":
                one = self._exits.diagrams.pick(self._is_of_pods(), self._exits.on, one)
            other = self._exits.fixed(self._chains.part(of_table, (f"-j {chain}",)), begins)
            if (local := self._is_to_node(table, rule)) is not None:
                one, other = (self._exits.fixed(part, {fields.DESTINATION_LOCAL: local}) for part in (one, other))
            one = self._exits.diagrams.mapped(one, partial(_weigh, weighed))
            if weighed is Weighed.SOURCES:
                other = self._exits.diagrams.mapped(other, partial(_weigh, weighed))
            self._seen, self._bounded = set(), False
            box = self._find(one, other, {})
        return None if box is None else self._met(box)

    def _is_to_node(self, table: str, rule: str) -> int | None:
        """Whether what a rule is for is an address of the node, as far as that is known or likely."""
        asked = _DESTINATION.match(rule)
        if asked is None:
            return None
        if int(asked[2]) < self._fields.family.host_bits:
            return 0
        if self._own is not None:
            return int(asked[1] in self._own)
        return 0 if table in ("raw", "mangle") else None

    def _is_of_pods(self) -> Diagram:
        """The test that a packet comes from, or goes to, an interface that network plugins and such make."""
        test, diagrams = self._exits.diagrams.false, self._exits.diagrams
        for index, name in enumerate(self._fields.interfaces):
            if name == "lo" or name.startswith(_OF_PODS):
                for var in (fields.IN, fields.OUT):
                    test = diagrams.pick(self._fields.between(var, index, index), diagrams.true, test)
        return test

    def _find(self, one: Diagram, other: Diagram, box: Box) -> Box | None:
        if (one, other) in self._seen or one is self._exits.on or other is self._exits.on:
            return None
        var = min(one.var, other.var)
        if var == LEAF:
            return self._clash(one, other, box)
        low, high = box.get(var, (0, self._fields.size(var) - 1))
        outer, self._bounded = self._bounded, False
        rows = list(zipped(var, (one, other)))
        lasts = [start - 1 for start, _ in rows[1:]] + [high]
        for (first, (left, right)), last in zip(rows, lasts, strict=True):
            if first <= high and last >= low:
                found = self._find(left, right, {**box, var: (max(first, low), min(last, high))})
                if found is not None:
                    return found
        if not self._bounded:
            self._seen.add((one, other))
        self._bounded |= outer or var in box
        return None

    def _clash(self, one: Diagram, other: Diagram, box: Box) -> Box | None:
        """A packet on which two leaves both decide, and differently."""
        if not any(isinstance(end, Diagram) for end in (*one.ends, *other.ends)):
            left, right = _decisions(one), _decisions(other)
            return box if left and right and left != right else None
        pairs = product(_apart(self._exits.diagrams, one), _apart(self._exits.diagrams, other))
        return next((found for left, right in pairs if (found := self._find(left, right, box)) is not None), None)

    def _met(self, box: Box) -> Met:
        words = []
        if fields.PROTOCOL in box:
            low, high = box[fields.PROTOCOL]
            value = next((one for one in map(self._fields.protocol, ("tcp", "udp")) if low <= one <= high), low)
            name = self._fields.protocol_name(value)
            words.append(f"protocol {name}" if name.isdecimal() else name)
        if fields.SOURCE in box:
            words.append(f"from {text(box[fields.SOURCE][0], self._fields.family)}")
        if fields.DESTINATION in box:
            words.append(f"to {text(box[fields.DESTINATION][0], self._fields.family)}")
        elif box.get(fields.DESTINATION_LOCAL, (0, 0))[0]:
            words.append("to an address of the node")
        if fields.PORT in box:
            words.append(f"port {box[fields.PORT][0]}")
        unknown = any(self._fields.name(var)[:1] == ("unknown",) for var in box)
        return Met(" ".join(words) or "any packet", not unknown)


def _apart(diagrams: Diagrams, leaf: Diagram) -> Iterator[Diagram]:
    """What a leaf decides whatever the packet is, and then each diagram that it has as an end."""
    yield diagrams.leaf({end: weight for end, weight in leaf.ends.items() if not isinstance(end, Diagram)})
    yield from (end for end in leaf.ends if isinstance(end, Diagram))


def _decisions(leaf: Diagram) -> set[Exit]:
    return {end for end in leaf.ends if isinstance(end, Exit) and end.kind is not Kind.ON}
