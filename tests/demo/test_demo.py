"""The demo as a newcomer runs it: as root, as a plain user, where namespaces are forbidden, and interrupted."""

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel import needs_kernel
from tests.lab.kpx import ROOT

pytestmark = [pytest.mark.kernel, needs_kernel]

DEMO = (sys.executable, "-m", "tests.demo")
# A user other than root whose files are still ours, so that this works wherever Python is installed.
PLAIN_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
FORBIDDEN = ("setpriv", "--bounding-set=-sys_admin")


def _may_be_plain_user() -> bool:
    return subprocess.run([*PLAIN_USER, "true"], capture_output=True, check=False).returncode == 0


USERS = [
    pytest.param((), id="root"),
    pytest.param(
        PLAIN_USER,
        id="plain-user",
        marks=pytest.mark.skipif(
            not _may_be_plain_user(), reason="the kernel makes no user namespace here (it makes none in a chroot)"
        ),
    ),
]


def run(*prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*prefix, *DEMO], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("prefix", USERS)
def test_the_demo_shows_that_packets_do_what_is_expected(prefix: tuple[str, ...]) -> None:
    done = run(*prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✔") == 10
    assert "✘" not in done.stdout
    assert "…" not in done.stdout, "a cell was cut off"
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"^\d{4} connections in \d+\.\d s, all as expected", done.stdout, re.MULTILINE)
    assert done.stderr == ""


def test_where_namespaces_are_forbidden_it_says_so_and_shows_the_rules() -> None:
    done = run(*FORBIDDEN)
    assert done.returncode == 0, done.stderr
    first, command, *rules = done.stdout.splitlines()
    assert first.startswith("No packets here: can't make a network namespace: Operation not permitted.")
    assert command == "$ kpx render -f tests/demo/shop --config tests/demo/config.yaml"
    assert {"*filter", "*nat", "COMMIT"} <= set(rules)


@pytest.mark.parametrize("prefix", USERS)
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(prefix: tuple[str, ...], with_signal: signal.Signals) -> None:
    process = subprocess.Popen(
        [*prefix, *DEMO], cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
    )
    assert process.stdout
    assert process.stdout.readline().startswith("A node in network namespaces")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    watches = [os.pidfd_open(int(child)) for child in children]
    assert watches, "the servers should run by now"
    os.killpg(process.pid, with_signal)
    process.wait(10)
    for watch in watches:
        assert select.select([watch], [], [], 10)[0], "a child outlived the demo"
        os.close(watch)
    assert process.returncode == (130 if with_signal is signal.SIGINT else -signal.SIGTERM)
