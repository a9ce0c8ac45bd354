"""Signals that come while the program still imports, for half a second: they are kept until somebody asks.

Python's own answer to SIGHUP and SIGUSR1 is to end.
"""

import signal
import sys
from collections.abc import Sequence
from types import FrameType

_KEPT = (signal.SIGHUP, signal.SIGUSR1)
_arrived: list[int] = []


def listen(arguments: Sequence[str]) -> None:
    """Keep signals from now on, if the command line is one of an agent: SIGTERM ends it at once."""
    if "run" in arguments:
        for number in _KEPT:
            signal.signal(number, _keep)
        signal.signal(signal.SIGTERM, _end)


def arrived(number: signal.Signals) -> bool:
    """Whether this signal has come since it was last asked about."""
    found = number in _arrived
    while number in _arrived:
        _arrived.remove(number)
    return found


def _keep(number: int, _: FrameType | None) -> None:
    _arrived.append(number)


def _end(_: int, __: FrameType | None) -> None:
    sys.exit(0)
