"""`make bench`: figures of kpx, and of the same work in kube-proxy's shape. Everything runs in throwaway namespaces."""

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from kpx.compiler.compile import Layout
from kpx.family import Family
from kpx.netfilter.tools import Backend, Tools
from tests.bench import agent, apiserver, connect, peer
from tests.bench.towns import Town

RESULTS = Path("build/bench/results.json")
LARGE = 20_000
"""From so many Services on there are fewer changes: each takes a second of the kernel."""

Record = dict[str, Any]


def measure(town: Town, backend: Backend, layout: Layout, plan: agent.Plan, other: peer.PeerFigures) -> Record:
    """Everything of one town on one backend, in one layout; `other` is the same work in kube-proxy's shape."""
    with tempfile.TemporaryDirectory(prefix="kpx-bench-") as folder:
        figures = agent.measure(town, backend, layout, plan, Path(folder))
    click.echo(f"{town}, {layout}: {figures}", err=True)  # in case that it is broken off later
    return {
        "town": str(town),
        "services": town.services,
        "endpoints": town.endpoints,
        "backend": backend,
        "layout": layout,
        "kpx": asdict(figures),
        "quantiles": {
            name: {str(percent): figures.changes.quantile(values, percent) for percent in (50, 99)}
            for name, values in asdict(figures.changes).items()
        },
        "peer": asdict(other),
    }


def cells(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The rows of a town: what, and how much."""
    kpx, times, other = record["kpx"], record["quantiles"], record["peer"]
    cold, again = kpx["cold"], kpx["restart"]
    yield "start of the process → all rules in the kernel", f"{cold['done']:.1f} s"
    yield "  imports, credentials", f"{cold['imported']:.1f} s"
    yield "  list, parse", f"{cold['listed'] - cold['imported']:.1f} s"
    yield "  compile and load, side by side", f"{cold['done'] - cold['listed']:.1f} s"
    yield "  CPU of kpx / of iptables", f"{cold['own']:.1f} / {cold['tools']:.1f} s"
    yield "  lines sent", f"{cold['lines']:,}"
    yield "  one transaction in kube-proxy's shape", _load(other, cold["done"] - cold["listed"])
    yield "restart, nothing changed", f"{again['done']:.1f} s, {again['restores']:.0f} restores"
    yield "rules, chains", f"{kpx['rules']:,}, {kpx['chains']:,}"
    yield "memory of the kernel", f"{kpx['kernel']:.0f} MB"
    yield "RSS, steady / at most", f"{kpx['memory']:.0f} / {cold['peak']:.0f} MB"
    yield "  largest iptables process", f"{cold['tools_peak']:.0f} MB"
    latency, own = times["latencies"], times["own"]
    yield "one endpoint changed → in the kernel, p50 / p99", f"{_ms(latency['50'])} / {_ms(latency['99'])} ms"
    yield "  of which kpx, p50 / p99", f"{_ms(own['50'])} / {_ms(own['99'])} ms"
    yield "  of which iptables and the kernel, p50", f"{_ms(times['restores']['50'])} ms"
    yield "  in kube-proxy's shape (its tool and kernel only)", _times(other["update"], latency["50"])
    slow, fast = kpx["slow_churn"], kpx["churn"]
    yield "CPU at 10 changes a second (kpx + iptables)", f"{slow['own']:.2f} + {slow['tools']:.2f}"
    if fast:
        yield "1 % of the Services change every second: CPU", f"{fast['own']:.2f} + {fast['tools']:.2f}"
        yield "  as many changes a second (wanted)", f"{fast['rate']:.0f} ({fast['wanted']:.0f})"
        yield "  RSS; last change in the kernel after", f"{fast['memory']:.0f} MB; {fast['settled']:.1f} s"
    yield "CPU while nothing changes", f"{kpx['idle']:.2%}"


def _load(other: Mapping[str, Any], seconds: float) -> str:
    if other["load"] is None:
        return f"over {other['cap']:.0f} s (stopped): > {other['cap'] / seconds:.0f} ×"
    return _times(other["load"], seconds)


def _times(theirs: float, ours: float) -> str:
    return f"{theirs:.2f} s: {theirs / ours:.1f} ×"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"


def table(backend: Backend, records: list[Record]) -> Table:
    """One column for each town in each layout."""
    made = Table(title=f"Services x endpoints, backend {backend}")
    made.add_column("")
    columns = [dict(cells(record)) for record in records]
    for record in records:
        made.add_column(f"{record['town']}, {record['layout']}", justify="right")
    for what in dict.fromkeys(what for column in columns for what in column):
        made.add_row(what, *(column.get(what, "") for column in columns))
    return made


@click.command()
@click.option("--sizes", default="1k,10k,50kx2,1x5000", show_default=True, help="Services, or Services x endpoints.")
@click.option("--backend", type=click.Choice([one.value for one in Backend]), multiple=True, help="[default: nft]")
@click.option(
    "--layout",
    type=click.Choice([one.value for one in Layout]),
    multiple=True,
    default=[Layout.TREE.value, Layout.COMPACT.value],
    show_default=True,
)
@click.option("--changes", default=60, show_default=True, help="Single changes, one after the other.")
@click.option("--seconds", default=60.0, show_default=True, help="How long to let 1 % of the Services change a second.")
@click.option("--cap", default=60.0, show_default=True, help="Seconds after which kube-proxy's transaction is stopped.")
@click.option("--connect/--no-connect", "connects", default=True, show_default=True, help="Measure connect(), too.")
@click.option("--apiserver/--no-apiserver", "asks", default=True, show_default=True, help="What the API server pays.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    sizes: str,
    backend: tuple[str, ...],
    layout: tuple[str, ...],
    changes: int,
    seconds: float,
    cap: float,
    connects: bool,
    asks: bool,
    results: Path,
) -> None:
    """Measure kpx on generated clusters. 10,000 Services take four minutes in a layout, everything half an hour."""
    console = Console(width=120)
    found: Record = {"machine": machine(), "towns": [], "connect": [], "apiserver": []}
    results.parent.mkdir(parents=True, exist_ok=True)
    for one in [Backend(name) for name in backend] or [Backend.NFT]:
        records = []
        for town in map(Town.of, sizes.split(",")):
            few = town.services >= LARGE
            plan = agent.Plan(min(changes, 20) if few else changes, 1.1, seconds / 2, seconds)
            other = peer.measure(town, one, cap)
            for name in layout:
                records.append(measure(town, one, Layout(name), plan, other))
                found["towns"].append(records[-1])
                results.write_text(json.dumps(found, indent=1))
        console.print(table(one, records))
        if connects:
            rows = connect.rows(one)
            found["connect"] += [{"backend": one, **asdict(row)} for row in rows]
            results.write_text(json.dumps(found, indent=1))
            console.print(connect.table(one, rows))
    if asks:
        costs = apiserver.rows(*apiserver.SIZE, idle=60.0)
        found["apiserver"] = [asdict(one) for one in costs]
        results.write_text(json.dumps(found, indent=1))
        console.print(apiserver.table(costs))
    console.print(f"{found['machine']}; written to {results}")


def machine() -> str:
    """What the figures were measured on."""
    version = Tools(Backend.NFT, Family.IPV4).version()
    return f"{os.cpu_count()} cores, Linux {platform.release()}, iptables {version}, Python {platform.python_version()}"


main()
