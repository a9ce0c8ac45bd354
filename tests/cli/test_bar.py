"""`kpx apply` shows how far it is on a terminal, and only there."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import clusters
from tests.kernel import Namespace, needs_kernel

SERVICES = 300


@pytest.mark.kernel
@needs_kernel
def test_a_bar_on_a_terminal(tmp_path: Path, namespace: Namespace) -> None:
    dump = tmp_path / "cluster.json"
    dump.write_text(clusters.dump(SERVICES, 2))
    command = [sys.executable, "-m", "kpx", "apply", "-f", str(dump), "--node", clusters.NODE, "--backend", "nft"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        namespace.enter(command), stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = _everything(ours)
        assert process.stdout is not None
        assert process.stdout.read().startswith(b"ipv4: ")
    os.close(ours)
    assert process.returncode == 0
    assert b"ipv4: chains" in shown
    again = namespace.run(command)
    assert again.stderr == ""


def _everything(descriptor: int) -> bytes:
    """What comes out of a terminal until nobody writes to it any more."""
    pieces: list[bytes] = []
    while True:
        try:
            pieces.append(os.read(descriptor, 1 << 16))
        except OSError:
            return b"".join(pieces)
