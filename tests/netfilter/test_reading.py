"""Chains read one by one, while others commit: byte for byte what iptables-save prints."""

import os
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter import nft, reading
from kpx.netfilter.counters import Counted, parse_counters, read_counters
from kpx.netfilter.reading import BUILT_IN, read_chains, read_tables, unreadable
from kpx.netfilter.restore import Transaction, payload
from kpx.netfilter.rule import target_of
from kpx.netfilter.ruleset import TABLES, TableName
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend, Tools, legacy_tables
from tests.kernel import BACKENDS, FAMILIES, PROGRAM, case_path, needs_kernel
from tests.netfilter.sketch import sketch

pytestmark = [pytest.mark.kernel, needs_kernel, pytest.mark.usefixtures("own_network")]

CASES = sorted(path.name for path in case_path("").iterdir() if (path / "ipv4.save").exists())


def same_as_saved(tools: Tools) -> int:
    """Check every chain of filter and nat, and one that isn't there; how many there were."""
    saved, count = parse_save(tools.save()), 0
    for table in TABLES:
        chains = saved[table].chains if table in saved else {}
        read = read_chains(tools, table, [*chains, "KUBE-NOT-THERE"])
        assert read == {**chains, "KUBE-NOT-THERE": None}
        count += sum(len(chain.rules) for chain in chains.values())
    return count


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_conformance_rules_are_spelled_as_iptables_save_does(backend: Backend, case: str) -> None:
    for family in FAMILIES:
        text = case_path(case) / f"{family}.save"
        if text.exists():
            tools = Tools(backend, family)
            tools.restore(text.read_text())
            assert same_as_saved(tools) >= text.read_text().count("\n-A ")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_rules_are_spelled_as_iptables_save_does(backend: Backend, family: Family, table: TableName) -> None:
    chance = random.Random(f"reading {family} {table}")
    rules = [sketch(chance, family, table).text() for _ in range(300)]
    targets = sorted({target for target in map(target_of, rules) if target and target.startswith("KUBE-")})
    chains = tuple(f"X{number}" for number in range(150))
    lines = tuple(f"-A {chance.choice(chains)} {rule}" for rule in rules)
    tools = Tools(backend, family)
    tools.restore(payload([Transaction(table, (*chains, *targets), lines)]))
    assert same_as_saved(tools) == 300


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_comment_that_looks_like_another_chain_is_one_comment(backend: Backend) -> None:
    tools = Tools(backend, Family.IPV4)
    tools.restore("*filter\n:X - [0:0]\n:Y - [0:0]\n-A Y -j X\nCOMMIT\n")
    text = 'one"\n-N Z\n-P INPUT DROP\n-A X -j "two\\'
    subprocess.run([f"iptables-{backend}", "-A", "X", "-m", "comment", "--comment", text, "-j", "DROP"], check=True)
    saved = parse_save(tools.save())["filter"].chains
    assert read_chains(tools, "filter", list(saved)) == saved
    assert len(saved["X"].rules) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_changes_nothing(family: Family) -> None:
    tools = Tools(Backend.NFT, family)
    tools.restore("*nat\n:X - [0:0]\n-A X -j RETURN\n-A OUTPUT -j X\nCOMMIT\n")
    before, tables, chains = nft.generation(), nft.table_names(family), nft.chain_names(family, "nat")
    assert tables == {"nat"}
    read = read_chains(tools, "nat", ["X", "OUTPUT", "POSTROUTING", "Y"])
    assert read["POSTROUTING"] == parse_save(tools.save())["nat"].chains["POSTROUTING"]
    assert read["Y"] is None
    assert read_chains(tools, "filter", ["X", "INPUT"]) == {"X": None, "INPUT": None}
    assert set(read_tables(tools)) == {"nat"}
    assert (nft.generation(), nft.table_names(family), nft.chain_names(family, "nat")) == (before, tables, chains)
    assert "POSTROUTING" not in chains


def test_reading_makes_no_legacy_table() -> None:
    for family in FAMILIES:
        assert read_chains(Tools(Backend.LEGACY, family), "nat", ["X", "OUTPUT"]) == {"X": None, "OUTPUT": None}
        assert legacy_tables(family) == ()


FOREIGN = ("type filter hook prerouting priority 5;", "type nat hook output priority -100;")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_table_that_iptables_prints_as_empty_is_not_taken_for_empty(family: Family, foreign: str) -> None:
    tools, kind = Tools(Backend.NFT, family), {Family.IPV4: "ip", Family.IPV6: "ip6"}[family]
    for table, chains in BUILT_IN.items():
        for chain in chains:
            tools.restore(f"*{table}\n-A {chain} -j ACCEPT\nCOMMIT\n")
    assert unreadable(tools) == {}
    script = f"delete table {kind} nat; add table {kind} nat; add chain {kind} nat PREROUTING {{ {foreign} }}"
    subprocess.run(["nft", f"{script}; add rule {kind} nat PREROUTING ct mark 5 accept"], check=True)
    assert "ACCEPT" not in "".join(parse_save(tools.save("nat"))["nat"].chains["PREROUTING"].rules)
    assert set(unreadable(tools)) == {"nat"}


@pytest.mark.parametrize("number", [3, 250, 2_500])
def test_chain_names_are_those_of_iptables_save(number: int) -> None:
    names = [f"KUBE-SEP-{index:016d}" for index in range(number)]
    tools = Tools(Backend.NFT, Family.IPV6)
    tools.restore("".join(["*nat\n", *(f":{name} - [0:0]\n" for name in names), "COMMIT\n"]))
    tools.restore("*filter\n:OTHER - [0:0]\nCOMMIT\n")
    assert sorted(nft.chain_names(Family.IPV6, "nat")) == names
    assert nft.chain_names(Family.IPV4, "nat") == ()
    asked = [*names[::2], "KUBE-SEP-NOT-THERE", "OTHER"]
    assert nft.present(Family.IPV6, "nat", asked) == set(names[::2])
    assert nft.present(Family.IPV4, "nat", asked) == set()


def test_chains_that_go_while_they_are_read_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"KUBE-{index}" for index in range(250)]
    tools = Tools(Backend.NFT, Family.IPV4)
    rules = (f"-A {name} -p tcp --dport {number + 1} -j RETURN\n" for number, name in enumerate(names))
    tools.restore("".join(["*nat\n", *(f":{name} - [0:0]\n" for name in names), *rules, "COMMIT\n"]))
    gone = {*names[5:8], names[99], *names[140:160], names[249]}
    here = nft.present
    asked: list[frozenset[str]] = []

    def late(family: Family, table: str, wanted: list[str]) -> frozenset[str]:
        found = here(family, table, wanted)
        if not asked:  # the first time they are still there, the next moment no more
            tools.restore("".join(["*nat\n", *(f"-F {one}\n-X {one}\n" for one in sorted(gone)), "COMMIT\n"]))
        asked.append(found)
        return found

    monkeypatch.setattr(nft, "present", late)
    read = read_chains(tools, "nat", names)
    saved = parse_save(tools.save())["nat"].chains
    assert len(asked) > 1
    assert read == {name: saved.get(name) for name in names}
    assert {name for name, chain in read.items() if chain is None} == gone


def test_a_chain_that_iptables_cannot_read_is_an_error() -> None:
    tools = Tools(Backend.NFT, Family.IPV4)
    tools.restore("*nat\n:KUBE-A - [0:0]\n:KUBE-B - [0:0]\n-A KUBE-A -j KUBE-B\nCOMMIT\n")
    subprocess.run(["nft", "add rule ip nat KUBE-B meta time > 5 accept"], check=True)
    with pytest.raises(KpxError, match=r"table nat can't be read.*KUBE-B"):
        read_chains(tools, "nat", ["KUBE-A", "KUBE-B"])
    read = read_chains(tools, "nat", ["KUBE-A"])["KUBE-A"]
    assert read is not None
    assert read.rules == ("-j KUBE-B",)


@contextmanager
def foreign_commits(family: Family) -> Iterator[None]:
    """Somebody commits to a table of their own all the time."""
    done, other = threading.Event(), Tools(Backend.NFT, family)
    started = threading.Event()

    def commit() -> None:
        while not done.is_set():
            other.restore("*mangle\n-A OUTPUT -j RETURN\n-D OUTPUT 1\nCOMMIT\n")
            started.set()

    thread = threading.Thread(target=commit)
    thread.start()
    assert started.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_are_read_beside_one_who_commits_all_the_time(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = Tools(Backend.NFT, family)
    names = [f"KUBE-SVC-{index}" for index in range(300)]
    tools.restore(payload([Transaction("nat", tuple(names), tuple(f"-A {name} -j RETURN" for name in names))]))
    tools.restore("*filter\n:KUBE-A - [0:0]\n:FOREIGN - [0:0]\n-A FOREIGN -j KUBE-A\n-A INPUT -j FOREIGN\nCOMMIT\n")
    saved = {name: table for name, table in parse_save(tools.save()).items() if name in TABLES}
    assert read_tables(tools) == saved
    # one that starts over and over never prints anything
    program = tmp_path / f"{PROGRAM[family]}-nft-save"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with foreign_commits(family):
        read = read_tables(tools)
    assert {name: dict(table.chains) for name, table in read.items()} == {
        name: dict(table.chains) for name, table in saved.items()
    }


def test_a_save_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Tools(Backend.NFT, Family.IPV4)
    tools.restore("*nat\n:X - [0:0]\n-A X -j RETURN\nCOMMIT\n")
    program = tmp_path / "iptables-nft-save"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(reading, "_PATIENCE", 0.2)
    assert read_tables(tools)["nat"].chains["X"].rules == ("-j RETURN",)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_counters_are_those_of_iptables_save(backend: Backend, family: Family) -> None:
    tools, address = Tools(backend, family), "10.0.0.9" if family is Family.IPV4 else "[fd00::9]"
    # ip6tables-nft-restore 1.8.9 takes no counters: there, all are 0
    taken = 0 if (backend, family) == (Backend.NFT, Family.IPV6) else 100
    lines = []
    for number in range(150):
        comment = f'-m comment --comment "a/b:{number} -c 1 2 -j DNAT"'
        rule = f"-A KUBE-SEP-{number} -p tcp {comment} -m tcp -j DNAT --to-destination {address}:{number + 1}"
        lines += [f"-A KUBE-SEP-{number} -j RETURN", f"[{number % 3 * number}:{number % 3 * number * 60}] {rule}"]
    chains = "".join(f":KUBE-SEP-{number} - [0:0]\n" for number in range(150))
    program = f"{PROGRAM[family]}-{backend}-restore"
    text = f"*nat\n{chains}" + "\n".join(lines) + "\nCOMMIT\n"
    subprocess.run([program, "--counters", "--noflush"], input=text, text=True, check=True)
    for idle in (True, False):
        found = set(read_counters(tools, idle))
        assert found == set(parse_counters(tools.save_lines("nat"), idle))
        assert len(found) == (150 if idle else taken)
    assert (Counted("KUBE-SEP-149", "tcp", f"{address}:150", 298) in found) == (taken > 0)
