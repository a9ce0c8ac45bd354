"""The iptables processes. Nothing else in kpx starts one.

What the tools (1.8.9) say of a payload that they refuse, found by experiment; line numbers count from 1 over
the whole payload:

- What the tool's parser refuses (unknown match or option, bad value, name too long, unknown table) comes as
  `Error occurred at line: N` on both backends, with N the line itself.
- What needs the table's state (`-D` of a rule that is not there, `-I` or `-D` beyond the end, a command on a
  missing chain) comes as `line N failed`, with N the line itself; the legacy backend gives no reason.
- A jump to a chain that isn't there: the legacy tool calls it a target that can't be loaded, at the line
  itself; nft-restore gives the line of COMMIT, but names the chain, so the line is looked up here.
- What the kernel refuses: nft-restore prints `line N: RULE_APPEND failed (reason)` for every command refused,
  N the line itself (a loop of jumps is reported at several lines). The legacy kernel takes or refuses the
  table as a whole: `line N failed`, N being that of COMMIT.
- A quote that isn't closed is no error: both tools drop the rest of the line, target included, so
  `kpx.netfilter.restore.payload` refuses it. A text longer than the kernel's field is cut without a word.
- `-w` is taken and ignored by nft-restore: the nft backend has no lock, the kernel's transactions do that work.
"""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from kpx.errors import KpxError
from kpx.family import Family

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class Backend(StrEnum):
    """The kernel interface that an iptables binary speaks; the host has to keep to one."""

    NFT = "nft"
    LEGACY = "legacy"


class RestoreError(KpxError):
    """`iptables-restore` refused a payload.

    Sections before the one that failed are in the kernel, the one that failed and those after it are not.
    `command` is the command line, `stderr` what it said; `line_number` counts from 1 in the payload, `line` is
    that line and `table` the one it belongs to: None where the tool doesn't tell. `line` is `COMMIT` if the
    kernel refused a section as a whole without saying why (legacy backend).
    """

    def __init__(self, command: Sequence[str], stderr: str, payload: str) -> None:
        self.command = " ".join(command)
        self.stderr = stderr.strip()
        lines = payload.split("\n")
        self.line_number = failed_line(self.stderr, lines)
        self.line = lines[self.line_number - 1] if self.line_number is not None else None
        self.table = _table_at(lines, self.line_number)
        whole = " (the kernel refused the section as a whole)" if self.line == "COMMIT" else ""
        super().__init__("\n".join([f"{self.command}: {_reason(self.stderr)}{whole}", *self._excerpt(lines)]))

    def _excerpt(self, lines: list[str], around: int = 2) -> list[str]:
        if self.line_number is None:
            return []
        at = self.line_number
        numbers = range(max(1, at - around), min(len(lines), at + around) + 1)
        shown = (f"{'>' if n == at else ' '} {n:>6}  {lines[n - 1]}" for n in numbers if lines[n - 1])
        return [f"  table {self.table}:" if self.table else "  payload:", *shown]


_LINE = (
    re.compile(r"^Error occurred at line: (\d+)", re.MULTILINE),
    re.compile(r"^(?:\S+ v\S+ \(\w+\): )?line (\d+): [A-Z_]+ failed", re.MULTILINE),
    re.compile(r"^\S+: line (\d+) failed", re.MULTILINE),
    re.compile(r" line (\d+): Bad policy name", re.MULTILINE),
    re.compile(r"^\S+: COMMIT expected at line (\d+)", re.MULTILINE),
)
_NO_CHAIN = re.compile(r"Chain '(\S+)' does not exist")


def failed_line(stderr: str, lines: Sequence[str]) -> int | None:
    """The number, from 1, of the payload line that the tool complains about; None if it names none."""
    found = next((match for match in (line.search(stderr) for line in _LINE) if match), None)
    if found is None or not 1 <= int(found[1]) <= len(lines):
        return None
    number = int(found[1])
    missing = _NO_CHAIN.search(stderr)
    if missing and lines[number - 1] == "COMMIT":
        jump = re.compile(rf" -[jg] {re.escape(missing[1])}(?: |$)")
        return next((n for n in _section_before(lines, number) if jump.search(lines[n - 1])), number)
    return number


def _section_before(lines: Sequence[str], number: int) -> range:
    """The numbers of the lines of the section that a COMMIT line ends."""
    start = number
    while start > 1 and not lines[start - 1].startswith("*"):
        start -= 1
    return range(start, number)


def _table_at(lines: Sequence[str], number: int | None) -> str | None:
    before = reversed(lines[:number]) if number is not None else ()
    return next((line[1:] for line in before if line.startswith("*")), None)


def _reason(stderr: str) -> str:
    """What the tool said, in one line, without its remarks and its advice to read the manual."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(("#", "Try `"))]
    return "; ".join(lines) or "failed without a word"


Recording = Callable[[Family], AbstractContextManager[Callable[[int], None]]]
"""Makes a context to run a restore in; what it yields takes the pid of the process."""


@dataclass(frozen=True, slots=True)
class Tools:
    """iptables of one backend and family, in the network namespace of this process.

    `wait` is how many seconds to wait for the legacy backend's lock, `timeout` how many a process may take.
    `recording`, if given, surrounds each restore and is told the pid of its process. Every method raises KpxError
    if the binary is missing, fails or takes too long.
    """

    backend: Backend
    family: Family
    wait: int = 5
    timeout: float = 300.0
    recording: Recording | None = None

    def save(self, table: str | None = None, counters: bool = False, niceness: int = 0) -> str:
        """What iptables-save prints: of one table, or of all; with `-c` if counters are wanted.

        A legacy table that the kernel doesn't have yet gives an empty text; to ask for it would create it. `niceness`
        is added to that of the process, up to 19.
        """
        if self.backend is Backend.LEGACY and table is not None and table not in legacy_tables(self.family):
            return ""
        command = [self._binary("-save"), *(["-c"] if counters else []), *(["-t", table] if table else [])]
        text = self._ask(command, niceness)
        _refuse_incompatible(command[0], text, (table,) if table else ("filter", "nat"))
        return text

    def save_lines(self, table: str, niceness: int = 0) -> Iterator[bytes]:
        """The lines that iptables-save prints of a table, with counters, as they come.

        A legacy table that the kernel doesn't have has none.
        """
        if self.backend is Backend.LEGACY and table not in legacy_tables(self.family):
            return
        command = [self._binary("-save"), "-c", "-t", table]
        pipe = subprocess.PIPE
        with (
            _start(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process,
            _killing(process, self.timeout) as killed,
        ):
            if niceness:
                _slow_down(process.pid, niceness)
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                for line in process.stdout:
                    if line.startswith(b"# Table `") and b"' is incompatible" in line:
                        raise KpxError(f"{command[0]}: table {table} holds rules of nft that iptables can't read")
                    yield line
            except BaseException:  # who reads may stop early, too
                process.kill()
                raise
            said = process.stderr.read().decode(errors="replace")
        if killed:
            raise KpxError(f"{' '.join(command)}: no answer after {self.timeout:g} s")
        if process.returncode != 0:
            raise KpxError(f"{' '.join(command)}: {_reason(said)}")

    def save_unless(self, disturbed: Callable[[], bool], niceness: int = 0) -> str | None:
        """As `save` of all tables; None, and the process is killed, once `disturbed` says so before it prints.

        It is asked ten times a second. The nft tools read everything before they print, and start over when others
        commit meanwhile: from the first byte on nothing can disturb them any more.
        """
        command = [self._binary("-save")]
        with open(os.memfd_create("saved"), "w+b") as saved:
            with _start(command, stdin=subprocess.DEVNULL, stdout=saved, stderr=subprocess.PIPE) as process:
                if niceness:
                    _slow_down(process.pid, niceness)
                with _killing(process, self.timeout) as killed:
                    assert process.stderr is not None
                    while not os.fstat(saved.fileno()).st_size and process.poll() is None:
                        if disturbed():
                            process.kill()
                            return None
                        with suppress(subprocess.TimeoutExpired):
                            process.wait(0.1)
                    said = process.stderr.read()
            if killed:
                raise KpxError(f"{' '.join(command)}: no answer after {self.timeout:g} s")
            if process.returncode != 0:
                raise KpxError(f"{' '.join(command)}: {_reason(said.decode(errors='replace'))}")
            saved.seek(0)
            text = saved.read().decode(errors="surrogateescape")
        _refuse_incompatible(command[0], text, ("filter", "nat"))
        return text

    def list_chains(self, payload: str, niceness: int = 0) -> tuple[str, str]:
        """What `iptables-restore --noflush` prints of `-S CHAIN` lines; and why it stopped, "" if it didn't.

        On the legacy backend it takes the lock, as if it were to change something.
        """
        command = [self._binary("-restore"), "--noflush", "-w", str(self.wait)]
        pipe = subprocess.PIPE
        with _start(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            if niceness:
                _slow_down(process.pid, niceness)
            try:
                printed, said = process.communicate(payload.encode(errors="surrogateescape"), self.timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise KpxError(f"{' '.join(command)}: no answer after {self.timeout:g} s") from None
        why = _reason(said.decode(errors="replace")) if process.returncode else ""
        if process.returncode < 0:
            raise KpxError(f"{' '.join(command)}: {why}")
        return printed.decode(errors="surrogateescape"), why

    def restore(self, payload: str | Iterable[str]) -> None:
        """Feed a payload to `iptables-restore --noflush`; one in pieces while it is being made, piece by piece.

        Raises RestoreError if the tool refuses it.
        """
        command = [self._binary("-restore"), "--noflush", "-w", str(self.wait)]
        with self.recording(self.family) if self.recording else nullcontext() as started:
            self._feed(command, (payload,) if isinstance(payload, str) else payload, started)

    def version(self) -> str:
        """The version, as `1.8.9`."""
        return self._ask([self._binary(""), "-V"]).split()[1].removeprefix("v")

    def _binary(self, suffix: str) -> str:
        found = binary(self.backend, self.family, suffix)
        if found is None:
            name = f"{_program(self.family)}-{self.backend}{suffix}"
            raise KpxError(f"{name} not found: install the package iptables (Debian, Ubuntu) or set PATH")
        return found

    def _ask(self, command: list[str], niceness: int = 0) -> str:
        """What a command prints."""
        with _start(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            if niceness:
                _slow_down(process.pid, niceness)
            try:
                stdout, stderr = process.communicate(timeout=self.timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise KpxError(f"{' '.join(command)}: no answer after {self.timeout:g} s") from None
        if process.returncode != 0:
            raise KpxError(f"{' '.join(command)}: {_reason(stderr.decode(errors='replace'))}")
        return stdout.decode(errors="surrogateescape")

    def _feed(self, command: list[str], pieces: Iterable[str], started: Callable[[int], None] | None) -> None:
        """Write pieces to a command as they come. What it says goes to memory, so that it never waits for us."""
        fed: list[str] = []
        with (
            open(os.memfd_create("said"), "w+b") as said,
            _start(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as process,
        ):
            if started:
                started(process.pid)
            with _killing(process, self.timeout) as killed:
                assert process.stdin is not None
                with suppress(BrokenPipeError), process.stdin as sink:
                    for piece in pieces:
                        fed.append(piece)
                        sink.write(piece.encode(errors="surrogateescape"))
                process.wait()
            said.seek(0)
            words = said.read().decode(errors="replace")
        if killed:
            raise KpxError(f"{' '.join(command)}: no answer after {self.timeout:g} s")
        if process.returncode != 0:
            raise RestoreError(command, words, "".join(fed))


def _refuse_incompatible(program: str, text: str, tables: Iterable[str]) -> None:
    for name in tables:
        if f"# Table `{name}' is incompatible" in text:
            raise KpxError(f"{program}: table {name} holds rules of nft that iptables can't read")


def _start(command: list[str], **streams: Any) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(command, env=_environment(), **streams)
    except OSError as error:
        raise KpxError(f"{command[0]}: {error.strerror}") from error


@contextmanager
def _killing(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[list[bool]]:
    """Kill a process if it is still there after some time; the list then isn't empty."""
    killed: list[bool] = []

    def kill() -> None:
        killed.append(True)
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield killed
    finally:
        timer.cancel()


def _slow_down(pid: int, niceness: int) -> None:
    with suppress(OSError):  # ended already
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, pid) + niceness))


def _program(family: Family) -> str:
    return "iptables" if family is Family.IPV4 else "ip6tables"


def binary(backend: Backend, family: Family, suffix: str = "") -> str | None:
    """The name of the tool to start (`iptables-nft-restore` for the suffix `-restore`); None without one.

    Hosts without the names that tell the backend have plain `iptables`, which says its backend when asked.
    """
    program, path = _program(family), _environment()["PATH"]
    special = f"{program}-{backend}{suffix}"
    if shutil.which(special, path=path):
        return special
    plain = f"{program}{suffix}"
    return plain if shutil.which(plain, path=path) and plain_backend() is backend else None


def _environment() -> dict[str, str]:
    """That of this process, but in English, and with the folders of programs for root, which users lack."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])
    return os.environ | {"LC_ALL": "C", "PATH": path}


@cache
def plain_backend() -> Backend | None:
    """What `iptables -V` calls its backend; None without iptables."""
    try:
        done = subprocess.run(
            ["iptables", "-V"], capture_output=True, text=True, timeout=10, env=_environment(), check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Backend.NFT if "(nf_tables)" in done.stdout else Backend.LEGACY


def legacy_tables(family: Family) -> tuple[str, ...]:
    """The legacy tables that exist in this network namespace. Looking creates none."""
    path = Path("/proc/net/ip_tables_names" if family is Family.IPV4 else "/proc/net/ip6_tables_names")
    try:
        return tuple(path.read_text().split())
    except FileNotFoundError:
        return ()
    except PermissionError as error:
        raise KpxError(f"{path}: only root may read it") from error
