"""The agent in a cage: hardly any capabilities, no way to gain more, and no file system that it could write to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.agent.harness import HEALTH_PORT, METRICS_PORT, NODE, PATIENCE, AgentProcess, save, wait_until_converged
from tests.apiserver import ApiServer
from tests.kernel import BACKENDS, needs_kernel
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service

pytestmark = [pytest.mark.kernel, needs_kernel]

HEALTH_CHECK_PORT, NODE_PORT = 32100, 30053
CONFIG = {"conntrack": {"maxPerCore": 0, "udpTimeout": "33s"}}
CAPABILITIES = {Backend.NFT: ("net_admin",), Backend.LEGACY: ("net_admin", "net_raw")}
"""What writing rules takes: CAP_NET_RAW because iptables-legacy, like libiptc, reaches the tables by a raw socket."""
FORBIDDEN = {
    "net.ipv4.conf.all.route_localnet",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_udp_timeout",
    "/proc/self/oom_score_adj",
}
"""What the configuration asks of the host that can't be set without a writable /proc (and CAP_SYS_RESOURCE)."""

# Every mount becomes read-only, /proc and /sys too. `$1` are mounts that are needed, as empty ones.
READ_ONLY = """
mount --make-rprivate /
for at in $(awk '{print $5}' /proc/self/mountinfo | sort -r); do
    mount -o remount,bind,ro "$at" || exit 1
done
for at in $1; do mount -t tmpfs none "$at" || exit 1; done
shift
exec "$@"
"""


def cage(capabilities: Sequence[str], scratch: Sequence[str] = (), read_only: bool = True) -> list[str]:
    """The words that go before a command: root without powers."""
    bounds = ",".join(["-all", *(f"+{one}" for one in capabilities)])
    powers = ["setpriv", "--no-new-privs", f"--bounding-set={bounds}", "--inh-caps=-all", "--ambient-caps=-all"]
    return [*(["unshare", "-m", "sh", "-c", READ_ONLY, "cage", " ".join(scratch)] if read_only else []), *powers]


def dns() -> tuple[Manifest, Manifest]:
    """A UDP Service for load balancers, with a health check of its own."""
    ports = [{"name": "http", "protocol": "UDP", "port": 53, "targetPort": 8080, "nodePort": NODE_PORT}]
    spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH_CHECK_PORT}
    piece = endpoint_slice("dns", ["10.244.0.10"], NODE)
    piece["ports"][0]["protocol"] = "UDP"
    return service("dns", "10.96.0.53", **spec, ports=ports), piece  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Place:
    """A node, an API server that it can reach, and a folder for an agent's files."""

    namespace: Namespace
    server: ApiServer
    folder: Path

    def listening(self, agent: AgentProcess) -> set[str]:
        """Where an agent waits for others, whatever the protocol: `tcp 127.0.0.1:10249`."""
        rows = self.namespace.run(["ss", "-Hlntuwxp"]).stdout.splitlines()
        words = [row.split() for row in rows if f"pid={agent.pid}," in row]
        return {f"{row[0]} {row[4]}" for row in words}

    def flows(self, text: str) -> bool:
        return text in self.namespace.run(["conntrack", "-L", "-p", "udp"]).stdout


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Namespace() as namespace, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        namespace.sysctl(ipv4__conf__all__route_localnet=0)
        server.put_all([node(), service("web", "10.96.0.1"), endpoint_slice("web", ["10.244.0.10"]), *dns()])
        yield Place(namespace, server, tmp_path)


def test_no_port_is_open_that_has_no_name(place: Place) -> None:
    with AgentProcess(place.namespace, place.folder, place.server) as agent:
        wait_until_converged(agent, place.server)
        always = {f"tcp *:{HEALTH_PORT}", f"tcp 127.0.0.1:{METRICS_PORT}"}
        wait_for_ports(place, agent, {*always, f"tcp 0.0.0.0:{HEALTH_CHECK_PORT}"})
        place.server.delete("Service", "shop", "dns")
        wait_for_ports(place, agent, always)


def wait_for_ports(place: Place, agent: AgentProcess, ports: set[str]) -> None:
    for _ in agent.patiently(PATIENCE, f"exactly these ports: {ports}"):
        if place.listening(agent) == ports:
            return


@pytest.mark.parametrize("backend", BACKENDS)
def test_few_capabilities_and_a_read_only_file_system_are_enough(place: Place, backend: Backend) -> None:
    (place.folder / "xtables.lock").touch()  # as the host's is mounted
    # python-iptables looks for its libraries with the help of a temporary file.
    scratch = ["/var/tmp"] if backend is Backend.LEGACY else []
    prefix = cage(CAPABILITIES[backend], scratch)
    agent = AgentProcess(place.namespace, place.folder, place.server, backend=backend, config=CONFIG, prefix=prefix)
    with agent:
        wait_until_converged(agent, place.server)
        assert powers(agent) == set(CAPABILITIES[backend])
        place.namespace.run([f"iptables-{backend}", "-t", "nat", "-F", "KUBE-SERVICES"])
        agent.wait_for_log("rules repaired")
        flow = ["-s", "198.51.100.7", "-d", "10.96.0.53", "-p", "udp", "--sport", "4000", "--dport", "53"]
        place.namespace.run(["conntrack", "-I", *flow, "--timeout", "100"])
        place.server.put(endpoint_slice("web", ["10.244.0.11"]))
        place.server.put(dns()[1] | {"endpoints": []})
        wait_until_converged(agent, place.server)
        for _ in agent.patiently(PATIENCE, "the stale flow deleted"):
            if not place.flows("198.51.100.7"):
                break
        assert agent.get("/healthz", HEALTH_PORT)[0] == 200
        for _ in agent.patiently(PATIENCE, "no endpoint of it here"):
            if agent.get("/", HEALTH_CHECK_PORT)[0] == 503:
                break
        agent.stop()
        told = [entry for entry in agent.log() if entry["level"] in ("warning", "error")]
        assert {entry["event"].split()[0] for entry in told} == {*FORBIDDEN, "rules"}
        assert all("Read-only file system" in entry["event"] for entry in told if entry["event"] != "rules repaired")


def powers(agent: AgentProcess) -> set[str]:
    """The capabilities that a process has or could ever get."""
    status = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in status)
    assert fields["NoNewPrivs"] == "1"
    assert fields["CapEff"] == fields["CapPrm"] == fields["CapBnd"]
    names = {12: "net_admin", 13: "net_raw"}
    mask = int(fields["CapEff"], 16)
    return {names.get(bit, str(bit)) for bit in range(64) if mask >> bit & 1}


def test_what_net_admin_may_set_is_set(place: Place) -> None:
    """The network settings of the own namespace take no more than that, where /proc can be written to."""
    prefix = cage(CAPABILITIES[Backend.NFT], read_only=False)
    agent = AgentProcess(place.namespace, place.folder, place.server, config=CONFIG, prefix=prefix)
    with agent:
        wait_until_converged(agent, place.server)
        with place.namespace.entered():
            assert Path("/proc/sys/net/ipv4/conf/all/route_localnet").read_text() == "1\n"
            assert Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").read_text() == "33\n"
        (told,) = [entry["event"] for entry in agent.log() if entry["level"] != "info"]
        assert "/proc/self/oom_score_adj" in told
        assert "Permission denied" in told


@pytest.mark.parametrize(
    ("backend", "capabilities", "missing"),
    [
        (Backend.NFT, (), "CAP_NET_ADMIN is missing"),
        (Backend.LEGACY, ("net_admin",), "CAP_NET_RAW is missing"),
        (Backend.LEGACY, CAPABILITIES[Backend.LEGACY], "xtables.lock is missing and can't be made"),
    ],
)
def test_what_is_not_granted_is_told(place: Place, backend: Backend, capabilities: Sequence[str], missing: str) -> None:
    agent = AgentProcess(place.namespace, place.folder, place.server, backend=backend, prefix=cage(capabilities))
    with agent:
        agent.wait_for_log("sync failed")
        assert [entry for entry in agent.log() if missing in entry["event"] and entry["level"] == "warning"]
        # It lives, and goes on trying; but a node without rules is not for load balancers.
        assert agent.get("/livez", HEALTH_PORT)[0] == 200
        assert agent.get("/healthz", HEALTH_PORT)[0] == 503
    assert "KUBE-" not in save(place.namespace, backend, Family.IPV4)
