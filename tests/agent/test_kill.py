"""SIGKILL at any moment, and what the next start makes of it. 12 kills, 50 with KPX_KILLS=50."""

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kpx.family import Family
from kpx.netfilter.save import Saved
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.apply import payload_of
from kpx.reconcile.plan import make_plan
from tests.agent.harness import PATIENCE, AgentProcess, desired, live, save, wait_for_rules, wait_until_converged
from tests.apiserver import ApiServerProcess, churn, node_objects, population
from tests.kernel import BACKENDS, needs_kernel, rules_only
from tests.lab import Backends, Node, Traffic, connect
from tests.lab.client import Attempt

pytestmark = [pytest.mark.kernel, needs_kernel]

KILLS = int(os.environ.get("KPX_KILLS", "12"))
FLEET = 1000
ADDRESSES = ("10.96.0.10", "fd00:10:96::a")
POD = ("10.244.255.10", "fd00:10:244::ff:10")


def untouched() -> Iterator[dict[str, Any]]:
    """A dual-stack Service, and its slices with a single pod."""
    metadata = {"name": "untouched", "namespace": "safe"}
    port = {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}
    families = {"clusterIP": ADDRESSES[0], "clusterIPs": list(ADDRESSES), "ipFamilies": ["IPv4", "IPv6"]}
    spec = {"type": "ClusterIP", "ports": [port], **families}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    for kind, address in zip(families["ipFamilies"], POD, strict=True):
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"untouched-{kind.lower()}",
                "namespace": "safe",
                "labels": {"kubernetes.io/service-name": "untouched"},
            },
            "addressType": kind,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}, "nodeName": "node-0"}],
        }


class Town:
    """A node with one Service that stays as it is among many that don't, and the agent under test."""

    def __init__(self, stack: ExitStack, folder: Path, backend: Backend) -> None:
        self.node = stack.enter_context(Node())
        stack.enter_context(Backends(self.node.pod("untouched", *POD), tcp=[8080]))
        namespace = self.node.host.namespace
        self.server = stack.enter_context(ApiServerProcess(prefix=["nsenter", f"--net={namespace.path}"]))
        self.server.put_all([node_objects(1)[0], *untouched()])
        self.changes = churn(7)
        self.churn(150)
        self.agent = stack.enter_context(AgentProcess(namespace, folder, self.server, backend=backend))
        wait_until_converged(self.agent, self.server)

    def churn(self, count: int = 1) -> None:
        for change in islice(self.changes, count):
            self.server.change(*change)

    def live(self, family: Family, *options: str) -> Saved:
        return live(self.agent.namespace, self.agent.backend, family, *options)

    def rules(self) -> list[list[str]]:
        """Every chain and rule."""
        return [rules_only(save(self.agent.namespace, self.agent.backend, family)) for family in Family]


@pytest.fixture(scope="module", params=BACKENDS)
def shared_town(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with ExitStack() as stack:
        yield Town(stack, tmp_path_factory.mktemp("town"), request.param)


@pytest.fixture
def town(shared_town: Town) -> Town:
    """The town with the agent at rest."""
    if not shared_town.agent.running:
        shared_town.agent.start()
    wait_until_converged(shared_town.agent, shared_town.server)
    return shared_town


RuleCounters = dict[tuple[Family, str, str, str], int]
"""Packets by family, table, chain and rule."""


def counters(town: Town) -> RuleCounters:
    """The counters of all rules of Services; those on the way there count the agent's own connections, too."""
    return {
        (family, table, chain, rule): packets
        for family in Family
        for table, saved in town.live(family, "-c").items()
        for chain, one in saved.chains.items()
        if chain.startswith(("KUBE-SVC", "KUBE-SEP"))
        for rule, (packets, _) in zip(one.rules, one.counters or (), strict=True)
    }


def count_something(town: Town) -> RuleCounters:
    for address in ADDRESSES:
        assert connect(town.node.client, address, 80, count=20).answered
    found = counters(town)
    assert sum(packets >= 20 for packets in found.values()) >= 4
    return found


@pytest.mark.parametrize("ending", [AgentProcess.stop, AgentProcess.kill])
def test_without_a_change_a_restart_writes_nothing(town: Town, ending: Callable[[AgentProcess], object]) -> None:
    before = count_something(town)
    saved = town.rules()
    ending(town.agent)
    town.agent.start()
    syncs = town.agent.wait_for_log("synced", 2)
    assert [(one["full"], one["lines"]) for one in syncs] == [("start", 0)] * 2
    assert town.agent.total("kpx_restores_total") == town.agent.total("kpx_restore_lines_total") == 0
    assert town.rules() == saved
    assert counters(town) == before


def test_of_changes_while_it_was_down_only_the_difference_is_written(town: Town) -> None:
    before = count_something(town)
    town.agent.kill()
    town.churn(30)  # enough for both families
    wanted = desired(town.agent, town.server)
    payloads = {
        family: payload_of(make_plan(ruleset, town.live(family)).edits, Tools(town.agent.backend, family))
        for family, ruleset in wanted.items()
    }
    assert all(payloads.values())
    town.agent.start()
    syncs = town.agent.wait_for_log("synced", 2)
    assert {one["family"]: one["lines"] for one in syncs} == {
        family: text.count("\n") for family, text in payloads.items()
    }
    assert town.agent.total("kpx_restores_total") == 2
    wait_for_rules(town.agent, wanted)
    after = counters(town)
    kept = {place: packets for place, packets in after.items() if before.get(place)}
    assert kept == {place: packets for place, packets in before.items() if packets}


@dataclass(frozen=True, slots=True)
class Death:
    """When the agent was killed, how many edits were missing then, and how long the next one took to carry them out.

    `cpu` is what that cost, in seconds, the tools included: it tells more than `seconds` on a busy machine.
    """

    moment: str
    missing: int
    seconds: float
    cpu: float

    def __str__(self) -> str:
        return (
            f"{self.moment}, {self.missing} edits missing: converged after {self.seconds:.2f} s, {self.cpu:.2f} s CPU"
        )


class Reaper:
    """Kills the agent at random moments."""

    def __init__(self, town: Town, seed: int) -> None:
        self.town, self.agent, self.server = town, town.agent, town.server
        self.random = random.Random(seed)
        self.fleet = list(population(FLEET))
        self.there = False
        self.moments = (self.in_churn, self.in_start, self.in_churn, self.in_load)

    def strike(self, number: int) -> Death:
        """Kill it, change a few things more, and start it again."""
        moment = self.moments[number % len(self.moments)]
        moment()
        self.agent.kill()
        self.town.churn(5)
        wanted = desired(self.agent, self.server)
        missing = sum(len(make_plan(wanted[family], self.town.live(family)).edits) for family in Family)
        start = time.monotonic()
        self.agent.start()
        self.agent.wait_for_log("synced", 2)
        wait_for_rules(self.agent, wanted)
        return Death(moment.__name__, missing, time.monotonic() - start, cpu_seconds(self.agent.pid))

    def in_churn(self) -> None:
        """While one change follows the other."""
        end = time.monotonic() + self.random.uniform(0.0, 1.0)
        while time.monotonic() < end:
            self.town.churn()

    def in_start(self) -> None:
        """While it takes in a thousand Services that came or went when it was down."""
        self.move_fleet()
        self.agent.wait_for_log("started")
        time.sleep(self.random.uniform(0.0, 2.0))

    def in_load(self) -> None:
        """While the tool loads or removes their rules."""
        self.move_fleet()
        for _ in self.agent.patiently(PATIENCE, "a restore", pause=0.005):
            if f"iptables-{self.agent.backend}-restore" in children(self.agent.pid):
                break
            if len(self.agent.log("synced")) == len(Family):  # on a busy machine a load may pass unseen
                break
        time.sleep(self.random.uniform(0.0, 0.6))

    def move_fleet(self) -> None:
        """Restart it with a thousand Services more than before, or less."""
        self.agent.kill()
        if self.there:
            for one in self.fleet:
                self.server.delete(one["kind"], one["metadata"]["namespace"], one["metadata"]["name"])
        else:
            self.server.put_all(self.fleet)
        self.there = not self.there
        self.agent.start()


def children(pid: int) -> list[str]:
    """The programs that a process is running."""
    programs = []
    for one in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            programs += [
                Path(f"/proc/{child}/cmdline").read_text().partition("\0")[0] for child in one.read_text().split()
            ]
    return programs


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that have ended (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def visitors(node: Node) -> Iterator[tuple[Traffic, ...]]:
    """A client that connects to the untouched Service again and again, by each family.

    With pauses, or the clients would take more of the machine than the agent.
    """

    def visit(address: str) -> Attempt:
        time.sleep(0.005)
        return connect(node.client, address, 80).attempts[0]

    traffics = tuple(Traffic() for _ in ADDRESSES)
    with ThreadPoolExecutor(len(ADDRESSES)) as pool:
        for traffic, address in zip(traffics, ADDRESSES, strict=True):
            pool.submit(traffic.keep, partial(visit, address))
        try:
            yield traffics
        finally:
            for traffic in traffics:
                traffic.end()


def test_no_connection_fails_however_often_it_is_killed(town: Town) -> None:
    reaper = Reaper(town, seed=1)
    with visitors(town.node) as traffics:
        deaths = [reaper.strike(number) for number in range(KILLS // len(BACKENDS))]
    print(*deaths, *(traffic.result.outcomes for traffic in traffics), sep="\n")
    for traffic in traffics:
        assert traffic.failures == ()
        assert len(traffic.result.attempts) > 100
