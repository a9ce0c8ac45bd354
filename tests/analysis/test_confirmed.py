"""Every mutation that changes a verdict is found, and the kernel confirms the packet that is printed.

A mutation counts if the simulator tells it by one of many probes, none of which comes from the comparison; and if what
changes is enough to be seen in some thousand packets.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from itertools import cycle, islice

import pytest

from kpx.analysis.equivalence import Example, Share, Side, compare, examples
from kpx.analysis.packet import Host, Outcome
from kpx.analysis.simulate import Simulator, Tables, tables_of
from kpx.family import Family
from tests.analysis.arena import OWN, Arena, Seen, seen_as
from tests.analysis.mutations import KINDS, Mutation, mutations
from tests.analysis.probes import destinations, from_everywhere
from tests.analysis.variants import variant
from tests.chance import LEAST, as_shared
from tests.kernel import needs_kernel

MUTATIONS = int(os.environ.get("KPX_MUTATIONS", "17"))
FIRST = int(os.environ.get("KPX_FIRST", "0"))
"""The first seed."""

CLEAR = 300
"""How far from each other, in terms of chi-square, what both sides do shall be: chance never looks like that."""

VISIBLE = Fraction(1, 50)
"""Mutations that lead fewer packets elsewhere are left out: it would take too many to tell them from chance."""

pytestmark = [pytest.mark.kernel, needs_kernel]


@pytest.fixture(scope="module")
def arenas() -> Iterator[tuple[Arena, Arena]]:
    with Arena() as one, Arena() as other:
        yield one, other


def chosen(seed: int, kind: str) -> tuple[Tables, Mutation]:
    """A mutation of this kind which some probe tells, of this cluster's rules or, if it has none, of another one's."""
    classic, tree, _ = variant(5, seed, Family.IPV4)
    before = tables_of(tree if seed % 2 else classic)
    pick = random.Random(f"{seed} {kind}")
    probes = [packet for one in destinations(classic, tree) for packet in from_everywhere(one, Family.IPV4)]
    host = Host([OWN])
    unharmed = cache(Simulator(before, Family.IPV4, host).outcomes)
    sample = pick.sample(probes, min(len(probes), 1000))

    def tells(mutation: Mutation) -> bool:
        harmed = Simulator(mutation.tables, Family.IPV4, host, mutation.policies)
        return any(apart(unharmed(one), harmed.outcomes(one)) > VISIBLE for one in sample)

    found = next(filter(tells, islice(mutations(before, kind, pick), 30)), None)
    return (before, found) if found else chosen(seed + 1_000_000, kind)


def apart(one: Mapping[Outcome, Fraction], other: Mapping[Outcome, Fraction]) -> Fraction:
    """How many of all packets fare differently."""
    return (
        sum((abs(one.get(what, Fraction()) - other.get(what, Fraction())) for what in {**one, **other}), Fraction()) / 2
    )


def shares(side: tuple[Share, ...], example: Example) -> Mapping[Seen, float]:
    found: dict[Seen, float] = {}
    for one in side:
        what = seen_as(one.outcome, example.packet)
        found[what] = found.get(what, 0.0) + float(one.probability)
    return found


def fits(seen: Counter[Seen], expected: Mapping[Seen, float], least: float = LEAST) -> bool:
    """Whether what was seen can well be what was expected."""
    if not seen.keys() <= expected.keys():
        return False
    if len(expected) == 1:
        return True
    return as_shared([seen[one] for one in expected], list(expected.values()), least)


def enough(one: Mapping[Seen, float], other: Mapping[Seen, float]) -> int:
    """How many packets it takes to tell two distributions apart."""
    if len(one) == len(other) == 1:
        return 1
    pairs = [(one.get(it, 0.0), other.get(it, 0.0)) for it in {**one, **other}]
    apart = sum((left - right) ** 2 / max(left, right) for left, right in pairs)
    return min(int(CLEAR / apart) + 100, 60_000)


def confirmed(arenas: tuple[Arena, Arena], example: Example, sides: tuple[Side, Side]) -> str:
    """Why the kernel doesn't agree with what both sides are said to do to an example; empty if it does."""
    told = [shares(side, example) for side in example.sides]
    if told[0] == told[1]:
        return f"what can be seen is the same on both sides: {example}"
    count = enough(*told)
    met = []
    for arena, (tables, policies), expected in zip(arenas, sides, told, strict=True):
        arena.load(tables, policies)
        with arena.prepared(example.addresses, example.known, example.packet):
            seen = arena.outcomes(example.packet, expected, count)
        if not fits(seen, expected):
            return f"{example}\nexpected {dict(expected)}\nseen {dict(seen)}"
        met.append(seen)
    if fits(met[0], told[1], 1e-6) and fits(met[1], told[0], 1e-6):
        return f"not different enough: {example}\n{met}"
    return ""


@pytest.mark.timeout(3000)
def test_every_mutation_is_found_and_confirmed(arenas: tuple[Arena, Arena]) -> None:
    wrong = []
    for number, kind in enumerate(islice(cycle(KINDS), MUTATIONS)):
        before, mutation = chosen(FIRST + number, kind)
        sides: tuple[Side, Side] = ((before, {}), (mutation.tables, mutation.policies))
        example = next(iter(examples(compare(*sides, Family.IPV4))), None)
        why = confirmed(arenas, example, sides) if example else "not found"
        if why:
            wrong.append(f"{FIRST + number} {mutation.kind}: {mutation.where}\n{why}")
    assert not wrong, f"{len(wrong)} of {MUTATIONS}:\n" + "\n\n".join(wrong)
