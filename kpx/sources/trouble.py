"""Why a connection to an API server was of no more use, and how long to wait after that."""

import random
import ssl
from dataclasses import dataclass

import aiohttp

from kpx.errors import KpxError


class BrokenAnswerError(Exception):
    """The server sent what no API server sends."""


class TooLargeError(BrokenAnswerError):
    """The server sent more than we take."""


class RewoundError(Exception):
    """The server's resourceVersions have gone back: it remembers another past than we do."""


class StalledError(Exception):
    """The server says nothing any more, and doesn't answer when it is asked whether it is there."""


class UnreachableError(OSError):
    """There is no connection to be had."""


class RefusedError(Exception):
    """The server said no. `status` is an HTTP status, `retry_after` the seconds it asked to wait, else 0."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


TROUBLE = (RefusedError, BrokenAnswerError, RewoundError, StalledError, KpxError, aiohttp.ClientError, OSError)
"""What `diagnose` knows."""

QUIET = ("ended", "stalled")
"""Reasons that are nobody's fault, as far as we know."""

_LONGEST_TEXT = 500

PASSING = ("throttled", "failed", "dropped", "unreachable", "timeout", "unauthorized")
"""Reasons that may be over with the next request."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a connection was of no more use. `reason` is one of a few words, for metrics; `detail` is for people.

    `everywhere`: whether it may have happened to thousands of agents at this moment.
    """

    reason: str
    detail: str = ""
    retry_after: float = 0.0
    everywhere: bool = False


def diagnose(error: Exception) -> Trouble:
    """What kind of trouble an error is; raises it again if it is none that a connection may have."""
    match error:
        case RefusedError():
            return Trouble(_refusal(error.status), f"{error.status}: {error}", error.retry_after)
        case BrokenAnswerError():
            return Trouble("garbage", str(error))
        case RewoundError():
            return Trouble("rewound", "the server's resourceVersions have gone back")
        case KpxError():
            return Trouble("credentials", str(error))
        case StalledError():
            return Trouble("stalled", str(error))
        case UnreachableError() | ssl.SSLError() | aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return Trouble("unreachable", str(error))
        case TimeoutError():
            return Trouble("timeout", "no answer in time")
        case aiohttp.ClientPayloadError():
            return Trouble("dropped", "in the middle of an answer")
        case aiohttp.ClientError() | OSError():
            return Trouble("dropped", str(error) or type(error).__name__)
        case _:
            raise error


def cut(text: str) -> str:
    """What somebody else has said, short enough for a log."""
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _refusal(status: int) -> str:
    match status:
        case 401:
            return "unauthorized"
        case 403:
            return "forbidden"
        case 410:
            return "expired"
        case 429:
            return "throttled"
        case _:
            return "failed" if status >= 500 else "refused"


class Backoff:
    """How long to wait before the next attempt: twice as long with every failure in a row, at random below that.

    What a server forbids isn't asked for more slowly: one that has just started forbids everything until it has read
    its roles. 410 is counted by itself: a server that was restarted says it, the failures before it are over, and it
    is time for a census; but each of them costs a census, so one that is told 410 again soon is slower every time.
    """

    SHORT = 1.0
    """A watch that ends sooner, in seconds, is no success, whatever it brought."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._failures = 0
        self._expiries = 0
        self._smooth = False

    @property
    def failures(self) -> int:
        """How many attempts in a row have failed; may be set to what it was before some that didn't matter."""
        return self._failures

    @failures.setter
    def failures(self, count: int) -> None:
        self._failures = count

    def news(self) -> None:
        """A watch has brought something that wasn't known: what failed before is over."""
        self._failures = 0

    def lasted(self, seconds: float) -> None:
        """A watch has come to its end, or was in use, after so many seconds."""
        self._smooth = seconds > self.SHORT
        if self._smooth:
            self._failures = 0
        if seconds > max(self.SHORT, self._longest):
            self._expiries = 0

    def delay(self, trouble: Trouble) -> float:
        """Seconds to wait; none after a watch that was long enough, and came to a quiet end of its own."""
        smooth, self._smooth = self._smooth, False
        if smooth and trouble.reason in QUIET:
            return random.uniform(0, self._first) if trouble.everywhere else 0.0
        if trouble.reason == "expired":
            before, self._expiries = self._expiries, self._expiries + 1
        else:
            before, self._failures = self._failures, self._failures + 1
        return trouble.retry_after + random.uniform(0, min(self._first * 2.0 ** min(before, 30), self._longest))
