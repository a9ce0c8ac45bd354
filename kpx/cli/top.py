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

from kpx.analysis.traffic import SORTS, EndpointTraffic, Reading, ServiceTraffic, Traffic, traffic
from kpx.cli.inputs import FAMILIES, backend_option, tools_for
from kpx.cli.output import json_options, json_text, page
from kpx.errors import KpxError
from kpx.netfilter.counters import by_place, parse_counters, read_counters
from kpx.netfilter.owners import chain_owners, is_own_chain, rule_owner
from kpx.netfilter.save import Saved, SaveError, parse_save
from kpx.netfilter.tools import Tools, binary

_LINES_AROUND = 5
"""Lines of the terminal that the table's rows can't have."""

_HEAD = ("Service port", "Protocol", "New/s", "Total")


@click.command()
@click.option("--sort", type=click.Choice(list(SORTS)), default="rate", show_default=True, help="What comes first.")
@click.option(
    "--filter",
    "wanted",
    default="*",
    metavar="TEXT",
    help="Only service ports and endpoints with this in their name; or a pattern, such as 'shop/*'.",
)
@click.option("--endpoints", is_flag=True, help="Show each endpoint below its Service.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds between readings."
)
@click.option("--once", is_flag=True, help="Print one table, or one JSON document, and end.")
@json_options(Traffic, "Print JSON, a line per reading without --once")
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Only the totals that iptables-save -c wrote to this file.",
)
@click.option("--family", type=click.Choice(list(FAMILIES)), default="dual", show_default=True, help="IP family.")
@backend_option
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
    """Show how many new connections each Service gets, from the counters of the kernel's rules. Needs root.

    Works on rules of kube-proxy, too, in both backends; nothing is written, and no packet is looked at. A count begins
    when its rule is written. Ends with Ctrl-C.

    \b
    Example:
      kpx top --filter shop/ --endpoints
      kpx top --once --json --interval 10
    """
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
                owners |= _owners(parse_save(some.save("nat")))
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
    try:
        data = path.read_bytes()
        saved = parse_save(data.decode(errors="surrogateescape"))
    except OSError as error:
        raise KpxError(f"{path}: {error.strerror}") from error
    except SaveError as error:
        raise KpxError(f"{path}: {error}") from error
    counters = by_place(parse_counters(data.split(b"\n")))
    if not counters and b"-j DNAT" in data:
        raise KpxError(f"{path}: has no counters: they are in the output of iptables-save -c")
    return Reading(0.0, counters, _owners(saved))


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
