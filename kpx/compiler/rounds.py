"""Round robin: a cycle of turns, of which each endpoint has as many as its weight, by `statistic --mode nth`.

xt_statistic counts for each rule, atomically, the packets that come to it, and takes every n-th. In a list of rules
that take every n-th, every (n-1)-th … of what the rules before have left, each gets one packet of any n that follow
each other, however many processors there are. The same holds of a tree whose groups are of equal size: what is left
over stands in front of them. So each cycle is exact. The kernel keeps the counts as long as a rule stays: on nft until
that rule changes, on legacy until any rule of the table does.
"""

from base64 import b32decode
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil, gcd, log2
from string import ascii_lowercase, digits

from kpx.compiler.choice import Affinity, Arm, Chains, known, weighted
from kpx.netfilter.ruleset import Rules

_DIGITS = digits + ascii_lowercase


@dataclass(frozen=True, slots=True)
class _Lot:
    """Endpoints of equal weight, `turns` in a cycle for all of them together."""

    target: str
    arms: Sequence[Arm]
    turns: int

    def rule(self, chance: str) -> str:
        """The rule that takes it with a chance."""
        return f"{chance}-j {self.target}" if len(self.arms) > 1 else self.arms[0].rule(chance)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Choose in turn. See `kpx.compiler.choice.Choose`.

    Endpoints of the same weight are one lot; lots get turns by what their endpoints weigh together, and within a lot
    all are equal. That takes `most` rules at most; where weights have so little in common that it would take more
    turns, lots are chosen at random, with exact shares, and only their endpoints in turn.

    Up to `limit` endpoints are one list, more are put into groups, `depth` times.
    """

    limit: int = 16
    depth: int = 2
    most: int = 128

    def __call__(self, chain: str, first: Rules, arms: Sequence[Arm], affinity: Affinity | None) -> Chains:
        """See `Choose`."""
        first = (*first, *known(arms, affinity))
        lots = _lots(chain, arms)
        if len(lots) == 1:
            yield from self._in_turn(chain, first, arms, self.depth)
            return
        for lot in lots:
            if len(lot.arms) > 1:
                yield from self._in_turn(lot.target, (), lot.arms, self.depth - 1)
        yield chain, (*first, *self._among(lots))

    def _among(self, lots: Sequence[_Lot]) -> Iterator[str]:
        """The rules that choose a lot; the one with the most turns comes last and has what is left."""
        *smaller, largest = sorted(lots, key=lambda lot: (lot.turns, lot.target))
        left = sum(lot.turns for lot in lots)
        if left - largest.turns > self.most:
            for lot, chance in zip(
                (*smaller, largest), weighted(tuple(lot.turns for lot in (*smaller, largest))), strict=True
            ):
                yield lot.rule(chance)
            return
        for lot in _spread(smaller):
            yield lot.rule(_one_of(left))
            left -= 1
        yield largest.rule("")

    def _in_turn(self, chain: str, first: Rules, arms: Sequence[Arm], depth: int) -> Chains:
        """The chain in which each of `arms` has one turn, with the chains of its groups before it."""
        alone, groups = list(arms), dict[int, list[Arm]]()
        if len(arms) > self.limit and depth > 0:
            alone, groups = _equal_groups(arms, _ways(len(arms), depth), depth)
        targets = {_below(chain, digit): group for digit, group in groups.items()}
        for target, group in targets.items():
            yield from self._in_turn(target, (), group, depth - 1)
        yield chain, (*first, *_turns(alone, targets, len(arms)))


in_turn = Rounds()
"""Round robin, with the numbers that are right for the kernel."""


def _turns(alone: Sequence[Arm], groups: dict[str, list[Arm]], count: int) -> Iterator[str]:
    """The rules of a list: endpoints one of `count` each, then groups of equal size."""
    for place, arm in enumerate(alone):
        yield arm.rule(_one_of(count - place))
    for place, target in enumerate(groups):
        yield f"{_one_of(len(groups) - place)}-j {target}"


def _one_of(count: int) -> str:
    """The match that takes each `count`-th packet, the first one to begin with; with a space behind it."""
    return f"-m statistic --mode nth --every {count} --packet 0 " if count > 1 else ""


def _lots(chain: str, arms: Sequence[Arm]) -> list[_Lot]:
    by_weight: dict[int, list[Arm]] = defaultdict(list)
    for arm in arms:
        by_weight[arm.weight].append(arm)
    alike = [(weight, some) for weight, some in sorted(by_weight.items())]
    # Chain names have a digit for a lot: beyond these, endpoints are lots of their own.
    alike = [*alike[: len(_DIGITS)], *((weight, [arm]) for weight, some in alike[len(_DIGITS) :] for arm in some)]
    unit = reduce(gcd, (weight * len(some) for weight, some in alike))
    return [
        _Lot(some[0].chain if len(some) == 1 else _below(chain, place), some, weight * len(some) // unit)
        for place, (weight, some) in enumerate(alike)
    ]


def _spread(lots: Sequence[_Lot]) -> list[_Lot]:
    """A lot for each of its turns, evenly mixed."""
    turns = [((2 * turn + 1) / lot.turns, place) for place, lot in enumerate(lots) for turn in range(lot.turns)]
    return [lots[place] for _, place in sorted(turns)]


def _ways(count: int, depth: int) -> int:
    """How many groups: about as many on each level as a list has in the end; a power of two, which seldom changes."""
    bits = ceil(log2(count) / (depth + 1))
    return min(1 << bits, 32)


def _equal_groups(arms: Sequence[Arm], ways: int, depth: int) -> tuple[list[Arm], dict[int, list[Arm]]]:
    """`ways` groups of the same size, and the endpoints that are left over.

    An endpoint's hash says which group it would be in; only those that find it full go elsewhere. So most stay in
    their group when others come and go.
    """
    size = len(arms) // ways
    groups: dict[int, list[Arm]] = {digit: [] for digit in range(ways)}
    spare: list[Arm] = []
    for arm in sorted(arms, key=_hash):
        group = groups[_hash(arm) >> 8 * depth & (ways - 1)]
        (group if len(group) < size else spare).append(arm)
    for group in groups.values():
        while len(group) < size:
            group.append(spare.pop())
    return spare, groups


def _hash(arm: Arm) -> int:
    """The hash that is in the name of an endpoint's chain: 80 bits."""
    return int.from_bytes(b32decode(arm.chain[-16:]), "big")


def _below(chain: str, digit: int) -> str:
    """What a group of a chain is called: KUBE-SVC-X → KPX-SVC-X-0, and of that KPX-SVC-X-00."""
    head = f"KPX-{chain.removeprefix('KUBE-')}-" if chain.startswith("KUBE-") else chain
    return head + _DIGITS[digit]
