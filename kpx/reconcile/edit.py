"""Edits: the smallest change that turns one live chain into the desired one. Pure values."""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from enum import Enum, auto
from itertools import pairwise

from kpx.family import Family
from kpx.netfilter.counting import counts
from kpx.netfilter.ruleset import Rules, TableName
from kpx.netfilter.text import target_of


class Step(Enum):
    """What becomes of a chain."""

    CREATE = auto()
    CHANGE = auto()
    DELETE = auto()


@dataclass(frozen=True, slots=True)
class Placed:
    """A rule to insert; `position` counts from 1 in the finished chain, 0 means at the end."""

    rule: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class Edit:
    """The change of one chain: first `removed` rules go, as they stand in the kernel, then `added` come, in order.

    CREATE makes the chain, or empties it where it stands, so nothing is listed as removed that needs deleting;
    DELETE drops the chain with its `removed` rules. `separable` says that the rules don't depend on each other,
    so that one can come or go without the others.
    """

    table: TableName
    chain: str
    step: Step
    removed: Rules = ()
    added: tuple[Placed, ...] = ()
    separable: bool = False

    def lines(self) -> tuple[str, ...]:
        """The commands for `iptables-restore`; CREATE and DELETE want the chain declared besides."""
        if self.step is Step.DELETE:
            return (f"-X {self.chain}",)
        deletions = () if self.step is Step.CREATE else self.removed
        return (
            *(f"-D {self.chain} {rule}" for rule in deletions),
            *(
                f"-I {self.chain} {one.position} {one.rule}" if one.position else f"-A {self.chain} {one.rule}"
                for one in self.added
            ),
        )

    def rules(self) -> Iterator[str]:
        """Every rule that goes or comes."""
        yield from self.removed
        yield from (one.rule for one in self.added)

    def additions(self) -> "Edit":
        """The part of a separable edit that only adds."""
        return replace(self, removed=())

    def removals(self) -> "Edit":
        """The part of a separable edit that only removes."""
        return replace(self, added=())

    def keeping(self, wanted: Iterable[str]) -> "Edit":
        """A separable edit with only those of its rules that are in `wanted`; the others stay as they are."""
        rules = frozenset(wanted)
        added = tuple(one for one in self.added if one.rule in rules)
        if self.step is Step.CREATE:  # the chain is emptied first, so what is to stay has to come back
            added += tuple(Placed(rule) for rule in self.removed if rule not in rules)
        return replace(self, removed=tuple(rule for rule in self.removed if rule in rules), added=added)

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.step is not Step.CHANGE)


def create(table: TableName, chain: str, rules: Rules, separable: bool = False) -> Edit:
    """Make a chain that isn't there, or make one anew."""
    return Edit(table, chain, Step.CREATE, (), tuple(Placed(rule) for rule in rules), separable)


def change_ordered(table: TableName, chain: str, live: Rules, desired: Rules, family: Family) -> Edit:
    """Turn `live` into `desired`, keeping the longest common part and with it the counters of its rules."""
    have, want = _keys(live, desired, family), _keys(desired, live, family)
    if max(Counter(have).values(), default=0) > 1:
        # `-D` takes the first of equal rules, which may not be the one meant: write the chain anew.
        return replace(create(table, chain, desired), removed=live)
    removed: list[str] = []
    added: list[Placed] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, have, want, autojunk=False).get_opcodes():
        if tag != "equal":
            removed += live[i1:i2]
            added += (Placed(desired[j], j + 1) for j in range(j1, j2))
    if any(_may_be_another(rule, family) for rule in removed):
        return replace(create(table, chain, desired), removed=live)
    return Edit(table, chain, Step.CHANGE, tuple(removed), tuple(added))


def _may_be_another(rule: str, family: Family) -> bool:
    """Whether `-D` with this text may not find the rule that the kernel prints so.

    A mask of `-m recent` has 16 bytes. Where none is given, as kube-proxy does it, all of them are set; the mask that
    IPv4's iptables-save prints sets four, and `-D` compares all.
    """
    return family is Family.IPV4 and "-m recent " in rule


def change_unordered(table: TableName, chain: str, live: Rules, desired: Rules, free: int, family: Family) -> Edit:
    """Turn `live` into `desired`, whose first `free` rules may stand in any order; the others come last.

    New rules are put in front, where it costs the tools least. If nothing can stay, the chain is written anew. A rule
    that only counts comes before the one that follows it in `desired`, wherever that stands.
    """
    have, want = _keys(live, desired, family), _keys(desired, live, family)
    head = dict(zip(want[:free], desired[:free], strict=True))
    late = _count_nothing(have, want[:free])
    kept: set[str] = set()
    removed: list[str] = []
    rest: list[tuple[str, str]] = []
    for key, rule in zip(have, live, strict=True):
        if key not in head:
            rest.append((key, rule))
        elif key in kept or key in late:
            removed.append(rule)
        else:
            kept.add(key)
    tail_stands = have[len(live) - len(want[free:]) :] == want[free:] and len(rest) >= len(want[free:])
    stray = rest[: len(rest) - len(want[free:])] if tail_stands else rest
    removed += [rule for _, rule in stray]
    if not kept and not tail_stands:
        return replace(create(table, chain, desired, separable=True), removed=live)
    added = [Placed(rule, 1) for key, rule in reversed(head.items()) if key not in kept]
    if not tail_stands:
        added += [Placed(rule) for rule in desired[free:]]
    return Edit(table, chain, Step.CHANGE, tuple(removed), tuple(added), separable=True)


def _count_nothing(have: Sequence[str], want: Sequence[str]) -> frozenset[str]:
    """The rules of `want` that only count and, in `have`, don't all stand before the one that they count for."""
    pairs = [(one, other) for one, other in pairwise(want) if counts(one) and not counts(other)]
    if not pairs:
        return frozenset()
    first = dict(zip(reversed(have), range(len(have) - 1, -1, -1), strict=True))
    last = dict(zip(have, range(len(have)), strict=True))
    return frozenset(one for one, other in pairs if one in last and last[one] > first.get(other, -1))


def change_shared(table: TableName, chain: str, live: Rules, desired: Rules, family: Family) -> Edit:
    """Make a chain that kubelet fills too hold `desired` and nothing else; without any, it is kubelet's alone.

    kube-proxy 1.36 empties KUBE-FIREWALL and writes its rule anew at every sync, but only where it has one: for IPv4,
    with node ports on localhost. kubelet's own rule is the same one. Whatever else stands there cuts the node off if
    it has lost its match (kubernetes/kubernetes #112477), or multiplies (#76431): of equal rules one stays.
    """
    if not desired:
        return Edit(table, chain, Step.CHANGE, _repeated(live))
    return change_ordered(table, chain, live, desired, family)


def _repeated(live: Rules) -> Rules:
    """Rules that equal an earlier one. `-D` takes the first of equal rules, and it is all one which of them goes."""
    return tuple(rule for rule, times in Counter(live).items() for _ in range(times - 1))


def change_jumps(
    table: TableName, chain: str, live: Rules, desired: Rules, mine: Container[str], family: Family
) -> Edit:
    """Make the jumps from a built-in chain into those of `mine` equal to `desired`; other rules stay put.

    A missing jump goes right before the next one of ours that stands; if none follows, right after the one
    before it; into a chain without jumps of ours they go in front.
    """
    is_ours = [target_of(rule) in mine for rule in live]
    jumps = tuple(rule for rule, flag in zip(live, is_ours, strict=True) if flag)
    have, want = _keys(jumps, desired, family), _keys(desired, jumps, family)
    count = Counter(have)
    # Of equal jumps none is kept: `-D` takes the first, and which one that is decides where the others stand.
    unique = [key if count[key] == 1 else f"{key} #{index}" for index, key in enumerate(have)]
    keep_live, keep_desired = _common(unique, want)
    removed = tuple(rule for index, rule in enumerate(jumps) if index not in keep_live)
    remaining = _without(live, is_ours, keep_live)
    added: list[Placed] = []
    place = next((index for index, is_kept in enumerate(remaining) if is_kept), 0)
    for index, rule in enumerate(desired):
        if index in keep_desired:
            place = remaining.index(True, place) + 1
            continue
        follows = any(later in keep_desired for later in range(index + 1, len(desired)))
        where = remaining.index(True, place) if follows else place
        remaining.insert(where, False)
        added.append(Placed(rule, where + 1))
        place = where + 1
    return Edit(table, chain, Step.CHANGE, removed, tuple(added))


def _without(live: Rules, is_ours: Sequence[bool], keep: set[int]) -> list[bool]:
    """The built-in chain once our stray jumps are gone: for each rule, whether it is a jump of ours."""
    remaining: list[bool] = []
    index = 0
    for flag in is_ours:
        if not flag:
            remaining.append(False)
        else:
            if index in keep:
                remaining.append(True)
            index += 1
    return remaining


def _common(have: Sequence[str], want: Sequence[str]) -> tuple[set[int], set[int]]:
    """Indices of the longest common part in both sequences."""
    blocks = SequenceMatcher(None, have, want, autojunk=False).get_matching_blocks()
    return (
        {block.a + k for block in blocks for k in range(block.size)},
        {block.b + k for block in blocks for k in range(block.size)},
    )


def _keys(rules: Rules, others: Rules, family: Family) -> list[str]:
    """What to compare rules of one chain by: the text where the other side has the very same, else the normal form."""
    same = frozenset(others)
    if not same or same.issuperset(rules):
        return list(rules)
    from kpx.netfilter.rule import canonical  # not to be imported by who has nothing to compare with

    return [rule if rule in same else canonical(rule, family) for rule in rules]
