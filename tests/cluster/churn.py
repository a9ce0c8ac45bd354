"""Thousands of Services one by one, then thousands of changes: kpx and kube-proxy side by side."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.cluster.beside import side_by_side
from tests.cluster.client import MERGE
from tests.cluster.cluster import Cluster
from tests.cluster.judge import wait_until_fresh
from tests.cluster.layout import NODES
from tests.cluster.manifests import named
from tests.cluster.plan import Claim, Group
from tests.cluster.town import NAMESPACE, Request, Town
from tests.cluster.twins import NODE, Twins, Usage
from tests.cluster.waiting import demand, eventually

AGENTS = {"kpx": "kpx/", "kube-proxy": "kube-proxy/"}
IDLE_SECONDS = 120
CALM_SECONDS = 40


@dataclass(frozen=True)
class Size:
    """How much is done."""

    services: int = 5000
    changes: int = 2000
    seed: int = 7


def group(size: Size) -> Group[Cluster]:
    """The group of claims for this size."""
    what = f"{size.services:,} dual-stack Services one by one, then {size.changes:,} random changes"
    return Group("churn", "Churn", (Claim(what, lambda cluster: churn(cluster, size)),))


def churn(cluster: Cluster, size: Size) -> str:
    """Do it, judge kpx's kernel, and tell what both have taken."""
    cluster.api.post("/api/v1/namespaces", named("Namespace", NAMESPACE), allow=(409,))
    town = Town(size.seed, tuple(site.name for site in NODES))
    with side_by_side(cluster, "tree") as twins:
        start = {twin.name: twin.usage() for twin in twins}
        begin = time.monotonic()
        for _ in range(size.services):
            _send(cluster, town.create())
        created = time.monotonic()
        kinds = Counter(_send(cluster, town.change()) for _ in range(size.changes))
        changed, moment = time.monotonic(), time.time()
        quiet = _wait_until_quiet(twins, moment)
        taken = {twin.name: twin.usage().since(start[twin.name]) for twin in twins}
        demand(twins.kpx.health() == "200", f"kpx's healthz: {twins.kpx.health()}")
        place = cluster.folder / "judge"
        count = wait_until_fresh(cluster.api, twins.kpx.space.network, NODE, place, seconds=60)
        idle = _idle_requests(cluster, twins)
    told = "; ".join(_told(name, taken[name], quiet[name], idle[name]) for name in ("kpx", "kube-proxy"))
    changes = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return (
        f"{town.size:,} Services at the end, created in {created - begin:.0f} s, changed in "
        f"{changed - created:.0f} s ({changes}); "
        f"kpx's kernel: all {count:,} rules as a fresh render makes them. {told}"
    )


def _send(cluster: Cluster, requests: Iterable[Request]) -> str:
    kind = ""
    for request in requests:
        content = MERGE if request.method == "PATCH" else "application/json"
        cluster.api.request(request.method, request.path, request.body, kind=content, allow=(404,))
        kind = request.kind
    return kind


def _wait_until_quiet(twins: Twins, since: float) -> dict[str, float]:
    """By name, when it wrote for the last time: seconds after a moment. Waits until neither does any more."""

    def calm() -> dict[str, float]:
        last = {twin.name: twin.last_sync() for twin in twins}
        demand(time.time() - max(last.values()) > CALM_SECONDS, "somebody still writes")
        return {name: at - since for name, at in last.items()}

    return eventually("both are calm", calm, seconds=1200, pause=2)


def _idle_requests(cluster: Cluster, twins: Twins) -> dict[str, float]:
    """By name, requests a minute while nothing changes."""
    start = cluster.control.audit_size()
    time.sleep(IDLE_SECONDS)
    found = {}
    for twin in twins:
        events = cluster.control.requests(AGENTS[twin.name], start)
        own = {event["auditID"] for event in events if twin.site.ipv4 in event.get("sourceIPs", ())}
        found[twin.name] = len(own) * 60 / IDLE_SECONDS
    return found


def _told(name: str, usage: Usage, quiet: float, idle: float) -> str:
    return (
        f"{name}: last write {quiet:.1f} s after the last change, "
        f"{usage.cpu:.0f} s of CPU with its tools, {usage.megabytes} MB at most, "
        f"{usage.received / 1e6:.1f} MB received, {usage.sent / 1e6:.2f} MB sent, "
        f"{idle:.1f} requests in an idle minute"
    )
