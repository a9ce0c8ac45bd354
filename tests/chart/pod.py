"""A rendered pod's containers started as kubelet and a runtime would start them, as far as that goes without either.

From the specification come the arguments, the environment, the mounts, the capabilities, `no-new-privs` and whether
the root is read-only. Not applied: the seccomp profile, and cgroups. /sys and /proc/sys are read-only unless the
container is privileged, as runtimes have it.
"""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kpx.compiler.compile import Layout
from kpx.netfilter.tools import Backend
from tests.agent.harness import NODE, ROOT, AgentProcess
from tests.apiserver import ApiServer
from tests.chart.helm import Release
from tests.lab import Namespace

TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
CLUSTER_IP = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
"""What kubelet tells every container, unless its own `env` has these names."""

Container = Mapping[str, Any]

# A writable layer over the image, as runtimes have one, only to make mount points in.
_LAYER = """
set -e
mount --make-rprivate /
mkdir -p {layer}
mount -t tmpfs none {layer}
mkdir {layer}/upper {layer}/work {layer}/root
mount -t overlay -o lowerdir={image},upperdir={layer}/upper,workdir={layer}/work none {root}
mkdir -p {root}/proc {root}/sys {root}/dev
mount --rbind /proc {root}/proc
mount --rbind /dev {root}/dev
mount --rbind /sys {root}/sys
"""


@dataclass(frozen=True, slots=True)
class Volumes:
    """Where the volumes of a pod are on this host: by their names, and the service account's files."""

    folders: Mapping[str, Path]
    service_account: Path


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system, what to start in it, and where; `additions` are folders of this host that appear in it."""

    root: Path
    entrypoint: Sequence[str]
    working_directory: str = "/"
    additions: Mapping[str, Path] = field(default_factory=dict)


THIS_HOST = Image(
    Path("/"),
    ("/run-kpx/venv/bin/python", "-m", "kpx"),
    "/run-kpx/source",
    {"/run-kpx/venv": Path(sys.prefix), "/run-kpx/source": ROOT},
)
"""The host's own file system with this source tree, where no image is at hand."""


def start_words(
    container: Container, volumes: Volumes, fields: Mapping[str, str], image: Image, layer: Path
) -> list[str]:
    """The command line that becomes the container's process.

    `fields` has the values of what `fieldRef`s name; `layer` is a folder to mount the root file system in.
    """
    root = layer / "root"
    lines = [_LAYER.format(layer=layer, image=image.root, root=root)]
    lines += [_mount(source, root, at, read_only=True) for at, source in image.additions.items()]
    mounts = {mount["mountPath"]: (volumes.folders[mount["name"]], mount) for mount in container["volumeMounts"]}
    for at, (source, mount) in mounts.items():
        lines.append(_mount(source, root, at, read_only=mount.get("readOnly", False)))
    lines.append(_mount(volumes.service_account, root, TOKEN_FOLDER, read_only=True))
    security = container["securityContext"]
    if not security.get("privileged"):
        lines += [f"mount -o remount,bind,ro {root}/sys", f"mount --bind {root}/proc/sys {root}/proc/sys"]
        lines.append(f"mount -o remount,bind,ro {root}/proc/sys")
    if security["readOnlyRootFilesystem"]:
        lines.append(f"mount -o remount,bind,ro {root}")
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    environment |= {**CLUSTER_IP, **_environment(container, fields)}
    names = [f"{name}={value}" for name, value in environment.items()]
    arguments = [_expanded(one, environment) for one in container["args"]]
    inside = ["env", "-i", f"--chdir={image.working_directory}", *names, *_powers(security)]
    inside += [*image.entrypoint, *arguments]
    lines.append(f"exec chroot {root} {shlex.join(inside)}")
    return ["unshare", "-m", "sh", "-c", "\n".join(lines)]


def _mount(source: Path, root: Path, at: str, *, read_only: bool) -> str:
    """Mount a file or folder at a path of the image, whose symbolic links are followed inside of it."""
    make = "mkdir -p" if source.is_dir() else "install -D -m 600 /dev/null"
    lines = [f"at={root}$(chroot {root} readlink -m {at})", f"{make} $at", f"mount --bind {source} $at"]
    return "\n".join([*lines, *(["mount -o remount,bind,ro $at"] if read_only else [])])


def _environment(container: Container, fields: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for entry in container.get("env", ()):
        field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        found[entry["name"]] = fields[field] if field else entry["value"]
    return found


def _expanded(argument: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        argument = argument.replace(f"$({name})", value)
    return argument


def _powers(security: Mapping[str, Any]) -> list[str]:
    if security.get("privileged"):
        return []
    capabilities = security["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    bounds = ",".join(["-all", *(f"+{one.lower()}" for one in capabilities["add"])])
    words = ["setpriv", f"--bounding-set={bounds}", "--inh-caps=-all", "--ambient-caps=-all"]
    return words if security["allowPrivilegeEscalation"] else [*words, "--no-new-privs"]


class PodAgent(AgentProcess):
    """The agent as the chart starts it on the node `node-0`: for files of the test, see `folder`.

    `files` go beside config.conf, in place of those of the chart's ConfigMap where they have the same names.
    """

    def __init__(
        self,
        namespace: Namespace,
        folder: Path,
        server: ApiServer,
        made: Release,
        *,
        backend: Backend = Backend.NFT,
        image: Image = THIS_HOST,
        files: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(namespace, folder, backend=backend, layout=Layout.CLASSIC)
        self._pod, self._image = made.pod, image
        self._volumes = _make_volumes(folder, made, files or {})
        server.service_account(self._volumes.service_account)
        self.config_file = self._volumes.folders["config"] / "config.conf"
        (container,) = made.pod["containers"]
        self.command = self._words(container, folder / "layer")

    def run_init_container(self) -> subprocess.CompletedProcess[str]:
        """Run what the pod runs before the agent."""
        (container,) = self._pod["initContainers"]
        return self.namespace.run(self._words(container, self.folder / "init-layer"))

    def _words(self, container: Container, layer: Path) -> list[str]:
        return start_words(container, self._volumes, {"spec.nodeName": NODE}, self._image, layer)


def _make_volumes(folder: Path, made: Release, files: Mapping[str, str]) -> Volumes:
    """Make a pod's volumes below a folder of this host."""
    folders = {}
    for volume in made.pod["volumes"]:
        at = folders[volume["name"]] = folder / volume["name"]
        if volume.get("hostPath", {}).get("type") == "FileOrCreate":
            at.touch()
            continue
        at.mkdir()
        if "configMap" in volume:
            maps = [one for one in made.manifests if one["kind"] == "ConfigMap"]
            made_here = [one["data"] for one in maps if one["metadata"]["name"] == volume["configMap"]["name"]]
            for data in (*made_here, files):
                for name, text in data.items():
                    (at / name).write_text(text)
    account = folder / "account"
    account.mkdir()
    return Volumes(folders, account)
