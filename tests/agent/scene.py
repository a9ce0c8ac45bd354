"""A node with an agent whose tools may lie, and a dual-stack cluster that changes when told to."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.agent.fresh import our_lines, wait_until_fresh
from tests.agent.harness import HEALTH_PORT, PATIENCE, AgentProcess, of_both_families, save
from tests.apiserver import ApiServer
from tests.kernel import PROGRAM
from tests.lab import Namespace
from tests.lies import LOUD, Liars
from tests.manifests import Manifest, endpoint_slice, node, service

V4, V6 = Family.IPV4, Family.IPV6
LABEL = {V4: "IPv4", V6: "IPv6"}
PODS = ("10.244.0.10", "10.244.1.11", "10.244.2.12", "10.244.3.13")
PODS6 = ("fd00:10:244::10", "fd00:10:244::1:11", "fd00:10:244::2:12", "fd00:10:244::3:13")
CONFIG = {"iptables": {"minSyncPeriod": "100ms", "syncPeriod": "1s"}}
"""The whole state is looked at every second; a change is late after two."""


def slices(name: str, count: int) -> Iterator[Manifest]:
    """Slices of both families."""
    for letter, pods in (("a", PODS), ("b", PODS6)):
        one = endpoint_slice(name, pods[:count])
        one["metadata"]["name"] = f"{name}-{letter}"
        yield one


def dual(name: str, number: int, **spec: Any) -> Manifest:
    addresses = [f"10.96.0.{number}", f"fd00:96::{number:x}"]
    return service(name, addresses[0], clusterIPs=addresses, ipFamilies=["IPv4", "IPv6"], **spec)


def cluster(state: int) -> list[Manifest]:
    """A cluster; another state changes, adds and removes rules of every sort in both families."""
    edge: dict[str, Any] = {"externalIPs": ["203.0.113.9"]} if state % 2 else {}
    found = [node(), dual("web", 1), *slices("web", 1 + state % 4), dual("edge", 2, **edge), *slices("edge", 2)]
    found += [dual("db", 3, sessionAffinity="ClientIP"), *slices("db", 3 - state % 3)]
    for number in range(10 + state, 14 + state):
        found += [dual(f"service-{number}", number), *slices(f"service-{number}", number % 3)]
    return found


@dataclass(slots=True)
class Scene:
    """A node with an agent, tools that may lie, and a cluster that changes."""

    agent: AgentProcess
    server: ApiServer
    liars: Liars
    states: Iterator[int] = field(default_factory=itertools.count)

    def change(self) -> None:
        """Bring the cluster into another state."""
        objects = cluster(next(self.states))
        wanted = {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in objects}
        for kind in ("Service", "EndpointSlice"):
            for one in self.server.objects(kind):
                key = (kind, one["metadata"]["namespace"], one["metadata"]["name"])
                if key not in wanted:
                    self.server.delete(*key)
        self.server.put_all(objects)

    def damage(self, family: Family) -> None:
        """What somebody does to our rules by hand."""
        tool = f"{PROGRAM[family]}-{self.agent.backend}"
        chain = next(
            chain for table, chain in our_lines(self.save(family)) if table == "nat" and chain.startswith("KUBE-SVC-")
        )
        script = f"{tool} -w -t nat -F {chain}; {tool} -w -t nat -I KUBE-SERVICES -j ACCEPT; {tool} -w -F KUBE-FORWARD"
        environment = f"export XTABLES_LOCKFILE={self.agent.environment['XTABLES_LOCKFILE']}"
        self.agent.namespace.run(["sh", "-ec", f"{environment}; {script}"])

    def save(self, family: Family) -> str:
        return save(self.agent.namespace, self.agent.backend, family)

    def unconfirmed(self, family: Family) -> float:
        return self.agent.metrics().get(f'kpx_unconfirmed_total{{ip_family="{LABEL[family]}"}}', 0.0)

    def failures(self, family: Family) -> float:
        name = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total"
        return self.agent.metrics().get(f'{name}{{ip_family="{LABEL[family]}"}}', 0.0)

    def complaints(self, family: Family) -> list[dict[str, Any]]:
        """What the log says at level error about this family's tools."""
        entries = [one for one in self.agent.log() if one["level"] == "error" and one.get("family") == family]
        return [one for one in entries if PROGRAM[family] in str(one.get("error"))]

    def wait_until_right(self) -> None:
        """Wait until the kernel equals a fresh load in both families, when nothing comes late any more."""
        self.liars.wait_for_late_ones()
        wait_until_fresh(self.agent, of_both_families(self.agent, self.server.objects()))

    def wait_until_healthy(self) -> None:
        for page in ("/healthz", "/livez"):
            for _ in self.agent.patiently(PATIENCE, f"{page} 200"):
                if self.agent.get(page, HEALTH_PORT)[0] == 200:
                    break

    def wait_for_distrust(self, family: Family, lie: str, before: tuple[float, float, int]) -> None:
        """Wait until it is counted and logged that the tools lie, or fail, as they do."""
        unconfirmed, failures, complaints = before
        for _ in self.agent.patiently(PATIENCE, f"{lie}: counted and logged"):
            rises = self.unconfirmed(family) > unconfirmed or lie in LOUD
            if rises and self.failures(family) > failures and len(self.complaints(family)) > complaints:
                return

    def trust(self, family: Family) -> tuple[float, float, int]:
        return self.unconfirmed(family), self.failures(family), len(self.complaints(family))


def scene(stack: ExitStack, folder: Path, backend: Backend) -> Scene:
    namespace = stack.enter_context(Namespace())
    namespace.ip("link set lo up")
    server = stack.enter_context(ApiServer(netns=namespace.path))
    liars = Liars(folder)
    agent = AgentProcess(namespace, folder, server, backend=backend, config=CONFIG)
    agent.environment |= liars.environment
    one = Scene(agent, server, liars)
    one.change()
    return one
