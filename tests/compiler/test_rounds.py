"""Round robin: exact cycles, whatever the number of endpoints and their weights."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.compiler import names
from kpx.compiler.choice import Arm
from kpx.compiler.rounds import Rounds
from kpx.model.service import ServicePortName
from kpx.netfilter.rule import target_of
from kpx.netfilter.ruleset import Rules

PORT = ServicePortName("shop", "web", "http", "tcp")
CHAIN = f"KUBE-SVC-{names.port_hash(PORT)}"
FIRST = ("-m comment --comment first -j KUBE-MARK-MASQ",)


def arms(weights: Sequence[int]) -> list[Arm]:
    addresses = sorted(f"10.128.{number // 250}.{number % 250 + 1}:8080" for number in range(len(weights)))
    return [
        Arm("", names.endpoint_chain(PORT, address), weight) for address, weight in zip(addresses, weights, strict=True)
    ]


def chosen(some: Sequence[Arm]) -> dict[str, Rules]:
    return dict(Rounds()(CHAIN, FIRST, some, None))


class Kernel:
    """Walks chains as the kernel does: xt_statistic.c counts, rule by rule, what comes to it."""

    def __init__(self, chains: Mapping[str, Rules]) -> None:
        self._chains = chains
        self._seen: Counter[tuple[str, int]] = Counter()

    def connect(self) -> str:
        chain = CHAIN
        while chain in self._chains:
            chain = self._leave(chain)
        return chain

    def _leave(self, chain: str) -> str:
        for place, rule in enumerate(self._chains[chain]):
            if "KUBE-MARK-MASQ" in rule:
                continue
            every = re.search(r"--mode nth --every (\d+) --packet 0", rule)
            turn = self._seen[chain, place]
            self._seen[chain, place] += 1
            if every is None or turn % int(every[1]) == 0:
                return target_of(rule) or ""
        raise AssertionError(f"{chain} has nothing for the packet")


@pytest.mark.parametrize("count", [1, 2, 16, 17, 100, 333, 1000])
def test_any_n_connections_in_sequence_reach_n_endpoints(count: int) -> None:
    kernel = Kernel(chosen(arms([100] * count)))
    reached = [kernel.connect() for _ in range(3 * count)]
    for start in range(2 * count):
        assert len(set(reached[start : start + count])) == count


@given(weights=st.lists(st.sampled_from([1, 2, 3, 5, 19, 95, 100]), min_size=1, max_size=60))
def test_a_cycle_has_as_many_turns_as_an_endpoint_weighs(weights: list[int]) -> None:
    some = arms(weights)
    chains = chosen(some)
    if any("--mode random" in rule for rules in chains.values() for rule in rules):
        return  # see the next test
    cycle = sum(weights) // reduce(gcd, weights)
    kernel = Kernel(chains)
    reached = Counter(kernel.connect() for _ in range(cycle))
    assert all(reached[arm.chain] * sum(weights) == arm.weight * cycle for arm in some)


@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=80))
def test_weights_with_nothing_in_common_have_exact_shares_too(weights: list[int]) -> None:
    some = arms(weights)
    chains = chosen(some)
    assert max(map(len, chains.values())) <= 128 + len(FIRST) + len(some)
    shares = long_run(chains)
    for arm in some:
        assert abs(shares[arm.chain] - Fraction(arm.weight, sum(weights))) < Fraction(1, 1 << 30)


def long_run(chains: Mapping[str, Rules]) -> dict[str, Fraction]:
    """What share each endpoint has over a long time."""
    found: dict[str, Fraction] = defaultdict(Fraction)

    def walk(chain: str, share: Fraction) -> None:
        for rule in chains[chain]:
            if "KUBE-MARK-MASQ" in rule:
                continue
            every = re.search(r"--every (\d+)", rule)
            random = re.search(r"--probability (\S+)", rule)
            part = Fraction(1, int(every[1])) if every else Fraction(1)
            part = Fraction(round(float(random[1]) * 2**31), 2**31) if random else part
            target = target_of(rule) or ""
            if target in chains:
                walk(target, share * part)
            else:
                found[target] += share * part
            share *= 1 - part

    walk(CHAIN, Fraction(1))
    return found


@pytest.mark.parametrize("weights", [[100] * 5000, [95] * 2500 + [5] * 2500, list(range(1, 200)) * 3])
def test_chains_come_bottom_up_with_short_names(weights: list[int]) -> None:
    some = arms(weights)
    known = {arm.chain for arm in some} | {"KUBE-MARK-MASQ"}
    for chain, rules in Rounds()(CHAIN, FIRST, some, None):
        assert len(chain) <= 28
        assert chain not in known
        assert {target_of(rule) for rule in rules} <= known
        known.add(chain)
    assert chain == CHAIN
    assert rules[: len(FIRST)] == FIRST


def test_most_endpoints_stay_in_their_group() -> None:
    some = arms([100] * 1000)
    before, after = chosen(some), chosen(some[:500] + some[501:])
    group = {
        side: {target_of(rule): chain for chain, rules in chains.items() for rule in rules if chain != CHAIN}
        for side, chains in (("before", before), ("after", after))
    }
    moved = [arm for arm in some if group["before"].get(arm.chain) != group["after"].get(arm.chain)]
    assert len(moved) < 100
