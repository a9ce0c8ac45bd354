"""Connections in the metrics: they add up to what was sent, whatever becomes of the rules meanwhile."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.agent.connections import Meter
from kpx.agent.metrics import Metrics
from kpx.compiler.compile import Layout
from kpx.netfilter.counters import Counted
from kpx.netfilter.tools import Backend
from tests import lab
from tests.agent.harness import PATIENCE, AgentProcess
from tests.kernel import BACKENDS, needs_kernel
from tests.manifests import Manifest, endpoint_slice, node, service, write

PODS = ("10.244.0.10", "10.244.0.11", "10.244.1.10")
VIP = "10.96.9.1"
TOTAL = 'kpx_service_connections_total{namespace="shop",port="http",service="web"}'


# ---- counters into increments ----

histories = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 50)), min_size=1, max_size=8)


@given(histories)
def test_the_meter_counts_every_connection_once_and_never_backwards(history: list[dict[str, int]]) -> None:
    """Each step says how many new connections a chain has had since; chains that are missing have vanished."""
    meter, expected, counted = Meter(), 0, 0
    counters: dict[str, int] = {}
    for step, chains in enumerate(history):
        counters = {name: counters.get(name, 0) + new for name, new in chains.items()}
        expected += sum(chains.values()) if step else 0
        taken = list(meter.take(Counted(name, "tcp", "10.0.0.1:80", value) for name, value in counters.items()))
        assert all(new >= 0 for _, new in taken)
        counted += sum(new for _, new in taken)
    assert counted == expected


def test_a_counter_that_begins_anew_adds_what_it_has() -> None:
    meter = Meter()
    values = [[100], [120], [7], [7], [9]]
    seen = [[new for _, new in meter.take(Counted("a", "tcp", "x", one) for one in some)] for some in values]
    assert seen == [[], [20], [7], [0], [2]]


def test_a_count_shows_as_zero_first() -> None:
    metrics = Metrics()
    metrics.connections(("shop", "web", "http"), 5)
    assert f"{TOTAL} 0.0\n".encode() in sorted_labels(metrics.exposition())
    metrics.connections(("shop", "web", "http"), 2)
    assert f"{TOTAL} 7.0\n".encode() in sorted_labels(metrics.exposition())
    metrics.forget_connections(lambda labels: labels[1] == "web")
    assert b"kpx_service_connections_total{" not in metrics.exposition()


def sorted_labels(exposition: bytes) -> bytes:
    """Labels in the order of their names."""
    return exposition.replace(
        b'{namespace="shop",service="web",port="http"}', b'{namespace="shop",port="http",service="web"}'
    )


# ---- an agent and real connections ----


def objects(*pods: str) -> list[Manifest]:
    return [node(), service("web", VIP), endpoint_slice("web", pods), service("other", "10.96.9.2")]


def put(folder: Path, *pods: str, found: list[Manifest] | None = None) -> None:
    """Replace the manifests in one step."""
    folder.mkdir(exist_ok=True)
    os.replace(write(folder.parent / "next.json", found or objects(*pods)), folder / "shop.json")


def total(agent: AgentProcess, prefix: str = "kpx_service_connections_total{", part: str = "") -> float | None:
    found = [value for name, value in agent.metrics().items() if name.startswith(prefix) and part in name]
    return sum(found) if found else None


def wait_for(agent: AgentProcess, what: str, holds: Callable[[], bool]) -> None:
    for _ in agent.patiently(PATIENCE, what, pause=0.1):
        if holds():
            return


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [Layout.TREE, Layout.COMPACT])
def test_totals_are_the_connections_made_through_churn(layout: Layout, backend: Backend, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    put(folder, *PODS[:2])
    arguments: list[str | Path] = [
        "--manifests",
        folder,
        "--connection-metrics",
        "endpoints",
        "--connection-metrics-every",
        "0.2",
    ]
    with lab.Node() as one:
        pods = [one.pod(f"pod-{number}", ipv4, f"fd00:244::{10 + number}") for number, ipv4 in enumerate(PODS)]
        with (
            lab.Backends(*pods, tcp=[8080]),
            AgentProcess(one.host.namespace, tmp_path, None, *arguments, backend=backend, layout=layout) as agent,
        ):
            agent.wait_for_log("caches complete")
            reads = "kpx_connections_read_seconds_count"
            wait_for(agent, "a first reading", lambda: agent.metrics().get(reads, 0) >= 1)
            assert total(agent) is None
            assert lab.connect(one.client, VIP, 80, count=60).answered
            wait_for(agent, "60 connections", lambda: total(agent) == 60)
            by_endpoint = "kpx_endpoint_connections_total{"
            wait_for(agent, "the endpoints' sum", lambda: total(agent, by_endpoint) == 60)
            # An endpoint goes and another one comes: what it had counted stays in the Service's total.
            put(folder, *PODS[1:])
            wait_for(agent, "the endpoint to go", lambda: total(agent, by_endpoint, PODS[0]) is None)
            assert total(agent) == 60
            stays = total(agent, by_endpoint, PODS[1])
            assert stays
            assert lab.connect(one.client, VIP, 80, count=40).answered
            wait_for(agent, "100 connections", lambda: total(agent) == 100)
            assert (total(agent, by_endpoint, PODS[1]) or 0) > stays
            # A full check writes nothing, others' work on the chain is repaired; both count on.
            one.host.namespace.run([f"iptables-{backend}", "-w", "5", "-t", "nat", "-F", web_chain(one, backend)])
            agent.wait_for_log("rules repaired")
            assert lab.connect(one.client, VIP, 80, count=20).answered
            wait_for(agent, "120 connections", lambda: total(agent) == 120)
            put(folder, found=[node(), service("other", "10.96.9.2")])
            wait_for(agent, "the Service to go", lambda: total(agent) is None)


def web_chain(node: lab.Node, backend: Backend) -> str:
    rules = node.rules(backend=backend.value).splitlines()
    return next(line.split()[-1] for line in rules if line.startswith("-A KUBE-SERVICES") and VIP in line)
