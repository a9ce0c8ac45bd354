"""Child processes: how they start, and how long anybody waits for them."""

import os
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from kpx.errors import KpxError
from kpx.netfilter.refusal import ToolError


def start(command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> "subprocess.Popen[bytes]":
    """Start a command. Raises KpxError if that fails: ToolError if for want of memory, processes or files."""
    try:
        return subprocess.Popen(command, env=environment, **streams)
    except FileNotFoundError as error:
        raise KpxError(f"{command[0]}: {error.strerror}") from error
    except OSError as error:
        raise ToolError(f"{command[0]}: {error.strerror}") from error


def slow_down(process: "subprocess.Popen[bytes]", niceness: int) -> None:
    """Add to the niceness of a process, up to 19."""
    if niceness:
        with suppress(OSError):  # ended already
            now = os.getpriority(os.PRIO_PROCESS, process.pid)
            os.setpriority(os.PRIO_PROCESS, process.pid, min(19, now + niceness))


class Patience:
    """Kills a process that takes longer than it should: so many seconds, and more as it gets more to do.

    Time that the process waits for us doesn't count.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        self.seconds = seconds
        self.ended = False
        self._process = process
        self._changed = threading.Condition()
        self._deadline: float | None = time.monotonic() + seconds
        self._over = False
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def extend(self, seconds: float) -> None:
        """It may take so much longer."""
        with self._changed:
            self.seconds += seconds
            if self._deadline is not None:
                self._deadline += seconds
            self._changed.notify()

    def between(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same pieces; while the next one is being made, time stands still."""
        source = iter(pieces)
        while True:
            left = self._pause()
            piece = next(source, None)
            self._resume(left)
            if piece is None:
                return
            yield piece

    def check(self, command: Sequence[str]) -> None:
        """Raise ToolError if the process was killed."""
        if self.ended:
            raise ToolError(f"{' '.join(command)}: no answer after {round(self.seconds, 1):g} s")

    def _pause(self) -> float:
        with self._changed:
            left = 0.0 if self._deadline is None else self._deadline - time.monotonic()
            self._deadline = None
            self._changed.notify()
            return left

    def _resume(self, left: float) -> None:
        with self._changed:
            self._deadline = time.monotonic() + left
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    self.ended = True
                    self._process.kill()
                    return
                self._changed.wait(left)

    def __enter__(self) -> Self:
        self._watching.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
