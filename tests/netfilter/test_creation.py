"""What the order in which chains were made costs the tools, and that kpx makes none that is dear."""

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.api import KubeProxyConfiguration, Object, parse_object
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter import nft
from kpx.netfilter.creation import DEAR, comparisons, is_dear
from kpx.netfilter.reading import read_tables
from kpx.netfilter.restore import Transaction, payload
from kpx.netfilter.save import Saved, SavedTable, parse_save
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from tests.bench import clusters
from tests.kernel import Namespace, needs_kernel

MANY = 10_500
"""Chains, in the order of whose names listing is dear: 55 million comparisons."""


def sorted_by_the_tool(names: Sequence[str]) -> tuple[list[str], int]:
    """The names in order, and how many comparisons that took: the first of a list parts the others."""
    if not names:
        return [], 0
    pivot, others = names[0], names[1:]
    low, one = sorted_by_the_tool([name for name in others if pivot > name])
    high, other = sorted_by_the_tool([name for name in others if not pivot > name])
    return [*low, pivot, *high], len(others) + one + other


@given(st.lists(st.text("AB-", max_size=6), unique=True, max_size=60))
def test_comparisons_are_those_that_the_tool_makes(names: list[str]) -> None:
    in_order, made = sorted_by_the_tool(names)
    assert in_order == sorted(names)
    assert comparisons(names) == made


def shuffled(names: Iterable[str]) -> list[str]:
    every = list(names)
    random.Random("creation").shuffle(every)
    return every


def test_orders_of_names_are_dear_and_others_are_not() -> None:
    names = [f"KUBE-SEP-{number:016}" for number in range(MANY)]
    assert comparisons(names) == comparisons(names[::-1]) == MANY * (MANY - 1) // 2 > DEAR
    assert is_dear(names)
    assert is_dear(names[::-1])
    assert is_dear([*names[5_000:], *names[:5_000], *shuffled(f"KUBE-SVC-{number:016}" for number in range(20_000))])
    assert not is_dear(shuffled(names))
    assert not is_dear(names[:9_000])
    assert not is_dear([])


def objects(services: int, endpoints: int) -> list[Object]:
    return [
        one
        for number in range(services)
        for one in (
            parse_object("Service", clusters.service(number)),
            parse_object("EndpointSlice", clusters.endpoint_slice(number, endpoints)),
        )
    ]


@pytest.mark.parametrize("lost", [None, "KUBE-SEP-", "KUBE-SVC-", "KPX-"])
@pytest.mark.parametrize("layout", list(Layout))
def test_kpx_makes_chains_in_no_order_of_their_names(layout: Layout, lost: str | None) -> None:
    ruleset, _ = compile_sound(objects(1_500, 2), KubeProxyConfiguration(), Target(clusters.NODE, Family.IPV4, layout))
    held: Saved = {}
    if lost is not None:
        text = payload(transactions(make_plan(ruleset, {}).edits))
        held = {
            name: SavedTable({chain: one for chain, one in table.chains.items() if not chain.startswith(lost)})
            for name, table in parse_save(text).items()
        }
    made = [
        chain
        for one in transactions(make_plan(ruleset, held).edits)
        if one.table == "nat"
        for chain in one.declare
        if "nat" not in held or chain not in held["nat"].chains
    ]
    chains = frozenset(ruleset.tables["nat"].chains)
    assert frozenset(made) == {chain for chain in chains if chain.startswith(lost or "")}
    assert lost or len(made) > 1_500
    assert comparisons(made) <= 3 * len(made) * log2(len(made) + 2)


# ---- in the kernel ----


def fill(restore: Callable[[str], object]) -> None:
    """Make a table whose chains stand in the order of their names."""
    names = [f"KUBE-SEP-{number:016}" for number in range(MANY)]
    for at in range(0, MANY, 250):
        some = tuple(names[at : at + 250])
        rules = tuple(f"-A {name} -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80" for name in some)
        restore(payload([Transaction("nat", some, rules)]))


@pytest.fixture(scope="module")
def filled() -> Iterator[Namespace]:
    """A node with that table."""
    with Namespace() as namespace:
        fill(partial(namespace.restore, Backend.NFT, Family.IPV4))
        yield namespace


@pytest.fixture
def no_save(tmp_path: Path) -> str:
    """A PATH on which there is no iptables-nft-save that works."""
    program = tmp_path / "iptables-nft-save"
    program.write_text("#!/bin/sh\necho not to be run >&2\nexit 1\n")
    program.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@needs_kernel
@pytest.mark.kernel
@pytest.mark.usefixtures("own_network")
def test_a_table_in_the_order_of_names_is_read_without_listing_it(
    no_save: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = Tools(Backend.NFT, Family.IPV4)
    fill(tools.restore)
    names = nft.chain_names(Family.IPV4, "nat")
    assert list(names) == sorted(names)
    assert len(names) == MANY
    saved = parse_save(tools.save("nat"))
    monkeypatch.setenv("PATH", no_save)
    with pytest.raises(KpxError, match="not to be run"):
        tools.save("nat")
    assert read_tables(tools, ["nat"]) == saved


@needs_kernel
@pytest.mark.kernel
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (("verify",), f"{MANY} errors and {MANY} warnings in {MANY} rules"),
        (("top", "--once", "--interval", "0.1", "--family", "ipv4"), f"{MANY} service ports"),
        (("doctor",), f"the {MANY:,} chains of table nat were made nearly in the order"),
        (("trace", "tcp 10.0.0.9 -> 10.0.0.1:80"), "passes, not translated"),
    ],
)
def test_tools_read_it_so_too(filled: Namespace, no_save: str, command: tuple[str, ...], answer: str) -> None:
    done = filled.kpx(*command, "--backend", "nft", check=False, env={"PATH": no_save})
    assert not done.stderr
    assert answer in " ".join(done.stdout.split()), done.stdout[-2000:]


@needs_kernel
@pytest.mark.kernel
def test_the_doctor_finds_nothing_slow_where_nothing_is(namespace: Namespace) -> None:
    namespace.restore(Backend.NFT, Family.IPV4, "*nat\n:KUBE-A - [0:0]\n:KUBE-B - [0:0]\nCOMMIT\n")
    done = namespace.kpx("doctor", "--backend", "nft", check=False)
    assert "ok    order" in done.stdout
