"""Rules of legacy chains found in the kernel's own copy, against iptables-legacy-save."""

import os
import random
from collections.abc import Collection

import pytest

from kpx.family import Family
from kpx.netfilter.legacy_blob import Blob, digests, read_blob
from kpx.netfilter.restore import Transaction, payload
from kpx.netfilter.rule import target_of
from kpx.netfilter.ruleset import TABLES, TableName
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend, Tools, legacy_tables
from tests.kernel import FAMILIES, case_path, needs_kernel
from tests.netfilter.sketch import sketch

pytestmark = [pytest.mark.kernel, needs_kernel, pytest.mark.usefixtures("own_network")]

CASES = sorted(path.name for path in case_path("").iterdir() if (path / "ipv4.save").exists())
NOWHERE = ("KUBE-NOT-THERE", "A", "ZZZ", "KUBE-", "RETURN")


def counts(family: Family, table: str, names: Collection[str]) -> dict[str, int | None]:
    """How many rules each chain has; None if it isn't there."""
    found = digests(read_blob(family, table), names)
    return {name: None if rules is None else len(rules) for name, rules in found.items()}


def same_as_saved(tools: Tools) -> int:
    """Check every chain of filter and nat, and some that aren't there; how many rules there were."""
    count = 0
    for table in TABLES:
        saved = parse_save(tools.save(table)).get(table)
        want: dict[str, int | None] = {name: len(chain.rules) for name, chain in saved.chains.items()} if saved else {}
        missing = dict.fromkeys(name for name in NOWHERE if name not in want)
        assert counts(tools.family, table, [*want, *missing]) == {**want, **missing}
        count += sum(number or 0 for number in want.values())
    return count


@pytest.mark.parametrize("case", CASES)
def test_conformance_rules(case: str) -> None:
    for family in FAMILIES:
        text = case_path(case) / f"{family}.save"
        if text.exists():
            tools = Tools(Backend.LEGACY, family)
            tools.restore(text.read_text())
            assert same_as_saved(tools) >= text.read_text().count("\n-A ")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_rules_in_tables_that_change(family: Family, table: TableName) -> None:
    chance = random.Random(f"blob {family} {table}")
    tools = Tools(Backend.LEGACY, family)
    # a name may begin another one, and may be as long as names can be
    names = [f"{chance.choice(['KUBE-SVC-', 'KUBE-SEP-', 'cali-', 'a', 'Z'])}{n:x}" for n in range(120)] + [
        "K" * 28,
        "E",
    ]
    built_in = ["INPUT", "FORWARD", "OUTPUT"] if table == "filter" else ["PREROUTING", "OUTPUT", "POSTROUTING"]
    rules = [sketch(chance, family, table).text() for _ in range(300)]
    targets = sorted({target for target in map(target_of, rules) if target and target.startswith("KUBE-")})
    lines = [f"-A {chance.choice(names)} {rule}" for rule in rules]
    lines += [f"-A {chance.choice(built_in)} -p tcp --dport {port} -j RETURN" for port in range(1, 40)]
    tools.restore(payload([Transaction(table, (*names, *targets), tuple(lines))]))
    assert same_as_saved(tools) == len(lines)
    for _ in range(10):
        emptied = chance.sample(names, 10)
        more = tuple(f"-A {chance.choice(names)} -j RETURN" for _ in range(20))
        tools.restore(payload([Transaction(table, tuple(emptied), more)]))
        same_as_saved(tools)


@pytest.mark.parametrize("family", FAMILIES)
def test_chains_in_any_order_are_found(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Tools(Backend.LEGACY, family)
    names = [f"KUBE-{number}" for number in range(30)]
    tools.restore(payload([Transaction("nat", tuple(names), tuple(f"-A {name} -j RETURN" for name in names[::2]))]))
    monkeypatch.setattr(Blob, "_sorted", False)
    same_as_saved(tools)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_comment_that_holds_a_name_is_no_chain(family: Family) -> None:
    tools = Tools(Backend.LEGACY, family)
    lines = [f'-A X -m comment --comment "{"y" * size}KUBE-A" -j RETURN' for size in range(40)]
    lines += ['-A X -m comment --comment "ERROR" -j RETURN', "-A X -m comment --comment KUBE-NOT-THERE -j RETURN"]
    tools.restore(payload([Transaction("nat", ("KUBE-A", "X"), ("-A KUBE-A -j RETURN", *lines))]))
    assert same_as_saved(tools) == len(lines) + 1


def test_no_table_is_made_and_nothing_leaks() -> None:
    assert counts(Family.IPV4, "nat", ["X", "OUTPUT"]) == {"X": None, "OUTPUT": None}
    assert legacy_tables(Family.IPV4) == ()
    Tools(Backend.LEGACY, Family.IPV4).restore("*nat\n:X - [0:0]\nCOMMIT\n")
    assert counts(Family.IPV4, "nat", ["X", "OUTPUT"]) == {"X": 0, "OUTPUT": 0}
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        counts(Family.IPV4, "nat", ["X"])
    assert len(os.listdir("/proc/self/fd")) == before
