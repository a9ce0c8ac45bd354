"""The chains of one side of a comparison as decision diagrams."""

from collections.abc import Hashable
from dataclasses import replace
from functools import partial

from kpx.analysis.equivalence import fields
from kpx.analysis.equivalence.diagram import Diagram
from kpx.analysis.equivalence.exits import ON, Change, Exit, Kind, has
from kpx.analysis.equivalence.rules import Form, Rules, exit_of
from kpx.analysis.simulate import Policies, Tables
from kpx.netfilter.rule import format_rule

Shared = dict[Hashable, Diagram]


class Chains:
    """What the tables of one side do. `shared` remembers chains that both sides have in common."""

    def __init__(self, tables: Tables, policies: Policies, rules: Rules, shared: Shared) -> None:
        self._tables, self._policies, self._rules, self._shared = tables, policies, rules, shared
        self.exits, self.diagrams = rules.exits, rules.diagrams
        self._done: dict[tuple[str, str, int | None], Diagram] = {}
        self._above: list[tuple[str, str]] = []
        self.asked: set[str] = set()

    def table(self, table: str, hook: str) -> Diagram:
        """What a table does in a hook: a packet goes on to the next table, or its way ends."""
        if hook not in self._tables.get(table, {}):
            return self.exits.on
        policy = self._policies.get((table, hook), "ACCEPT")

        chain = self._chain(table, hook, None)
        key = ("table", policy, chain)
        if key not in self._shared:
            self._shared[key] = self._left(chain, policy)
        return self._shared[key]

    def _left(self, chain: Diagram, policy: str) -> Diagram:
        """What becomes of packets that leave a built-in chain."""

        def leave(end: Hashable) -> Hashable:
            if not isinstance(end, Exit) or end.kind is Kind.END:
                return end
            if end.kind is Kind.ACCEPT or policy == "ACCEPT":
                return end._replace(kind=Kind.ON)
            return Exit(Kind.END, end.change, "dropped")

        return self.diagrams.mapped(chain, leave)

    def part(self, table: str, rules: tuple[str, ...]) -> Diagram:
        """What some rules do, as if they stood in a chain."""
        return self.exits.sequence([self._rule(table, "", self._rules.form(text), None) for text in rules])

    def _chain(self, table: str, name: str, protocol: int | None) -> Diagram:
        """What a chain does to packets of a protocol, or to all: most chains of Services meet one protocol only."""
        key = (table, name, protocol)
        found = self._done.get(key)
        if found is None:
            self._above.append((table, name))
            texts = self._tables[table][name]
            forms = [self._rules.form(text) for text in texts]
            parts = [self._rule(table, name, form, protocol) for form in forms]
            common = tuple(parts)
            found = self._shared.get(common)
            if found is None:
                found = self._shared[common] = self.exits.sequence(parts)
            for form in forms:
                self.asked.update(form.asked)
            self._above.pop()
            self._done[key] = found
        return found

    def _rule(self, table: str, name: str, form: Form, protocol: int | None) -> Diagram:
        action = self._action(table, name, form, protocol)
        key = (form, action, protocol, (table, name) if form.has_place else None)
        found = self._shared.get(key)
        if found is None:
            found = self._rules.applied(form, action, partial(_place, table, name))
            if protocol is not None:
                found = self.exits.fixed(found, {fields.PROTOCOL: protocol})
            self._shared[key] = found
        return found

    def _action(self, table: str, name: str, form: Form, protocol: int | None) -> Diagram:
        """What a rule does where it matches."""
        exit_ = exit_of(form.rule, self._rules.fields.family)
        if exit_ is not None:
            return self.diagrams.sure(exit_)
        target = form.rule.target or ""
        if target not in self._tables.get(table, {}):
            return self._unknown(_place(table, name, form))
        if (table, target) in self._above:
            return self.diagrams.sure(Exit(Kind.END, why=f"unknown: {table} {target} leads to itself"))
        chain = self._chain(table, target, self._protocol(form) or protocol)
        comes_back, other = (Kind.BACK, Kind.ON) if form.rule.goto else (Kind.ON, Kind.BACK)
        if not has(chain, other):
            return chain

        def come_back(end: Hashable) -> Hashable:
            known = isinstance(end, Exit) and end.kind in (Kind.ON, Kind.BACK)
            return end._replace(kind=comes_back) if known and isinstance(end, Exit) else end

        return self.diagrams.mapped(chain, come_back)

    def _protocol(self, form: Form) -> int | None:
        """The protocol that a rule asks for."""
        for option in form.rule.head:
            if option.name == "-p" and not option.negated:
                return self._rules.fields.protocol(option.values[0])
        return None

    def _unknown(self, place: str) -> Diagram:
        """A target that isn't known: it may end the packet's way, or the packet goes on and some of it has changed."""
        ends = self.diagrams.sure(Exit(Kind.END, why=f"unknown: {place}"))
        goes_on = self.diagrams.sure(ON._replace(change=Change(met=(place,))))
        return self.diagrams.pick(self._rules.fields.unknown("ends at", place), ends, goes_on)


def _place(table: str, name: str, form: Form) -> str:
    matches = tuple(match for match in form.rule.matches if match.module != "comment")
    return f"{table} {name}: {format_rule(replace(form.rule, matches=matches))}"
