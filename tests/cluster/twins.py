"""kube-proxy and kpx side by side: the same node's name, the same objects, a namespace each."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.client import Object
from tests.cluster.cluster import ROOT, Cluster
from tests.cluster.layout import KPX_TWIN, KUBE_PROXY_TWIN, NODES, Site
from tests.cluster.manifests import CONFIG, named
from tests.cluster.space import Process, Space
from tests.cluster.waiting import eventually
from tests.cluster.wire import bytes_of

NODE = NODES[0].name
HEALTH, METRICS = 10256, 10249
_LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
_LOCK = "mount -t tmpfs tmpfs /run"
_TICKS = os.sysconf("SC_CLK_TCK")
RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a twin has taken so far: seconds of CPU with its tools, MB at most, bytes from and to the API server."""

    cpu: float
    megabytes: int
    received: int
    sent: int

    def since(self, earlier: "Usage") -> "Usage":
        """What it has taken between the two."""
        received, sent = self.received - earlier.received, self.sent - earlier.sent
        return Usage(self.cpu - earlier.cpu, self.megabytes, received, sent)


class Twin:
    """One of the two."""

    def __init__(self, site: Site, space: Space, process: Process) -> None:
        self.site, self.name, self.space, self.process = site, site.name, space, process

    def usage(self) -> Usage:
        """Up to now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = sum(int(fields[at]) for at in (11, 12, 13, 14))
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (peak,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
        return Usage(ticks / _TICKS, int(peak) // 1024, *bytes_of(self.space.network))

    def last_sync(self) -> float:
        """When it last wrote to its kernel, as it says itself, in either family; seconds since the epoch."""
        words = ["curl", "-s", "-m", "30", f"http://127.0.0.1:{METRICS}/metrics"]
        lines = self.space.network.run(words).stdout.splitlines()
        return max(float(line.rpartition(" ")[2]) for line in lines if line.startswith(_LAST_SYNC))

    def is_healthy(self) -> bool:
        """Whether its /healthz says 200."""
        return self.health() == "200"

    def health(self) -> str:
        """What its /healthz says, as an HTTP status; 000 if nobody listens."""
        words = ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{HEALTH}/healthz"]
        return self.space.network.run(words, check=False).stdout


class Twins:
    """Both, running."""

    def __init__(self, cluster: Cluster, layout: str) -> None:
        """Start them; `layout` is kpx's."""
        self.cluster, self.layout = cluster, layout
        _ensure_node(cluster)
        _ensure_rights(cluster)
        self.folder = folder = Path(tempfile.mkdtemp(prefix="twins-", dir=cluster.folder))
        proxy_config = _configure(cluster, folder, "kube-proxy", "system:kube-proxy")
        kpx_config = _configure(cluster, folder, "kpx", "kpx")
        kube_proxy = [cluster.wanted.binaries["kube-proxy"], f"--config={proxy_config}", "--v=2"]
        kpx = [sys.executable, "-m", "kpx", "run", f"--config={kpx_config}", "--backend=nft", f"--layout={layout}"]
        self.kube_proxy = self._twin(KUBE_PROXY_TWIN, kube_proxy, folder, {})
        self.kpx = self._twin(KPX_TWIN, kpx, folder, {"PYTHONPATH": str(ROOT)})
        for twin in self:
            eventually(f"{twin.name} is healthy", twin.is_healthy)

    def __iter__(self) -> Iterator[Twin]:
        return iter((self.kube_proxy, self.kpx))

    def close(self) -> None:
        """End them and their namespaces."""
        for twin in self:
            twin.space.close()

    def _twin(self, site: Site, command: list[str], folder: Path, environment: Mapping[str, str]) -> Twin:
        space = self.cluster.space(site, _LOCK)
        log = folder / f"{site.name}.log"
        return Twin(site, space, Process(space, site.name, command, log, environment).start())


def _configure(cluster: Cluster, folder: Path, name: str, user: str) -> Path:
    kubeconfig = cluster.pki.kubeconfig(f"twin-{name}", cluster.control.url, user)
    path = folder / f"{name}.json"
    config = {**CONFIG, "hostnameOverride": NODE, "clientConnection": {"kubeconfig": str(kubeconfig)}}
    path.write_text(json.dumps(config))
    return path


def _ensure_node(cluster: Cluster) -> None:
    """Both wait for their Node; if there are no kubelets in this run, it is made here."""
    for site in NODES:
        spec = {"podCIDR": site.pods[0], "podCIDRs": list(site.pods)}
        cluster.api.post("/api/v1/nodes", named("Node", site.name, spec=spec), allow=(409,))
        if not cluster.api.get(f"/api/v1/nodes/{site.name}")["status"].get("addresses"):
            addresses = [{"type": "InternalIP", "address": one} for one in site.addresses]
            cluster.api.merge(f"/api/v1/nodes/{site.name}/status", {"status": {"addresses": addresses}})


def _ensure_rights(cluster: Cluster) -> None:
    """What the chart's ClusterRole allows, for a user with a certificate."""
    (role,) = [one for one in cluster.chart() if one["kind"] == "ClusterRole"]
    made: Object = {**role, "metadata": {"name": "kpx-twin"}}
    binding = named("ClusterRoleBinding", "kpx-twin", version=f"{RBAC}/v1")
    binding["roleRef"] = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "kpx-twin"}
    binding["subjects"] = [{"kind": "User", "name": "kpx", "apiGroup": RBAC}]
    cluster.apply([made, binding])
