"""How `kpx run` starts, stops, is told things by signals, and gets by when half of its world is broken."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kpx.family import Family
from kpx.netfilter.names import ours
from kpx.netfilter.ruleset import TABLES
from kpx.netfilter.tools import Backend
from tests.agent.harness import PATIENCE, AgentProcess, live, plans, save, wait_until_converged
from tests.apiserver import ApiServer, Faults, Next, population
from tests.kernel import BACKENDS, FAMILIES, needs_kernel, rules_only
from tests.lab import Namespace
from tests.manifests import endpoint_slice, node, service, write

pytestmark = [pytest.mark.kernel, needs_kernel]

PODS = ("10.244.0.10", "10.244.1.11")
PODS6 = ("fd00:10:244::10",)
OBJECTS = (
    node(),
    service("web", "10.96.0.1"),
    endpoint_slice("web", PODS),
    service("web6", "fd00:96::1"),
    endpoint_slice("web6", PODS6),
)
LARGE = 3000


@dataclass(frozen=True, slots=True)
class Place:
    """A node, an API server that it can reach, and a folder for an agent's files."""

    namespace: Namespace
    server: ApiServer
    folder: Path

    def agent(self, *arguments: str | Path, **options: Any) -> AgentProcess:
        return AgentProcess(self.namespace, self.folder, self.server, *arguments, **options)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`kpx run` to its end."""
        agent = self.agent(*arguments, **options)
        return run(agent)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Namespace() as namespace, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        server.put_all(OBJECTS)
        yield Place(namespace, server, tmp_path)


def run(agent: AgentProcess) -> subprocess.CompletedProcess[str]:
    """Run an agent that ends by itself."""
    with agent.namespace.entered():
        return subprocess.run(
            agent.command, env=agent.environment, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
        )


def broken(folder: Path, program: str, script: str = "exit 1") -> str:
    """A PATH on which this program doesn't work, until `mend`."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / program).write_text(f"#!/bin/sh\n{script}\n")
    (tools / program).chmod(0o755)
    return f"PATH={tools}:{os.environ['PATH']}"


def refusing(folder: Path, text: str) -> str:
    """A PATH on which the kernel doesn't take payloads with this text."""
    real = shutil.which("iptables-nft-restore")
    refusal = "echo 'iptables-restore: line 1: RULE_APPEND failed (No such file or directory)' >&2; exit 4"
    script = f'text=$(cat)\ncase "$text" in *{text}*) {refusal};; esac\necho "$text" | {real} "$@"'
    return broken(folder, "iptables-nft-restore", script)


def mend(folder: Path) -> None:
    shutil.rmtree(folder / "bin")


def our_chains(place: Place, backend: Backend = Backend.NFT) -> set[str]:
    saved = [live(place.namespace, backend, family) for family in FAMILIES]
    return {chain for one in saved for table in one.values() for chain in table.chains if ours(chain)}


def our_rules(place: Place) -> set[tuple[Family, str]]:
    """Every line of both families, without counters."""
    saves = [(family, save(place.namespace, Backend.NFT, family)) for family in FAMILIES]
    return {(family, line) for family, text in saves for line in rules_only(text)}


def wait_for_family(agent: AgentProcess, place: Place, family: Family) -> None:
    """Wait until one family is right, whatever the other is."""
    for _ in agent.patiently(PATIENCE, f"{family} as the cluster asks for"):
        if not plans(agent, place.server.objects())[family]:
            return


def read(place: Place, path: str) -> str:
    with place.namespace.entered():
        return Path(path).read_text().strip()


def test_what_is_counted_is_what_the_kernel_holds(place: Place) -> None:
    with place.agent(config={"iptables": {"minSyncPeriod": "1ms"}}) as agent:
        agent.wait_for_log("synced", 2)
        wait_until_converged(agent, place.server)
        seen = agent.metrics()
        place.server.put(endpoint_slice("web", [*PODS, "10.244.1.12"]))
        wait_until_converged(agent, place.server)
        last = 'kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="nat"}'
        for _ in agent.patiently(PATIENCE, "the last sync in the metrics"):
            if 0 < (metrics := agent.metrics())[last] < seen[last]:
                break
        assert metrics["kubeproxy_sync_proxy_rules_endpoint_changes_pending"] == 0
        assert metrics["kubeproxy_sync_proxy_rules_service_changes_total"] == 2
        assert metrics["kubeproxy_sync_proxy_rules_endpoint_changes_total"] == 3
        assert metrics["kubeproxy_sync_proxy_rules_service_changes_pending"] == 0
        for table in TABLES:
            chains = live(place.namespace, Backend.NFT, Family.IPV4)[table].chains
            labels = f'{{ip_family="IPv4",table="{table}"}}'
            count = sum(len(one.rules) for name, one in chains.items() if ours(name))
            assert metrics[f"kubeproxy_sync_proxy_rules_iptables_total{labels}"] == count > 0


# One shot.


@pytest.mark.parametrize("backend", BACKENDS)
def test_once_brings_the_kernel_up_to_date_and_ends(place: Place, backend: Backend) -> None:
    agent = place.agent("--once", backend=backend)
    done = run(agent)
    assert (done.returncode, done.stdout) == (0, "")
    assert not any(plans(agent, OBJECTS).values())


def test_once_fails_if_one_family_does_and_the_other_is_done(place: Place) -> None:
    agent = place.agent("--once", prefix=["env", broken(place.folder, "iptables-nft-restore")])
    done = run(agent)
    assert done.returncode == 2, done.stderr
    assert "iptables-nft-restore" in done.stderr
    left = plans(agent, OBJECTS)
    assert left[Family.IPV4]
    assert not left[Family.IPV6]


def test_once_fails_if_rules_are_refused(place: Place) -> None:
    agent = place.agent("--once", prefix=["env", refusing(place.folder, "10.96.0.1/32")])
    done = run(agent)
    assert done.returncode == 2, done.stderr
    assert "shop/web:http" in done.stderr


def test_once_fails_on_a_bad_configuration(place: Place) -> None:
    done = run(place.agent("--once", config={"iptables": {"masqueradeBit": 77}}))
    assert done.returncode == 2
    assert "masqueradeBit" in done.stderr
    assert our_chains(place) == set()


def test_once_listens_nowhere(place: Place) -> None:
    """A health check's port is of no use to anybody who comes when the process has ended."""
    local: dict[str, Any] = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32100}
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    place.server.put(service("local", "10.96.0.5", ports=ports, **local))
    done = run(place.agent("--once", config={"logging": {"format": "json", "verbosity": 4}}))
    assert done.returncode == 0
    assert "listening" not in done.stderr


def test_init_only_sets_the_host_up_and_nothing_else(place: Place) -> None:
    done = run(place.agent("--init-only"))
    assert done.returncode == 0, done.stderr
    assert read(place, "/proc/sys/net/ipv4/conf/all/route_localnet") == "1"
    assert our_chains(place) == set()
    assert place.server.stats.requests == {}


@pytest.mark.parametrize("backend", BACKENDS)
def test_cleanup_leaves_nothing_of_ours(place: Place, backend: Backend) -> None:
    place.namespace.run([f"iptables-{backend}", "-A", "INPUT", "-p", "tcp", "--dport", "666", "-j", "DROP"])
    assert run(place.agent("--once", backend=backend)).returncode == 0
    assert our_chains(place, backend)
    done = run(place.agent("--cleanup", backend=backend))
    assert done.returncode == 0, done.stderr
    assert our_chains(place, backend) == set()
    for family in FAMILIES:
        assert "KUBE-" not in save(place.namespace, backend, family)
    assert "--dport 666" in save(place.namespace, backend, Family.IPV4)


def test_cleanup_cleans_what_it_can(place: Place) -> None:
    assert run(place.agent("--once")).returncode == 0
    done = run(place.agent("--cleanup", prefix=["env", broken(place.folder, "iptables-nft-restore")]))
    assert done.returncode == 2
    assert "KUBE-" not in save(place.namespace, Backend.NFT, Family.IPV6)


# Signals.


def test_sighup_brings_a_changed_configuration_to_the_kernel(place: Place) -> None:
    with place.agent() as agent:
        wait_until_converged(agent, place.server)
        agent.configure({"iptables": {"masqueradeBit": 15, "minSyncPeriod": "100ms"}})
        agent.signal(signal.SIGHUP)
        wait_until_converged(agent, place.server)
        assert "0x8000/0x8000" in save(place.namespace, Backend.NFT, Family.IPV4)
        agent.config_file.write_text("kind: KubeProxyConfiguration\niptables: {masqueradeBit: 77}\n")
        agent.signal(signal.SIGHUP)
        (told,) = agent.wait_for_log("configuration not reread")
        assert "masqueradeBit" in told["error"]
        place.server.put(endpoint_slice("web", PODS[:1]))
        agent.configure({"iptables": {"masqueradeBit": 15}})  # what `expected` goes by
        wait_until_converged(agent, place.server)
        agent.stop()


def test_sighup_without_a_change_writes_nothing(place: Place) -> None:
    with place.agent() as agent:
        agent.wait_for_log("synced", 2)
        restores = agent.total("kpx_restores_total")
        agent.signal(signal.SIGHUP)
        agent.wait_for_log("started", 2)
        agent.wait_for_log("synced", 4)
        assert agent.total("kpx_restores_total") == restores


def test_sighup_sets_the_host_up_anew(place: Place) -> None:
    with place.agent() as agent:
        agent.wait_for_log("caches complete")
        agent.configure({"conntrack": {"maxPerCore": 0, "udpTimeout": "33s"}})
        agent.signal(signal.SIGHUP)
        for _ in agent.patiently(PATIENCE, "the host as configured"):
            if read(place, "/proc/sys/net/netfilter/nf_conntrack_udp_timeout") == "33":
                break


def test_sigterm_right_after_sighup_ends_it(place: Place) -> None:
    """Between two runs nothing may be deaf."""
    for pause in (0.0, 0.05):
        with place.agent() as agent:
            agent.wait_for_log("caches complete")
            agent.signal(signal.SIGHUP)
            time.sleep(pause)
            print(f"\nended after {agent.stop():.2f} s")


def test_sigusr1_writes_down_what_it_knows(place: Place) -> None:
    agent = place.agent()
    agent.environment |= {"TMPDIR": str(place.folder)}
    with agent:
        wait_until_converged(agent, place.server)
        place.server.put(endpoint_slice("web", PODS[:1]))
        wait_until_converged(agent, place.server)
        agent.signal(signal.SIGUSR1)
        (told,) = agent.wait_for_log("dump written")
    dump = json.loads(Path(told["path"]).read_text())
    assert Path(told["path"]).parent == place.folder
    assert dump["services"] == ["shop/web", "shop/web6"]
    ipv4 = dump["families"]["ipv4"]
    assert list(ipv4["service_ports"].values()) == [[f"{PODS[0]}:8080"]]
    assert ipv4["last_payload"].startswith("*nat\n")
    assert PODS[1] in ipv4["last_payload"] or "KUBE-SEP" in ipv4["last_payload"]


def test_dumps_are_private_and_few_and_harm_nobody(place: Place) -> None:
    victim, theirs = place.folder / "victim", place.folder / "kpx-dump-0.json"
    victim.write_text("precious")
    theirs.symlink_to(victim)
    (place.folder / "kpx-dump-of-another-user.json").write_text("{}")
    os.chown(place.folder / "kpx-dump-of-another-user.json", 4711, 4711)
    agent = place.agent()
    agent.environment |= {"TMPDIR": str(place.folder)}
    with agent:
        wait_until_converged(agent, place.server)
        for count in range(1, 8):
            agent.signal(signal.SIGUSR1)
            written = [Path(one["path"]) for one in agent.wait_for_log("dump written", count)]
    assert len(set(written)) == len(written) == 7
    assert [one.exists() for one in written] == [False] * 2 + [True] * 5
    assert {stat.S_IMODE(one.stat().st_mode) for one in written[2:]} == {0o600}
    assert victim.read_text() == "precious"
    assert theirs.is_symlink()
    assert (place.folder / "kpx-dump-of-another-user.json").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("pause", [0.06, 0.2, 0.4, 0.7])
def test_signals_that_come_early_are_honoured(place: Place, number: signal.Signals, pause: float) -> None:
    agent = place.agent()
    agent.environment |= {"TMPDIR": str(place.folder)}
    with agent:
        for _ in agent.patiently(PATIENCE, "Python is there"):
            caught = re.search(r"^SigCgt:\t(\w+)$", Path(f"/proc/{agent.pid}/status").read_text(), re.MULTILINE)
            if caught and int(caught[1], 16) >> signal.SIGINT - 1 & 1:  # as Python does before it runs any code
                break
        time.sleep(pause)
        agent.signal(number)
        wait_until_converged(agent, place.server)
        if number == signal.SIGUSR1:
            agent.wait_for_log("dump written")
        agent.stop()


@pytest.mark.parametrize("source", ["", "--kubeconfig nowhere", "--manifests nowhere", "--config nowhere"])
def test_nothing_on_the_host_is_touched_without_sound_input(place: Place, source: str) -> None:
    agent = AgentProcess(
        place.namespace,
        place.folder,
        None,
        "--once",
        *source.split(),
        config={"conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "4321s"}},
    )
    names = ["conf/all/route_localnet", "../netfilter/nf_conntrack_tcp_timeout_established"]
    before = [read(place, f"/proc/sys/net/ipv4/{name}") for name in names]
    done = run(agent)
    assert done.returncode == 2, done.stderr
    assert [read(place, f"/proc/sys/net/ipv4/{name}") for name in names] == before
    assert "kernel setting changed" not in done.stderr


@pytest.mark.parametrize(
    ("backend", "moment"), [(Backend.NFT, "compiling"), (Backend.NFT, "loading"), (Backend.LEGACY, "loading")]
)
def test_sigterm_ends_it_also_during_a_first_load(place: Place, backend: Backend, moment: str) -> None:
    place.server.put_all(population(LARGE, 3))
    with place.agent(backend=backend) as agent:
        agent.wait_for_log("caches complete")
        if moment == "loading":
            wait_for_a_tool(agent)
        seconds = agent.stop()
        print(f"\n{backend}, {moment}: ended after {seconds:.2f} s")
        assert tools_of(agent) == []


def tools_of(agent: AgentProcess) -> list[str]:
    """The processes that an agent has started and that still run."""
    listed = subprocess.run(["ps", "-o", "args=", "-s", str(agent.pid)], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "-restore" in line]


def wait_for_a_tool(agent: AgentProcess) -> None:
    for _ in agent.patiently(PATIENCE, "a load"):
        if tools_of(agent) or len(agent.log("synced")) == len(FAMILIES):  # on a busy machine it may pass unseen
            return


def test_sigterm_does_not_wait_for_a_tool_that_hangs(place: Place) -> None:
    for program in ("ip6tables-nft-save", "ip6tables-nft-restore"):
        with place.agent(prefix=["env", broken(place.folder, program, "exec sleep 600")]) as agent:
            agent.wait_for_log("synced")  # IPv4 is right
            print(f"\n{program} hangs: ended after {agent.stop():.2f} s")
        mend(place.folder)


# One thing broken.


@pytest.mark.parametrize(
    ("program", "way"),
    [
        ("ip6tables-nft-restore", "exit 1"),
        ("ip6tables-nft-restore", "exec sleep 600"),
        ("ip6tables-nft-save", "exit 1"),
    ],
)
def test_a_broken_ip6tables_never_stops_ipv4(place: Place, program: str, way: str) -> None:
    with place.agent(prefix=["env", broken(place.folder, program, way)]) as agent:
        wait_for_family(agent, place, Family.IPV4)
        place.server.put(endpoint_slice("web", PODS[:1]))
        wait_for_family(agent, place, Family.IPV4)
        place.namespace.run(["iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES"])
        wait_for_family(agent, place, Family.IPV4)
        if way == "exit 1":
            failures = 'kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"}'
            assert agent.metrics()[failures] > 0
            mend(place.folder)
            wait_until_converged(agent, place.server)


def test_refused_rules_are_tried_again_ever_more_seldom(place: Place) -> None:
    with place.agent(prefix=["env", refusing(place.folder, "10.96.0.1/32")]) as agent:
        refusals = agent.wait_for_log("rules refused, the old ones stay", 4)
        times = [datetime.fromisoformat(one["timestamp"]).timestamp() for one in refusals]
        gaps = [later - sooner for sooner, later in pairwise(times)]
        # The rules that were not refused come from a script's child here, so the first look around follows at once.
        assert gaps[1] > 0.9
        assert gaps[2] > 1.9
        mend(place.folder)
        wait_until_converged(agent, place.server)


def test_false_alarms_delay_a_repair_by_a_second_at_most(place: Place) -> None:
    """Whatever minSyncPeriod is."""
    with place.agent(config={"iptables": {"minSyncPeriod": "300s", "syncPeriod": "600s"}}) as agent:
        wait_until_converged(agent, place.server)
        start = time.monotonic()
        for port in range(1, 5):
            place.namespace.run(["iptables-nft", "-I", "INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP"])
            time.sleep(0.2)
        place.namespace.run(["iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES"])
        print(f"\nrepaired after {wait_until_converged(agent, place.server):.2f} s")
        checks = [one for one in agent.log("synced") if one["full"] == "foreign change"]
        assert len(checks) <= 2 + time.monotonic() - start


def test_an_object_that_is_no_good_keeps_its_last_good_version(place: Place) -> None:
    skipped = 'kpx_skipped_objects{kind="Service"}'
    good = service("web", "10.96.0.1")
    with place.agent() as agent:
        wait_until_converged(agent, place.server)
        before = our_rules(place)
        place.server.put(service("web", "10.96.0.999"))
        place.server.put(service("never", "10.96.0.1000"))
        told = agent.wait_for_log("object skipped", 2)
        assert "Service shop/web: spec.clusterIP:" in told[0]["problem"]
        assert agent.metrics()[skipped] == 2
        place.server.put(service("after", "10.96.0.7"))
        wait_for_rules(agent, place, "shop/after:http")
        assert our_rules(place) > before
        place.server.put(good | {"spec": good["spec"] | {"clusterIP": "10.96.0.8"}})
        place.server.delete("Service", "shop", "never")
        wait_until_converged(agent, place.server)
        for _ in agent.patiently(PATIENCE, "nothing skipped"):
            if agent.metrics()[skipped] == 0:
                break


def wait_for_rules(agent: AgentProcess, place: Place, text: str) -> None:
    for _ in agent.patiently(PATIENCE, text):
        if text in save(place.namespace, Backend.NFT, Family.IPV4):
            return


@pytest.mark.parametrize("kind", ["services", "endpointslices"])
def test_nothing_is_written_before_all_is_known(place: Place, kind: str) -> None:
    assert run(place.agent("--once")).returncode == 0
    place.server.put(service("new", "10.96.0.9"))
    before = our_rules(place)
    place.server.faults = Faults(mute=Next(1), only=(kind,))
    with place.agent() as agent:
        agent.wait_for_log("complete", 2)
        time.sleep(1)
        assert agent.log("synced") == []
        assert our_rules(place) == before
        place.server.drop_connections()
        wait_until_converged(agent, place.server)


# Other ways to work.


def test_a_directory_is_followed(place: Place) -> None:
    folder = place.folder / "shop"
    folder.mkdir()
    write(folder / "all.json", OBJECTS)
    with AgentProcess(place.namespace, place.folder, None, "--manifests", folder) as agent:
        wait_for_objects(agent, list(OBJECTS))
        more = [service("api", "10.96.0.20"), endpoint_slice("api", PODS)]
        write(folder / "more.json", more)
        wait_for_objects(agent, [*OBJECTS, *more])
        write(folder / "more.json", [more[0]])
        wait_for_objects(agent, [*OBJECTS, more[0]])
        (folder / "more.json").unlink()
        wait_for_objects(agent, list(OBJECTS))
        (folder / "all.json").write_text("{")
        agent.wait_for_log("manifest problem")
        assert not any(plans(agent, OBJECTS).values())
    done = run(AgentProcess(place.namespace, place.folder, None, "--manifests", folder / "none"))
    assert done.returncode == 2
    assert "is not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def wait_for_objects(agent: AgentProcess, objects: list[Any]) -> None:
    for _ in agent.patiently(PATIENCE, "the kernel as the files ask for"):
        if not any(plans(agent, objects).values()):
            return


def test_changes_are_coalesced(place: Place) -> None:
    with place.agent(config={"iptables": {"minSyncPeriod": "500ms"}}) as agent:
        wait_until_converged(agent, place.server)
        before, start = len(agent.log()), time.monotonic()
        for number in range(20):
            place.server.put(endpoint_slice("web", [f"10.244.2.{number}"]))
            time.sleep(0.1)
        wait_until_converged(agent, place.server)
        syncs = [one for one in agent.log()[before:] if one["event"] == "synced" and one["family"] == "ipv4"]
        # Two in a row after a quiet time, then one each half second.
        assert 2 <= len(syncs) <= 3 + (time.monotonic() - start) / 0.5
