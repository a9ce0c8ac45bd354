"""What an API server says on the wire: lists, lines of a watch, refusals (kubernetes.io, "API concepts")."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from pydantic_core import from_json

from kpx.api.problems import plain
from kpx.errors import KpxError

LONGEST_LINE = 64 << 20
"""Bytes beyond which a line of a watch is nonsense: etcd takes objects of 1.5 MB unless told otherwise."""

_LONGEST_WAIT = 300.0
_END_OF_INITIAL_EVENTS = "k8s.io/initial-events-end"


class BrokenAnswerError(Exception):
    """The server sent what no API server sends."""


class RefusedError(Exception):
    """The server said no. `status` is an HTTP status, `retry_after` the seconds it asked to wait, else 0."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @classmethod
    async def of(cls, response: aiohttp.ClientResponse) -> Self:
        """The refusal that an answer with a bad status is."""
        body = await response.read()
        try:
            message = str(from_json(body)["message"])
        except (ValueError, KeyError, TypeError):  # some proxy on the way
            message = f"{response.reason} {body[:200].decode(errors='replace')}"
        wait = response.headers.get("Retry-After", "")
        return cls(response.status, plain(message), min(float(wait), _LONGEST_WAIT) if wait.isdecimal() else 0.0)


class Splitter:
    """Cuts a stream of bytes into its lines, however it comes in."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes, without their ends. Raises `BrokenAnswerError`."""
        head, *rest = chunk.split(b"\n")
        self._pieces.append(head)
        self._length += len(head)
        lines = []
        for piece in rest:
            lines.append(b"".join(self._pieces))
            self._pieces, self._length = [piece], len(piece)
        if self._length > LONGEST_LINE:
            raise BrokenAnswerError(f"a line of over {LONGEST_LINE} bytes")
        return lines


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it came, and what tells it from others. `namespace` is empty for a Node."""

    namespace: str
    name: str
    version: int
    raw: Mapping[str, Any]

    @classmethod
    def of(cls, raw: Any) -> Self:
        """Read an object's identity. Raises `BrokenAnswerError`.

        resourceVersions of one resource are numbers that grow (from 1.35 on officially, in fact since ever).
        """
        try:
            metadata = raw["metadata"]
            return cls(metadata.get("namespace") or "", metadata["name"], int(metadata["resourceVersion"]), raw)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BrokenAnswerError("an object without name or resourceVersion") from None


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list. `version` is that of the whole list, `token` is empty on the last page."""

    items: list[Any]
    version: int
    token: str

    def entries(self) -> Iterator["Entry"]:
        """The objects. Raises `BrokenAnswerError` at one that is none."""
        return map(Entry.of, self.items)

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Decode the body of a list. Raises `BrokenAnswerError`."""
        try:
            data = from_json(body)
            metadata = data["metadata"]
            return cls(data.get("items") or [], int(metadata["resourceVersion"]), metadata.get("continue") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BrokenAnswerError(f"a list that is none, of {len(body)} bytes") from None


@dataclass(frozen=True, slots=True)
class Changed:
    """A line of a watch: an object is there, new or changed."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Deleted:
    """A line of a watch: an object is no more, or no longer one that was asked for."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A line of a watch: so far everything has been said; `initial_end`: everything that there was at first."""

    version: int
    initial_end: bool


def decode_line(line: bytes) -> Changed | Deleted | Bookmark:
    """Decode a line of a watch. Raises `RefusedError` for an ERROR, `BrokenAnswerError` for what is no line."""
    try:
        data = from_json(line)
        kind, raw = data["type"], data["object"]
        match kind:
            case "ADDED" | "MODIFIED":
                return Changed(Entry.of(raw))
            case "DELETED":
                return Deleted(Entry.of(raw))
            case "BOOKMARK":
                metadata = raw["metadata"]
                annotations = metadata.get("annotations") or {}
                return Bookmark(int(metadata["resourceVersion"]), annotations.get(_END_OF_INITIAL_EVENTS) == "true")
            case "ERROR":
                raise RefusedError(int(raw.get("code") or 500), plain(str(raw.get("message"))))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise BrokenAnswerError(f"a line that is none, of {len(line)} bytes: {plain(line[:40].decode(errors='replace'))}")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a connection was of no more use. `reason` is one of a few words, for metrics; `detail` is for people."""

    reason: str
    detail: str = ""
    retry_after: float = 0.0


def diagnose(error: Exception) -> Trouble:
    """What kind of trouble an error is; raises it again if it is none that a connection may have."""
    match error:
        case RefusedError():
            return Trouble(_refusal(error.status), f"{error.status}: {error}", error.retry_after)
        case BrokenAnswerError():
            return Trouble("garbage", str(error))
        case KpxError():
            return Trouble("credentials", str(error))
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return Trouble("unreachable", str(error))
        case TimeoutError():
            return Trouble("timeout", "no answer in time")
        case aiohttp.ClientPayloadError():
            return Trouble("dropped", "in the middle of an answer")
        case aiohttp.ClientError() | OSError():
            return Trouble("dropped", str(error) or type(error).__name__)
        case _:
            raise error


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
