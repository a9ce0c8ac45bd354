"""Timing whole commands: wall seconds, and the peak memory of the largest process among them."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.kernel import Namespace


@dataclass(frozen=True, slots=True)
class Figure:
    """One command, run once: wall time in seconds, user + system time in seconds, peak RSS in MB."""

    seconds: float
    cpu: float
    megabytes: float
    stdout: str


def kpx(namespace: Namespace, *arguments: str) -> Figure:
    """Run `kpx` in a namespace and measure it, its children included."""
    return command(namespace.enter([sys.executable, "-m", "kpx", *arguments]))


def command(words: Sequence[str]) -> Figure:
    """Run a command and measure it, its children included. A failure ends the benchmark with what it said."""
    start = time.perf_counter()
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status not in (0, 256):  # 1 is an answer (diff: differs), no failure
        raise SystemExit(f"{' '.join(words)}: status {status}\n{errors}")
    process.returncode = 0
    return Figure(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000, output)
