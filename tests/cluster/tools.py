"""The live tools: `kubectl kpx …` as an operator runs it, and as somebody who may not."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cluster import ROOT, Cluster
from tests.cluster.layout import NODES
from tests.cluster.load import under_load
from tests.cluster.manifests import SHOP, named
from tests.cluster.migration import ensure
from tests.cluster.plan import Claim, Group
from tests.cluster.waiting import demand

NODE = NODES[0].name
RBAC = "rbac.authorization.k8s.io"
READER = "reader"
"""A user who may read everything that kpx reads, and pods, but not run anything in them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command printed, and its exit status."""

    status: int
    output: str
    errors: str

    def __str__(self) -> str:
        return f"status {self.status}: {self.output[-300:]} {self.errors[-500:]}"


def ask(cluster: Cluster, *words: str, user: str = "admin") -> Answer:
    """`kubectl kpx WORDS`, from outside of the cluster's nodes."""
    folder = _plugin(cluster)
    kubectl = cluster.wanted.binaries["kubectl"]
    kubeconfig = cluster.pki.folder / f"{user}.kubeconfig"
    binaries = cluster.wanted.binaries.folder
    path = f"PATH={folder}:{binaries}:/usr/sbin:/usr/bin:/sbin:/bin"
    command = ["env", path, f"KUBECONFIG={kubeconfig}", f"PYTHONPATH={ROOT}", kubectl, "kpx", *words]
    done = cluster.control.space.run(command, check=False, timeout=120)
    return Answer(done.returncode, done.stdout, done.stderr)


def _plugin(cluster: Cluster) -> Path:
    """A folder with `kubectl-kpx`, which is installed beside `kpx`: here, of this source tree."""
    folder = cluster.folder / "plugin"
    installed = Path(sys.executable).with_name("kubectl-kpx")
    folder.mkdir(exist_ok=True)
    for name in ("kpx", "kubectl-kpx"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {_start(installed)} "$@"\n')
        program.chmod(0o755)
    return folder


def _start(installed: Path) -> str:
    return str(installed) if installed.exists() else "-m kpx"


def explain(cluster: Cluster) -> str:
    """What is up with a Service on a node, from afar."""
    ensure(cluster)
    answer = ask(cluster, "explain", "svc/web", "-n", SHOP, "--on", NODE)
    demand(answer.status == 0, answer)
    pods = [one["ip"] for pod in cluster.pods("web") for one in pod["status"]["podIPs"]]
    missing = [address for address in pods if address not in answer.output]
    demand(not missing, f"endpoints {missing} aren't told: {answer}")
    return f"status 0; all {len(pods)} endpoint addresses told"


def explain_what_is_wrong(cluster: Cluster) -> str:
    """A rule taken from a node is seen from afar."""
    ensure(cluster)
    answer = ask(cluster, "explain", "svc/empty", "-n", SHOP, "--on", NODE)
    demand("no pod" in answer.output or "no endpoint" in answer.output, answer)
    return f"svc/empty: {answer.output.strip().splitlines()[-1] if answer.output else ''}; status {answer.status}"


def flows(cluster: Cluster) -> str:
    """Connections as a node's conntrack has them."""
    ensure(cluster)
    with under_load(cluster) as load:
        answer = ask(cluster, "flows", "svc/web-node", "-n", SHOP, "--on", NODE, "--json")
        load.some_more()
    demand(answer.status == 0, answer)
    found = json.loads(answer.output)
    demand(found, answer)
    return f"status 0; {len(answer.output.splitlines())} lines of JSON"


def refused(cluster: Cluster) -> str:
    """Who may not run anything in kpx's pods is told so, by one sentence and status 2."""
    ensure(cluster)
    cluster.pki.kubeconfig(READER, cluster.control.url, READER)
    resources = ["services", "nodes", "pods"]
    role = named("ClusterRole", READER, version=f"{RBAC}/v1")
    role["rules"] = [
        {"apiGroups": [""], "resources": resources, "verbs": ["get", "list"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list"]},
    ]
    binding = named("ClusterRoleBinding", READER, version=f"{RBAC}/v1")
    binding["roleRef"] = {"apiGroup": RBAC, "kind": "ClusterRole", "name": READER}
    binding["subjects"] = [{"kind": "User", "name": READER, "apiGroup": RBAC}]
    cluster.apply([role, binding])
    answer = ask(cluster, "explain", "svc/web", "-n", SHOP, "--on", NODE, user=READER)
    demand(answer.status == 2, answer)
    demand("Traceback" not in answer.errors, answer)
    demand("exec" in answer.errors, f"doesn't say what is refused: {answer}")
    return f"status 2: {answer.errors.strip().splitlines()[-1]}"


GROUP: Group[Cluster] = Group(
    "tools",
    "The live tools",
    (
        Claim(f"`kubectl kpx explain svc/web -n {SHOP} --on {NODE}`", explain),
        Claim("the same for a Service without endpoints", explain_what_is_wrong),
        Claim(f"`kubectl kpx flows svc/web-node -n {SHOP} --on {NODE}`", flows),
        Claim("exec refused by RBAC", refused),
    ),
)
