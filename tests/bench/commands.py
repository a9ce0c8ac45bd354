"""`kpx render` and `kpx apply` as whole commands, on a dump of a cluster. `python -m tests.bench.commands`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from kpx.netfilter.tools import Backend
from tests.bench import clusters
from tests.bench.towns import Town
from tests.kernel import Namespace


@dataclass(frozen=True, slots=True)
class Figure:
    """One command, run once: wall time and CPU time (children's, too) in seconds, peak RSS in MB."""

    seconds: float
    cpu: float
    megabytes: float


def kpx(namespace: Namespace, *arguments: str | Path) -> Figure:
    """Run `kpx` in a namespace and measure it. A failure ends the benchmark with what it said."""
    words = namespace.enter([sys.executable, "-m", "kpx", *map(str, arguments)])
    start = time.perf_counter()
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: status {process.returncode}\n{errors}")
    return Figure(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def dump(path: Path, objects: Iterable[Any]) -> Path:
    """Write objects as a JSON list."""
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
    return path


def joined(town: Town) -> Iterable[Any]:
    """The town with one endpoint more."""
    piece = town.joined(town.services // 2).piece
    return (piece if one["metadata"]["name"] == piece["metadata"]["name"] else one for one in town.objects())


def applying(backend: Backend, run: Callable[..., Figure], whole: Path, more: Path) -> Iterable[tuple[str, Figure]]:
    """From nothing, again, and with one endpoint more."""
    with Namespace() as namespace:
        apply = partial(run, namespace, "apply", "--backend", backend, "-f")
        yield f"apply to an empty namespace, {backend}", apply(whole)
        yield f"apply again, {backend}", apply(whole)
        yield f"apply with one endpoint more, {backend}", apply(more)


@click.command()
@click.option("--size", default="10k", show_default=True, help="Services, or Services x endpoints.")
@click.option("--times", default=3, show_default=True, help="How often each is run; told is the median.")
def main(size: str, times: int) -> None:
    """Measure `kpx render` and `kpx apply`."""
    found: dict[str, list[Figure]] = {}
    with tempfile.TemporaryDirectory(prefix="kpx-bench-") as folder:
        town, place = Town.of(size), Path(folder)
        whole, more = dump(place / "town.json", town.objects()), dump(place / "more.json", joined(town))
        (config := place / "config.yaml").write_text(clusters.CONFIG)

        def run(namespace: Namespace, *arguments: str | Path) -> Figure:
            return kpx(namespace, *arguments, "--config", config)

        for _ in range(times):
            with Namespace() as namespace:
                found.setdefault("render", []).append(run(namespace, "render", "-f", whole))
            for backend in Backend:
                for what, figure in applying(backend, run, whole, more):
                    found.setdefault(what, []).append(figure)
        title = f"{town}, {whole.stat().st_size / 1e6:.0f} MB of JSON"
    Console().print(table(title, found.items()))


def table(title: str, rows: Iterable[tuple[str, Sequence[Figure]]]) -> Table:
    """The medians."""
    made = Table(title=title)
    for column in ("", "seconds", "CPU", "MB"):
        made.add_column(column, justify="right" if column else "left")
    for what, figures in rows:
        seconds, cpu, size = (
            statistics.median(getattr(one, name) for one in figures) for name in ("seconds", "cpu", "megabytes")
        )
        made.add_row(what, f"{seconds:.1f}", f"{cpu:.1f}", f"{size:.0f}")
    return made


if __name__ == "__main__":
    main()
