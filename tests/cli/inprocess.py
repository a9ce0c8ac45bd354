"""Commands without a process for each: many can be tried in a second."""

import gc
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from kpx.cli import main


@dataclass(frozen=True, slots=True)
class Done:
    """What a command printed, what it complained of, and its exit status."""

    stdout: str
    complaint: str
    status: int


def run(*arguments: str, stdin: bytes = b"") -> Done:
    """Run `kpx ARGUMENTS`. What isn't meant for users to see, such as a traceback, is raised."""
    out, complaint = _stream(), _stream(errors="backslashreplace")
    status: object = 0
    with _as_program(arguments, stdin), redirect_stdout(out), redirect_stderr(complaint):
        try:
            main()
        except SystemExit as error:
            status = error.code or 0
    assert isinstance(status, int)
    return Done(_text(out), _text(complaint), status)


@contextmanager
def _as_program(arguments: tuple[str, ...], stdin: bytes) -> Iterator[None]:
    """`main` for one process each: it takes arguments from `sys`, and leaves no garbage to look for."""
    collecting = gc.isenabled()
    with mock.patch.object(sys, "argv", ["kpx", *arguments]), mock.patch.object(sys, "stdin", _stream(stdin)):
        try:
            yield
        finally:
            if collecting:
                gc.enable()


def _stream(data: bytes = b"", errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors=errors, newline="")


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
