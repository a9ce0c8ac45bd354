"""KUBE-FIREWALL, which kubelet fills too: healed as kube-proxy 1.36 heals it, and kubelet's rule stays."""

from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend
from tests.kernel import BACKENDS, Namespace, needs_kernel

CASES = Path(__file__).parents[1] / "cases"
INPUTS = ("-f", str(CASES / "cluster.yaml"), "--config", str(CASES / "config.yaml"))
GUARD = (
    '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
)
KUBELETS_HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
LOCALHOST_OFF = """apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
hostnameOverride: node-0
clusterCIDR: 10.244.0.0/16
iptables: {localhostNodePorts: false}
"""


def _firewall(namespace: Namespace, backend: Backend, family: Family = Family.IPV4) -> tuple[str, ...]:
    return parse_save(namespace.save(backend, family))["filter"].chains["KUBE-FIREWALL"].rules


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["firewall-lost-mark", "firewall-duplicates"])
@pytest.mark.parametrize("command", ["apply", "run"])
def test_what_is_not_the_guard_goes(
    case: str, backend: Backend, command: str, namespace: Namespace, tmp_path: Path
) -> None:
    namespace.restore(backend, Family.IPV4, KUBELETS_HINT + (CASES / case / "dump.save").read_text())
    assert len(_firewall(namespace, backend)) > 1
    if command == "apply":
        namespace.kpx("apply", *INPUTS, "--backend", str(backend))
    else:
        (tmp_path / "cluster.yaml").write_text((CASES / "cluster.yaml").read_text())
        options = ("--manifests", str(tmp_path), "--config", str(CASES / "config.yaml"), "--backend", str(backend))
        namespace.kpx("run", "--once", *options)
    assert _firewall(namespace, backend) == (GUARD,)
    after = parse_save(namespace.save(backend, Family.IPV4))
    assert after["filter"].chains["INPUT"].rules[0] == "-j KUBE-FIREWALL"


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_kubelets_rule_keeps_its_place_and_counters(backend: Backend, namespace: Namespace) -> None:
    kubelets = f"*filter\n:KUBE-FIREWALL - [0:0]\n[7:420] -A KUBE-FIREWALL {GUARD}\nCOMMIT\n"
    namespace.run([f"iptables-{backend}-restore", "--noflush", "-c"], KUBELETS_HINT + kubelets)
    namespace.kpx("apply", *INPUTS, "--backend", str(backend))
    assert f"[7:420] -A KUBE-FIREWALL {GUARD}" in namespace.save(backend, Family.IPV4, counters=True)
    namespace.kpx("cleanup", "--backend", str(backend))
    assert _firewall(namespace, backend) == (GUARD,)


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", list(Family))
def test_where_we_have_no_rule_there_the_chain_is_kubelets(
    family: Family, backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    """For IPv6, and with node ports off localhost, kube-proxy 1.36 makes the chain and leaves what it holds."""
    config = tmp_path / "config.yaml"
    config.write_text(LOCALHOST_OFF)
    theirs = "-m comment --comment theirs -m mark --mark 0x8000/0x8000 -j DROP"
    namespace.restore(backend, family, f"*filter\n:KUBE-FIREWALL - [0:0]\n-A KUBE-FIREWALL {theirs}\nCOMMIT\n")
    files = ("-f", str(CASES / "cluster.yaml"), "--config", str(config), "--family", str(family))
    namespace.kpx("apply", *files, "--backend", str(backend))
    assert _firewall(namespace, backend, family) == (theirs,)


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", list(Family))
def test_of_kubelets_rules_each_stays_once(
    family: Family, backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    """Where the chain is kubelet's, what stands there many times stands there once, and `diff` says so before."""
    config = tmp_path / "config.yaml"
    config.write_text(LOCALHOST_OFF)
    marked = "-m comment --comment theirs -m mark --mark 0x8000/0x8000 -j DROP"
    others = "-p tcp -m tcp --dport 9 -j DROP"
    rules = "".join(f"-A KUBE-FIREWALL {one}\n" for one in (marked, others, *[marked] * 50))
    namespace.restore(backend, family, f"*filter\n:KUBE-FIREWALL - [0:0]\n{rules}COMMIT\n")
    files = ("-f", str(CASES / "cluster.yaml"), "--config", str(config), "--family", str(family))
    before = namespace.kpx("diff", *files, "--backend", str(backend), check=False)
    assert f"extra   filter KUBE-FIREWALL  {marked}  (50 times)" in before.stdout
    namespace.kpx("apply", *files, "--backend", str(backend))
    assert sorted(_firewall(namespace, backend, family)) == sorted((marked, others))
    assert namespace.kpx("diff", *files, "--backend", str(backend)).stdout == "same\n"


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_that_repeat_in_our_chains_go(backend: Backend, namespace: Namespace) -> None:
    namespace.kpx("apply", *INPUTS, "--backend", str(backend), "--layout", "classic")
    sound = parse_save(namespace.save(backend, Family.IPV4))
    again = [
        ("filter", "KUBE-FORWARD", 1),
        ("nat", "KUBE-SERVICES", 0),
        ("nat", "KUBE-SVC-67NZLRHBNDSAWJRO", 2),
        ("nat", "KUBE-POSTROUTING", 2),
        ("filter", "INPUT", 1),
    ]
    for table, chain, number in again:
        rule = sound[table].chains[chain].rules[number]
        lines = "".join(f"-A {chain} {rule}\n" for _ in range(3))
        namespace.restore(backend, Family.IPV4, f"*{table}\n{lines}COMMIT\n")
    namespace.kpx("apply", *INPUTS, "--backend", str(backend), "--layout", "classic")
    after = parse_save(namespace.save(backend, Family.IPV4))
    for table, chain, _ in again:
        assert sorted(after[table].chains[chain].rules) == sorted(sound[table].chains[chain].rules), chain


@pytest.mark.parametrize("case", ["firewall-lost-mark", "firewall-duplicates"])
def test_diff_shows_the_foreign_rule_once(case: str, namespace: Namespace) -> None:
    done = namespace.kpx("diff", *INPUTS, "--against", str(CASES / case / "dump.save"), check=False)
    assert done.returncode == 1
    owner, line = done.stdout.splitlines()
    assert owner == "(all Services)"
    assert line.startswith('  extra   filter KUBE-FIREWALL  -m comment --comment "kubernetes firewall for dropping')
    assert ("(4190 times)" in line) == (case == "firewall-duplicates")
