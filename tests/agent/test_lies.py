"""Tools that end with status 0 and have done something else are never believed: the kernel is the judge."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.agent.harness import PATIENCE, AgentProcess, live, of_both_families, wait_for_rules
from tests.kernel import BACKENDS, FAMILIES, PROGRAM, needs_kernel
from tests.lab import Namespace
from tests.lies import BELIEVED, Liars
from tests.manifests import Manifest, endpoint_slice, node, service, write

pytestmark = [pytest.mark.kernel, needs_kernel]

PODS = ["10.244.0.10", "10.244.1.11", "10.244.1.12"]
PODS6 = ["fd00:10:244::10", "fd00:10:244::11"]
CONFIG = {"iptables": {"syncPeriod": "1s", "minSyncPeriod": "50ms"}}
LIMIT = 2.0
"""Seconds after which a change that isn't written makes the agent unwell, by that configuration."""


def cluster(pods: int = 2) -> list[Manifest]:
    """Two Services, of a family each, with so many endpoints."""
    return [
        node(),
        service("web", "10.96.0.1"),
        endpoint_slice("web", PODS[:pods]),
        service("web6", "fd00:96::1"),
        endpoint_slice("web6", PODS6[: max(1, pods - 1)]),
    ]


@dataclass(frozen=True, slots=True)
class Node:
    """A namespace with an agent that follows a directory, and tools that lie when they are told to."""

    namespace: Namespace
    agent: AgentProcess
    liars: Liars
    manifests: Path

    def put(self, objects: list[Manifest]) -> None:
        """What the cluster is from now on."""
        write(self.manifests / "all.yaml", objects)

    def wait_until_right(self, objects: list[Manifest]) -> None:
        wait_for_rules(self.agent, of_both_families(self.agent, objects))

    def run_once(self) -> subprocess.CompletedProcess[str]:
        """`kpx run --once`."""
        return self._run([*self.agent.command, "--once"])

    def apply(self) -> subprocess.CompletedProcess[str]:
        """`kpx apply` for both families, one after the other."""
        config = ["-f", str(self.manifests), "--config", str(self.agent.config_file)]
        command = [*self.agent.command[:3], "apply", *config, "--backend", self.agent.backend, "--family", "dual"]
        return self._run(command)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment = {**self.agent.environment, **self.liars.environment}
        with self.namespace.entered():
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    def unconfirmed(self) -> float:
        return self.agent.total("kpx_unconfirmed_total")


def make(folder: Path, backend: Backend, namespace: Namespace) -> Node:
    namespace.ip("link set lo up")
    manifests = folder / "manifests"
    manifests.mkdir()
    agent = AgentProcess(namespace, folder, None, "--manifests", manifests, backend=backend, config=CONFIG)
    liars = Liars(folder)
    agent.environment |= liars.environment
    made = Node(namespace, agent, liars, manifests)
    made.put(cluster())
    return made


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    with Namespace() as namespace:
        yield make(tmp_path, request.param, namespace)


@pytest.mark.parametrize("command", ["once", "apply"])
@pytest.mark.parametrize("way", BELIEVED)
def test_a_command_that_was_lied_to_ends_with_status_2(place: Node, way: str, command: str) -> None:
    run = place.run_once if command == "once" else place.apply
    place.liars.tell_all("restore", way)
    done = run()
    assert done.returncode == 2, done.stderr
    assert "the kernel has not done it" in done.stderr
    place.liars.be_honest()
    time.sleep(2 if way == "late" else 0)
    done = run()
    assert done.returncode == 0, done.stderr
    for family, wanted in of_both_families(place.agent, cluster()).items():
        chains = live(place.namespace, place.agent.backend, family)["nat"].chains
        assert {name: chains[name].rules for name in wanted.tables["nat"].chains} == wanted.tables["nat"].chains


@pytest.mark.parametrize("command", ["once", "apply"])
def test_a_wrapper_that_runs_the_tool_as_a_child_is_believed(place: Node, command: str) -> None:
    place.liars.tell_all("restore", "wrapper")
    done = (place.run_once if command == "once" else place.apply)()
    assert done.returncode == 0, done.stderr


def test_an_agent_believes_no_lie_and_is_right_once_the_tools_are(place: Node) -> None:
    with place.agent as agent:
        place.wait_until_right(cluster())
        for turn, way in enumerate(BELIEVED):
            before = place.unconfirmed()
            place.liars.tell_all("restore", way)
            objects = cluster(pods=3 if turn % 2 == 0 else 1)
            place.put(objects)
            for _ in agent.patiently(PATIENCE, f"{way} is not confirmed", pause=0.1):
                if place.unconfirmed() > before:
                    break
            assert any("the kernel has not done it" in str(one.get("error")) for one in agent.log("sync failed"))
            place.liars.be_honest()
            place.wait_until_right(objects)
        for _ in agent.patiently(PATIENCE, "well again", pause=0.1):
            if agent.get("/healthz", 10256)[0] == 200:
                break


def test_the_first_load_may_be_a_lie(place: Node) -> None:
    place.liars.tell_all("restore", "half")
    with place.agent as agent:
        for _ in agent.patiently(PATIENCE, "not confirmed", pause=0.1):
            if agent.log("sync failed"):
                break
        assert agent.get("/healthz", 10256)[0] == 503
        place.liars.be_honest()
        place.wait_until_right(cluster())


@pytest.mark.parametrize("way", ["nothing", "drop", "elsewhere"])
def test_repairs_are_not_believed_either(place: Node, way: str) -> None:
    with place.agent as agent:
        place.wait_until_right(cluster())
        place.liars.tell_all("restore", way)
        for family in FAMILIES:
            place.namespace.run([f"{PROGRAM[family]}-{agent.backend}", "-w", "-t", "nat", "-F", "KUBE-SERVICES"])
        for _ in agent.patiently(PATIENCE, "the lie was seen", pause=0.1):
            if place.unconfirmed():
                break
        for _ in agent.patiently(PATIENCE, "unwell", pause=0.1):
            if agent.get("/healthz", 10256)[0] == 503:
                break
        place.liars.be_honest()
        place.wait_until_right(cluster())


@pytest.mark.parametrize("way", ["nothing", "half", "family"])
def test_a_save_that_lies_does_no_harm_and_is_no_verification(place: Node, way: str) -> None:
    with place.agent as agent:
        place.wait_until_right(cluster())
        verified = 'kpx_last_verified_timestamp_seconds{ip_family="IPv4"}'
        for _ in agent.patiently(PATIENCE, "a verification", pause=0.1):
            if verified in agent.metrics():
                break
        place.liars.tell_all("save", way)
        started = time.time()
        for _ in agent.patiently(PATIENCE, "two looks", pause=0.2):
            if time.time() - started > 6:
                break
        assert agent.metrics()[verified] < started + 1.5  # one may have begun before
        for family, wanted in of_both_families(agent, cluster()).items():
            chains = live(place.namespace, agent.backend, family)["nat"].chains
            assert {name: chains[name].rules for name in wanted.tables["nat"].chains} == wanted.tables["nat"].chains
        place.liars.be_honest()
        objects = cluster(pods=3)
        place.put(objects)
        place.wait_until_right(objects)
        for _ in agent.patiently(PATIENCE, "verified again", pause=0.2):
            if agent.metrics()[verified] > started + 6:
                break


def test_only_one_family_is_lied_to(place: Node) -> None:
    with place.agent as agent:
        place.wait_until_right(cluster())
        place.liars.tell(f"ip6tables-{agent.backend}-restore", "nothing")
        objects = cluster(pods=3)
        place.put(objects)
        wait_for_rules(agent, {Family.IPV4: of_both_families(agent, objects)[Family.IPV4]})
        for _ in agent.patiently(PATIENCE, "unwell", pause=0.1):
            status, body = agent.get("/healthz", 10256)
            if status == 503:
                break
        assert '"IPv4": {"lastUpdated"' in body
        place.liars.be_honest()
        place.wait_until_right(objects)
