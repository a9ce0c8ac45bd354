"""Others who want our chains to be different: told, damped, and no harm to what is none of their business."""

import json
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from kpx.agent.suspects import BURST, Culprit, Suspects
from kpx.compiler.compile import Layout
from kpx.compiler.frame import JUMPS
from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.agent.harness import HEALTH_PORT, AgentProcess, save, wait_until_converged
from tests.apiserver import ApiServer
from tests.kernel import BACKENDS, needs_kernel
from tests.lab import Namespace
from tests.manifests import endpoint_slice, node, service

(PORTAL,) = JUMPS["nat"]["PREROUTING"]
SOON = {"minSyncPeriod": "100ms", "syncPeriod": "2s"}
VERIFIED = 'kpx_last_verified_timestamp_seconds{ip_family="IPv4"}'
QUIET = 10.0
"""Seconds in which lines of log are counted."""


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_agents_that_want_different_rules_are_damped(backend: Backend, tmp_path: Path) -> None:
    other = {
        "iptables": {"masqueradeAll": True, "minSyncPeriod": "100ms"},
        "healthzBindAddress": f"127.0.0.1:{HEALTH_PORT + 10}",
        "metricsBindAddress": "127.0.0.1:10259",
    }
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        namespace.ip("link set lo up")
        server = stack.enter_context(ApiServer(netns=namespace.path))
        server.put_all([node(), service("web", "10.96.0.1"), endpoint_slice("web", ["10.244.0.10"])])
        agents = []
        for name, config in (("one", {}), ("two", other)):
            (tmp_path / name).mkdir()
            one = AgentProcess(namespace, tmp_path / name, server, backend=backend, config=config)
            one.environment["XTABLES_LOCKFILE"] = str(tmp_path / "xtables.lock")
            agents.append(stack.enter_context(one))
        first = agents[0]
        (told, *_) = first.wait_for_log("repairs are undone again and again, and made more seldom now")
        if backend is Backend.NFT:  # the legacy kernel tells nobody who wrote
            assert "unknown process" not in told["by"]
        body = json.loads(first.get("/healthz", HEALTH_PORT)[1])
        assert body["status"]["IPv4"]["undoneBy"]
        assert first.total("kpx_undone_repairs_total") > 0
        time.sleep(5.0)
        before = [len(one.log()) for one in agents]
        time.sleep(QUIET)
        lines = [len(one.log()) - count for one, count in zip(agents, before, strict=True)]
        print(f"\n{backend}: lines of log in {QUIET} s: {lines}")
        assert max(lines) <= 25


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("layout", Layout)
def test_foreign_commits_hold_up_neither_updates_nor_repairs_nor_looks(layout: Layout, tmp_path: Path) -> None:
    churn = """
    nft add table ip theirs; nft 'add set ip theirs some { type ipv4_addr; }'
    while true; do
      iptables-nft -w -t nat -A POSTROUTING -p tcp --dport 7777 -j ACCEPT
      nft add element ip theirs some '{ 192.0.2.1 }'; sleep 0.05
      iptables-nft -w -t nat -D POSTROUTING -p tcp --dport 7777 -j ACCEPT
      nft delete element ip theirs some '{ 192.0.2.1 }'; sleep 0.05
    done
    """
    with Namespace() as namespace, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        server.put_all([node(), service("web", "10.96.0.1"), endpoint_slice("web", ["10.244.0.10"])])
        with AgentProcess(namespace, tmp_path, server, layout=layout, config={"iptables": SOON}) as agent:
            wait_until_converged(agent, server)
            with namespace.entered():
                other = subprocess.Popen(["sh", "-c", churn], stderr=subprocess.DEVNULL)
            try:
                time.sleep(1.0)
                verified = agent.metrics().get(VERIFIED, 0.0)
                server.put_all([service("new", "10.96.0.2"), endpoint_slice("new", ["10.244.0.11"])])
                wait_for_line(agent, "10.96.0.2/32")
                for damage in ("-F KUBE-SERVICES", "-F KUBE-POSTROUTING", f"-D PREROUTING {PORTAL}"):
                    namespace.run(["sh", "-c", f"iptables-nft -w -t nat {damage}"])
                    wait_until_converged(agent, server)
                for _ in agent.patiently(60.0, "verified"):
                    if agent.metrics().get(VERIFIED, 0.0) > verified:
                        break
                assert other.poll() is None
            finally:
                other.kill()
                other.wait()


def wait_for_line(agent: AgentProcess, text: str) -> None:
    for _ in agent.patiently(60.0, text):
        if text in save(agent.namespace, agent.backend, Family.IPV4):
            return


def test_chains_that_could_not_be_looked_at_stay_suspect() -> None:
    suspects = Suspects()
    first, second = Culprit("first", 1), Culprit("second", 2)
    suspects.add([("nat", "KUBE-SERVICES"), ("nat", "KUBE-NODEPORTS")], first)
    taken = suspects.take()
    assert suspects.due(0.0) is None
    suspects.add([("nat", "KUBE-SERVICES")], second)
    suspects.put_back(taken)
    assert suspects.due(0.0) == 0.0
    assert suspects.take() == {("nat", "KUBE-SERVICES"): second, ("nat", "KUBE-NODEPORTS"): first}


def test_who_damages_one_chain_is_not_who_touched_another_later() -> None:
    suspects = Suspects()
    suspects.add([("nat", "KUBE-SERVICES")], Culprit("vandal", 1))
    suspects.add([("nat", "POSTROUTING")], Culprit("bystander", 2))
    assert suspects.take()["nat", "KUBE-SERVICES"] == Culprit("vandal", 1)


def test_repairs_of_one_chain_become_seldom() -> None:
    suspects = Suspects()
    for _ in range(BURST - 1):
        assert not suspects.repaired([("nat", "KUBE-SERVICES")], 0.0)
    assert suspects.repaired([("nat", "KUBE-SERVICES")], 0.0) == {("nat", "KUBE-SERVICES"): 10.0}
