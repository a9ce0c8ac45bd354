"""From kube-proxy to kpx and back, by the steps of the README at the top, under load."""

import json
from functools import partial

from tests.cluster.cluster import Cluster
from tests.cluster.judge import TOOL, Rules, differences, rules, saved, wait_until_fresh
from tests.cluster.load import under_load
from tests.cluster.manifests import as_list, service
from tests.cluster.plan import Claim, Group
from tests.cluster.waiting import demand, eventually

SYSTEM = "kube-system"
_AWAY = {"matchExpressions": [{"key": "kpx", "operator": "DoesNotExist"}]}
_TERMS = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_AWAY]}}
PATCH = json.dumps({"spec": {"template": {"spec": {"affinity": {"nodeAffinity": _TERMS}}}}}, separators=(",", ":"))
"""README's patch, word for word."""


def kernels(cluster: Cluster) -> dict[tuple[str, str], Rules]:
    """Rules by node and family."""
    return {
        (node.name, family): rules(saved(node.space.network, family), counting=True)
        for node in cluster.nodes
        for family in TOOL
    }


def rollout(cluster: Cluster, name: str) -> None:
    """Wait until a DaemonSet's pods are new and ready."""
    cluster.kubectl("-n", SYSTEM, "rollout", "status", f"daemonset/{name}", "--timeout=240s")


def to_kpx(cluster: Cluster, *nodes: str) -> None:
    """README's step 3, and what kubelets say afterwards."""
    cluster.kubectl("-n", SYSTEM, "patch", "daemonset", "kube-proxy", "-p", PATCH)
    cluster.apply(cluster.chart(kubeProxyConfigMap="kube-proxy", nodeSelector={"kpx": "here"}))
    for node in nodes or [node.name for node in cluster.nodes]:
        cluster.kubectl("label", "node", node, "kpx=here", "--overwrite")
        eventually(f"kpx is ready on {node}", partial(is_on, cluster, "kpx", node))
    rollout(cluster, "kpx")


def is_on(cluster: Cluster, app: str, node: str) -> bool:
    """Whether a ready pod is on a node, and none of the other proxy."""
    other = {"kpx": "kube-proxy", "kube-proxy": "kpx"}[app]

    def there(name: str) -> list[bool]:
        label = "app.kubernetes.io/name" if name == "kpx" else "app"
        found = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector={label}%3D{name}")["items"]
        return [_ready(pod["status"]) for pod in found if pod["spec"].get("nodeName") == node]

    return there(app) == [True] and not there(other)


def _ready(status: dict[str, list[dict[str, str]]]) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))


def ensure(cluster: Cluster) -> None:
    """kpx on every node, from wherever a run begins."""
    if not all(is_on(cluster, "kpx", node.name) for node in cluster.nodes):
        cluster.say("moving to kpx")
        to_kpx(cluster)


def there(cluster: Cluster) -> str:
    """kube-proxy → kpx."""
    for node in cluster.nodes:  # pods have just come: kube-proxy is still writing
        wait_until_fresh(cluster.api, node.space.network, node.name, cluster.folder / "judge", layout="classic")
    before = kernels(cluster)
    with under_load(cluster) as load:
        to_kpx(cluster)
        load.some_more()
    after = kernels(cluster)
    told = [line for key in before for line in differences(after[key], before[key])]
    demand(not told, f"{len(told)} rules are not as kube-proxy had them: {told[:6]}")
    count = sum(len(chain) for found in after.values() for chain in found.values())
    return f"{load.told()}; all {count} rules of both nodes as kube-proxy had written them"


def back(cluster: Cluster) -> str:
    """kpx → kube-proxy."""
    ensure(cluster)
    before = kernels(cluster)
    with under_load(cluster) as load:
        for node in cluster.nodes:
            cluster.kubectl("label", "node", node.name, "kpx-")
            eventually(f"kube-proxy is ready on {node.name}", partial(is_on, cluster, "kube-proxy", node.name))
        _see_kube_proxy_at_work(cluster)
        load.some_more()
    after = kernels(cluster)
    told = [line for key in before for line in differences(after[key], before[key])]
    demand(not told, f"{len(told)} rules are not as before: {told[:6]}")
    return f"{load.told()}; nat and filter afterwards as before"


def _see_kube_proxy_at_work(cluster: Cluster) -> None:
    """It calls itself ready before its first sync: let a Service come and go again."""
    for act in (("apply", "-f", "-"), ("delete", "-f", "-")):
        cluster.kubectl(*act, stdin=as_list([service("passing")]))
        for node in cluster.nodes:
            wait_until_fresh(cluster.api, node.space.network, node.name, cluster.folder / "judge", layout="classic")


def again(cluster: Cluster) -> str:
    """kube-proxy → kpx once more, for what follows."""
    with under_load(cluster) as load:
        to_kpx(cluster)
        load.some_more()
    count = sum(
        wait_until_fresh(cluster.api, node.space.network, node.name, cluster.folder / "judge") for node in cluster.nodes
    )
    return f"{load.told()}; {count} rules of both nodes as a fresh render makes them"


def ready_and_alive(cluster: Cluster) -> str:
    """What kubelets' probes say, over a while."""
    pods = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app.kubernetes.io/name%3Dkpx")["items"]
    states = [status for pod in pods for status in pod["status"]["containerStatuses"]]
    demand(len(states) == len(cluster.nodes) and all(one["ready"] for one in states), states)
    restarts = sum(one["restartCount"] for one in states)
    demand(not restarts, f"{restarts} restarts")
    return f"{len(states)} pods of the DaemonSet ready, no restart"


GROUP: Group[Cluster] = Group(
    "migration",
    "From kube-proxy to kpx and back",
    (
        Claim("kube-proxy → kpx", there),
        Claim("the chart's DaemonSet", ready_and_alive),
        Claim("kpx → kube-proxy", back),
        Claim("kube-proxy → kpx, once more", again),
    ),
)
