"""The cgroup below which a cluster's pods are: made before the nodes, removed after them."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")


def hierarchies(root: Path = ROOT) -> list[Path]:
    """Where cgroups are made: the one hierarchy of cgroup v2, or each of v1."""
    if (root / "cgroup.controllers").exists():
        return [root]
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())


def make(name: str, nodes: list[str], root: Path = ROOT) -> None:
    """Make a cgroup, and one below it for each node."""
    for hierarchy in hierarchies(root):
        for path in (hierarchy / name, *(hierarchy / name / node for node in nodes)):
            path.mkdir()
            if hierarchy == root:
                _enable(path.parent)
            else:
                _inherit_cpuset(path)


def remove(name: str, root: Path = ROOT, seconds: float = 30) -> None:
    """Remove it with all below. The last processes may take a while to be gone."""
    end = time.monotonic() + seconds
    for hierarchy in hierarchies(root):
        while (top := hierarchy / name).exists():
            for path in _deepest_first(top):
                with suppress(OSError):
                    path.rmdir()
            if time.monotonic() > end:
                raise OSError(f"can't remove {top}")
            time.sleep(0.1)


def _deepest_first(top: Path) -> Iterator[Path]:
    for path in sorted(top.rglob("*"), key=lambda one: -len(one.parts)):
        if path.is_dir():
            yield path
    yield top


def _inherit_cpuset(path: Path) -> None:
    """On v1 a new cpuset is empty, and takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (path / name).exists():
            (path / name).write_text((path.parent / name).read_text())


def _enable(path: Path) -> None:
    """On v2, let the cgroups below have the controllers that there are, those that kubelet asks for."""
    control = path / "cgroup.subtree_control"
    for controller in (path / "cgroup.controllers").read_text().split():
        if controller in _CONTROLLERS:
            with suppress(OSError):  # what the machine's own services forbid, kubelet names
                control.write_text(f"+{controller}")
