"""Running the real iptables in a network namespace that lives only for one command line."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.tools import Backend

BACKENDS = tuple(Backend)
FAMILIES = tuple(Family)
PROGRAM = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}

needs_kernel = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("iptables-nft") is None, reason="needs root and iptables"
)


class Namespace:
    """A network namespace of its own, without links but loopback; gone when closed."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "echo ready; exec sleep infinity"], stdout=subprocess.PIPE, text=True
        )
        # The legacy tools of all namespaces share one lock; tests that run side by side need not wait for each other.
        self._lock = Path(tempfile.gettempdir()) / f"kpx-xtables-{self._holder.pid}.lock"
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def enter(self, command: Iterable[str]) -> list[str]:
        """The words that run a command in the namespace."""
        return ["nsenter", "-t", str(self._holder.pid), "-n", *command]

    def run(
        self, command: Iterable[str], stdin: str = "", check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace; with `check`, a failure fails the test with what it said."""
        done = subprocess.run(
            self.enter(command),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"XTABLES_LOCKFILE": str(self._lock)} | (env or {}),
        )
        assert not check or done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def kpx(
        self, *arguments: str, check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command `kpx` in the namespace."""
        return self.run([sys.executable, "-m", "kpx", *arguments], check=check, env=env)

    def restore(self, backend: Backend, family: Family, payload: str) -> None:
        """Load a payload with --noflush."""
        self.run([f"{PROGRAM[family]}-{backend}-restore", "--noflush"], payload)

    def save(self, backend: Backend, family: Family, counters: bool = False) -> str:
        """What the kernel holds."""
        command = [f"{PROGRAM[family]}-{backend}-save", *(["-c"] if counters else [])]
        return self.run(command).stdout

    def close(self) -> None:
        """Drop the namespace."""
        self._lock.unlink(missing_ok=True)
        self._holder.kill()
        self._holder.communicate()

    def __enter__(self) -> "Namespace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rules_only(save: str) -> list[str]:
    """A save without comments and counters of chains: what can be compared."""
    return [
        line.split(" [")[0] if line.startswith(":") else line for line in save.splitlines() if line[:1] not in {"#", ""}
    ]


KUBE_PROXY_1_20 = Path(__file__).parent / "analysis" / "kube-proxy-1.20"
"""A cluster, and what a kube-proxy 1.20 left in the kernel for it, beside what kubelet does there."""


def case_path(name: str) -> Path:
    """A file or folder beside the conformance cases."""
    return Path(__file__).parent / "conformance" / "cases" / name
