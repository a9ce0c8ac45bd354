"""The programs that a cluster is made of: which are needed, where they are, and what is missing."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {
    "kube-apiserver": "Kubernetes",
    "kube-controller-manager": "Kubernetes",
    "kube-scheduler": "Kubernetes",
    "kubelet": "Kubernetes",
    "kube-proxy": "Kubernetes",
    "kubectl": "Kubernetes",
    "etcd": "etcd",
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
}
"""What DIR has to hold, and of which project."""
PLUGINS = ("bridge", "host-local", "loopback")
"""CNI plugins: in DIR itself or in DIR/cni."""
HOST_TOOLS = (
    "ip",
    "nsenter",
    "unshare",
    "mount",
    "hostname",
    "openssl",
    "curl",
    "iptables-nft-save",
    "ip6tables-nft-save",
)
"""What this machine has to have itself; `make setup` installs them on Debian."""
_BRIDGE = Path("/proc/sys/net/bridge")
OLDEST = (1, 31)
_KUBERNETES = re.compile(r"v(\d+)\.(\d+)\.\S+")


class MissingError(Exception):
    """The cluster can't be started; the message has a line for everything that is missing."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Folders in which everything was found, and a version for each project."""

    folder: Path
    plugins: Path
    versions: dict[str, str]

    def __getitem__(self, program: str) -> str:
        return str(self.folder / program)


def find(folder: Path, host_path: str | None = None) -> Binaries:
    """Look for everything. Raises MissingError that names all that is missing or too old, and starts nothing."""
    problems = [_problem_of(folder, program) for program in PROGRAMS]
    plugins = folder / "cni" if (folder / "cni").is_dir() else folder
    problems += [_problem_of(plugins, plugin, "CNI plugin ") for plugin in PLUGINS]
    problems += [f"{tool}: not installed on this machine" for tool in _absent(HOST_TOOLS, host_path)]
    if not _BRIDGE.exists():
        problems.append(
            "br_netfilter: a part of the kernel that isn't loaded; rules wouldn't see pods' packets to pods"
        )
    if os.geteuid() != 0:
        problems.append("root: namespaces, mounts and containers need it")
    if not any(problems):
        return Binaries(folder, plugins, _versions(folder))
    raise MissingError("\n".join(filter(None, problems)))


def _problem_of(folder: Path, name: str, kind: str = "") -> str:
    path = folder / name
    if not path.is_file():
        return f"{kind}{name}: not in {folder}"
    return "" if os.access(path, os.X_OK) else f"{kind}{path}: can't be executed"


def _absent(tools: Iterable[str], path: str | None) -> list[str]:
    search = path if path is not None else f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return [tool for tool in tools if not shutil.which(tool, path=search)]


def _versions(folder: Path) -> dict[str, str]:
    """By project what its first program says. Raises MissingError for a Kubernetes that is too old or mixed."""
    kubernetes = {name: _kubernetes_version(folder / name) for name, of in PROGRAMS.items() if of == "Kubernetes"}
    old = [
        f"{name}: {text}, needed is v{OLDEST[0]}.{OLDEST[1]} or later"
        for name, text in kubernetes.items()
        if (found := _KUBERNETES.fullmatch(text)) is None or (int(found[1]), int(found[2])) < OLDEST
    ]
    if old:
        raise MissingError("\n".join(old))
    told = sorted(set(kubernetes.values()))
    others = {name: _said(folder / name, "--version") for name in ("etcd", "containerd", "runc")}
    return {"Kubernetes": ", ".join(told), **{name: _number(text) for name, text in others.items()}}


def _kubernetes_version(program: Path) -> str:
    words = ["version", "--client"] if program.name == "kubectl" else ["--version"]
    found = _KUBERNETES.search(_said(program, *words))
    return found[0] if found else "unknown version"


def _said(program: Path, *words: str) -> str:
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


def _number(text: str) -> str:
    found = re.search(r"\d+\.\d+\.\d+\S*", text)
    return found[0] if found else "unknown version"
