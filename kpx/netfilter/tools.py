"""The iptables processes. Nothing else in kpx starts one."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.backends import Backend as Backend
from kpx.netfilter.process import Patience, slow_down, start
from kpx.netfilter.refusal import ToolError, UnconfirmedError, reason_of, refusal

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

START, PER_LINE = 20.0, 0.001
"""Seconds: what a restore may take at least, and for each line. It takes 0.2 and 0.00003 on nft, 1.2 s in all on
legacy, in a table of 170,000 rules on an idle machine."""


Recording = Callable[[Family], AbstractContextManager[Callable[[int], None]]]
"""Makes a context to run a restore in; what it yields takes the pid of the process."""


@dataclass(frozen=True, slots=True)
class Tools:
    """iptables of one backend and family, in the network namespace of this process.

    `wait` is how many seconds to wait for the legacy backend's lock, `timeout` how many a process may take that reads.
    One that writes may take `START` seconds, and `PER_LINE` more for each line that it is given. `recording`, if
    given, surrounds each restore and is told the pid of its process. Every method raises KpxError if the binary is
    missing, fails or takes too long.
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
            start(command, _environment(), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process,
            Patience(process, self.timeout) as patience,
        ):
            slow_down(process, niceness)
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
        patience.check(command)
        if process.returncode != 0:
            raise KpxError(f"{' '.join(command)}: {reason_of(said)}")

    def save_unless(self, disturbed: Callable[[], bool], niceness: int = 0) -> str | None:
        """As `save` of all tables; None, and the process is killed, once `disturbed` says so before it prints.

        It is asked ten times a second. The nft tools read everything before they print, and start over when others
        commit meanwhile: from the first byte on nothing can disturb them any more.
        """
        command, pipe = [self._binary("-save")], subprocess.PIPE
        with open(os.memfd_create("saved"), "w+b") as saved:
            with (
                start(command, _environment(), stdin=subprocess.DEVNULL, stdout=saved, stderr=pipe) as process,
                Patience(process, self.timeout) as patience,
            ):
                slow_down(process, niceness)
                assert process.stderr is not None
                while not os.fstat(saved.fileno()).st_size and process.poll() is None:
                    if disturbed():
                        process.kill()
                        return None
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(0.1)
                said = process.stderr.read()
            patience.check(command)
            if process.returncode != 0:
                raise KpxError(f"{' '.join(command)}: {reason_of(said.decode(errors='replace'))}")
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
        with (
            start(command, _environment(), stdin=pipe, stdout=pipe, stderr=pipe) as process,
            Patience(process, self.timeout) as patience,
        ):
            slow_down(process, niceness)
            printed, said = process.communicate(payload.encode(errors="surrogateescape"))
        patience.check(command)
        why = reason_of(said.decode(errors="replace")) if process.returncode else ""
        if process.returncode < 0:
            raise ToolError(f"{' '.join(command)}: {why}")
        return printed.decode(errors="surrogateescape"), why

    def restore(self, payload: str | Iterable[str]) -> None:
        """Feed a payload to `iptables-restore --noflush`; one in pieces while it is being made, piece by piece.

        Raises RestoreError if the tool refuses it, ToolError if it can't work. That it says nothing doesn't mean that
        the kernel has it: `kpx.netfilter.confirmed` finds out.
        """
        command = [self._binary("-restore"), "--noflush", "-w", str(self.wait)]
        with self.recording(self.family) if self.recording else nullcontext() as started:
            self._feed(command, (payload,) if isinstance(payload, str) else payload, started)

    @property
    def program(self) -> str:
        """What the tools are called, without the ending that tells what they do: `ip6tables-nft`."""
        return f"{_program(self.family)}-{self.backend}"

    def version(self) -> str:
        """The version, as `1.8.9`."""
        return self._ask([self._binary(""), "-V"]).split()[1].removeprefix("v")

    def knows_match(self, module: str) -> bool:
        """Whether the tool has its part of a match; the kernel isn't asked."""
        try:
            self._ask([self._binary(""), "-m", module, "--help"])
        except ToolError:
            raise
        except KpxError:
            return False
        return True

    def _binary(self, suffix: str) -> str:
        found = binary(self.backend, self.family, suffix)
        if found is None:
            name = f"{self.program}{suffix}"
            raise KpxError(f"{name} not found: install the package iptables (Debian, Ubuntu) or set PATH")
        return found

    def _ask(self, command: list[str], niceness: int = 0) -> str:
        """What a command prints."""
        pipe = subprocess.PIPE
        with (
            start(command, _environment(), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process,
            Patience(process, self.timeout) as patience,
        ):
            slow_down(process, niceness)
            stdout, stderr = process.communicate()
        patience.check(command)
        if process.returncode != 0:
            raise KpxError(f"{' '.join(command)}: {reason_of(stderr.decode(errors='replace'))}")
        return stdout.decode(errors="surrogateescape")

    def _feed(self, command: list[str], pieces: Iterable[str], started: Callable[[int], None] | None) -> None:
        """Write pieces to a command as they come. What it says goes to memory, so that it never waits for us."""
        fed: list[str] = []
        unread = False
        with (
            open(os.memfd_create("said"), "w+b") as said,
            start(command, _environment(), stdin=subprocess.PIPE, stdout=said, stderr=said) as process,
        ):
            if started:
                started(process.pid)
            with Patience(process, min(self.timeout, START)) as patience:
                assert process.stdin is not None
                try:
                    with process.stdin as sink:
                        for piece in patience.between(pieces):
                            fed.append(piece)
                            patience.extend(piece.count("\n") * PER_LINE)
                            sink.write(piece.encode(errors="surrogateescape"))
                except BrokenPipeError:
                    unread = True
                process.wait()
            said.seek(0)
            words = said.read().decode(errors="replace")
        patience.check(command)
        if process.returncode != 0:
            raise refusal(command, process.returncode, words, "".join(fed))
        if unread:
            raise UnconfirmedError(" ".join(command), ["it did not read all that it was sent"])


def _refuse_incompatible(program: str, text: str, tables: Iterable[str]) -> None:
    for name in tables:
        if f"# Table `{name}' is incompatible" in text:
            raise KpxError(f"{program}: table {name} holds rules of nft that iptables can't read")


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
