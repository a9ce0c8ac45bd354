"""`kpx doctor` on nodes that were prepared: each really is as it says, in a namespace of its own."""

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.kernel import BACKENDS, PROGRAM, case_path, needs_kernel
from tests.lab import Namespace

pytestmark = [pytest.mark.kernel, needs_kernel]

Line = tuple[str, str]
HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
FOREIGN = "*filter\n-A INPUT -s 192.0.2.1/32 -j DROP\nCOMMIT\n"


@dataclass(frozen=True, slots=True)
class Host:
    """A node: a namespace whose forwarding is on, with files of its own."""

    namespace: Namespace
    folder: Path

    def load(self, backend: Backend, payload: str, family: Family = Family.IPV4) -> None:
        """Load rules as somebody else would."""
        self.namespace.run([f"{PROGRAM[family]}-{backend}-restore", "--noflush", "-w"], stdin=payload)

    def diagnose(
        self, *arguments: str, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> "Report":
        """Run the doctor in here."""
        command = [*prefix, sys.executable, "-m", "kpx", "doctor", *arguments]
        variables = os.environ | {"XTABLES_LOCKFILE": str(self.lock)} | (environment or {})
        with self.namespace.entered():
            done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)
        assert done.returncode in (0, 1), done.stderr
        return Report(done.returncode, done.stdout)

    @property
    def lock(self) -> Path:
        """Where the legacy tools of this node have their lock."""
        return self.folder / "xtables.lock"


@dataclass(frozen=True, slots=True)
class Report:
    """What the doctor said."""

    status: int
    text: str

    @property
    def unbroken(self) -> str:
        """The text with messages and advice in one line each, however long."""
        return re.sub(r"\n {18,}(?!-> )", " ", self.text)

    def lines(self, *levels: str) -> dict[Line, str]:
        """By level and check: the messages."""
        found: dict[Line, str] = {}
        for line in self.unbroken.splitlines():
            if not line.startswith(" "):
                level, check, message = line.split(None, 2)
                if level in levels:
                    found[level, check] = found.get((level, check), "") + message + "\n"
        return found

    @property
    def complaints(self) -> dict[Line, str]:
        """Everything that isn't well."""
        return self.lines("warn", "fail")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Namespace() as namespace:
        namespace.ip("link set lo up")
        namespace.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        yield Host(namespace, tmp_path)


def proxy_rules(case: str = "clusterip-three-endpoints") -> str:
    """What a kube-proxy left in the kernel."""
    return (case_path(case) / "ipv4.save").read_text()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sound_node(host: Host, backend: Backend) -> None:
    host.load(backend, HINT)
    host.load(backend, proxy_rules())
    report = host.diagnose()
    assert report.complaints == {}, report.text
    assert report.status == 0
    well = report.lines("ok")
    assert well["ok", "backend"] == f"{backend}: kubelet's hint\n"
    assert well["ok", "rules"].count("taken by the kernel") == 2
    assert (("ok", "lock") in well) == (backend is Backend.LEGACY)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("library", "family", "feature"),
    [
        ("libxt_statistic.so", "IPv4", "-m statistic"),
        ("libxt_recent.so", "IPv6", "-m recent --rcheck --reap"),
        ("libip6t_REJECT.so", "IPv6", "-j REJECT"),
    ],
)
def test_a_match_is_missing(host: Host, backend: Backend, library: str, family: str, feature: str) -> None:
    """The tools come in pieces; this host lacks one."""
    host.load(backend, HINT)
    report = host.diagnose(environment={"XTABLES_LIBDIR": str(without(host, library))})
    assert report.status == 1
    assert f"{backend} {family}: {feature} is refused" in report.complaints["fail", "rules"]
    assert "-m comment" not in report.complaints["fail", "rules"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_only_a_layout_needs_is_missing(host: Host, backend: Backend) -> None:
    """Nothing fails by it: the default does without."""
    host.load(backend, HINT)
    assert host.diagnose().lines("ok")["ok", "layouts"].count("`--layout compact`") == 2
    report = host.diagnose(environment={"XTABLES_LIBDIR": str(without(host, "libxt_bpf.so"))})
    assert (report.status, set(report.complaints)) == (0, {("warn", "layouts")})
    assert f"{backend} IPv6: -m bpf is refused, so that `--layout compact`" in report.complaints["warn", "layouts"]


def without(host: Host, library: str) -> Path:
    """The tools' libraries but for one."""
    (installed,) = Path("/usr/lib").glob("*/xtables")
    partial = host.folder / "xtables"
    shutil.copytree(installed, partial)
    (partial / library).unlink()
    return partial


def test_legacy_rules_of_a_proxy_beside_nft(host: Host) -> None:
    host.load(Backend.NFT, HINT)
    host.load(Backend.NFT, proxy_rules())
    host.load(Backend.LEGACY, proxy_rules())
    report = host.diagnose()
    assert (report.status, set(report.complaints)) == (1, {("fail", "backend")})
    assert "kpx cleanup --backend legacy" in report.unbroken
    # The advice helps.
    with host.namespace.entered():
        subprocess.run([sys.executable, "-m", "kpx", "cleanup", "--backend", "legacy"], check=True)
    assert host.diagnose().complaints == {}


def test_other_programs_legacy_rules_beside_nft(host: Host) -> None:
    host.load(Backend.NFT, HINT)
    host.load(Backend.LEGACY, FOREIGN)
    report = host.diagnose()
    assert (report.status, set(report.complaints)) == (0, {("warn", "backend")})
    assert "legacy holds 1 rules of other programs" in report.unbroken


def test_leftovers_of_userspace_mode(host: Host) -> None:
    rules = "*nat\n:KUBE-PORTALS-CONTAINER - [0:0]\n-A PREROUTING -j KUBE-PORTALS-CONTAINER\nCOMMIT\n"
    host.load(Backend.NFT, rules)
    report = host.diagnose()
    assert (report.status, set(report.complaints)) == (1, {("fail", "leftovers")})
    assert "KUBE-PORTALS-CONTAINER" in report.complaints["fail", "leftovers"]


def test_leftovers_of_ipvs_mode(host: Host) -> None:
    """kube-ipvs0 is a dummy link on a real node; here it is one end of a veth pair."""
    host.namespace.ip("link add kube-ipvs0 type veth peer name other", "address add 10.96.0.1/32 dev kube-ipvs0")
    report = host.diagnose()
    assert (report.status, set(report.complaints)) == (1, {("fail", "leftovers")})
    host.namespace.ip("link delete kube-ipvs0")
    assert host.diagnose().status == 0


def test_sets_of_ipvs_mode(host: Host) -> None:
    host.namespace.run(["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port"])
    host.namespace.run(["ipset", "create", "mine", "hash:ip"])
    report = host.diagnose()
    assert (report.status, set(report.complaints)) == (0, {("warn", "leftovers")})
    assert report.complaints["warn", "leftovers"].endswith(": KUBE-CLUSTER-IP\n")
    host.namespace.run(["ipset", "destroy", "KUBE-CLUSTER-IP"])
    assert host.diagnose().complaints == {}


def test_leftovers_of_nftables_mode(host: Host) -> None:
    host.namespace.run(
        ["nft", "add table ip kube-proxy; add table ip6 kube-proxy; add table inet kube-proxy; add table inet mine"]
    )
    report = host.diagnose()
    assert (report.status, set(report.complaints)) == (1, {("fail", "leftovers")})
    for advice in (f"nft delete table {family} kube-proxy" for family in ("ip", "ip6", "inet")):
        assert advice in report.unbroken
        host.namespace.run(advice.split())
    assert host.diagnose().status == 0


def test_kube_proxy_is_running(host: Host) -> None:
    """A process by that name, in this network namespace; one in another is another node's."""
    program = host.folder / "kube-proxy"
    shutil.copy("/bin/sleep", program)
    with _running(host.namespace, [str(program), "300"]):
        report = host.diagnose()
    assert (report.status, set(report.complaints)) == (0, {("warn", "kube-proxy")})
    with Namespace() as elsewhere, _running(elsewhere, [str(program), "300"]):
        assert host.diagnose().complaints == {}


def test_kube_proxy_runs_beside_kpx(host: Host) -> None:
    program = host.folder / "kube-proxy"
    shutil.copy("/bin/sleep", program)
    agent = [sys.executable, "-m", "kpx", "run", "--manifests", str(host.folder), "--backend", "nft"]
    with _running(host.namespace, [str(program), "300"]), _running(host.namespace, agent):
        report = host.diagnose()
    assert (report.status, set(report.complaints)) == (1, {("fail", "kube-proxy")})


@contextmanager
def _running(namespace: Namespace, command: Sequence[str]) -> Iterator[None]:
    with namespace.entered():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_conntrack_is_full(host: Host) -> None:
    """So many flows that the kernel drops the next one, each made by a packet."""
    host.load(Backend.NFT, "*filter\n-A OUTPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n")
    most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    with host.namespace.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.bind(("127.0.0.1", 4000))  # a flow to a port that is closed ends with the error for it
        host.namespace.run(["iptables-nft", "-A", "INPUT", "-p", "udp", "--dport", "5000:65000", "-j", "ACCEPT"])
        _fill(sender, most)
        report = host.diagnose()
    assert (report.status, set(report.complaints)) == (1, {("fail", "conntrack")})
    assert "new connections are dropped" in report.unbroken


def _fill(sender: socket.socket, flows: int) -> None:
    made = 0
    for address in range(1, 255):
        for port in range(1024, 65000, 16):
            with suppress(OSError):  # a full table drops the packet
                sender.sendto(b"", (f"127.0.1.{address}", port))
            made += 1
            if made > flows * 1.2:
                return


def test_a_service_has_more_clients_than_affinity_remembers(host: Host) -> None:
    host.load(Backend.NFT, HINT)
    chain = "KUBE-SEP-AAAAAAAAAAAAAAAA"
    remember = f'-m comment --comment "shop/cart:http" -m recent --set --name {chain} --mask 255.255.255.255 --rsource'
    host.load(Backend.NFT, f"*nat\n:{chain} - [0:0]\n-A OUTPUT -p udp -j {chain}\n-A {chain} {remember}\nCOMMIT\n")
    host.load(Backend.NFT, "*filter\n-A FORWARD -m conntrack --ctstate NEW\nCOMMIT\n")  # without one, no flow is new
    limit = int(Path("/sys/module/xt_recent/parameters/ip_list_tot").read_text())
    with host.namespace.entered():
        for client in range(1, limit + 20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                one.bind((f"127.0.{client // 250}.{client % 250 + 1}", 0))
                one.sendto(b"", ("127.0.9.9", 9))
    report = host.diagnose()
    assert (report.status, set(report.complaints)) == (0, {("warn", "affinity")})
    assert f"shop/cart:http ({chain}) remembers {limit} clients" in report.unbroken


def test_forwarding_is_off(host: Host) -> None:
    host.namespace.sysctl(ipv4__ip_forward=0, ipv6__conf__all__forwarding=0)
    assert set(host.diagnose().complaints) == {("fail", "sysctl")}
    host.namespace.ip("address add fd00::1/64 dev lo nodad")
    assert set(host.diagnose().complaints) == {("fail", "sysctl"), ("warn", "sysctl")}


def test_a_setting_that_the_configuration_asks_for_is_missing(host: Host) -> None:
    host.namespace.sysctl(ipv4__conf__all__route_localnet=0)
    config = host.folder / "config.yaml"
    header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
    config.write_text(header + "conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\n")
    report = host.diagnose("--config", str(config))
    assert (report.status, set(report.complaints)) == (0, {("warn", "sysctl")})
    assert "net.ipv4.conf.all.route_localnet is 0" in report.complaints["warn", "sysctl"]
    host.namespace.sysctl(ipv4__conf__all__route_localnet=1)
    assert host.diagnose("--config", str(config)).complaints == {}


def test_somebody_holds_the_lock(host: Host) -> None:
    host.load(Backend.LEGACY, HINT)
    with host.lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Nor can a rule be tried meanwhile; in the end, the tool gives up.
        report = host.diagnose()
    assert report.complaints.keys() == {("warn", "lock"), ("warn", "rules")}
    assert "try again when it is free" in report.text
    assert host.diagnose().complaints == {}


def test_without_the_right_to_make_a_namespace_nothing_is_tried(host: Host) -> None:
    """As in the agent's own container."""
    host.load(Backend.NFT, HINT)
    report = host.diagnose(prefix=["setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all"])
    assert (report.status, set(report.complaints)) == (0, {("warn", "rules")})
    assert "kubectl debug" in report.unbroken


def test_no_iptables_at_all(host: Host) -> None:
    hide = "mount --make-rprivate / && for at in /usr/local/sbin /usr/sbin /sbin; do mount -t tmpfs none $at; done"
    prefix = ["unshare", "-m", "sh", "-c", f'{hide} && exec "$@"', "hide"]
    report = host.diagnose(environment={"PATH": "/usr/local/bin:/usr/bin:/bin"}, prefix=prefix)
    assert report.status == 1
    assert report.complaints["fail", "backend"] == "no iptables is installed\n"


def test_ip6tables_is_missing(host: Host) -> None:
    hide = "mkdir $0/sbin && cp -a /usr/sbin/*tables* $0/sbin && rm $0/sbin/ip6tables* && mount --make-rprivate /"
    prefix = ["unshare", "-m", "sh", "-c", f'{hide} && mount --bind $0/sbin /usr/sbin && exec "$@"', str(host.folder)]
    host.load(Backend.NFT, HINT)
    report = host.diagnose(prefix=prefix)
    assert (report.status, set(report.complaints)) == (0, {("warn", "iptables")})
    assert "no IPv6 rules" in report.complaints["warn", "iptables"]


def test_a_table_of_iptables_holds_what_iptables_can_t_read(host: Host) -> None:
    """Nor could the agent; all else is told nevertheless."""
    mine = "add map ip nat mine { type ipv4_addr : ipv4_addr; }; add rule ip nat PREROUTING dnat to ip daddr map @mine"
    chain = "add chain ip nat PREROUTING { type nat hook prerouting priority -100; }"
    host.namespace.run(["nft", f"add table ip nat; {chain}; {mine}"])
    report = host.diagnose()
    assert (report.status, set(report.complaints)) == (1, {("fail", "backend")})
    assert "table nat holds rules of nft that iptables can't read" in report.unbroken
    assert ("ok", "rules") in report.lines("ok")


def test_without_rights_in_this_network_namespace_nothing_is_claimed(host: Host) -> None:
    with host.namespace.entered():
        command = ["unshare", "-Ur", sys.executable, "-m", "kpx", "doctor"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")


def test_kubelet_uses_the_other_backend(host: Host) -> None:
    host.load(Backend.NFT, HINT)
    report = host.diagnose("--backend", "legacy")
    assert (report.status, set(report.complaints)) == (0, {("warn", "backend")})
    assert "kubelet uses nft" in report.text


def test_json_tells_the_same(host: Host) -> None:
    host.namespace.sysctl(ipv4__ip_forward=0)
    (finding,) = [one for one in json.loads(host.diagnose("--json").text) if one["level"] != "ok"]
    assert finding.keys() == {"level", "check", "message", "advice"}
    assert (finding["level"], finding["check"]) == ("fail", "sysctl")


def test_it_changes_nothing(host: Host) -> None:
    host.load(Backend.NFT, proxy_rules())
    before = host.namespace.run(["nft", "-s", "list", "ruleset"]).stdout
    assert host.diagnose().status == 0
    assert host.namespace.run(["nft", "-s", "list", "ruleset"]).stdout == before
    with host.namespace.entered():
        assert Path("/proc/net/ip_tables_names").read_text() == ""
