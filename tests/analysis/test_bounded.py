"""The work grows with the rules, and not with the number of ways through chains that branch and join.

No clock is asked: how often rules are compared with packets, and looked at by checks, is counted.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpx.analysis import checks, simulate
from kpx.analysis.chain import KernelRule
from kpx.analysis.checks import findings
from kpx.analysis.dot import dot
from kpx.analysis.fold import folded
from kpx.analysis.mermaid import mermaid
from kpx.analysis.packet import Fate, Host, Origin, Outcome, Packet
from kpx.analysis.page import page
from kpx.analysis.picture import picture
from kpx.analysis.simulate import Simulator
from kpx.explain.rules_alone import explain_rules
from kpx.family import Family
from tests.analysis.webs import ASKS, HALF, Chains, ladder, tables, web
from tests.cli.inprocess import run

DIAMONDS = str(Path(__file__).parents[1] / "cases" / "diamonds" / "dump.save")
PREFIXES = ("C-", "KUBE-SVC-", "KUBE-SEP-", "KUBE-XLB-", "KUBE-FW-", "KPX-SVC-")
RUNGS = {
    "chance": (HALF, HALF, ""),
    "known": ("-m mark --mark 0x1/0x1", "-s 10.244.0.0/16", ""),
    "not known": ("-m set --match-set a src", "-m set --match-set b src", ""),
    "interfaces": ("-i cali+", "-i eth1", ""),
    "many": (*(HALF,) * 7, ""),
}


def packet(origin: Origin) -> Packet:
    source = "192.0.2.10" if origin is Origin.NODE else "10.244.0.9" if origin is Origin.POD else "198.51.100.7"
    return Packet(source, "10.96.0.50", "tcp", 80, origin=origin)


def simulator(chains: Chains, filtering: Chains | None = None) -> Simulator:
    return Simulator(tables(chains, filtering), Family.IPV4, Host(["192.0.2.10"]))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts how often a rule is compared with a packet, and how often a check looks up a chain."""
    found: Counter[str] = Counter()
    ask, of = KernelRule.ask, checks.Tables.of

    def asking(self: KernelRule, *of_packet: Any) -> Any:
        found["asked"] += 1
        return ask(self, *of_packet)

    def looking(self: checks.Tables, *place: str) -> Any:
        found["looked"] += 1
        return of(self, *place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KernelRule, "ask", asking)
        patch.setattr(checks.Tables, "of", looking)
        yield found


def count(held: Simulator) -> int:
    return sum(len(rules) for chains in held.tables.values() for rules in chains.values())


# ---- ladders: each rule a few times, whatever the number of ways ----


@pytest.mark.parametrize("rungs", RUNGS)
@pytest.mark.parametrize("length", [20, 60, 120])
@pytest.mark.parametrize("origin", Origin)
def test_a_ladder_takes_work_for_its_rules(rungs: str, length: int, origin: Origin) -> None:
    held = simulator(ladder(length, RUNGS[rungs]), ladder(length, RUNGS[rungs], "F-"))
    with counted() as work:
        found = held.outcomes(packet(origin))
    assert sum(found.values()) == 1
    assert work["asked"] <= 600 * count(held)  # packets that bear up to eight assumptions are up to 2^8 different ones
    with counted() as work:
        paths = held.paths(packet(origin))
    assert sum(path.probability for path in paths) == 1
    assert work["asked"] <= 2_000 * count(held)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("rungs", ["chance", "not known", "many"])
def test_verify_explain_and_graph_take_work_for_the_rules(prefix: str, rungs: str) -> None:
    held = simulator(ladder(60, RUNGS[rungs], prefix), ladder(60, RUNGS[rungs], "F-"))
    with counted() as work:
        findings(checks.Tables(held.tables, Family.IPV4))
        explain_rules("shop/web", [held], "a test")
        drawn = picture(held.tables)
        for text in (dot(folded(drawn).legible()), mermaid(folded(drawn)), page(held, drawn, "a test")):
            assert text
    assert work["looked"] <= 600 * count(held)
    assert work["asked"] <= 5_000 * count(held)


def test_the_commands_answer_of_diamonds() -> None:
    flow = ("tcp 10.244.0.9 -> 10.96.0.1:80", "--from", "pod", "--rules", DIAMONDS)
    done = run("trace", *flow)
    assert done.status == 1  # it holds no table filter
    assert "by the other tables: untouched" in " ".join(done.stdout.split())
    assert "too many ways to list" in " ".join(done.stdout.split())
    for words in (("verify",), ("graph", "--format", "dot"), ("graph", "--html"), ("explain", "C3")):
        assert run(*words, "--rules", DIAMONDS).status == 1


# ---- the answers are right ----


def test_what_is_worked_out_once_is_what_all_ways_come_to() -> None:
    """The outcomes, by chains that are passed once, against the sum of all ways, told apart; and the samples' sum."""
    listed = 0
    for seed in range(120):
        held = simulator(web(seed, 2 + seed % 6), web(seed + 1, 2 + seed % 6, "F-"))
        for asked in map(packet, Origin):
            outcomes = held.outcomes(asked)
            assert summed(held, asked, simulate._Mode.SAMPLES) == outcomes
            with suppress(simulate._WaysError):
                assert summed(held, asked, simulate._Mode.WAYS) == outcomes
                listed += 1
    assert listed > 240  # of 360; the others have too many ways


def summed(held: Simulator, asked: Packet, mode: simulate._Mode) -> Mapping[Outcome, Fraction]:
    sums: dict[Outcome, Fraction] = defaultdict(Fraction)
    for outcome, _, weight in simulate._Journey(held, asked, {}, mode).ends():
        sums[outcome] += weight
    return sums


@given(st.integers(0, 10_000), st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_loops_end_and_are_not_known(seed: int, size: int) -> None:
    """Chains that lead to themselves, as no kernel takes them: the work is bounded, nothing is lost, the same is said
    twice."""
    held = simulator(web(seed, size, loops=True), web(seed + 1, size, "F-", loops=True))
    for origin in Origin:
        with counted() as work:
            found = held.outcomes(packet(origin))
        assert sum(found.values()) == 1
        assert found == held.outcomes(packet(origin))
        assert work["asked"] <= 100_000 + 2_000 * count(held)
        assert sum(path.probability for path in held.paths(packet(origin))) == 1
    findings(checks.Tables(held.tables, Family.IPV4))
    explain_rules("shop/web", [held], "a test")


def test_a_plain_loop_is_named() -> None:
    (outcome,) = simulator({"C-A": ("-j C-B",), "C-B": ("-j C-A",)}).outcomes(packet(Origin.POD))
    assert (outcome.fate, outcome.detail) == (Fate.UNKNOWN, "nat: C-A leads to itself")


@pytest.mark.parametrize("length", [100, 200, 1_000])
def test_long_chains(length: int) -> None:
    """As deep as packets may be they are followed; deeper, nothing is certain."""
    held = simulator(ladder(length, ("",), end="-p tcp -m tcp -j DNAT --to-destination 10.244.1.5:8080"))
    (outcome,) = held.outcomes(packet(Origin.POD))
    assert outcome.fate is (Fate.TRANSLATED if length < simulate.DEEPEST else Fate.UNKNOWN)
    findings(checks.Tables(held.tables, Family.IPV4))
    assert explain_rules("shop/web", [held], "a test").ports
    assert page(held, picture(held.tables), "a test")


def test_a_long_chain_of_rules() -> None:
    chain = {"C-A": (*(f"-s 198.51.100.{n % 250}/32 -j C-B" for n in range(5_000)), HALF), "C-B": ("-j LOG",)}
    held = simulator(chain)
    assert held.outcomes(packet(Origin.OUTSIDE)) == {Outcome(Fate.UNTOUCHED): 1}
    assert sum(path.probability for path in held.paths(packet(Origin.OUTSIDE))) == 1


@pytest.mark.parametrize("what", ["-j MARK --set-xmark {bit:#x}/{bit:#x}", "-m recent --set --name L{at} --rsource"])
def test_too_many_different_packets_are_not_judged(what: str) -> None:
    """2^31 marks, or lists: what comes of some is said to be unknown, soon."""
    sets = tuple(f"{HALF} {what.format(bit=1 << at, at=at)}" for at in range(31))
    asks = tuple(f"-m mark --mark {1 << at:#x}/{1 << at:#x} -j LOG" for at in range(31))
    held = simulator({"C-A": (*sets, *asks)})
    with counted() as work:
        found = held.outcomes(packet(Origin.POD))
    assert [one.fate for one in found] == [Fate.UNKNOWN]
    assert "more than" in next(iter(found)).detail
    assert work["asked"] < 500_000


def test_every_kind_of_question_is_in_the_webs() -> None:
    texts = " ".join(rule for seed in range(20) for rules in web(seed, 9).values() for rule in rules)
    assert all(asks in texts for asks in ASKS)


def test_shares_add_up_like_this() -> None:
    """By hand: half to the endpoint, of the rest half again, by two ways that join."""
    to = "-p tcp -m tcp -j DNAT --to-destination 10.244.1.5:8080"
    chains: Mapping[str, tuple[str, ...]] = {"C-A": (f"{HALF} -j C-B", "-j C-B"), "C-B": (f"{HALF} {to}",)}
    found = simulator(chains).outcomes(packet(Origin.POD))
    # 1/2 goes to C-B at once, and what comes back and the rest go there again: 1/2 * 1/2 + 3/4 * 1/2.
    assert found[Outcome(Fate.TRANSLATED, "10.244.1.5:8080")] == Fraction(5, 8)
