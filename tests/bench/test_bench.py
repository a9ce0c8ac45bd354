"""`make bench` on a cluster that takes seconds: that it measures, not what."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kpx.netfilter.tools import Backend
from tests.bench import apiserver
from tests.bench.towns import Town
from tests.kernel import BACKENDS, needs_kernel


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_bench_measures_everything(backend: Backend, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    options = [
        "--sizes",
        "30x2",
        "--changes",
        "2",
        "--seconds",
        "1",
        "--no-connect",
        "--no-apiserver",
        "--backend",
        backend,
    ]
    command = [sys.executable, "-m", "tests.bench", *options, "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "30 x 2" in done.stdout
    towns = json.loads(results.read_text())["towns"]
    assert [one["layout"] for one in towns] == ["tree", "compact"]
    for one in towns:
        kpx = one["kpx"]
        assert (kpx["restart"]["restores"], kpx["restart"]["lines"]) == (0, 0)
        assert kpx["cold"]["restores"] > 0
        # For each Service one, and one for each endpoint, but for a layout that does without.
        assert (kpx["chains"] > 90) == (one["layout"] == "tree")
        assert len(kpx["changes"]["latencies"]) == 2
        assert 0 < kpx["cold"]["imported"] <= kpx["cold"]["listed"] <= kpx["cold"]["done"]


@pytest.mark.kernel
@needs_kernel
def test_commands_are_measured() -> None:
    command = [sys.executable, "-m", "tests.bench.commands", "--size", "30x2", "--times", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert [f"apply again, {backend}" in done.stdout for backend in BACKENDS] == [True, True]


def test_what_a_node_costs_the_api_server() -> None:
    best, plain = apiserver.rows(60, 3, 2.0, ["HTTP/2, protobuf", "HTTP/1.1, JSON"])
    assert (best.start.requests, plain.start.requests) == (3, 3)
    assert (best.idle.requests, plain.idle.requests) == (0, 0)
    assert (best.connections, plain.connections) == (1, 3)
    assert best.start.down < 0.6 * plain.start.down
    assert best.change < 0.6 * plain.change


def test_how_sizes_are_spelled() -> None:
    assert [Town.of(text) for text in ("10k", "50kx2", "1x5000")] == [Town(10_000, 5), Town(50_000, 2), Town(1, 5000)]
    large = list(Town(1, 250).objects())
    assert [len(one["endpoints"]) for one in large[1:]] == [100, 100, 50]
