"""Situations from public reports, and rules that a real kube-proxy 1.36.2 wrote: with nfacct (`kp*`) and without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter import nfacct
from kpx.netfilter.counting import NAMES, any_counts
from kpx.netfilter.names import ours
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend, Tools
from tests.kernel import BACKENDS, Namespace, needs_kernel, rules_only

HERE = Path(__file__).parent
MATRIX = HERE / "config-matrix"
CONFIGS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12)
COUNTING = HERE / "nfacct"
MAKE = "from kpx.netfilter import nfacct; nfacct.ensure()"
READ = "from kpx.netfilter import nfacct; print(dict(nfacct.read()))"

HAS_NFACCT = {
    (backend, family): os.geteuid() == 0 and nfacct.takes(Tools(backend, family))
    for backend in BACKENDS
    for family in Family
}


def kpx(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kpx", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def files(folder: Path, config: str, backend: Backend) -> tuple[str, ...]:
    return ("-f", str(folder / "cluster.yaml"), "--config", str(folder / config), "--backend", str(backend))


# ---- what a real kube-proxy wrote ----


@pytest.mark.parametrize("number", CONFIGS)
@pytest.mark.parametrize("kind", ["kp", "kpp"])
def test_kube_proxy_and_kpx_write_the_same(kind: str, number: int) -> None:
    done = kpx(MATRIX, "diff", "-f", "cluster.yaml", "--config", f"c{number}.yaml", "--against", f"{kind}{number}.save")
    assert (done.stdout, done.stderr, done.returncode) == ("same\n", "", 0)


@pytest.mark.parametrize("number", CONFIGS)
@pytest.mark.parametrize("kind", ["kp", "kpp"])
def test_rule_by_rule_in_layout_classic(kind: str, number: int) -> None:
    """Not only what counts is the same, but every rule; dispatch chains in any order, each count before its rule."""
    wanted = parse_save((MATRIX / f"{kind}{number}.save").read_text())
    option = "--nfacct" if kind == "kp" else "--no-nfacct"
    done = kpx(MATRIX, "render", "-f", "cluster.yaml", "--config", f"c{number}.yaml", "--layout", "classic", option)
    made = parse_save(done.stdout)
    for table in ("filter", "nat"):
        for chain, held in wanted[table].chains.items():
            if ours(chain):
                assert sorted(made[table].chains[chain].rules) == sorted(held.rules)
    assert any_counts(made) == (kind == "kp")


def test_the_cases_expectations_hold() -> None:
    against = ("-f", "cluster.yaml", "--config", "config.yaml")
    same = kpx(COUNTING, "diff", *against, "--against", "kube-proxy.save")
    assert (same.stdout, same.stderr, same.returncode) == ("same\n", "", 0)
    explained = kpx(COUNTING, "explain", "shop/web", *against, "--rules", "kube-proxy.save")
    assert "Nothing is wrong with it" in explained.stdout
    assert "!" not in explained.stdout
    proof = kpx(COUNTING, "verify", "--equivalent", "kube-proxy.save", "cluster.yaml", "--config", "config.yaml")
    assert proof.stdout.startswith("equivalent: ")
    assert proof.returncode == 0


def test_a_lost_count_is_said_and_is_no_difference(tmp_path: Path) -> None:
    lines = (COUNTING / "kube-proxy.save").read_text().splitlines(keepends=True)
    lost = [line for line in lines if "--dport 30080 -m nfacct" not in line]
    assert len(lost) == len(lines) - 1
    (tmp_path / "lost.save").write_text("".join(lost))
    against = ("-f", "cluster.yaml", "--config", "config.yaml", "--against", str(tmp_path / "lost.save"))
    done = kpx(COUNTING, "diff", *against)
    assert (done.stdout, done.returncode) == ("same\n", 0)
    assert "rules that only count packets (-m nfacct) aren't as kube-proxy has them" in done.stderr


def test_a_count_without_its_rule_is_a_difference(tmp_path: Path) -> None:
    text = (COUNTING / "kube-proxy.save").read_text()
    plain = '-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 '
    assert plain in text
    (tmp_path / "dump.save").write_text("".join(x for x in text.splitlines(True) if not x.startswith(plain)))
    against = ("-f", "cluster.yaml", "--config", "config.yaml", "--against", str(tmp_path / "dump.save"))
    done = kpx(COUNTING, "diff", *against)
    assert done.returncode == 1
    assert "want  -p tcp" in done.stdout


# ---- a take-over: nothing to do ----


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", CONFIGS)
def test_a_take_over_writes_nothing(number: int, backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    """Of rules as kube-proxy leaves them on a kernel like this one: with counters where it has nfacct."""
    counting = HAS_NFACCT[backend, Family.IPV4]
    if counting:
        namespace.run([sys.executable, "-c", MAKE])
    namespace.restore(backend, Family.IPV4, (MATRIX / f"{'kp' if counting else 'kpp'}{number}.save").read_text())
    before = namespace.save(backend, Family.IPV4)
    if number not in (2, 4, 5, 3):  # these depend on the addresses of the node's interfaces
        for layout in ("tree", "classic"):
            done = namespace.kpx("apply", *files(MATRIX, f"c{number}.yaml", backend), "--layout", layout)
            assert "up to date, nothing written" in done.stdout
    (tmp_path / "cluster.yaml").write_text((MATRIX / "cluster.yaml").read_text())
    options = ("--manifests", str(tmp_path), "--config", str(MATRIX / f"c{number}.yaml"), "--backend", str(backend))
    done = namespace.kpx("run", "--once", *options)
    assert "family=ipv4 full=once services=4 lines=0" in done.stderr + done.stdout
    assert rules_only(namespace.save(backend, Family.IPV4)) == rules_only(before)


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_agent_writes_what_counts_where_the_kernel_takes_it(
    backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    """Over rules without counters, and again when the counters were lost with the rules; `apply` keeps what is."""
    (tmp_path / "cluster.yaml").write_text((COUNTING / "cluster.yaml").read_text())
    options = ("--manifests", str(tmp_path), "--config", str(COUNTING / "config.yaml"), "--backend", str(backend))
    namespace.restore(backend, Family.IPV4, (MATRIX / "kpp1.save").read_text())
    for _ in range(2):
        namespace.kpx("run", "--once", *options)
        for family in Family:
            lines = [line for line in namespace.save(backend, family).splitlines() if "-m nfacct" in line]
            ports = 2 if family is Family.IPV4 else 0
            assert len(lines) == (1 + ports if HAS_NFACCT[backend, family] else 0)
        again = namespace.kpx("apply", *files(COUNTING, "config.yaml", backend))
        assert "up to date, nothing written" in again.stdout
        namespace.kpx("cleanup", "--backend", str(backend))
    counted = namespace.run([sys.executable, "-c", READ]).stdout
    assert all(name in counted for name in NAMES) == HAS_NFACCT[backend, Family.IPV4]


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_packets_are_counted_and_exported(backend: Backend, namespace: Namespace) -> None:
    """A connection to a node port on localhost: one packet of it meets the rule that counts, where there is one."""
    counting = HAS_NFACCT[backend, Family.IPV4]
    namespace.run(["ip", "link", "set", "lo", "up"])
    namespace.kpx("apply", *files(COUNTING, "config.yaml", backend))
    connect = "import socket; s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', 30080))"
    namespace.run([sys.executable, "-c", connect])
    show = "from kpx.agent.metrics import Metrics; print(Metrics().exposition().decode())"
    metrics = namespace.run([sys.executable, "-c", show]).stdout
    for name, count in (("localhost_nodeports_accepted", 1), ("ct_state_invalid_dropped", 0)):
        metric = f"kubeproxy_iptables_{name}_packets_total"
        assert (f"\n# TYPE {metric} counter\n{metric} {count}.0\n" in metrics) == counting


@pytest.mark.kernel
@needs_kernel
def test_no_counter_no_metric(namespace: Namespace) -> None:
    show = "from kpx.agent.metrics import Metrics; print(Metrics().exposition().decode())"
    assert "accepted_packets" not in namespace.run([sys.executable, "-c", show]).stdout
