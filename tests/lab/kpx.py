"""The command under test, as an operator runs it."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.lab.node import Node

ROOT = Path(__file__).parents[2]


def kpx(node: Node, *arguments: str | Path, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `kpx ARGUMENTS` on the node. With `check`, a status other than 0 is a LabError."""
    return node.host.namespace.run(_command(arguments), stdin=stdin, check=check, directory=ROOT)


def start_kpx(node: Node, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start `kpx ARGUMENTS` on the node, as a process group of its own, without its output."""
    with node.host.namespace.entered():
        return subprocess.Popen(
            _command(arguments),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def dry_kpx(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `kpx ARGUMENTS` here, for commands that touch no kernel."""
    return subprocess.run(_command(arguments), cwd=ROOT, capture_output=True, text=True, check=False)


def _command(arguments: Iterable[str | Path]) -> list[str]:
    return [sys.executable, "-m", "kpx", *map(str, arguments)]
