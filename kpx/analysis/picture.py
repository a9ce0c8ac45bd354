"""A ruleset as boxes and arrows: what `kpx graph` draws. Pure.

Every way in to a Service is a box, so is every chain that belongs to it, and every endpoint: with the chain that leads
there or, where the rule that chooses it translates, with all such rules. Chains that all Services share come before
them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Annotated, Literal, get_args

from pydantic import Field

from kpx.analysis.simulate import Tables
from kpx.analysis.words import chance, condition, is_open, share
from kpx.netfilter.names import ENDPOINT, MARK_DROP, MARK_MASQ, ours
from kpx.netfilter.owners import chain_owners, is_own_chain, rule_owner
from kpx.netfilter.rule import Rule, RuleError, parse_rule
from kpx.printable import printable
from kpx.shape import SHAPE

Kind = Literal["hook", "dispatch", "way in", "chain", "endpoint", "refusal"]

_REFUSALS = ("DROP", "REJECT")
_ANY = Rule()

ALL = 1 - 1e-9
"""From this share on all packets take an arrow."""

FEW = 12
"""Service ports up to which a picture shows how packets get to them from the chains that all share."""


_NUMBER = re.compile(r"([0-9]+)")


def natural(text: str) -> tuple[tuple[str, int, str], ...]:
    """What to sort by so that people find it: `web-2` before `web-10`, 10.0.0.9 before 10.0.0.10."""
    words = _NUMBER.split(text)
    numbers = [one.lstrip("0") for one in words[1::2]]  # compared by length first: they may be of any length
    return tuple((word, len(number), number) for word, number in zip(words[::2], [*numbers, ""], strict=True))


@dataclass(frozen=True, slots=True)
class Box:
    """One box: its title, and smaller lines below."""

    __pydantic_config__ = SHAPE

    id: str
    kind: Kind
    title: str
    lines: tuple[str, ...] = ()
    group: Annotated[str, Field(description="namespace/name:port; empty for what all Services share")] = ""
    table: Annotated[str, Field(description="where its rules stand")] = ""
    chain: str = ""
    position: Annotated[int, Field(description="of the rule that it stands for, counted from 1; 0 for a chain")] = 0
    stands_for: Annotated[
        tuple[str, ...], Field(description="the ids of boxes that are not drawn, since this one stands for them all")
    ] = ()
    rules: Annotated[
        tuple[str, ...],
        Field(description="table, chain and position of each rule that chooses this endpoint and translates"),
    ] = ()
    name: Annotated[str, Field(description="of the pod behind an endpoint, where objects tell it")] = ""

    @property
    def is_known(self) -> bool:
        """Whether its title is something that people know, and no name of a chain."""
        return self.kind in ("way in", "endpoint", "refusal")


@dataclass(frozen=True, slots=True)
class Arrow:
    """From a box to another, for all rules that lead there."""

    __pydantic_config__ = SHAPE

    source: Annotated[str, Field(description="the id of the box that it leaves")]
    target: Annotated[str, Field(description="the id of the box that it leads to")]
    label: Annotated[
        str, Field(description="what it asks for, a condition a line, and then the share of packets that take it")
    ] = ""
    seldom: Annotated[bool, Field(description="whether only what meets a condition takes it; drawn dashed")] = False
    share: Annotated[
        float | None, Field(description="of what leaves the box by chance or in turns; null where neither decides")
    ] = None

    @classmethod
    def of(cls, source: str, target: str, passages: Sequence["Passage"]) -> "Arrow":
        """The arrow for all rules that lead from a box to another."""
        parts = [one.part for one in passages if one.part is not None]
        total = sum(parts) if parts else None
        said = share(Fraction(total)) if total is not None and total < ALL else ""
        label = _joined([*(one.condition for one in passages), said])
        return cls(source, target, label, all(one.seldom for one in passages), total)


@dataclass(frozen=True, slots=True)
class Passage:
    """One rule that leads from a box to another: what it asks for, and its share if chance decides."""

    condition: str = ""
    part: float | None = None
    seldom: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """Boxes by their ids, in the order of drawing, and arrows between them."""

    __pydantic_config__ = SHAPE

    boxes: Mapping[str, Box]
    arrows: tuple[Arrow, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The service ports, sorted."""
        return tuple(sorted({box.group for box in self.boxes.values()} - {""}, key=natural))

    @property
    def grouped(self) -> Mapping[str, Sequence[Box]]:
        """The boxes by service port, what all share (an empty name) first."""
        found: dict[str, list[Box]] = {group: [] for group in ("", *self.groups)}
        for box in self.boxes.values():
            found[box.group].append(box)
        return found

    def of(self, groups: Iterable[str]) -> "Picture":
        """Only what belongs to these service ports."""
        wanted = set(groups)
        boxes = {key: box for key, box in self.boxes.items() if box.group in wanted}
        return Picture(boxes, tuple(one for one in self.arrows if one.source in boxes and one.target in boxes))

    def legible(self) -> "Picture":
        """Without the arrows from shared chains to many Services: every way in says which chain it stands in."""
        if len(self.groups) <= FEW:
            return self
        shared = {key for key, box in self.boxes.items() if not box.group}
        return Picture(
            self.boxes, tuple(one for one in self.arrows if one.source not in shared or one.target in shared)
        )


def picture(tables: Tables, services: Iterable[str] = ()) -> Picture:
    """Draw the proxy's part of tables; other programs' rules are left out.

    Of Services only these, each `namespace/name` or `namespace/name:port`; all if none is named.
    """
    artist = _Artist(tables, frozenset(services))
    artist.draw()
    return artist.pruned()


class _Artist:
    """Boxes and arrows while they are drawn."""

    def __init__(self, tables: Tables, services: frozenset[str]) -> None:
        self.services = services
        self.tables = {name: tables[name] for name in ("nat", "filter") if name in tables}
        self.owners = {name: chain_owners(chains) for name, chains in self.tables.items()}
        self.boxes: dict[str, Box] = {}
        self.arrows: dict[tuple[str, str], list[Passage]] = defaultdict(list)

    def draw(self) -> None:
        for table, chains in self.tables.items():
            for chain, rules in chains.items():
                if chain in self.owners[table]:
                    if not self._wanted(self.owners[table][chain]):
                        continue
                    self._own(table, chain, [_parsed(one) for one in rules])
                elif ours(chain) and not is_own_chain(chain):
                    self._shared(table, chain, rules, "dispatch")
                elif not ours(chain):
                    self._shared(table, chain, rules, "hook")

    def _wanted(self, owner: str) -> bool:
        return not self.services or owner in self.services or owner.partition(":")[0] in self.services

    def pruned(self) -> Picture:
        """Without chains of others that lead to none of ours, and shared chains that lead to nothing."""
        back: dict[str, list[str]] = defaultdict(list)
        for source, target in self.arrows:
            back[target].append(source)
        kept: set[str] = set()
        empty = (key for key, box in self.boxes.items() if box.kind == "dispatch" and not box.lines)
        passed_over = {*empty, *(key for key, box in self.boxes.items() if box.kind == "hook")}
        edge = [key for key in self.boxes if key not in passed_over]
        while edge:
            one = edge.pop()
            if one not in kept:
                kept.add(one)
                edge += back[one]
        order = get_args(Kind)
        boxes = sorted(
            (box for key, box in self.boxes.items() if key in kept),
            key=lambda box: (natural(box.group), order.index(box.kind), natural(box.title), box.id),
        )
        arrows = [
            Arrow.of(source, target, some)
            for (source, target), some in self.arrows.items()
            if source in kept and target in kept
        ]
        places = {box.id: place for place, box in enumerate(boxes)}
        # Of one box they keep the order of its rules.
        return Picture({box.id: box for box in boxes}, tuple(sorted(arrows, key=lambda one: places[one.source])))

    # ---- chains that all Services share ----

    def _shared(self, table: str, chain: str, rules: Iterable[str], kind: Kind) -> None:
        lines = []
        here = _id(table, chain)
        marks: dict[str, list[Rule]] = defaultdict(list)
        for position, text in enumerate(rules, 1):
            owner = rule_owner(text)
            if owner and not self._wanted(owner):
                continue
            rule = _parsed(text)
            target = rule.target or ""
            if owner and target == MARK_MASQ:
                marks[owner].append(rule)
            elif owner and (target in self.owners[table] or target in _REFUSALS):
                box = Box(f"{here} {position}", "way in", "", (), owner, table, chain, position)
                self._way_in(box, rule, marks[owner])
            elif ours(target) and target in self.tables[table] and target != MARK_MASQ:
                self._arrow(here, _id(table, target), Passage(printable(condition(rule))))
            elif kind == "dispatch" and chain != MARK_MASQ and not owner:
                lines.append(printable(f"{condition(rule) or 'all'}: {target or 'counted'}"))
        self.boxes[here] = Box(
            here, kind, printable(chain), (table, *lines) if kind == "hook" else tuple(lines), "", table, chain
        )

    def _way_in(self, box: Box, rule: Rule, marks: Iterable[Rule]) -> None:
        group, target = printable(box.group), rule.target or ""
        about = (rule.comment or "").removeprefix(box.group).strip()
        title = condition(rule).removeprefix("to ") or "any packet"
        if title.startswith("port "):
            title = f"node {title.replace(', to the node', '')}"
        where = box.chain if box.table == "nat" else f"{box.table} {box.chain}"
        masqueraded = (_masqueraded(mark, rule) for mark in marks if _destination(mark) == _destination(rule))
        lines = tuple(printable(one) for one in (about, where, *masqueraded) if one)
        self.boxes[box.id] = Box(box.id, "way in", printable(title), lines, group, box.table, box.chain, box.position)
        self._arrow(_id(box.table, box.chain), box.id, Passage())
        if target in _REFUSALS:
            self._refuse(box.id, box.table, rule, group, Passage())
        else:
            self._arrow(box.id, _id(box.table, target), Passage())

    # ---- chains of one service port ----

    def _own(self, table: str, chain: str, rules: list[Rule]) -> None:
        here, group = _id(table, chain), printable(self.owners[table][chain])
        left = 1.0
        lines = []
        to = ""
        for position, rule in enumerate(rules, 1):
            target = rule.target or ""
            part, left = _part(rule, left) if target != MARK_MASQ else (None, left)
            asks = printable(condition(rule))
            way = Passage(asks, part, seldom=part is None and bool(asks))
            if target == "DNAT" and not chain.startswith(ENDPOINT):
                self._arrow(here, self._chosen(table, chain, position, rule, group), way)
            elif target == "DNAT":
                to = " ".join(rule.target_options[-1].values) if rule.target_options else ""
                lines += ["remembers the client" for match in rule.matches if match.module == "recent"]
            elif target == MARK_MASQ and chain.startswith(ENDPOINT):
                pass  # hairpin: a pod that reaches itself
            elif target == MARK_MASQ:
                lines.append(_masqueraded(rule))
            elif target in (*_REFUSALS, MARK_DROP):
                self._refuse(here, table, rule, group, way)
            elif target in self.tables[table]:
                self._arrow(here, _id(table, target), way)
            elif not target and rule.comment:
                lines.append(rule.comment.replace(f" to {group}", ""))
        kind: Kind = "endpoint" if to else "chain"
        texts = (chain, *lines) if to else lines
        self.boxes[here] = Box(here, kind, printable(to or chain), tuple(map(printable, texts)), group, table, chain)

    def _chosen(self, table: str, chain: str, position: int, rule: Rule, group: str) -> str:
        """The id of the box of an endpoint that has no chain, to which a rule translates."""
        to = printable(" ".join(rule.target_options[-1].values) if rule.target_options else "")
        key = f"{table} {group} {to}"
        before = self.boxes.get(key, Box(key, "endpoint", to, (), group, table, chain, position))
        self.boxes[key] = replace(before, rules=(*before.rules, f"{_id(table, chain)} {position}"))
        return key

    # ---- both ----

    def _refuse(self, source: str, table: str, rule: Rule, group: str, way: Passage) -> None:
        target = rule.target or ""
        key = f"{target} {group}"
        detail = tuple(value for option in rule.target_options for value in option.values)
        self.boxes[key] = Box(key, "refusal", target, detail, group, table)
        self._arrow(source, key, way)

    def _arrow(self, source: str, target: str, way: Passage) -> None:
        self.arrows[source, target].append(way)


def _part(rule: Rule, left: float) -> tuple[float | None, float]:
    """The share of a chain's packets that a rule takes, if it asks for nothing but chance, and what is left then."""
    by_chance = chance(rule)
    if not is_open(rule) or rule.target is None or not left:
        return None, left
    if by_chance is None:
        return (left if left < 1 else None), 0.0
    return left * float(by_chance), left * float(1 - by_chance)


def _masqueraded(mark: Rule, met: Rule = _ANY) -> str:
    """Which packets a rule marks for masquerading, of those that meet a rule `met`."""
    head = tuple(one for one in mark.head if one not in met.head)
    matches = tuple(one for one in mark.matches if one not in met.matches)
    which = condition(Rule(head, matches))
    return f"masqueraded if {which}" if which else "masqueraded"


def _destination(rule: Rule) -> tuple[object, ...]:
    """What a rule asks of the destination."""
    ports = (one for match in rule.matches for one in match.options if one.name == "--dport")
    return (*(one for one in rule.head if one.name in ("-d", "-p")), *ports)


def _joined(labels: Iterable[str]) -> str:
    return "\n".join(dict.fromkeys(filter(None, labels)))


def _id(table: str, chain: str) -> str:
    return f"{table} {chain}"


@cache
def _parsed(text: str) -> Rule:
    try:
        return parse_rule(text)
    except RuleError:
        return Rule()
