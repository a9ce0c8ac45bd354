"""Choice among endpoints: each one as likely as any other to the kernel's last bit, and little changed by a change."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.compiler import names
from kpx.compiler.choice import Affinity, Arm, Choose, Grouped, linear, weighted
from kpx.model.service import ServicePortName
from kpx.netfilter.rule import target_of
from kpx.netfilter.ruleset import Rules

STEP = Fraction(1, 1 << 31)
PORT = ServicePortName("shop", "web", "http", "tcp")
CHAIN = f"KUBE-SVC-{names.port_hash(PORT)}"
FIRST = ("-m comment --comment first -j KUBE-MARK-MASQ",)
HOUR = Affinity(3600, "255.255.255.255")


def arms(count: int) -> list[Arm]:
    addresses = sorted(f"10.128.{number // 250}.{number % 250 + 1}:8080" for number in range(count))
    return [Arm("", names.endpoint_chain(PORT, address)) for address in addresses]


def chosen(some: Sequence[Arm], choose: Choose, affinity: Affinity | None = None) -> dict[str, Rules]:
    return dict(choose(CHAIN, FIRST, some, affinity))


def shares(chains: Mapping[str, Rules], chain: str = CHAIN) -> dict[str, Fraction]:
    """The exact probability of each endpoint chain for a client that nobody knows."""
    found: dict[str, Fraction] = {}
    left = Fraction(1)
    for rule in chains[chain]:
        target = target_of(rule) or ""
        if "--rcheck" in rule or target in ("", "KUBE-MARK-MASQ"):
            continue
        written = re.search(r"--probability (\S+)", rule)
        chance = Fraction(round(float(written[1]) * 2**31), 2**31) if written else Fraction(1)
        below = shares(chains, target) if target in chains else {target: Fraction(1)}
        found.update({name: left * chance * share for name, share in below.items()})
        left *= 1 - chance
    assert left == 0
    return found


@pytest.mark.parametrize("counts", [range(17, 120), range(120, 1200, 37), (5000, 20_000)], ids=["few", "some", "many"])
def test_every_endpoint_has_its_share_to_the_last_bit(counts: Sequence[int]) -> None:
    for count in counts:
        some = arms(count)
        found = shares(chosen(some, Grouped()))
        assert found.keys() == {arm.chain for arm in some}
        assert max(abs(share - Fraction(1, count)) for share in found.values()) < STEP


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=40))
def testweighted_follow_weights_to_the_last_bit(weights: list[int]) -> None:
    left = Fraction(1)
    for weight, text in zip(weights, weighted(tuple(weights)), strict=True):
        written = re.search(r"--probability (\S+)", text)
        chance = Fraction(round(float(written[1]) * 2**31), 2**31) if written else Fraction(1)
        assert f"{float(chance):.11f}" == (written[1] if written else "1.00000000000")
        assert abs(left * chance - Fraction(weight, sum(weights))) < STEP
        left *= 1 - chance
    assert left == 0


@pytest.mark.parametrize("affinity", [None, HOUR])
def test_few_endpoints_stay_a_list(affinity: Affinity | None) -> None:
    some = arms(16)
    assert chosen(some, Grouped(), affinity) == chosen(some, linear, affinity)
    assert len(chosen(arms(17), Grouped(), affinity)) > 1


@pytest.mark.parametrize("affinity", [None, HOUR])
@pytest.mark.parametrize("count", [17, 100, 1000, 5000])
def test_chains_come_bottom_up_with_short_names(count: int, affinity: Affinity | None) -> None:
    some = arms(count)
    known = {arm.chain for arm in some} | {"KUBE-MARK-MASQ"}
    for chain, rules in Grouped()(CHAIN, FIRST, some, affinity):
        assert len(chain) <= 28
        assert chain not in known
        assert {target_of(rule) for rule in rules} - {None} <= known
        known.add(chain)
    assert chain == CHAIN
    assert rules[: len(FIRST)] == FIRST


def walked(chains: Mapping[str, Rules]) -> int:
    """The most rules that a packet can be compared with, without the endpoint's own."""

    def worst(chain: str) -> int:
        below = (worst(target) for rule in chains[chain] if (target := target_of(rule) or "") in chains)
        return len(chains[chain]) + max(below, default=0)

    return worst(CHAIN)


@pytest.mark.parametrize(("count", "most"), [(17, 20), (100, 34), (1000, 50), (5000, 70)])
def test_a_packet_passes_few_rules(count: int, most: int) -> None:
    assert walked(chosen(arms(count), Grouped())) <= most


def test_one_endpoint_changes_a_bounded_number_of_rules() -> None:
    some = arms(3000)
    before = chosen(some, Grouped())
    for gone in (0, 1499, 2999):
        after = chosen(some[:gone] + some[gone + 1 :], Grouped())
        touched = [chain for chain in before.keys() | after.keys() if before.get(chain) != after.get(chain)]
        lines = sum(len(set(before.get(chain, ())) ^ set(after.get(chain, ()))) for chain in touched)
        assert len(touched) <= 4
        assert lines <= 100
        assert CHAIN in touched


def test_groups_do_not_depend_on_who_else_is_there() -> None:
    """A client's place on a group's list is kept: the group's name is that of the same endpoints."""
    everybody = chosen(arms(2000), Grouped(), HOUR)
    half = chosen(arms(2000)[::2], Grouped(), HOUR)

    def groups(chains: Mapping[str, Rules]) -> dict[str, str]:
        return {target_of(rule) or "": name for name in chains if "-AFC-" in name for rule in chains[name]}

    assert groups(half).items() <= groups(everybody).items()
