"""The ways of packets through the hooks, in the kernel's order, for one side of a comparison."""

from dataclasses import dataclass

from kpx.analysis.equivalence import fields
from kpx.analysis.equivalence.chains import Chains
from kpx.analysis.equivalence.diagram import Diagram
from kpx.analysis.equivalence.fields import Fields


@dataclass(frozen=True, slots=True)
class Way:
    """What becomes of packets of one origin: first up to where they are routed, or sent on, and then behind that.

    Up to there a packet can be translated in many ways, each with a weight; `behind` is what becomes of each of them.
    """

    first: Diagram
    behind: Diagram


class Ways:
    """The ways through the tables of one side, of packets that the nat table is asked of or of the others.

    It is asked of what begins a connection; not of ICMP that is related to one, which is translated as that is, nor of
    a related connection that was translated as it was expected: for both directions at once, as a rule.
    """

    def __init__(self, chains: Chains, some: Fields, translatable: bool) -> None:
        self._chains, self._fields, self._translatable = chains, some, translatable
        self._exits, self._diagrams = chains.exits, chains.diagrams

    def received(self) -> Way:
        """Of packets that enter the host."""
        nowhere = {fields.OUT: fields.NOWHERE}
        first = self._exits.fixed(self._hook("PREROUTING", "raw", "mangle", "nat"), nowhere)
        here = self._exits.fixed(self._hook("INPUT", "mangle", "filter", "security", "nat"), nowhere)
        on = [self._hook("FORWARD", "mangle", "filter", "security"), self._hook("POSTROUTING", "mangle", "nat")]
        return Way(first, self._diagrams.pick(self._is_local(), here, self._exits.sequence(on)))

    def sent(self) -> Way:
        """Of packets that the host sends. Those to itself come in again, where nat isn't asked any more."""
        nowhere = {fields.IN: fields.NOWHERE}
        loop = {fields.IN: self._fields.interfaces.index("lo"), fields.OUT: fields.NOWHERE}
        again = [
            self._hook("PREROUTING", "mangle"),
            self._hook("INPUT", "mangle", "filter", "security"),
        ]
        raw = self._chains.table("raw", "PREROUTING")  # conntrack has seen the packet by now
        back = self._exits.fixed(self._exits.sequence([raw, *again]), loop)
        leave = [self._hook("OUTPUT", "filter", "security"), self._hook("POSTROUTING", "mangle", "nat")]
        behind = [*leave, self._diagrams.pick(self._is_local(), back, self._exits.on)]
        first = self._hook("OUTPUT", "raw", "mangle", "nat")
        return Way(*(self._exits.fixed(one, nowhere) for one in (first, self._exits.sequence(behind))))

    def _is_local(self) -> Diagram:
        return self._fields.local(fields.DESTINATION, fields.DESTINATION_LOCAL)

    def _hook(self, hook: str, *tables: str) -> Diagram:
        return self._exits.sequence([self._table(table, hook) for table in tables])

    def _table(self, table: str, hook: str) -> Diagram:
        if table == "nat" and not self._translatable:
            return self._exits.on
        found = self._chains.table(table, hook)
        if table == "nat":
            return self._diagrams.pick(self._is_translatable(), found, self._exits.on)
        if table == "raw":  # comes before conntrack
            return self._exits.fixed(found, {fields.STATE: fields.INVALID})
        return found

    def _is_translatable(self) -> Diagram:
        """The first packet of a connection; ICMP that is related to one is translated as that is."""
        is_new = self._fields.between(fields.STATE, fields.NEW, fields.NEW)
        is_related = self._fields.between(fields.STATE, fields.RELATED, fields.RELATED)
        no_icmp = self._diagrams.negated(self._fields.between(fields.PROTOCOL, fields.ICMP, fields.ICMP))
        return self._diagrams.pick(
            is_new, self._diagrams.true, self._diagrams.pick(is_related, no_icmp, self._diagrams.false)
        )
