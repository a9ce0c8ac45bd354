"""Words, parts and the normal form of rules, without a kernel."""

import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpx.family import Family
from kpx.netfilter.options import Option
from kpx.netfilter.rule import (
    Match,
    Rule,
    RuleError,
    canonical,
    comment_of,
    format_rule,
    parse_rule,
    quote,
    split,
    target_of,
)
from tests.netfilter.sketch import sketch

ODD = "\"'\\ !-_.,:/#$`\t\n\x0b\x85\u2028ü☃aZ09"
texts = st.text(st.sampled_from(ODD) | st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
families = st.sampled_from(Family)
seeds = st.integers(0, 2**32)
SPELLINGS = Path(__file__).parent / "spellings.txt"


# ---- words ----


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("plain-Word_09", "plain-Word_09"),
        ("--dport", "--dport"),
        ("shop/web:http", '"shop/web:http"'),
        ("10.0.0.1", '"10.0.0.1"'),
        ("", '""'),
        ("!", '"!"'),
        ('a "b" \\ it\'s', '"a \\"b\\" \\\\ it\\\'s"'),
        ("ü", '"ü"'),
    ],
)
def test_quote_prints_as_iptables_save_does(value: str, printed: str) -> None:
    assert quote(value) == printed
    assert split(printed) == [value]


@given(st.lists(texts))
def test_split_is_the_inverse_of_quote(values: list[str]) -> None:
    assert split(" ".join(quote(value) for value in values)) == values


@given(texts)
def test_split_reads_any_text_but_an_open_quote(text: str) -> None:
    with suppress(RuleError):
        words = split(text)
        assert split(" ".join(quote(word) for word in words)) == words
        return
    assert '"' in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a "b c"d', ["a", "b c", "d"]),
        ('pre"fix ed"', ["prefix ed"]),
        ("back\\slash", ["back\\slash"]),
        ("  a \t b\n", ["a", "b"]),
        ("a\x0bb c\x85d", ["a\x0bb", "c\x85d"]),
    ],
)
def test_split_follows_the_reader_of_iptables_restore(text: str, words: list[str]) -> None:
    assert split(text) == words


# ---- parts ----


def test_parse_takes_a_rule_apart() -> None:
    text = (
        '! -s 10.244.0.0/16 -p tcp -m comment --comment "a b" -m conntrack ! --ctstate NEW -m tcp --dport 80 '
        "-j DNAT --to-destination 10.0.0.1:80 --random"
    )
    rule = parse_rule(text)
    assert rule == Rule(
        head=(Option("-s", ("10.244.0.0/16",), negated=True), Option("-p", ("tcp",))),
        matches=(
            Match("comment", (Option("--comment", ("a b",)),)),
            Match("conntrack", (Option("--ctstate", ("NEW",), negated=True),)),
            Match("tcp", (Option("--dport", ("80",)),)),
        ),
        target="DNAT",
        target_options=(Option("--to-destination", ("10.0.0.1:80",)), Option("--random")),
    )
    assert rule.comment == "a b"
    assert format_rule(rule) == text


def test_a_text_that_looks_like_an_option_stays_a_text() -> None:
    rule = parse_rule("-m comment --comment -j -m recent --set --name --rsource -g KUBE-A")
    assert rule.comment == "-j"
    assert rule.target == "KUBE-A"
    assert rule.goto
    assert rule.matches[1].options == (Option("--set"), Option("--name", ("--rsource",)))


@pytest.mark.parametrize(
    "text", ["-j", "-p tcp -m", "-s", "stray -j X", '-m comment --comment "open', "-p tcp --dport 80 ! x"]
)
def test_what_is_no_rule_is_refused_and_has_no_other_form(text: str) -> None:
    with pytest.raises(RuleError):
        parse_rule(text)
    assert canonical(text, Family.IPV4) == text


@given(seeds, families, st.sampled_from(["filter", "nat"]))
def test_format_is_the_inverse_of_parse(seed: int, family: Family, table: str) -> None:
    rule = parse_rule(sketch(random.Random(seed), family, table).text())
    assert parse_rule(format_rule(rule)) == rule


# ---- looks at a text ----


@given(seeds, families)
def test_fast_looks_agree_with_the_parser(seed: int, family: Family) -> None:
    text = format_rule(parse_rule(sketch(random.Random(seed), family).text()))
    rule = parse_rule(text)
    assert target_of(text) == rule.target
    assert comment_of(text) == rule.comment


def test_a_comment_never_passes_for_a_target() -> None:
    text = '-m comment --comment "x -j DROP \\" -j DROP" -g KUBE-A'
    assert target_of(text) == "KUBE-A"
    assert comment_of(text) == 'x -j DROP " -j DROP'
    assert target_of('-m comment --comment "-j DROP"') is None
    assert comment_of("-j ACCEPT") is None


# ---- normal form ----


def spellings() -> list[tuple[Family, list[str]]]:
    """The groups of `spellings.txt`: texts that mean the same rule."""
    blocks = SPELLINGS.read_text().split("\n\n")
    groups = [[line for line in block.splitlines() if line and line[0] != "#"] for block in blocks]
    return [(Family(family), rules) for family, *rules in filter(None, groups)]


@pytest.mark.parametrize(
    ("family", "rules"), spellings(), ids=lambda value: value[0] if isinstance(value, list) else value
)
def test_all_spellings_have_one_normal_form(family: Family, rules: list[str]) -> None:
    assert len(rules) > 1
    assert {canonical(rule, family) for rule in rules} == {canonical(rules[0], family)}


def test_different_rules_keep_different_forms() -> None:
    forms = [(family, canonical(rules[0], family)) for family, rules in spellings()]
    assert len(set(forms)) == len(forms)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-s 10.0.0.1/32", "! -s 10.0.0.1/32"),
        ("-s 10.0.0.1/32", "-d 10.0.0.1/32"),
        ("-j KUBE-A", "-g KUBE-A"),
        ("-m mark --mark 0x1/0x1", "-m mark --mark 0x1"),
        ("-m conntrack --ctstate NEW", "-m conntrack ! --ctstate NEW"),
        ("-j MARK --set-xmark 0x1/0x1", "-j MARK --set-xmark 0x1/0x0"),
        ("-j MARK --set-mark 0x1", "-j CONNMARK --set-mark 0x1"),
        ("-j REJECT", "-j REJECT --reject-with icmp-host-unreachable"),
        ("-j MASQUERADE", "-j MASQUERADE --random-fully"),
        ("-m recent --set", "-m recent --set --rdest"),
        ("-m statistic --mode random --probability 0.5", "-m statistic --mode random --probability 0.5000001"),
        ("-p tcp -m tcp --dport 80", "-p tcp -m tcp --sport 80"),
        ("-p tcp -m tcp --dport 80", "-p udp -m udp --dport 80"),
        ("-m comment --comment a", "-m comment --comment A"),
        # a counter asked first counts other packets than one asked last
        ("-m limit --limit 1/sec -m mark --mark 0x1", "-m mark --mark 0x1 -m limit --limit 1/sec"),
        ("-m recent --set -m addrtype --dst-type LOCAL", "-m addrtype --dst-type LOCAL -m recent --set"),
    ],
)
def test_what_differs_stays_different(one: str, other: str) -> None:
    assert canonical(one, Family.IPV4) != canonical(other, Family.IPV4)


@given(seeds, families, st.sampled_from(["filter", "nat"]))
@settings(max_examples=300)
def test_canonical_is_idempotent(seed: int, family: Family, table: str) -> None:
    once = canonical(sketch(random.Random(seed), family, table).text(), family)
    assert canonical(once, family) == once


STATEFUL = ("-m limit", "-m recent", "-m statistic --mode nth")


@given(seeds, families)
def test_canonical_ignores_the_order_of_stateless_groups(seed: int, family: Family) -> None:
    chance = random.Random(seed)
    rule = sketch(chance, family)
    if not any(group.startswith(STATEFUL) for group in rule.groups):
        assert canonical(rule.shuffled(chance).text(), family) == canonical(rule.text(), family)


@given(st.integers(0, 2**31))
def test_probabilities_are_equal_when_the_kernel_keeps_the_same_number(stored: int) -> None:
    def form(value: float) -> str:
        return canonical(f"-m statistic --mode random --probability {value:.14f}", Family.IPV4)

    near = [form((stored + shift) / 2**31) for shift in (-0.4, 0.0, 0.4, 0.6)]
    assert near[0] == near[1] == near[2] != near[3]


@given(st.lists(texts, max_size=8), families)
def test_canonical_takes_any_text(words: list[str], family: Family) -> None:
    options = ["-s", "-m", "mark", "--mark", "-j", "MARK", "--set-mark", "!", "--probability", "statistic", "/", "-p"]
    mixed = " ".join(f"{options[len(word) % len(options)]} {word}" for word in words)
    once = canonical(mixed, family)
    assert canonical(once, family) == once


def test_the_order_of_the_normal_form_is_that_of_iptables() -> None:
    text = "-m mark --mark 1 -p tcp -o b -i a -d 10.0.0.2 -s 10.0.0.1 --dport 80 -j ACCEPT -m comment --comment x"
    expected = (
        "-s 10.0.0.1/32 -d 10.0.0.2/32 -i a -o b -p tcp -m comment --comment x -m mark --mark 0x1 "
        "-m tcp --dport 80 -j ACCEPT"
    )
    assert canonical(text, Family.IPV4) == expected
