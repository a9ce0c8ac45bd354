"""An agent whose endpoints have no chains: what others damage is repaired, and a change is a small one."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kpx.compiler.compile import Layout
from kpx.family import Family
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.tools import Backend
from tests.agent.harness import AgentProcess, of_both_families, wait_for_rules
from tests.kernel import BACKENDS, PROGRAM, needs_kernel
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service, write

pytestmark = [pytest.mark.kernel, needs_kernel]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as place:
        place.ip("link set lo up")
        yield place


STRAY = "KUBE-SEP-AAAAAAAAAAAAAAAA"
MANY = [f"10.244.7.{number}" for number in range(1, 41)]


def cluster(*pods: str) -> list[Manifest]:
    """A Service, one with so many endpoints that they are put into groups, one with affinity; and one for IPv6."""
    return [
        node(),
        service("web", "10.96.0.1"),
        endpoint_slice("web", pods),
        service("big", "10.96.0.2"),
        endpoint_slice("big", MANY),
        service("cart", "10.96.0.3", sessionAffinity="ClientIP"),
        endpoint_slice("cart", ["10.244.1.3"]),
        service("six", "fd00:10:96::1", ipFamilies=["IPv6"]),
        endpoint_slice("six", ["fd00:244::1", "fd00:244::2"]),
    ]


def damages(family: Family, wanted: Ruleset) -> dict[str, str]:
    """By what it is called: commands for iptables-restore --noflush."""
    nat, filter_ = wanted.tables["nat"].chains, wanted.tables["filter"].chains
    own = next(name for name, rules in nat.items() if name.startswith("KUBE-SVC-") and "-j DNAT" in rules[-1])
    last = len(nat[own])
    behind, forward = nat["KUBE-POSTROUTING"][0], len(filter_["KUBE-FORWARD"])
    address = "10.244.9.9:1" if family is Family.IPV4 else "[fd00:244::9:9]:1"
    found = {
        "pods no longer reach themselves": f"*nat\n-D KUBE-POSTROUTING {behind}\nCOMMIT\n",
        "what is for them comes last": f"*nat\n-D KUBE-POSTROUTING 1\n-A KUBE-POSTROUTING {behind}\nCOMMIT\n",
        "they are not let through": f"*filter\n-D KUBE-FORWARD {forward}\nCOMMIT\n",
        "an endpoint is gone": f"*nat\n-D {own} {last}\nCOMMIT\n",
        "an endpoint is another": f"*nat\n-R {own} {last} -p tcp -j DNAT --to-destination {address}\nCOMMIT\n",
        "a Service has no rules": f"*nat\n-F {own}\nCOMMIT\n",
        "a chain for an endpoint": f"*nat\n:{STRAY} - [0:0]\n-A {STRAY} -j RETURN\nCOMMIT\n",
    }
    if group := next((name for name in nat if name.startswith("KPX-SVC-")), ""):
        found["a group is empty"] = f"*nat\n-F {group}\nCOMMIT\n"
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_damaged_is_repaired(backend: Backend, namespace: Namespace, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    write(folder / "shop.json", cluster("10.244.0.1", "10.244.1.1"))
    arguments = ("--manifests", str(folder), "--node", "node-0")
    with AgentProcess(namespace, tmp_path, None, *arguments, backend=backend, layout=Layout.COMPACT) as agent:
        wanted = settle(agent, cluster("10.244.0.1", "10.244.1.1"))
        for family in Family:
            for what, payload in damages(family, wanted[family]).items():
                namespace.run([f"{PROGRAM[family]}-{backend}-restore", "--noflush", "-w", "5"], stdin=payload)
                print(f"{family}: {what}: repaired in {wait_for_rules(agent, wanted):.2f} s")
        assert len(agent.log("rules repaired")) >= len(damages(Family.IPV4, wanted[Family.IPV4]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_change_touches_the_chains_that_choose_and_no_others(
    backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    write(folder / "shop.json", cluster("10.244.0.1"))
    arguments = ("--manifests", str(folder), "--node", "node-0")
    with AgentProcess(namespace, tmp_path, None, *arguments, backend=backend, layout=Layout.COMPACT) as agent:
        before = settle(agent, cluster("10.244.0.1"))
        os.replace(write(tmp_path / "next.json", cluster("10.244.0.1", "10.244.1.1")), folder / "shop.json")
        after = settle(agent, cluster("10.244.0.1", "10.244.1.1"))
        sent = [one for one in agent.log("synced") if one["family"] == "ipv4" and not one["full"] and one["lines"]]
        assert len(sent) == 1
        one, other = (ruleset[Family.IPV4].tables["nat"].chains for ruleset in (before, after))
        (chain,) = (name for name in other if one.get(name) != other[name])
        assert chain.startswith("KUBE-SVC-")
        assert sent[0]["lines"] <= 2 + len(one[chain]) + len(other[chain])
        # Another start finds nothing to do.
        agent.stop()
        agent.start()
        agent.wait_for_log("synced", 2)
        assert {entry["lines"] for entry in agent.log("synced")} == {0}


def settle(agent: AgentProcess, objects: list[Manifest]) -> Mapping[Family, Ruleset]:
    """Wait until the kernel is as these objects ask for."""
    wanted = of_both_families(agent, objects)
    wait_for_rules(agent, wanted)
    return wanted
