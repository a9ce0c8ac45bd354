"""`kpx run` as a process in a network namespace, and how to tell that the kernel holds what it should.

with Namespace() as namespace:
    namespace.ip("link set lo up")
    with ApiServer(netns=namespace.path) as server:
        server.put(node_objects(1)[0])
        with AgentProcess(namespace, folder, server) as agent:
            wait_until_converged(agent, server)
            agent.kill()
            agent.start()
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from kpx.api import KubeProxyConfiguration, parse_config, parse_object
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.family import Family
from kpx.netfilter import nfacct
from kpx.netfilter.names import ours
from kpx.netfilter.ruleset import TABLES, Ruleset
from kpx.netfilter.save import Saved, parse_save
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.plan import Plan, make_plan
from tests.apiserver import ApiServer, ApiServerProcess, Auth
from tests.kernel import PROGRAM
from tests.lab import Namespace

ROOT = Path(__file__).parents[2]
NODE = "node-0"
KINDS = ("Service", "EndpointSlice", "Node")
HEALTH_PORT, METRICS_PORT = 10256, 10249
PATIENCE = 120.0
"""Seconds to wait for anything: only a bound for a hang, since the machine may be busy."""

Server = ApiServer | ApiServerProcess


class HasKubeconfig(Protocol):
    """A server that an agent can follow."""

    def kubeconfig(self, path: Path, auth: Auth = ...) -> Path:
        """Write a kubeconfig to `path`."""


Metrics = Mapping[str, float]
"""Samples by their name with labels, as they are printed: `kpx_restores_total{ip_family="IPv4"}`."""

_CONFIG: Mapping[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "hostnameOverride": NODE,
    "clusterCIDR": "10.244.0.0/16,fd00:10:244::/64",
    "conntrack": {"maxPerCore": 0},  # the table is the whole machine's
    "iptables": {"minSyncPeriod": "100ms"},
    "logging": {"format": "json"},
}
_SAMPLE = re.compile(r"^([^#\s{]+(?:\{.*\})?) (\S+)$", re.MULTILINE)


class AgentProcess:
    """`kpx run` against a server, in a namespace; may be started again and again. Ends with the `with` block.

    `folder` takes its configuration (`config` goes over the defaults above), kubeconfig and log. Without a
    server, `arguments` have to name a source; `prefix` goes before the command (`setpriv ...`).
    """

    def __init__(
        self,
        namespace: Namespace,
        folder: Path,
        server: HasKubeconfig | None = None,
        *arguments: str | Path,
        backend: Backend = Backend.NFT,
        layout: Layout = Layout.TREE,
        config: Mapping[str, Any] | None = None,
        prefix: Iterable[str] = (),
    ) -> None:
        self.namespace, self.folder, self.backend, self.layout = namespace, folder, backend, layout
        self.config_file, self.log_file = folder / "config.yaml", folder / "agent.log"
        self.configure(config or {})
        source = ["--kubeconfig", server.kubeconfig(folder / "kubeconfig", Auth.TOKEN_FILE)] if server else []
        options = ["--config", self.config_file, *source, "--backend", backend, "--layout", layout, *arguments]
        self.command = [*prefix, sys.executable, "-m", "kpx", "run", *map(str, options)]
        # The lock of the legacy tools is one for all namespaces: what others do there would look like damage.
        self.environment = os.environ | {"XTABLES_LOCKFILE": str(folder / "xtables.lock"), "PYTHONFAULTHANDLER": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the configuration file; read at the start and on SIGHUP."""
        self.config_file.write_text(json.dumps({**_CONFIG, **config}))

    @property
    def configuration(self) -> KubeProxyConfiguration:
        """The configuration as the agent reads it."""
        return parse_config(self.config_file.read_bytes())[0]

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """What it ended with: an exit status, a signal's number below zero, or None if it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it, and don't wait for anything."""
        assert not self.running
        with self.log_file.open("ab") as log, self.namespace.entered():
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL. Tools that it has started run on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self, timeout: float = PATIENCE) -> float:
        """SIGTERM; seconds until it had ended. Fails unless it ends with status 0."""
        assert self._process is not None
        start = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(timeout) == 0, self.log_text()
        return time.monotonic() - start

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    # What it says.

    def log_text(self) -> str:
        """The log since the last start."""
        with self.log_file.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def log(self, event: str = "") -> list[dict[str, Any]]:
        """The log entries since the last start, or those of one event, oldest first."""
        lines = [line for line in self.log_text().splitlines(keepends=True) if line.endswith("}\n")]
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if not event or entry["event"] == event]

    def wait_for_log(self, event: str, count: int = 1, timeout: float = PATIENCE) -> list[dict[str, Any]]:
        """Wait until an event has been logged so many times since the last start; its entries."""
        for _ in self.patiently(timeout, f"{count} × {event!r}"):
            if len(found := self.log(event)) >= count:
                break
        return found

    def get(self, path: str, port: int = METRICS_PORT, host: str = "127.0.0.1") -> tuple[int, str]:
        """HTTP status and body of a page of its ports. Raises OSError if nobody listens."""
        with self.namespace.entered():
            connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
            connection.connect()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> Metrics:
        """What it counts."""
        return {name: float(value) for name, value in _SAMPLE.findall(self.get("/metrics")[1])}

    def total(self, name: str) -> float:
        """The sum of a metric over its labels."""
        found = self.metrics()
        return sum(value for sample, value in found.items() if sample.partition("{")[0] == name)

    def patiently(self, timeout: float, what: str, pause: float = 0.02) -> Iterator[float]:
        """Try again and again: yields the seconds so far. Fails after `timeout`, or if the process is gone."""
        start = time.monotonic()
        while (so_far := time.monotonic() - start) < timeout:
            assert self.running, f"the agent has ended with status {self.status}\n{self.log_text()[-4000:]}"
            yield so_far
            time.sleep(pause)
        raise AssertionError(f"not within {timeout} s: {what}\n{self.log_text()[-4000:]}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # the tools that it has started, too: one may hang
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(PATIENCE)


# What the kernel holds, and what it should.


def save(namespace: Namespace, backend: Backend, family: Family, *options: str) -> str:
    """What `iptables-save` prints."""
    return namespace.run([f"{PROGRAM[family]}-{backend}-save", *options]).stdout


def live(namespace: Namespace, backend: Backend, family: Family, *options: str) -> Saved:
    """The live tables; with the option `-c`, rules have counters."""
    return parse_save(save(namespace, backend, family, *options))


def expected(
    objects: Iterable[Any],
    config: KubeProxyConfiguration,
    family: Family,
    layout: Layout = Layout.TREE,
    backend: Backend = Backend.NFT,
) -> Ruleset:
    """The rules of these objects, compiled from scratch; with those that count, if this kernel takes them."""
    parsed = [parse_object(one["kind"], one) for one in objects]
    ruleset, problems = compile_sound(parsed, config, Target(NODE, family, layout, nfacct=counting(backend, family)))
    assert not problems
    return ruleset


@cache
def counting(backend: Backend, family: Family) -> bool:
    """Whether rules count here, for kube-proxy's metrics."""
    return nfacct.takes(Tools(backend, family))


def of_both_families(agent: AgentProcess, objects: Iterable[Any]) -> dict[Family, Ruleset]:
    """The rules that the agent should write for these objects."""
    every = list(objects)
    return {family: expected(every, agent.configuration, family, agent.layout, agent.backend) for family in Family}


def plans(agent: AgentProcess, objects: Iterable[Any]) -> dict[Family, Plan]:
    """By family: what would have to change for the kernel to be as these objects ask for."""
    return {
        family: make_plan(wanted, live(agent.namespace, agent.backend, family))
        for family, wanted in of_both_families(agent, objects).items()
    }


def stale_chains(agent: AgentProcess, objects: Iterable[Any]) -> set[str]:
    """Chains of ours that these objects don't ask for, found without the reconciler's help."""
    found: set[str] = set()
    for family, wanted in of_both_families(agent, objects).items():
        present = live(agent.namespace, agent.backend, family)
        for table in TABLES:
            chains = {chain for chain in present[table].chains if ours(chain)} if table in present else set()
            found |= chains - wanted.tables[table].chains.keys()
    return found


def desired(agent: AgentProcess, server: Server) -> dict[Family, Ruleset]:
    """What the server's objects ask for."""
    return of_both_families(agent, server.objects(*KINDS))


def wait_for_rules(agent: AgentProcess, rulesets: Mapping[Family, Ruleset], timeout: float = PATIENCE) -> float:
    """Wait until the kernel holds these; seconds waited."""
    start, missing = time.monotonic(), dict(rulesets)
    for _ in agent.patiently(timeout, "the kernel as the cluster asks for"):
        for family, wanted in list(missing.items()):
            if not make_plan(wanted, live(agent.namespace, agent.backend, family)):
                del missing[family]
        if not missing:
            break
    return time.monotonic() - start


def wait_until_converged(agent: AgentProcess, server: Server, timeout: float = PATIENCE) -> float:
    """Wait until the kernel is as the server's objects ask for in both families; seconds waited.

    The objects must not change meanwhile.
    """
    return wait_for_rules(agent, desired(agent, server), timeout)
