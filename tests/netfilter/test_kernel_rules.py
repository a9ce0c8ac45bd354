"""Random rules through the real kernel: the normal form of what is printed is that of what was sent."""

import random
import subprocess
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpx.family import Family
from kpx.netfilter.restore import Transaction, payload
from kpx.netfilter.rule import canonical, comment_of, quote, split, target_of
from kpx.netfilter.ruleset import TABLES, TableName
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend, Tools
from tests.kernel import BACKENDS, FAMILIES, needs_kernel
from tests.netfilter.sketch import sketch
from tests.netfilter.test_rule import ODD, spellings

pytestmark = [
    pytest.mark.kernel,
    needs_kernel,
    pytest.mark.usefixtures("own_network"),
    pytest.mark.parametrize("backend", BACKENDS),
]


def printed(backend: Backend, family: Family, table: TableName, rules: list[str]) -> list[str]:
    """What iptables-save prints for rules that were sent."""
    tools = Tools(backend, family)
    targets = {target for target in map(target_of, rules) if target and target.startswith("KUBE-")}
    names = ("X", *sorted(targets))
    tools.restore(payload([Transaction(table, names, tuple(f"-A X {rule}" for rule in rules))]))
    saved = parse_save(tools.save(table))[table].chains["X"].rules
    assert len(saved) == len(rules)
    return list(saved)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_rules_come_back_in_the_same_form(backend: Backend, family: Family, table: TableName) -> None:
    chance = random.Random(f"{family} {table}")
    sent = [sketch(chance, family, table).text() for _ in range(300)]
    back = printed(backend, family, table, sent)
    differing = [
        f"\n  sent    {one}\n  printed {other}\n  {canonical(one, family)}\n  {canonical(other, family)}"
        for one, other in zip(sent, back, strict=True)
        if canonical(one, family) != canonical(other, family)
    ]
    assert not differing, "".join(differing)
    # and the other way: rules of one form are printed with the same words
    words: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for text in back:
        words[canonical(text, family)].add(tuple(sorted(word for word in split(text) if word not in EMPTY)))
    assert all(len(same) == 1 for same in words.values()), [same for same in words.values() if len(same) > 1]


EMPTY = {"-m", "tcp", "udp", "sctp"}
"""The words of a group without options, which may be there or not."""


@pytest.mark.parametrize(("family", "rules"), spellings())
def test_the_spellings_are_one_rule_to_the_kernel(backend: Backend, family: Family, rules: list[str]) -> None:
    table: TableName = "nat" if (target_of(rules[0]) or "") in ("DNAT", "MASQUERADE") else "filter"
    back = printed(backend, family, table, rules)
    assert {canonical(rule, family) for rule in [*rules, *back]} == {canonical(rules[0], family)}


comments = st.text(
    st.sampled_from(ODD.replace("\n", "")) | st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]),
    max_size=60,
)


@given(st.lists(comments, min_size=20, max_size=30))
@settings(max_examples=12, deadline=None)
def test_any_comment_survives(backend: Backend, texts: list[str]) -> None:
    rules = [f"-m comment --comment {quote(text)} -j ACCEPT" for text in texts]
    back = printed(backend, Family.IPV4, "filter", rules)
    assert back == rules
    assert [comment_of(rule) for rule in back] == texts


def test_a_comment_with_line_ends_is_read_back(backend: Backend) -> None:
    text = 'one"\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n-A X -j "two'
    iptables = f"iptables-{backend}"  # no payload can carry a line end
    subprocess.run([iptables, "-N", "X"], check=True)
    subprocess.run([iptables, "-A", "X", "-m", "comment", "--comment", text, "-j", "DROP"], check=True)
    saved = parse_save(Tools(backend, Family.IPV4).save())
    assert set(saved) == {"filter"}
    (rule,) = saved["filter"].chains["X"].rules
    assert comment_of(rule) == text
    assert target_of(rule) == "DROP"
