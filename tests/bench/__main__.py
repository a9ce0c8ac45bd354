"""`make bench`: figures for the README. Takes minutes; everything runs in throwaway namespaces."""

import json
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from kpx.netfilter.tools import Backend
from tests.bench import clusters, measure
from tests.kernel import Namespace


class Bench:
    """One cluster size; `row` collects figures."""

    def __init__(self, folder: Path, services: int, endpoints: int) -> None:
        self.folder, self.services, self.endpoints = folder, services, endpoints
        self.table = Table(title=f"{services} Services × {endpoints} endpoints")
        for column, side in (("what", "left"), ("nft", "right"), ("legacy", "right")):
            self.table.add_column(column, justify="right" if side == "right" else "left")
        self.dump = folder / "cluster.json"
        self.dump.write_text(clusters.dump(services, endpoints))
        self.changed = folder / "changed.json"
        self.changed.write_text(self._one_endpoint_moved())
        self.config = folder / "config.yaml"
        self.config.write_text(clusters.CONFIG)

    def _one_endpoint_moved(self) -> str:
        items = list(clusters.objects(self.services, self.endpoints))
        items[1]["endpoints"][0]["addresses"] = ["10.255.255.254"]
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})

    def arguments(self, dump: Path) -> tuple[str, ...]:
        return ("-f", str(dump), "--config", str(self.config))

    def render(self) -> None:
        size = self.dump.stat().st_size / 1e6
        self.table.add_row(f"compile alone (objects in memory → ruleset), {size:.0f} MB of JSON", self._compile(), "")
        with Namespace() as namespace:
            runs = [measure.kpx(namespace, "render", *self.arguments(self.dump)) for _ in range(3)]
        best = sorted(runs, key=lambda run: run.seconds)[1]
        self.table.add_row("kpx render, whole process", f"{best.seconds:.2f} s, {best.megabytes:.0f} MB", "")

    def _compile(self) -> str:
        run = measure.command([sys.executable, "-m", "tests.bench.compile_alone", *self.arguments(self.dump)[1::2]])
        return run.stdout.strip()

    def apply(self) -> None:
        steps = (
            ("kpx apply to an empty namespace", self.dump),
            ("kpx apply again: nothing written", self.dump),
            ("kpx apply with one endpoint moved", self.changed),
        )
        with Namespace() as nft, Namespace() as legacy:
            for label, dump in steps:
                cells = []
                for backend, namespace in ((Backend.NFT, nft), (Backend.LEGACY, legacy)):
                    run = measure.kpx(
                        namespace, "apply", *self.arguments(dump), "--backend", backend, "--format", "json"
                    )
                    cells.append(f"{run.seconds:.2f} s, {json.loads(run.stdout)['lines']} lines")
                self.table.add_row(label, *cells)


@click.command()
@click.option("--services", default=10_000, show_default=True)
@click.option("--endpoints", default=5, show_default=True)
def main(services: int, endpoints: int) -> None:
    """Measure kpx on a generated cluster."""
    with tempfile.TemporaryDirectory(prefix="kpx-bench-") as folder:
        bench = Bench(Path(folder), services, endpoints)
        bench.render()
        bench.apply()
        Console(width=110).print(bench.table)


main()
