"""Bytes from files, never more than we can hold, and never waiting for what may not come."""

import os
import stat
from typing import BinaryIO

LONGEST_FILE = 512 << 20
"""Bytes of one file, pipe or standard input beyond which it is refused.

As `kubectl get -o yaml` prints them, 50,000 Services and their EndpointSlices of two endpoints take about half of it.
"""

_PIECE = 1 << 20


class UnfitFileError(ValueError):
    """Not a file to read objects from; the message says why, without its name."""


def read_named(path: str, limit: int = LONGEST_FILE) -> bytes:
    """A file that somebody has named: a regular one, or a pipe, as a shell's `<(…)` makes one.

    Raises OSError or `UnfitFileError`: for a device or a socket, and for more than `limit` bytes, of a regular file
    before any of them is read.
    """
    if stat.S_ISFIFO(os.stat(path).st_mode):
        with open(path, "rb", buffering=0) as pipe:  # waits for a writer, as whoever has named it wants
            return read_stream(pipe, limit)
    return read_regular(path, limit)


def read_regular(path: str, limit: int = LONGEST_FILE) -> bytes:
    """A regular file, perhaps through links. Raises OSError or `UnfitFileError`.

    What is no regular file isn't opened: that alone may wait without end, or make a device do something. If it becomes
    such a thing after we have looked, opening doesn't wait.
    """
    _check(os.stat(path), limit)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        _check(status, limit)
        return read_stream(file, limit, status.st_size + 1)


def read_stream(stream: BinaryIO, limit: int = LONGEST_FILE, guess: int = _PIECE) -> bytes:
    """Everything up to the end of a stream, of which `guess` bytes are asked for first.

    Raises OSError, or `UnfitFileError` as soon as it is more than `limit` bytes.
    """
    pieces: list[bytes] = []
    size = 0
    while piece := stream.read(min(guess if not pieces else _PIECE, limit + 1 - size)):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise UnfitFileError(_too_large(limit))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _check(status: os.stat_result, limit: int) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise UnfitFileError("is a directory")
    if not stat.S_ISREG(mode):
        raise UnfitFileError("is no regular file")
    if status.st_size > limit:
        raise UnfitFileError(f"{_too_large(limit)}: it has {status.st_size} bytes")


def _too_large(limit: int) -> str:
    return f"is too large, at most {limit >> 20} MiB are read" if limit >> 20 else f"has over {limit} bytes"
