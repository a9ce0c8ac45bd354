"""Namespaces of network, mounts, processes and host name, under a first process that ends when we do."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import LabError, Namespace

_INIT = Path(__file__).with_name("init.py")
_END_SECONDS = 30.0


class Joined(Namespace):
    """The network namespace of a process that is running."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def children(pid: int) -> list[int]:
    """Processes whose parent is this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(entry.name))
    return found


class Space:
    """Namespaces of their own. `setup` is a shell script that is run first in them, to mount things."""

    def __init__(self, name: str, setup: str = "") -> None:
        """Make them. Raises LabError if the kernel doesn't, or the script fails."""
        self.name = name
        script = f"set -eu\nhostname {shlex.quote(name)}\n{setup}\nexec {shlex.quote(sys.executable)} -I {_INIT}\n"
        self._holder = subprocess.Popen(
            [
                "unshare",
                "--net",
                "--uts",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                script,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise LabError(f"{name}: {self._holder.communicate()[1].strip()}")
        (self.pid,) = children(self._holder.pid)
        self.network = Joined(self.pid)
        self.network.ip("link set lo up")

    def words(self, command: Sequence[str | Path]) -> list[str]:
        """The command line that runs a command in here."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "--", *map(str, command)]

    def run(
        self, command: Sequence[str | Path], *, stdin: str = "", check: bool = True, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in here and return its output. With `check`, failure is a LabError that quotes it."""
        done = subprocess.run(self.words(command), input=stdin, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise LabError(f"{self.name}: {shlex.join(map(str, command))}: status {done.returncode}: {said}")
        return done

    def close(self) -> None:
        """End everything in here, at once."""
        assert self._holder.stdin is not None
        with suppress(OSError):
            self._holder.stdin.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._holder.wait(_END_SECONDS)
        self.network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Process:
    """A program that goes on running in a space; may be started again. Its output goes to a file."""

    def __init__(
        self,
        space: Space,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.space, self.name, self.log = space, name, log
        self._command, self._environment = list(command), dict(environment or {})
        self._nsenter: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def start(self) -> Self:
        """Start it, and don't wait for anything."""
        assert not self.running, f"{self.name} is running"
        with self.log.open("ab") as log:
            self._nsenter = subprocess.Popen(
                self.space.words(self._command),
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._find_pid()
        return self

    @property
    def running(self) -> bool:
        return self._nsenter is not None and self._nsenter.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 60) -> None:
        """End it with a signal and wait; after `timeout` seconds it is killed."""
        if not self.running or self._nsenter is None:
            return
        with suppress(ProcessLookupError):
            self.send(number)
        try:
            self._nsenter.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._nsenter.wait(timeout)

    def last_words(self, size: int = 2000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size:]

    def _find_pid(self) -> int:
        """The program itself: the child of the nsenter that brought it into the space."""
        assert self._nsenter is not None
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if found := children(self._nsenter.pid):
                return found[0]
            if self._nsenter.poll() is not None:
                break
            time.sleep(0.01)
        raise LabError(f"{self.name} ended at once: {self.last_words()}")
