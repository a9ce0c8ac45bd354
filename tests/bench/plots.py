"""`make bench-plots`: charts of what `make bench` measured, as PNG and SVG."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

Record = Mapping[str, Any]


def _name(record: Record) -> str:
    return f"{record['town']}, {record['layout']}"


def cold_start(records: Sequence[Record], axes: Any) -> None:
    """Seconds from the start of the process to all rules, stage by stage."""
    names = list(map(_name, records))
    starts = [record["kpx"]["cold"] for record in records]
    stages = {
        "imports": [one["imported"] for one in starts],
        "list, parse": [one["listed"] - one["imported"] for one in starts],
        "compile and load": [one["done"] - one["listed"] for one in starts],
    }
    bottom = [0.0] * len(names)
    for stage, seconds in stages.items():
        axes.bar(names, seconds, bottom=bottom, label=stage)
        bottom = [low + high for low, high in zip(bottom, seconds, strict=True)]
    axes.set_ylabel("seconds")
    axes.set_title("start of the process to all rules in the kernel")
    axes.legend()


def update(records: Sequence[Record], axes: Any) -> None:
    """One endpoint changed: kpx as a whole, kpx without the kernel, and a payload of kube-proxy's shape."""
    bars = {
        "kpx, p50": [record["quantiles"]["latencies"]["50"] for record in records],
        "kpx, p99": [record["quantiles"]["latencies"]["99"] for record in records],
        "kpx without iptables and kernel, p50": [record["quantiles"]["own"]["50"] for record in records],
        "kube-proxy's shape, iptables and kernel only": [record["peer"]["update"] for record in records],
    }
    width = 0.8 / len(bars)
    for index, (name, seconds) in enumerate(bars.items()):
        axes.bar([at + index * width for at in range(len(records))], seconds, width, label=name)
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(records))], list(map(_name, records)))
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.set_title("one endpoint changed, until it is in the kernel")
    axes.legend()


def connects(rows: Sequence[Record], axes: Any) -> None:
    """Medians of connect()."""
    names = [f"{row['what']} / {row['base']}" for row in rows]
    axes.barh(names, [row["p50"] for row in rows])
    axes.set_xlabel("µs, p50")
    axes.set_title("connect()")


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=Path("build/bench/results.json"), show_default=True)
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True)
def main(results: Path, folder: Path) -> None:
    """Draw the charts."""
    found = json.loads(results.read_text())
    for backend in dict.fromkeys(record["backend"] for record in found["towns"]):
        records = [record for record in found["towns"] if record["backend"] == backend]
        rows = [row for row in found["connect"] if row["backend"] == backend]
        charts = {"cold-start": (cold_start, records), "update": (update, records), "connect": (connects, rows)}
        for name, (draw, data) in charts.items():
            if not data:
                continue
            figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
            draw(data, axes)
            for suffix in ("png", "svg"):
                path = folder / f"{name}-{backend}.{suffix}"
                figure.savefig(path)
                click.echo(path)
            pyplot.close(figure)


if __name__ == "__main__":
    main()
