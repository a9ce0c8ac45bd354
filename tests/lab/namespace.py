"""Network namespaces without names: one file descriptor each."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

_CLONE_NEWNET = 0x40000000
# A plain user's PATH lacks the directories where `ip` and `iptables` are.
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab can't be built here, or one of its commands failed; the message says which and why."""


def require(program: str) -> None:
    """Raise LabError unless the program is installed."""
    if not shutil.which(program, path=_ENVIRONMENT["PATH"]):
        raise LabError(f"{program} isn't installed")


class Namespace:
    """One network namespace. It lives while this object is open or a process or socket is inside."""

    def __init__(self) -> None:
        """Make a namespace whose only link is `lo`, down. Raises LabError without the privilege."""
        home = _own_namespace()
        try:
            _check(_libc.unshare(_CLONE_NEWNET), "make")
            self._fd = _own_namespace()
            _setns(home)
        finally:
            os.close(home)

    @property
    def path(self) -> str:
        """A path that opens this namespace from any process, for `nsenter --net=PATH`."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def inode(self) -> int:
        """The number that `/proc/PID/ns/net` shows for processes in here."""
        return os.fstat(self._fd).st_ino

    def enter(self) -> None:
        """Move the calling thread in here for good: for threads that do nothing else."""
        _setns(self._fd)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in here for a while: sockets made and processes started meanwhile belong to this namespace."""
        with _home_again():
            self.enter()
            yield

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: str = "",
        check: bool = True,
        directory: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in here and return its output. With `check`, failure is a LabError that quotes stderr."""
        require(command[0])
        with self.entered():
            done = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                cwd=directory,
                env=_ENVIRONMENT,
                timeout=timeout,
            )
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
        return done

    def ip(self, *commands: str) -> None:
        """Run `ip` commands in one process, each written without its leading `ip`."""
        self.run(["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")

    def sysctl(self, **values: int) -> None:
        """Set `net.*` settings of this namespace; a dot is written as two underscores: `ipv4__ip_forward=1`."""
        with self.entered():
            for key, value in values.items():
                _write_setting(Path("/proc/sys/net", *key.split("__")), value)

    def close(self) -> None:
        """Let the namespace go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write_setting(path: Path, value: int) -> None:
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        raise LabError(f"can't set {path}: {error.strerror}") from error


@contextmanager
def _home_again() -> Iterator[None]:
    home = _own_namespace()
    try:
        yield
    finally:
        _setns(home)
        os.close(home)


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _setns(fd: int) -> None:
    _check(_libc.setns(fd, _CLONE_NEWNET), "enter")


def _check(status: int, what: str) -> None:
    if status != 0:
        raise LabError(f"can't {what} a network namespace: {os.strerror(ctypes.get_errno())}")
