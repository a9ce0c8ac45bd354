"""The same work with payloads of kube-proxy's shape: linear dispatch, written whole each time, in one transaction.

Only the tool and the kernel are measured, not whoever makes the payloads.
"""

import statistics
import subprocess
import time
from dataclasses import dataclass

import kpx
from kpx.compiler.names import SERVICES
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.tools import Backend
from kpx.reconcile.phases import NFT_CHAINS, transactions
from kpx.reconcile.plan import make_plan
from tests.bench import clusters
from tests.bench.towns import Town
from tests.kernel import Namespace


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """Seconds; `load` is None if it took longer than `cap`. `lines` are those of one update."""

    load: float | None
    cap: float
    update: float
    lines: int


def measure(town: Town, backend: Backend, cap: float, updates: int = 5) -> PeerFigures:
    """Load everything in one transaction into an empty namespace, and change one Service in a full one."""
    ruleset = _rules(town)
    whole = payload(transactions(make_plan(ruleset, {}).edits, 0))
    with Namespace() as empty:
        load = _restore(empty, backend, whole, cap)
    with Namespace() as full:
        pieces = transactions(make_plan(ruleset, {}).edits, NFT_CHAINS if backend is Backend.NFT else 0)
        _restore(full, backend, payload(pieces), 300)
        update = _update(ruleset)
        times = [_restore(full, backend, update, 60) for _ in range(updates)]
    return PeerFigures(load, cap, statistics.median(one for one in times if one is not None), update.count("\n"))


def _rules(town: Town) -> Ruleset:
    objects = [kpx.parse_object(one["kind"], one) for one in town.objects()]
    config, _ = kpx.parse_config(clusters.CONFIG.encode())
    return kpx.compile(objects, config, node_name=clusters.NODE, layout=kpx.Layout.CLASSIC)


def _update(ruleset: Ruleset) -> str:
    """All of KUBE-SERVICES, and the chains of the first Service that it leads to."""
    chains = ruleset.tables["nat"].chains
    first = next(name for name in chains if name.startswith("KUBE-SVC-"))
    own = [name for name in chains if any(name in rule.split() for rule in chains[first]) and "KUBE-SEP-" in name]
    named = [*own, first, SERVICES]
    lines = [f"-A {name} {rule}" for name in named for rule in chains[name]]
    return "\n".join(["*nat", *(f":{name} - [0:0]" for name in named), *lines, "COMMIT", ""])


def _restore(namespace: Namespace, backend: Backend, text: str, cap: float) -> float | None:
    start = time.monotonic()
    process = subprocess.Popen(
        namespace.enter([f"iptables-{backend}-restore", "--noflush"]), stdin=subprocess.PIPE, text=True
    )
    try:
        process.communicate(text, timeout=cap)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    if process.returncode:
        raise SystemExit("iptables-restore refuses the payload")
    return time.monotonic() - start
