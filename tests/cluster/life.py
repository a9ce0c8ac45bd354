"""The life of the DaemonSet, with connections going on all the time."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.cluster.client import Object
from tests.cluster.cluster import Cluster
from tests.cluster.crowd import crowd
from tests.cluster.judge import wait_until_fresh
from tests.cluster.layout import NODES
from tests.cluster.load import under_load
from tests.cluster.manifests import SHOP, as_list, named, service
from tests.cluster.migration import SYSTEM, ensure, is_on, rollout
from tests.cluster.plan import Claim, Group
from tests.cluster.waiting import demand, eventually

AGENT = "kpx/"
"""How kpx's User-Agent begins."""
NEW_SERVICES = 30


def agents(cluster: Cluster) -> list[Object]:
    """kpx's pods."""
    return cluster.pods("kpx", SYSTEM)


def agent_on(cluster: Cluster, node: str) -> Object:
    """kpx's pod on a node."""
    (found,) = [pod for pod in agents(cluster) if pod["spec"]["nodeName"] == node]
    return found


def agent_pid(cluster: Cluster, node: str) -> int:
    """The process of `kpx run` on a node."""
    pod = agent_on(cluster, node)
    for pid in cluster.node(node).processes_of(pod["metadata"]["uid"]):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if b"run" in words and any(word.endswith(b"/kpx") for word in words):
                return pid
    raise LookupError(f"no process of kpx on {node}")


def settled(cluster: Cluster) -> int:
    """Wait until both nodes hold what a fresh render makes; how many rules that are."""
    return sum(
        wait_until_fresh(cluster.api, node.space.network, node.name, cluster.folder / "judge", seconds=300)
        for node in cluster.nodes
    )


def during(cluster: Cluster, act: Callable[[Cluster], str]) -> str:
    """Do something under load; what it says, what became of the connections, and of the rules."""
    ensure(cluster)
    settled(cluster)
    with under_load(cluster) as load:
        said = act(cluster)
        load.some_more()
    return f"{said}{load.told()}; {settled(cluster)} rules right"


def restart(cluster: Cluster) -> str:
    """A rollout restart, as for a new version."""
    before = {pod["metadata"]["uid"] for pod in agents(cluster)}
    cluster.kubectl("-n", SYSTEM, "rollout", "restart", "daemonset/kpx")
    rollout(cluster, "kpx")
    after = {pod["metadata"]["uid"] for pod in agents(cluster)}
    demand(not before & after and len(after) == len(NODES), f"{before} {after}")
    return ""


def kill(cluster: Cluster) -> str:
    """SIGKILL to the agent of each node: kubelet starts it again."""
    for site in NODES:
        pod = agent_on(cluster, site.name)
        pid = agent_pid(cluster, site.name)
        count = pod["status"]["containerStatuses"][0]["restartCount"]
        os.kill(pid, signal.SIGKILL)

        def back(site_name: str = site.name, count: int = count) -> bool:
            (status,) = agent_on(cluster, site_name)["status"]["containerStatuses"]
            return bool(status["restartCount"] == count + 1 and status["ready"])

        eventually(f"kpx is ready again on {site.name}", back)
    return ""


def drain(cluster: Cluster) -> str:
    """All pods but those of DaemonSets leave a node, and come back."""
    node = NODES[1].name
    cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s")
    left = [pod["metadata"]["name"] for pod in cluster.pods("web") if pod["spec"]["nodeName"] == node]
    demand(not left, f"still on {node}: {left}")
    demand(is_on(cluster, "kpx", node), f"kpx isn't on {node} any more")
    cluster.kubectl("uncordon", node)
    cluster.kubectl("-n", SHOP, "rollout", "restart", "deployment/web")
    cluster.kubectl("-n", SHOP, "rollout", "status", "deployment/web", "--timeout=240s")
    back = {pod["spec"]["nodeName"] for pod in cluster.pods("web")}
    demand(node in back, f"pods are on {back} only")
    return ""


def restart_api_server(cluster: Cluster) -> str:
    """SIGKILL, some seconds of nothing, a new one, and a change that has to arrive."""
    cluster.control.kill_api_server()
    time.sleep(5)
    cluster.control.start_api_server()
    cluster.apply([service("after-restart")])
    return ""


def compact(cluster: Cluster) -> str:
    """An agent that was away for too long: what it would go on from is gone (410)."""
    node = NODES[0].name
    before = _expired(cluster, node)
    pid = agent_pid(cluster, node)
    os.kill(pid, signal.SIGSTOP)
    try:
        cluster.apply([service(f"new-{number}") for number in range(NEW_SERVICES)])
        cluster.control.compact()
        cluster.control.kill_api_server()
        cluster.control.start_api_server()
    finally:
        os.kill(pid, signal.SIGCONT)
    told = eventually("kpx is told 410", lambda: _expired(cluster, node) - before, seconds=120)
    return f"{NEW_SERVICES} Services made meanwhile; told 410 {told:.0f} ×; "


def rotate(cluster: Cluster) -> str:
    """A token that has expired in the place of a good one, until kubelet writes the next."""
    node = NODES[0]
    place = _token_place(cluster, node.name)
    account = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/kpx")
    uid = account["metadata"]["uid"]
    told = []
    for what, seconds, wanted in (("expired", -30.0, 401), ("a new one", 3600.0, 200)):
        token = cluster.pki.token(SYSTEM, "kpx", uid, seconds)
        place(token)
        start = cluster.control.audit_size()
        cluster.control.kill_api_server()
        cluster.control.start_api_server()

        def answered(start: int = start, wanted: int = wanted) -> int:
            return sum(
                _code(event) == wanted and node.ipv4 in event.get("sourceIPs", ())
                for event in cluster.control.requests(AGENT, start)
            )

        told.append(f"{what}: {eventually(f'answers {wanted}', answered, seconds=180)} × {wanted}")
        if wanted == 200:
            break
        cluster.apply([service("after-token")])
    return f"{', then '.join(told)}; "


def throttle(cluster: Cluster) -> str:
    """429: kpx shares one seat at the API server with a crowd, also right after a start of both."""
    objects = _one_seat()
    cluster.apply(objects)
    uid = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/kpx")["metadata"]["uid"]
    start = cluster.control.audit_size()

    def refused() -> int:
        events = cluster.control.requests(AGENT, start)
        return sum(event["stage"] == "ResponseComplete" and _code(event) == 429 for event in events)

    try:
        with crowd(cluster.control, cluster.pki.token(SYSTEM, "kpx", uid, 3600)):
            cluster.control.kill_api_server()
            cluster.control.start_api_server()
            os.kill(agent_pid(cluster, NODES[1].name), signal.SIGKILL)
            eventually("kpx is told 429 ten times", lambda: refused() >= 10, seconds=240)
            cluster.apply([service("after-429")])
            told = refused()
    finally:
        cluster.kubectl("delete", "-f", "-", stdin=as_list(objects))
    eventually("kpx is ready again", lambda: all(is_on(cluster, "kpx", site.name) for site in NODES), seconds=300)
    return f"told 429 {told} ×; "


def _one_seat() -> list[Object]:
    """A priority level without a share, which has one seat all the same, and kpx's ServiceAccount in it."""
    group = "flowcontrol.apiserver.k8s.io/v1"
    limited = {"nominalConcurrencyShares": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}
    level = named("PriorityLevelConfiguration", "one-seat", version=group, spec={"type": "Limited", "limited": limited})
    account = {"kind": "ServiceAccount", "serviceAccount": {"name": "kpx", "namespace": SYSTEM}}
    everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True}
    spec = {
        "priorityLevelConfiguration": {"name": "one-seat"},
        "matchingPrecedence": 50,
        "rules": [{"subjects": [account], "resourceRules": [everything]}],
    }
    return [level, named("FlowSchema", "one-seat-for-kpx", version=group, spec=spec)]


def _code(event: dict[str, Any]) -> int:
    """The status of an answer in the audit log."""
    code: int = event.get("responseStatus", {}).get("code", 0)
    return code


def _expired(cluster: Cluster, node: str) -> float:
    """How often kpx was told 410, as it counts itself."""
    text = cluster.node(node).space.network.run(
        ["curl", "-s", "-m", "10", "http://127.0.0.1:10249/metrics"], check=False
    )
    lines = [line for line in text.stdout.splitlines() if line.startswith("kpx_watch_restarts_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'reason="expired"' in line)


def _token_place(cluster: Cluster, node: str) -> Callable[[str], None]:
    """A function that writes a token where kubelet has put the pod's."""
    uid = agent_on(cluster, node)["metadata"]["uid"]
    volumes = cluster.node(node).folder / "kubelet/pods" / uid / "volumes/kubernetes.io~projected"

    def write(token: str) -> None:
        script = f"for at in {volumes}/kube-api-access-*; do cat >$at/..data/token; done"
        cluster.node(node).space.run(["sh", "-ec", script], stdin=token)

    return write


def _claim(what: str, act: Callable[[Cluster], str]) -> Claim[Cluster]:
    return Claim(what, lambda cluster: during(cluster, act))


GROUP: Group[Cluster] = Group(
    "life",
    "The life of the DaemonSet, under load",
    (
        _claim("rollout restart", restart),
        _claim("kill -9 of each agent", kill),
        _claim("node drained, and filled again", drain),
        _claim("API server killed and restarted", restart_api_server),
        _claim("etcd compacted while an agent was frozen", compact),
        _claim("token expired, then rotated", rotate),
        _claim("429 for most of what kpx asks, API server and an agent started meanwhile", throttle),
    ),
)
