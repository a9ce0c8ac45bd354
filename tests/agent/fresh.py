"""What a fresh load of the rendered rules leaves in a kernel, and whether another kernel holds the same.

Neither asks kpx's reconciler: real tools load, real tools print, and lines are compared.
"""

import re
import sys
from collections import Counter
from collections.abc import Mapping

from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.tools import Backend
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from tests.agent.harness import PATIENCE, AgentProcess, counting, live, save
from tests.kernel import PROGRAM
from tests.kernel import Namespace as Trial
from tests.lab import Namespace

Lines = Mapping[tuple[str, str], tuple[str, ...]]
"""By table and chain: our chains' rules, and of built-in chains those that lead to ours; in no order."""

_RULE = re.compile(r"-A (\S+) (.*)")


def our_lines(saved: str) -> Lines:
    """What is ours of what iptables-save prints."""
    found: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":KUBE-"):
            found.setdefault((table, line[1:].split()[0]), [])
        elif (rule := _RULE.match(line)) and ("KUBE-" in rule[1] or " KUBE-" in rule[2]):
            found.setdefault((table, rule[1]), []).append(rule[2])
    return {key: tuple(sorted(rules)) for key, rules in found.items() if key[0] in ("filter", "nat")}


def loaded(ruleset: Ruleset, backend: Backend) -> Lines:
    """What the kernel holds of these rules after a load into an empty namespace."""
    with Trial() as trial:
        if counting(backend, ruleset.family):
            trial.run([sys.executable, "-c", "from kpx.netfilter import nfacct; nfacct.ensure()"])
        trial.run(
            [f"{PROGRAM[ruleset.family]}-{backend}-restore", "--noflush"],
            payload(transactions(make_plan(ruleset, {}).edits)),
        )
        return our_lines(trial.save(backend, ruleset.family))


def differences(ruleset: Ruleset, fresh: Lines, namespace: Namespace, backend: Backend) -> list[str]:
    """What the namespace holds that it shouldn't (+), and what it lacks (-)."""
    found = our_lines(save(namespace, backend, ruleset.family))
    told = [f"+ {key}" for key in found.keys() - fresh.keys()] + [f"- {key}" for key in fresh.keys() - found.keys()]
    for key in found.keys() & fresh.keys():
        here, there = Counter(found[key]), Counter(fresh[key])
        told += [f"+ {key} {rule}" for rule in here - there] + [f"- {key} {rule}" for rule in there - here]
    # The order of rules matters in some chains only; which, the plan knows.
    return told or [
        f"order {edit.chain}" for edit in make_plan(ruleset, live(namespace, backend, ruleset.family)).edits
    ]


def wait_until_fresh(agent: AgentProcess, wanted: Mapping[Family, Ruleset], timeout: float = PATIENCE) -> None:
    """Wait until the kernel equals a fresh load of these rules, in every family; fails with what is different."""
    left = {family: loaded(ruleset, agent.backend) for family, ruleset in wanted.items()}
    found: list[str] = []
    try:
        for _ in agent.patiently(timeout, "the kernel as a fresh load leaves it", pause=0.1):
            for family in list(left):
                if found := differences(wanted[family], left[family], agent.namespace, agent.backend):
                    break
                del left[family]
            if not left:
                return
    except AssertionError as error:
        raise AssertionError(f"{len(found)} differences: {found[:5]}\n{error}") from None
