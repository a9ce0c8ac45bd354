"""Programs that stand in for Kubernetes's in the tests of the harness: they say a version, or go on until they end."""

from pathlib import Path

from tests.cluster.binaries import PLUGINS, PROGRAMS

_SCRIPT = """\
#!/bin/sh
case "$*" in
*version*) echo "{version}"; exit ;;
esac
echo started >>"$0.started"
exec sleep 1000000
"""
_SAYS = {
    "etcd": "etcd Version: 3.6.1",
    "containerd": "containerd example.org/containerd v2.0.1 abc",
    "runc": "runc version 1.2.3",
}


def make(folder: Path, kubernetes: str = "v1.33.2") -> Path:
    """A folder with all of them; `NAME.started` appears beside one that was started."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*PROGRAMS, *PLUGINS):
        version = _SAYS.get(name, f"Kubernetes {kubernetes}")
        (folder / name).write_text(_SCRIPT.format(version=version))
        (folder / name).chmod(0o755)
    return folder


def started(folder: Path) -> set[str]:
    """Which of them were started for more than their version."""
    return {path.stem for path in folder.glob("*.started")}
