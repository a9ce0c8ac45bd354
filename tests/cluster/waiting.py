"""Waiting for something to become so, and saying what was seen if it doesn't."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NotSeenError(Exception):
    """What a line of the table claims wasn't seen; the message says what was."""


def eventually(what: str, question: Callable[[], T], *, seconds: float = 300, pause: float = 0.5) -> T:
    """Ask until the answer is true, and return it. Raises NotSeenError with the last answer or error."""
    end, last = time.monotonic() + seconds, ""
    while True:
        try:
            if answer := question():
                return answer
            last = str(answer)
        except (OSError, ValueError, KeyError, NotSeenError) as error:
            last = f"{type(error).__name__}: {error}"
        if time.monotonic() > end:
            raise NotSeenError(f"not within {seconds:.0f} s: {what}; last: {last[-1500:]}")
        time.sleep(pause)


def demand(truth: object, said: object) -> None:
    """Raise NotSeenError unless it is true."""
    if not truth:
        raise NotSeenError(str(said))
