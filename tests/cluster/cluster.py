"""A whole cluster: control plane, two nodes, a client outside; all of it ends with the context."""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from tests.chart.helm import release
from tests.cluster import cgroups, images
from tests.cluster.binaries import Binaries
from tests.cluster.client import Api, Object
from tests.cluster.control import Control
from tests.cluster.layout import CLIENT, CONTROL, LOAD_BALANCER, LOCAL_LOAD_BALANCER, NODES, Site
from tests.cluster.manifests import SHOP, as_list, kube_proxy, shop
from tests.cluster.node import Node
from tests.cluster.pki import Pki
from tests.cluster.space import Space
from tests.cluster.waiting import NotSeenError, eventually
from tests.cluster.wire import Wire
from tests.lab import Host, LabError, Namespace

ROOT = Path(__file__).parents[2]
HIDDEN = ("/var", "/run", "/proc", "/sys")
"""Where a node sees files of its own: nothing that it needs may be there."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run is of: where programs and kpx's image are, and where logs are kept (nowhere: they go, too)."""

    binaries: Binaries
    image: Path
    logs: Path | None = None


class Cluster:
    """What is running. Nodes start when they are first asked for."""

    def __init__(self, wanted: Wanted, console: Console) -> None:
        self.wanted, self.console = wanted, console
        self._stack = ExitStack()
        self._nodes: tuple[Node, ...] = ()
        self._no_nodes = ""

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._stack = undo
            self.folder = Path(tempfile.mkdtemp(prefix="kpx-cluster-"))
            undo.callback(self._remove_folder)
            self.cgroup = self.folder.name
            self.pki = Pki.make(self.folder / "pki")
            self.wire = Wire()
            undo.callback(self.wire.close)
            self.say("starting the control plane")
            self.control = Control(self.space(CONTROL), self.wanted.binaries, self.pki, self.folder / "control")
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, what: str) -> None:
        """Tell who waits what goes on."""
        self.console.print(f"[dim]{what}[/dim]", highlight=False)

    def space(self, site: Site, setup: str = "") -> Space:
        """A space with a link to the wire, for as long as the cluster lives."""
        made = self._stack.enter_context(Space(site.name, setup))
        self.wire.join(made.network, site)
        return made

    @property
    def api(self) -> Api:
        """The administrator's requests."""
        return self.control.api

    def kubectl(self, *words: str | Path, stdin: str = "", check: bool = True, user: str = "admin") -> str:
        """Run `kubectl` and return what it prints. With `check`, failure is a LabError that quotes it."""
        where = f"--kubeconfig={self.pki.folder / user}.kubeconfig"
        done = self.control.space.run([self.wanted.binaries["kubectl"], where, *words], stdin=stdin, check=check)
        return done.stdout

    def apply(self, objects: list[Object] | list[Mapping[str, Any]]) -> None:
        """`kubectl apply`."""
        self.kubectl("apply", "-f", "-", stdin=as_list(objects))

    @cached_property
    def client(self) -> Host:
        """A machine outside of the cluster, which knows where its load balancers' addresses are."""
        namespace = self._stack.enter_context(Namespace())
        namespace.ip("link set lo up")
        self.wire.join(namespace, CLIENT)
        return Host(CLIENT.name, namespace, *CLIENT.addresses)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Both nodes with kube-proxy and the shop, when all of it is ready. They start when first asked for.

        Raises NotSeenError if they don't, each time with the first reason.
        """
        if self._no_nodes:
            raise NotSeenError(self._no_nodes)
        if not self._nodes:
            try:
                self._nodes = self._start_nodes()
            except (LabError, NotSeenError, OSError, ValueError) as error:
                self._no_nodes = f"the nodes didn't start: {error}"
                raise NotSeenError(self._no_nodes) from error
        return self._nodes

    def _start_nodes(self) -> tuple[Node, ...]:
        self.say("making images")
        archive = self.folder / "images.tar"
        binaries = self.wanted.binaries
        additions = images.additions(binaries.folder / "kube-proxy")
        self.image = images.write(self.wanted.image, additions, archive)
        cgroups.make(self.cgroup, [site.name for site in NODES])
        self._stack.callback(cgroups.remove, self.cgroup)
        nodes = tuple(self._node(site) for site in NODES)
        for node in nodes:
            self.say(f"starting {node.name} ({node.snapshotter})")
            node.start(archive)
        for node in nodes:
            self._register(node)
        self.say("kube-proxy and the shop")
        self.apply(kube_proxy(self.control.url))
        self.apply(shop())
        for name, addresses in (("web-lb", LOAD_BALANCER), ("solo-local", LOCAL_LOAD_BALANCER)):
            ingress = {"status": {"loadBalancer": {"ingress": [{"ip": one} for one in addresses]}}}
            self.api.merge(f"/api/v1/namespaces/{SHOP}/services/{name}/status", ingress)
        self.kubectl("-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=120s")
        for name in ("web", "solo"):
            self.kubectl("-n", SHOP, "rollout", "status", f"deployment/{name}", "--timeout=120s")
        return nodes

    def chart(self, **values: Any) -> list[Mapping[str, Any]]:
        """The chart's objects, with this run's image."""
        repository, _, tag = self.image.rpartition(":")
        image = {"repository": repository, "tag": tag, "pullPolicy": "Never"}
        return list(release({"image": image, **values}).manifests)

    def pods(self, app: str, namespace: str = SHOP) -> list[Object]:
        """Pods that run, by their label `app` (kpx's: app.kubernetes.io/name)."""
        label = "app.kubernetes.io/name" if app == "kpx" else "app"
        found = self.api.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={label}%3D{app}")["items"]
        return [one for one in found if "deletionTimestamp" not in one["metadata"] and one["status"].get("podIPs")]

    def node(self, name: str) -> Node:
        """A node by its name."""
        (found,) = (node for node in self.nodes if node.name == name)
        return found

    def host(self, pod: Object) -> Host:
        """A pod as a place to connect from."""
        on = pod["spec"]["nodeName"]
        ipv4, ipv6 = (one["ip"] for one in pod["status"]["podIPs"])
        network = self.node(on).network_of(pod["metadata"]["uid"])
        return Host(pod["metadata"]["name"], network, ipv4, ipv6, on=on)

    def _node(self, site: Site) -> Node:
        folder = self.folder / site.name
        made = Node(site, self.wanted.binaries, self.pki, self.control.url, folder, f"/{self.cgroup}/{site.name}")
        self._stack.enter_context(made.space)
        self.wire.join(made.space.network, site)
        return made

    def _register(self, node: Node) -> None:
        path = f"/api/v1/nodes/{node.name}"
        eventually(f"{node.name} registers", lambda: self.api.get(path))
        self.api.merge(path, {"spec": {"podCIDR": node.site.pods[0], "podCIDRs": list(node.site.pods)}})

        def ready() -> bool:
            conditions = self.api.get(path)["status"]["conditions"]
            return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

        eventually(f"{node.name} is ready", ready)

    def _remove_folder(self) -> None:
        if self.wanted.logs:
            keep_logs(self.folder, self.wanted.logs)
        shutil.rmtree(self.folder)


def keep_logs(folder: Path, target: Path) -> None:
    """Copy logs of programs and pods, in place of those of an earlier run."""
    shutil.rmtree(target, ignore_errors=True)
    for path in folder.rglob("*.log"):
        if path.is_file() and "containerd/root" not in str(path):
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
