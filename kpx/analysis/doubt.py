"""What isn't known of a packet, and where that makes no difference.

Where a rule asks for what isn't known, the packet goes both ways, and each bears what was assumed. Ways that come
together again are one again. At the end the outcomes of all worlds that the assumptions allow are compared: what
becomes of a packet in every one of them is certain, whatever the answer is.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from kpx.analysis.packet import Fate, Outcome
from kpx.analysis.state import Assumed, Key, Sample, State, Step, Trail

Weights = dict[State, Fraction]
"""Packets on their way, with their probabilities."""

End = tuple[Outcome, State, Fraction]
"""What became of a packet, how it was then, and its probability."""

MOST_DOUBTS = 8
"""Assumptions that a packet may bear. What becomes of one that would need more isn't known."""

MOST_QUESTIONS = 12
"""Questions that may be open at the end, whose answers are tried one with another."""

_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_TABLES = ("raw", "mangle", "nat", "filter", "security")


@dataclass(frozen=True, slots=True)
class Doubt:
    """What isn't known, in words, and the way of the packet that met it first. Sorted as tables and rules come."""

    order: tuple[int, int, str, int]
    detail: str
    trail: Trail | Sample | None

    @classmethod
    def of(cls, step: Step, trail: Trail | Sample | None) -> "Doubt":
        """A rule that asks for what isn't known."""
        order = (_HOOKS.index(step.hook), _TABLES.index(step.table), step.chain, step.position)
        return cls(order, f"{step.table} {step.chain}: {step.rule}", trail)


def implied(assumed: Assumed, key: Key) -> bool | None:
    """What the assumptions tell of a question; None if nothing. A packet comes in by one interface, whatever it is."""
    for other, truth in assumed:
        if other == key:
            return truth
        if other[0] == key[0] and other[0] in ("-i", "-o") and other[2:] == key[2:]:
            told = _of_interface(str(other[1]), truth, str(key[1]))
            if told is not None:
                return told
    return None


def _of_interface(name: str, is_it: bool, asked: str) -> bool | None:
    """Whether an interface is called as asked, where it is known that it is called `name`, or isn't."""
    if is_it and not name.endswith("+"):
        return asked == name or (asked.endswith("+") and name.startswith(asked[:-1]))
    start, other = name.removesuffix("+"), asked.removesuffix("+")
    if is_it:
        if asked.endswith("+") and start.startswith(other):
            return True
        return None if other.startswith(start) else False
    return False if name.endswith("+") and other.startswith(start) else None


def joined(weights: Weights) -> Weights:
    """Packets that bear no assumption any more on which nothing depends: both ways have led to the same."""
    keys = {key for state in weights for key, _ in state.assumed}
    for key in keys:
        weights = _joined(weights, key)
    return weights


def _joined(weights: Weights, key: Key) -> Weights:
    sides: dict[State, tuple[Weights, Weights]] = defaultdict(lambda: ({}, {}))
    for state, weight in weights.items():
        truth = dict(state.assumed).get(key)
        if truth is not None:
            sides[without(bare(state), key)][truth][state] = weight
    found = dict(weights)
    for no, yes in sides.values():
        if sum(no.values()) == sum(yes.values()):
            for state in (*no, *yes):
                del found[state]
            for state, weight in no.items():
                plain = without(state, key)
                found[plain] = found.get(plain, Fraction(0)) + weight
    return found


def bare(state: State) -> State:
    """A packet without what is only told of its way."""
    return state._replace(trail=None, examined=0)


def without(state: State, key: Key) -> State:
    """A packet of which one thing isn't assumed."""
    return state._replace(assumed=tuple(one for one in state.assumed if one[0] != key))


# ---- at the end ----


@dataclass(frozen=True, slots=True)
class _Fork:
    """Outcomes that depend on a question."""

    key: Key
    no: "_Tree"
    yes: "_Tree"


_Shares = frozenset[tuple[Outcome, Fraction]]
_Tree = _Fork | _Shares


def settled(ends: Sequence[End], doubts: Mapping[Key, Doubt]) -> Sequence[End]:
    """The ends of a packet's ways whose probabilities add up to 1: what is certain, and the rest as unknown."""
    ends = _collapsed(ends)
    keys = sorted({key for _, state, _ in ends for key, _ in state.assumed}, key=lambda key: doubts[key].order)
    if not keys:
        return ends
    if len(keys) > MOST_QUESTIONS:
        certain = [end for end in ends if not end[1].assumed]
        return [*certain, _unknown(doubts[keys[0]], ends[0][1], 1 - sum((end[2] for end in certain), Fraction(0)))]
    tree = _tree(ends, keys, ())
    if not isinstance(tree, _Fork):
        return _world(ends, keys)
    leaves = [dict(leaf) for leaf in _leaves(tree)]
    sure = {one: min(leaf.get(one, Fraction(0)) for leaf in leaves) for one in leaves[0]}
    return [
        *_scaled(_world(ends, keys), sure),
        _unknown(doubts[tree.key], ends[0][1], 1 - sum(sure.values(), Fraction(0))),
    ]


def _collapsed(ends: Sequence[End]) -> list[End]:
    """Ends that come to the same whatever an assumption is don't bear it any more."""
    by_outcome: dict[Outcome, Weights] = defaultdict(dict)
    plain: list[End] = []
    for outcome, state, weight in ends:
        if state.assumed:
            # What a packet is like behind its end makes no difference any more.
            shape = State(0, 0, 0, 0, noted=state.noted, trail=state.trail, examined=state.examined)
            shape = shape._replace(assumed=state.assumed)
            by_outcome[outcome][shape] = by_outcome[outcome].get(shape, Fraction(0)) + weight
        else:
            plain.append((outcome, state, weight))
    return plain + [
        (outcome, state, weight) for outcome, some in by_outcome.items() for state, weight in joined(some).items()
    ]


def _tree(ends: Sequence[End], keys: Sequence[Key], chosen: Assumed) -> _Tree:
    """The outcomes with their shares in each world, as a tree of questions that make a difference."""
    if not keys:
        shares: dict[Outcome, Fraction] = defaultdict(Fraction)
        for outcome, _, weight in ends:
            shares[outcome] += weight
        return frozenset(shares.items())
    key, told = keys[0], implied(chosen, keys[0])
    sides = [
        _tree(_where(ends, key, truth), keys[1:], (*chosen, (key, truth)))
        for truth in (False, True)
        if told in (None, truth)
    ]
    return sides[0] if sides[0] == sides[-1] else _Fork(key, *sides)


def _where(ends: Sequence[End], key: Key, truth: bool) -> list[End]:
    return [end for end in ends if dict(end[1].assumed).get(key, truth) is truth]


def _leaves(tree: _Tree) -> Iterator[_Shares]:
    if isinstance(tree, _Fork):
        yield from _leaves(tree.no)
        yield from _leaves(tree.yes)
    else:
        yield tree


def _world(ends: Sequence[End], keys: Sequence[Key]) -> Sequence[End]:
    """The ends in the world in which, as far as may be, no rule matches that can't be judged."""
    chosen: Assumed = ()
    for key in keys:
        told = implied(chosen, key)
        chosen = (*chosen, (key, bool(told)))
        ends = _where(ends, key, bool(told))
    return ends


def _scaled(ends: Sequence[End], sure: Mapping[Outcome, Fraction]) -> Iterator[End]:
    """The ends, so that each outcome has the share that is sure."""
    total: dict[Outcome, Fraction] = defaultdict(Fraction)
    for outcome, _, weight in ends:
        total[outcome] += weight
    for outcome, state, weight in ends:
        part = weight * sure.get(outcome, Fraction(0)) / total[outcome]
        if part:
            yield outcome, state, part


def _unknown(doubt: Doubt, like: State, weight: Fraction) -> End:
    state = like._replace(trail=doubt.trail, noted=frozenset(), examined=0, assumed=())
    return Outcome(Fate.UNKNOWN, detail=doubt.detail), state, weight
