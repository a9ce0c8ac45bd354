"""What commands print for people fits their terminal, 80 columns elsewhere; names and addresses are there in full."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from kpx.cli import COMMANDS
from tests.cli.inprocess import run
from tests.cli.scenes import LONGEST, ROOT, SHOP, Scene, broken, crowded, long, questions, recorded
from tests.kernel import Namespace, needs_kernel

FOR_PROGRAMS = ("render", "graph")
"""Rules and pictures: as long as they are."""
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.mark.parametrize("scene", [long(), crowded(), *recorded(), *broken()], ids=lambda scene: scene.name)
def test_every_answer_fits_80_columns(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # of a terminal, which isn't there
    monkeypatch.chdir(tmp_path)
    asked = [one for one in questions(scene, Path()) if one[0] not in FOR_PROGRAMS]
    for question in asked:
        if question[0] == "diff" and question[-1] != str(SHOP):  # rules, a line each for grep
            continue
        lines = run(*question).stdout.splitlines()
        assert max(map(len, lines), default=0) <= 80, question
        assert not any(line.endswith("…") for line in lines), question


def test_nothing_that_matters_is_cut(tmp_path: Path) -> None:
    addresses = {f"[fd00:2444:1111:2222:3333:4444:5555:900{n}]:65511" for n in (0, 2, 3, 4)}
    seen = set()
    for question in questions(long(), tmp_path):
        shown = question[0] in ("explain", "top", "trace") and question[1] != "KUBE-SERVICES"
        if shown and "ipv6" in "".join(question):
            told = run(*question).stdout
            assert LONGEST in re.sub(r"\n *", "", told), question
            if "65532" not in question[1]:  # the other port
                assert addresses <= set(re.findall(r"\[[0-9a-f:]+\]:\d+", told)), question
            seen.add(question[0])
    assert seen == {"explain", "top", "trace"}


def on_terminal(width: int, *arguments: str, enter: Callable[[list[str]], list[str]] = list) -> str:
    """What a command prints on a terminal as wide as this, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    plain = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    command = enter([sys.executable, "-m", "kpx", *arguments])
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=plain, cwd=ROOT) as running:
        os.close(theirs)
        told = b""
        while True:
            try:
                told += (more := os.read(ours, 65536))
            except OSError:  # the other end is closed
                break
            if not more:
                break
        assert running.stderr is not None
        assert running.wait() in (0, 1), running.stderr.read()
    os.close(ours)
    return _COLOUR.sub("", told.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("command", ["diff", "explain", "trace"])
def test_a_terminal_is_used_as_wide_as_it_is(command: str, tmp_path: Path) -> None:
    found = {one[0]: one for one in questions(long(), tmp_path) if "ipv6" in "".join(one) and str(SHOP) not in one}
    widest = {}
    for width in (40, 80, 120):
        lines = on_terminal(width, *found[command]).splitlines()
        widest[width] = max(map(len, lines))
        if width >= 80 and command != "diff":  # a comment in a rule is longer
            assert widest[width] <= width
    assert widest[120] > 80


@pytest.mark.kernel
@needs_kernel
def test_the_doctor_fits_too(namespace: Namespace) -> None:
    whole, narrow = (on_terminal(width, "doctor", "--backend", "nft", enter=namespace.enter) for width in (300, 80))
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, whole.splitlines()))
    assert narrow.split() == whole.split()
    assert max(map(len, namespace.kpx("doctor", "--backend", "nft", check=False).stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_and_ends_with_an_example(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = run(command, "--help").stdout
    assert max(map(len, told.splitlines())) <= 80
    examples = told[told.index("Example:") :].splitlines()[1:]
    assert all(line.startswith(f"    kpx {command}") for line in examples)
    assert examples
