"""Edits of chains, carried out by the real tools on the real kernel."""

import random
from dataclasses import dataclass

import pytest

from kpx.family import Family
from kpx.netfilter.restore import Transaction, payload
from kpx.netfilter.save import SavedChain, parse_save
from kpx.netfilter.tools import Backend
from kpx.reconcile import edit
from kpx.reconcile.edit import Edit, Step
from tests.kernel import BACKENDS, Namespace, needs_kernel

pytestmark = [pytest.mark.kernel, needs_kernel, pytest.mark.parametrize("backend", BACKENDS)]

EXAMPLES = 150
FAMILY = Family.IPV4
TAIL = ("-m addrtype --dst-type LOCAL -j DROP", "-j ACCEPT")


@dataclass(frozen=True, slots=True)
class Example:
    chain: str
    live: tuple[str, ...]
    desired: tuple[str, ...]
    free: int = 0


def rule(number: int) -> str:
    return f"-d 10.0.{number // 256}.{number % 256}/32 -p tcp -m tcp --dport {number + 1} -j RETURN"


def other_spelling(text: str) -> str:
    """The same rule as somebody else may have written it."""
    return text.replace("/32", "").replace(" -p tcp", " -p 6")


def examples(seed: int, unordered: bool) -> list[Example]:
    pick = random.Random(seed)
    made = []
    for number in range(EXAMPLES):
        numbers = pick.sample(range(40), 12)
        live = [rule(one) for one in numbers[: pick.randint(0, 10)]]
        desired = [one for one in live if pick.random() < 0.7] + [rule(one) for one in numbers[10:]]
        if pick.random() < 0.3:
            pick.shuffle(desired)
        if pick.random() < 0.2:
            live = [*live, *live[:2]]  # somebody's doubles
        tail = TAIL if unordered else ()
        if unordered:
            at = pick.choice([len(live), len(live), 0])
            live = [*live[:at], *TAIL, *live[at:]]
        made.append(Example(f"KUBE-X{number}", tuple(live), (*desired, *tail), len(desired)))
    return made


def load(namespace: Namespace, backend: Backend, made: list[Example]) -> None:
    lines = [f"-A {one.chain} {other_spelling(text)}" for one in made for text in one.live]
    chains = tuple(one.chain for one in made)
    namespace.restore(backend, FAMILY, payload([Transaction("filter", chains, tuple(lines))]))


def carry_out(namespace: Namespace, backend: Backend, edits: list[Edit]) -> None:
    declare = tuple(one.chain for one in edits if one.step is Step.CREATE)
    lines = tuple(line for one in edits for line in one.lines())
    namespace.restore(backend, FAMILY, payload([Transaction("filter", declare, lines)]))


def chains(namespace: Namespace, backend: Backend) -> dict[str, SavedChain]:
    return dict(parse_save(namespace.save(backend, FAMILY))["filter"].chains)


@pytest.mark.parametrize("seed", range(3))
def test_ordered_chains_become_what_is_desired(backend: Backend, seed: int, namespace: Namespace) -> None:
    made = examples(seed, unordered=False)
    load(namespace, backend, made)
    live = chains(namespace, backend)
    edits = [edit.change_ordered("filter", one.chain, live[one.chain].rules, one.desired, FAMILY) for one in made]
    carry_out(namespace, backend, edits)
    after = chains(namespace, backend)
    assert {one.chain: after[one.chain].rules for one in made} == {one.chain: one.desired for one in made}


@pytest.mark.parametrize("seed", range(3))
def test_unordered_chains_hold_each_rule_once_and_their_tail_last(
    backend: Backend, seed: int, namespace: Namespace
) -> None:
    made = examples(seed, unordered=True)
    load(namespace, backend, made)
    live = chains(namespace, backend)
    edits = [
        edit.change_unordered("filter", one.chain, live[one.chain].rules, one.desired, one.free, FAMILY) for one in made
    ]
    carry_out(namespace, backend, edits)
    after = chains(namespace, backend)
    for one in made:
        rules = after[one.chain].rules
        assert sorted(rules[: one.free]) == sorted(one.desired[: one.free])
        assert rules[one.free :] == TAIL


@pytest.mark.parametrize("seed", range(3))
def test_unchanged_rules_keep_their_counters(backend: Backend, seed: int, namespace: Namespace) -> None:
    made = [one for one in examples(seed, unordered=False) if len(set(one.live)) == len(one.live)]
    counted = "".join(f"[{7 + n}:700] -A {one.chain} {text}\n" for one in made for n, text in enumerate(one.live))
    declared = "".join(f":{one.chain} - [0:0]\n" for one in made)
    namespace.run([f"iptables-{backend}-restore", "--noflush", "-c"], f"*filter\n{declared}{counted}COMMIT\n")
    live = chains(namespace, backend)
    edits = [edit.change_ordered("filter", one.chain, live[one.chain].rules, one.desired, FAMILY) for one in made]
    carry_out(namespace, backend, edits)
    after = parse_save(namespace.save(backend, FAMILY, counters=True))["filter"].chains
    for one, made_edit in zip(made, edits, strict=True):
        expected = {text: 7 + n for n, text in enumerate(one.live) if text not in made_edit.removed}
        counters = after[one.chain].counters or ()
        found = {text: packets for text, (packets, _) in zip(after[one.chain].rules, counters, strict=True)}
        assert {text: found[text] for text in expected} == expected
        assert len(made_edit.removed) + len(expected) == len(one.live)


OURS = frozenset({"KUBE-A", "KUBE-B", "KUBE-C"})
JUMPS = ("-j KUBE-A", '-m comment --comment "the second" -j KUBE-B', "-j KUBE-C")


@pytest.mark.parametrize("seed", range(40))
def test_jumps_are_mended_and_foreign_rules_stay_where_they_are(
    backend: Backend, seed: int, namespace: Namespace
) -> None:
    pick = random.Random(seed)
    foreign = [f"-s 192.0.2.{number}/32 -j ACCEPT" for number in range(4)]
    jumps = [one for one in JUMPS if pick.random() < 0.6] + [pick.choice(JUMPS)] * pick.randint(0, 1)
    pick.shuffle(jumps)
    live = foreign[:]
    for jump in jumps:
        live.insert(pick.randint(0, len(live)), jump)
    lines = tuple(f"-A INPUT {text}" for text in live)
    namespace.restore(backend, FAMILY, payload([Transaction("filter", tuple(sorted(OURS)), lines)]))
    carry_out(namespace, backend, [edit.change_jumps("filter", "INPUT", tuple(live), JUMPS, OURS, FAMILY)])
    rules = chains(namespace, backend)["INPUT"].rules
    assert tuple(one for one in rules if one in JUMPS) == JUMPS
    assert [one for one in rules if one not in JUMPS] == foreign
