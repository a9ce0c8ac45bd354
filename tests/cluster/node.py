"""A node: containerd and kubelet in a space of their own, with a bridge for the pods."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.cluster.binaries import Binaries
from tests.cluster.images import POD_IMAGE
from tests.cluster.layout import Site
from tests.cluster.pki import Pki
from tests.cluster.space import Joined, Process, Space
from tests.cluster.waiting import eventually
from tests.lab import LabError

KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What kubelet would set for the whole machine. In a node's space files with these values are in their place."""
SOCKET = "/run/containerd/containerd.sock"


class Node:
    """A node of the cluster; `folder` is all that it writes to."""

    def __init__(self, site: Site, binaries: Binaries, pki: Pki, server: str, folder: Path, cgroup: str) -> None:
        """Make its space and its files, and start nothing yet. `cgroup` is the parent of its pods' cgroups."""
        self.site, self.name, self.folder, self._binaries = site, site.name, folder, binaries
        self._make_folders()
        self.bin = folder / "bin"
        self.space = Space(self.name, _setup(folder, binaries))
        self.snapshotter = "overlayfs" if _overlay_works(self.space, folder) else "native"
        self._write_files(pki, server, cgroup)
        path = f"{self.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words: list[str | Path] = [self.bin / "containerd", "--config", folder / "containerd.toml"]
        self.containerd = Process(self.space, "containerd", words, folder / "containerd.log", {"PATH": path})
        words = [self.bin / "kubelet", *self._kubelet_options(pki)]
        self.kubelet = Process(self.space, "kubelet", words, folder / "kubelet.log", {"PATH": path})

    def start(self, images: Path) -> None:
        """Start containerd, load images into it, start kubelet."""
        self.containerd.start()
        ask: list[str | Path] = [self.bin / "ctr", "-a", SOCKET, "-n", "k8s.io"]
        eventually("containerd answers", lambda: self.space.run([*ask, "version"], check=False).returncode == 0)
        self.space.run([*ask, "images", "import", "--snapshotter", self.snapshotter, images], timeout=900)
        self.kubelet.start()

    def processes_of(self, pod: str) -> list[int]:
        """All processes of a pod, by the pod's UID."""
        return list(_in_cgroup(f"pod{pod}"))

    def network_of(self, pod: str) -> Joined:
        """A pod's network namespace, by the pod's UID. Raises LabError if none of its processes is there."""
        for pid in self.processes_of(pod):
            with suppress(OSError):
                return Joined(pid)
        raise LabError(f"{self.name}: no process of pod {pod}")

    def _make_folders(self) -> None:
        for name in ("bin", "var/lib", "var/log", "var/tmp", "settings", "cni", "containerd", "kubelet"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "var/run").symlink_to("/run")
        for path, value in KERNEL_SETTINGS.items():
            (self.folder / "settings" / path.replace("/", "-")).write_text(f"{value}\n")

    def _write_files(self, pki: Pki, server: str, cgroup: str) -> None:
        (self.folder / "cni/10-bridge.conflist").write_text(json.dumps(network(self.site), indent=1))
        (self.folder / "containerd.toml").write_text(self._containerd_config())
        (self.folder / "kubelet.json").write_text(json.dumps(self._kubelet_config(pki, cgroup), indent=1))
        pki.kubeconfig(self.name, server, f"system:node:{self.name}", ["system:nodes"])

    def _containerd_config(self) -> str:
        """In the words of version 2, which 1.7 and 2.x read."""
        folder = self.folder
        return f"""\
version = 2
root = "{folder}/containerd/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{POD_IMAGE}"
restrict_oom_score_adj = {"false" if may_lower_oom_scores() else "true"}
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{self.snapshotter}"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{self.bin}/runc"
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/plugins"
conf_dir = "{folder}/cni"
"""

    def _kubelet_config(self, pki: Pki, cgroup: str) -> Mapping[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"x509": {"clientCAFile": str(pki.ca)}, "webhook": {"enabled": True}},
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,
            "resolvConf": "",
            "podLogsDir": str(self.folder / "var/log/pods"),
            "volumePluginDir": str(self.folder / "kubelet/plugins-of-volumes"),
            # The machine's disk and memory are others' concern.
            "evictionHard": dict.fromkeys(("memory.available", "nodefs.available", "imagefs.available"), "0%"),
            "imageGCHighThresholdPercent": 100,
            "shutdownGracePeriod": "0s",
            "registryPullQPS": 0,
        }

    def _kubelet_options(self, pki: Pki) -> list[str]:
        return [
            f"--config={self.folder / 'kubelet.json'}",
            f"--kubeconfig={pki.folder / self.name}.kubeconfig",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet/pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(self.site.addresses)}",
        ]


def network(site: Site) -> dict[str, Any]:
    """The pods' network: a bridge with an address in each of the node's ranges. Nothing is masqueraded by it."""
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "isDefaultGateway": True,
                "hairpinMode": True,
                "ipMasq": False,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": pods}] for pods in site.pods]},
            }
        ],
    }


def _setup(folder: Path, binaries: Binaries) -> str:
    """What a node sees of the machine's files: all but /var and /run, which are its own."""
    where = shlex.quote(str(folder))
    (folder / "plugins").mkdir()
    lines = [
        f"mount --bind {shlex.quote(str(binaries.folder))} {where}/bin",
        f"mount --bind {shlex.quote(str(binaries.plugins))} {where}/plugins",
        f"mount --bind {where}/var /var",
        "mount -t tmpfs -o mode=755 tmpfs /run",
        "mkdir -p /run/lock /run/netns",
    ]
    lines += [f"mount --bind {where}/settings/{path.replace('/', '-')} /proc/sys/{path}" for path in KERNEL_SETTINGS]
    return "\n".join([*lines, "mount --make-rshared /"])


def _overlay_works(space: Space, folder: Path) -> bool:
    trial = folder / "trial"
    for name in ("lower", "upper", "work", "on"):
        (trial / name).mkdir(parents=True)
    options = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
    words: list[str | Path] = ["mount", "-t", "overlay", "-o", options, "none", trial / "on"]
    if space.run(words, check=False).returncode:
        return False
    space.run(["umount", trial / "on"])
    return True


def _in_cgroup(name: str) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if f"/{name}/" in (entry / "cgroup").read_text():
                    yield int(entry.name)


def may_lower_oom_scores() -> bool:
    """Whether we have CAP_SYS_RESOURCE, without which the kernel lets nobody lower an OOM score."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) >> 24 & 1)
