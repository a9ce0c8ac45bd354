"""Is what a kernel holds what the cluster's objects ask for? Looked at without kpx's reconciler.

`kpx render` makes the rules, the real tools load them into an empty namespace and print them, and lines are compared.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.client import Api, Object
from tests.cluster.manifests import CONFIG
from tests.cluster.waiting import demand, eventually
from tests.lab import Namespace

ROOT = Path(__file__).parents[2]
TOOL = {"ipv4": "iptables-nft", "ipv6": "ip6tables-nft"}
Rules = Mapping[tuple[str, str], tuple[str, ...]]
"""By table and chain: a chain's rules in order; of built-in chains those that lead to a Service proxy's."""

_COUNTING = re.compile(r" -m nfacct --nfacct-name  ?\S+")
_OURS = ("KUBE-", "KPX-")
_NOT_A_PROXY_S = ("KUBE-KUBELET-CANARY", "KUBE-PROXY-CANARY", "KUBE-IPTABLES-HINT")


def saved(network: Namespace, family: str) -> str:
    """What iptables-save prints in a namespace."""
    return network.run([f"{TOOL[family]}-save"], timeout=600).stdout


def rules(text: str, *, counting: bool = False) -> Rules:
    """Proxies' rules of the tables nat and filter; rules that only count (nfacct) are left out, unless asked for."""
    found: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif table not in ("nat", "filter"):
            continue
        elif line.startswith(":") and line[1:].startswith(_OURS):
            found.setdefault((table, line[1:].split()[0]), [])
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            if not counting:
                rule = "" if "localhost_nps_accepted_pkts" in rule else _COUNTING.sub("", f" {rule}").strip()
            if rule and (chain.startswith(_OURS) or any(f" {name}" in f" {rule}" for name in _OURS)):
                found.setdefault((table, chain), []).append(rule)
    return {key: tuple(value) for key, value in found.items() if key[1] not in _NOT_A_PROXY_S}


def fresh(objects: list[Object], network: Namespace, node: str, family: str, layout: str, folder: Path) -> Rules:
    """The rules of these objects, loaded into an empty namespace. `network`: where the node's addresses are."""
    (file := folder / "objects.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    (config := folder / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "kpx", "render", "-f", str(file), "--config", str(config), "--node", node]
    made = network.run([*command, "--family", family, "--layout", layout, "--keep-going"], directory=ROOT, timeout=600)
    with Namespace() as empty:
        empty.run([f"{TOOL[family]}-restore", "--noflush"], stdin=made.stdout, timeout=600)
        return rules(saved(empty, family))


def differences(have: Rules, want: Rules) -> list[str]:
    """Rules that are too many (+) and that are missing (-). The order in a chain counts, but for disjoint ones."""
    told = []
    for key in sorted(have.keys() | want.keys()):
        here, there = have.get(key, ()), want.get(key, ())
        told += [f"+ {key[1]} {rule}" for rule in (Counter(here) - Counter(there)).elements()]
        told += [f"- {key[1]} {rule}" for rule in (Counter(there) - Counter(here)).elements()]
        if Counter(here) == Counter(there) and here != there and key[1].startswith(("KUBE-SVC-", "KUBE-SVL-")):
            told.append(f"another order in {key[1]}")
        if key not in have and not there:
            told.append(f"- {key[1]}")
    return told


def wait_until_fresh(
    api: Api, network: Namespace, node: str, folder: Path, *, layout: str = "tree", seconds: float = 120
) -> int:
    """Wait until the kernel holds what the API server's objects ask for, in both families; how many rules that are.

    The objects may still change meanwhile: they are asked for again with each look.
    """
    folder.mkdir(exist_ok=True)
    known: dict[str, tuple[list[Object], Rules]] = {}

    def same() -> int:
        objects = api.objects()
        for family in TOOL:
            if family not in known or known[family][0] != objects:
                known[family] = objects, fresh(objects, network, node, family, layout, folder)
            told = differences(rules(saved(network, family)), known[family][1])
            demand(not told, f"{family} on {node}: {len(told)} differences: {told[:6]}")
        return sum(len(chain) for _, want in known.values() for chain in want.values())

    return eventually(f"{node} holds what a fresh render makes", same, seconds=seconds)
