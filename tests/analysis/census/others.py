"""What other programs leave on a node beside kube-proxy."""

from pathlib import Path

from tests.analysis.census.dump import Dump, Part

_HERE = Path(__file__).parent / "rules"


def _rules(name: str) -> Part:
    """A part that a restore payload says."""
    text = (_HERE / f"{name}.rules").read_text()
    return lambda dump: dump.read(text)


DOCKER = _rules("docker")
FLANNEL = _rules("flannel")
OLD_FLANNEL = _rules("old-flannel")
"""Before it had a chain of its own: its first rule keeps packets between pods from KUBE-POSTROUTING."""
KUBE_ROUTER = _rules("kube-router")
CALICO = _rules("calico")
CILIUM = _rules("cilium")
AWS_VPC_CNI = _rules("aws-vpc-cni")
OPENSHIFT_SDN = _rules("openshift-sdn")
FIREWALLD = _rules("firewalld")
UFW = _rules("ufw")
NODE_LOCAL_DNS = _rules("node-local-dns")
ISTIO = _rules("istio")
IPVS_MODE = _rules("ipvs-mode")
IPVS_LEFTOVERS = _rules("ipvs-leftovers")
HOST_PORTS = _rules("host-ports")

# ---- mishaps ----


def policy(table: str, chain: str, what: str) -> Part:
    """A built-in chain with another policy."""
    return lambda dump: dump.policy(table, chain, what)


def in_front(table: str, chain: str, *rules: str) -> Part:
    """Rules before all others of a chain."""
    return lambda dump: dump.first(table, chain, *rules)


def without(table: str, chain: str, words: str) -> Part:
    """A chain that lost every rule with these words."""

    def lose(dump: Dump) -> None:
        rules = dump.chain(table, chain)
        rules[:] = [rule for rule in rules if words not in rule]

    return lose


def emptied(table: str, chain: str) -> Part:
    """A chain that somebody flushed."""
    return without(table, chain, "")
