"""`kpx top`."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kpx.analysis.traffic import EndpointTraffic, Reading, ServiceTraffic, Traffic, traffic
from kpx.cli.dumps import load_dump
from kpx.cli.inputs import tools_for
from kpx.cli.options import FAMILIES
from kpx.cli.output import json_text, page
from kpx.errors import KpxError
from kpx.netfilter.counters import Counted, Place, by_place, parse_counters, read_counters
from kpx.netfilter.owners import chain_owners, is_own_chain, rule_owner
from kpx.netfilter.reading import read_tables
from kpx.netfilter.save import Saved, SavedChain
from kpx.netfilter.tools import Tools, binary

_LINES_AROUND = 5
"""Lines of the terminal that the table's rows can't have."""

_HEAD = ("Service port", "Protocol", "New/s", "Total")


SHAPE = Traffic


def command(
    sort: str,
    wanted: str,
    endpoints: bool,
    interval: float,
    once: bool,
    as_json: bool,
    rules: Path | None,
    family: str,
    backend: str,
) -> None:
    """Show how many new connections each Service gets, from the counters of the kernel's rules. Needs root."""
    view = partial(traffic, sort=sort, wanted=wanted)
    if rules is not None:
        found = view(None, _read_dump(rules))
        _print(found, endpoints, as_json)
        return
    readings = _readings(_tools(family, backend), interval)
    first = next(readings)
    if once:
        _print(view(first, next(readings)), endpoints, as_json)
        return
    with suppress(KeyboardInterrupt):
        _follow((view(*pair) for pair in _pairs(first, readings)), endpoints, as_json)


def _pairs(before: Reading, readings: Iterator[Reading]) -> Iterator[tuple[Reading, Reading]]:
    for after in readings:
        yield before, after
        before = after


def _print(found: Traffic, endpoints: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json_text(found, Traffic))
        return
    with page() as out:
        out.print(_table(found, endpoints))


def _follow(views: Iterator[Traffic], endpoints: bool, as_json: bool) -> None:
    if as_json:
        for found in views:
            click.echo(json_text(found, Traffic, indent=None))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        for found in views:
            live.update(_table(found, endpoints, console), refresh=True)


# ---- readings ----


def _tools(family: str, backend: str) -> list[Tools]:
    """iptables of the families asked for; of both, those that are installed, but IPv4 in any case."""
    found = [tools_for(one, backend) for one in FAMILIES[family]]
    return [one for one in found if one is found[0] or binary(one.backend, one.family, "-save")]


def _readings(tools: Sequence[Tools], interval: float) -> Iterator[Reading]:
    """A reading at once, and another one every `interval` seconds; more seldom if one takes longer."""
    owners: dict[str, str] = {}
    due = time.monotonic()
    while True:
        at = time.monotonic()
        counters = by_place(one for some in tools for one in read_counters(some))
        chains = {chain for chain, _ in counters}
        if not chains <= owners.keys():
            owners = {}
            for some in tools:
                owners |= _owners(read_tables(some, ["nat"]))
            owners = dict.fromkeys(chains, "") | owners
        yield Reading(at, counters, {chain: owner for chain, owner in owners.items() if owner})
        due = max(due + interval, time.monotonic())
        time.sleep(due - time.monotonic() if due > time.monotonic() else 0)


def _owners(saved: Saved) -> dict[str, str]:
    """The service ports behind chains, by the way there; a chain that nothing leads to says it itself."""
    chains = {name: one.rules for name, one in saved["nat"].chains.items()} if "nat" in saved else {}
    own = ((name, rule_owner(rule)) for name, rules in chains.items() if is_own_chain(name) for rule in rules)
    return {name: owner for name, owner in own if owner} | chain_owners(chains)


def _read_dump(path: Path) -> Reading:
    dump = load_dump(str(path))
    counters: dict[Place, Counted] = {}
    owners: dict[str, str] = {}
    for one in dump.saves:
        if "nat" in one.unread:
            raise KpxError(f"{path}: {one.unread['nat']}")
        chains = one.saved["nat"].chains if "nat" in one.saved else {}
        lines = (line for name, chain in chains.items() for line in _counted(name, chain))
        counters |= by_place(parse_counters(lines))
        owners |= _owners(one.saved)
        if not counters and any("-j DNAT" in rule for chain in chains.values() for rule in chain.rules):
            raise KpxError(f"{path}: has no counters: they are in the output of iptables-save -c")
    return Reading(0.0, counters, owners)


def _counted(name: str, chain: SavedChain) -> Iterator[bytes]:
    """The rules of a chain as iptables-save -c prints them."""
    for rule, (packets, size) in zip(chain.rules, chain.counters or (), strict=False):
        yield f"[{packets}:{size}] -A {name} {rule}".encode(errors="surrogateescape")


# ---- for people ----


def _table(found: Traffic, endpoints: bool, terminal: Console | None = None) -> Group:
    """The table in full; or as it fits a terminal: rows without room are counted, long names cut, figures never."""
    head = Text.assemble(
        (_count(len(found.services), "service port"), "bold"),
        f", {_count(found.connections, 'connection')}",
        f", {found.rate:.1f} new per second" if found.rate is not None else "",
    )
    lines = [line for one in found.services for line in _lines(one, endpoints)]
    rows = max(terminal.height - _LINES_AROUND, 1) if terminal else len(lines)
    figures = [max(len(str(row[at])) for row in (_HEAD, *lines[:rows])) + 2 for at in (1, 2, 3)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    title = "Service port, endpoint" if endpoints else _HEAD[0]
    if terminal:
        table.add_column(title, no_wrap=True, overflow="ellipsis", max_width=max(terminal.width - sum(figures), 8))
    else:
        table.add_column(title, overflow="fold")
    table.add_column(_HEAD[1], no_wrap=True)
    table.add_column(_HEAD[2], justify="right", style="green", no_wrap=True)
    table.add_column(_HEAD[3], justify="right", no_wrap=True)
    for line in lines[:rows]:
        table.add_row(*line)
    left = Text(f"… {len(lines) - rows} more lines", "dim") if len(lines) > rows else Text()
    return Group(head, Text(), table, left) if len(lines) > rows else Group(head, Text(), table)


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _lines(one: ServiceTraffic, endpoints: bool) -> Iterator[tuple[Text, str, str, str]]:
    yield Text(one.service), one.protocol, *_figures(one)
    if endpoints:
        yield from ((Text(f"  {each.endpoint}", "dim"), "", *_figures(each)) for each in one.endpoints)


def _figures(one: ServiceTraffic | EndpointTraffic) -> tuple[str, str]:
    return ("" if one.rate is None else f"{one.rate:.1f}"), str(one.connections)
