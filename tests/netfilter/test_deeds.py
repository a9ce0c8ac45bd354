"""What a payload asks for, against what was done: for payloads of any kind, and for what a tool makes of them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.deeds import Deeds, TableChain, sections
from kpx.netfilter.readback import differing, leaves
from kpx.netfilter.refusal import RestoreError, ToolError, refusal
from kpx.netfilter.save import SavedChain

CHAINS = ("KUBE-A", "KUBE-B", "POSTROUTING")
RULES = ("-j ACCEPT", "-s 10.0.0.1/32 -j RETURN", '-m comment --comment "a b" -j DROP')
PAYLOAD = "*nat\n:KUBE-A - [0:0]\n-A KUBE-A -j ACCEPT\n-D KUBE-B -j RETURN\n-I KUBE-B 1 -j ACCEPT\n-X KUBE-C\nCOMMIT\n"


def test_a_section_asks_for_what_its_lines_say() -> None:
    (one,) = sections(PAYLOAD)
    assert one.table == "nat"
    assert one.chains["KUBE-A"].emptied
    assert one.chains["KUBE-B"] == Deeds(added=1, deleted=1, gone={"-j RETURN"})
    assert one.chains["KUBE-C"].dropped


@st.composite
def payloads(draw: st.DrawFn) -> str:
    """A payload of some sections over a few chains."""
    text = []
    for _ in range(draw(st.integers(1, 3))):
        text.append("*nat")
        text += [f":{chain} - [0:0]" for chain in draw(st.sets(st.sampled_from(CHAINS[:2])))]
        for chain, rule, command in draw(
            st.lists(st.tuples(st.sampled_from(CHAINS), st.sampled_from(RULES), st.sampled_from("AID")), max_size=8)
        ):
            text.append(f"-{command} {chain} {'1 ' if command == 'I' else ''}{rule}")
        text.append("COMMIT")
    return "\n".join([*text, ""])


def done_by(chains: dict[str, Deeds]) -> dict[TableChain, Deeds]:
    """What the kernel tells of a section that was carried out on chains of which none was there."""
    return {("nat", name): Deeds(one.added, one.deleted, made=int(one.emptied)) for name, one in chains.items()}


@given(payloads())
def test_a_section_that_was_carried_out_is_met_and_one_with_a_rule_less_or_more_is_not(text: str) -> None:
    for section in sections(text):
        seen = done_by(dict(section.chains))
        assert not list(section.unmet(seen))
        for key, deeds in seen.items():
            if deeds.added:
                assert list(section.unmet(seen | {key: Deeds(deeds.added - 1, deeds.deleted, deeds.made)}))
            assert list(section.unmet(seen | {key: Deeds(deeds.added + 1, deeds.deleted, deeds.made)}))
        if any(one.added or one.deleted for one in section.chains.values()):
            assert list(section.unmet({}))
            elsewhere = {("mangle", chain): deeds for (_, chain), deeds in seen.items()}
            assert list(section.unmet(elsewhere))
        assert list(section.unmet(seen | {("nat", "KUBE-ELSE"): Deeds(added=1)}))


def carried_out(text: str) -> dict[str, SavedChain | None]:
    """What the chains hold after a payload on a table where POSTROUTING holds all rules twice."""
    rules: dict[str, list[str]] = {"POSTROUTING": list(RULES) * 2, "KUBE-A": [], "KUBE-B": []}
    for line in text.splitlines():
        chain, _, rule = line[3:].partition(" ")
        if line.startswith(":"):
            rules[line[1:].split()[0]] = []
        elif line.startswith("-A"):
            rules[chain].append(rule)
        elif line.startswith("-I"):
            rules[chain].insert(0, rule.partition(" ")[2])
        elif line.startswith("-D") and rule in rules[chain]:
            rules[chain].remove(rule)
    return {name: SavedChain(None, 0, 0, tuple(some), None) for name, some in rules.items()}


@given(payloads())
def test_what_a_payload_left_behind_is_read_back_and_a_rule_that_is_missing_is_missed(text: str) -> None:
    left = leaves(text)
    live = carried_out(text)
    whole = {name for name, one in left["nat"].items() if one.whole}
    assert not [words for words in differing(left, {"nat": live}, Family.IPV4) if words.split()[1][:-1] in whole]
    for name in whole:
        chain = live[name]
        assert chain is not None
        if chain.rules:
            short = SavedChain(None, 0, 0, chain.rules[:-1], None)
            assert list(differing(left, {"nat": live | {name: short}}, Family.IPV4))
        assert any("is missing" in one for one in differing(left, {"nat": live | {name: None}}, Family.IPV4))


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (4, "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?", ToolError),
        (1, "iptables-restore: line 2: RULE_APPEND failed (Cannot allocate memory)", ToolError),
        (4, "Could not fetch rule set generation id: Permission denied (you must be root)", ToolError),
        (-9, "", ToolError),
        (137, "", ToolError),
        (2, "iptables-restore: Couldn't load match `x':No such file\n\nError occurred at line: 2", RestoreError),
        (2, 'Bad argument `Permission denied`\nError occurred at line: 3', RestoreError),
        (1, "iptables-restore: line 5 failed", RestoreError),
        (1, "", RestoreError),
    ],
)  # fmt: skip
def test_who_is_to_blame_for_a_refusal(status: int, said: str, kind: type[KpxError]) -> None:
    assert type(refusal(["iptables-restore"], status, said, PAYLOAD)) is kind


def test_rules_that_only_move_are_counted_as_kept() -> None:
    (one,) = sections("*nat\n-D KUBE-A -j ACCEPT\n-I KUBE-A 1 -j ACCEPT\n-A KUBE-A -j DROP\nCOMMIT\n")
    deeds = one.chains["KUBE-A"]
    assert (deeds.added, deeds.deleted, deeds.kept) == (2, 1, 1)
    assert Counter(deeds.gone) == {"-j ACCEPT": 1}
