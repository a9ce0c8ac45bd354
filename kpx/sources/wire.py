"""What an API server says on the wire: lists, lines of a watch, refusals (kubernetes.io, "API concepts").

Nothing here believes a server: what it sends is taken only as far as it has the form that it should have, and only as
much of it as an API server would send.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError, from_json

from kpx.api.grammar import DnsSubdomain, OptionalDnsLabel, Unset
from kpx.api.parse import subject_of
from kpx.api.problems import plain, problems
from kpx.sources.body import LONGEST_REFUSAL, read_at_most
from kpx.sources.trouble import BrokenAnswerError, RefusedError, TooLargeError, cut

MOST_VALUES = 200_000
"""Values in one line or one page: `[[],[],…]` would take 24 times its size in memory, and to note what is wrong with
each of them more. Real answers have one in 16 bytes: a page of 500 Services 60,000, a slice of 1,000 endpoints 35,000.
"""

_LONGEST_WAIT = 300.0
_END_OF_INITIAL_EVENTS = "k8s.io/initial-events-end"
_VERSION = re.compile("[0-9]{1,18}")


def _version(value: object) -> int:
    if not isinstance(value, str) or not _VERSION.fullmatch(value):
        raise PydanticCustomError("resource_version", "must be a whole number in a string")
    return int(value)


_Version = Annotated[int, PlainValidator(_version)]
"""resourceVersions of one resource are numbers that grow (from 1.35 on officially, in fact since ever)."""
_Text = Annotated[str, StringConstraints(strict=True)]


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Identity(_Said):
    name: DnsSubdomain
    namespace: Annotated[OptionalDnsLabel, Unset("")] = ""
    version: _Version = Field(alias="resourceVersion")


class _Object(_Said):
    kind: Annotated[_Text, Unset("")] = ""
    metadata: _Identity


class _Progress(_Said):
    version: _Version = Field(alias="resourceVersion")
    annotations: Annotated[dict[str, Any], Unset({})] = Field(default_factory=dict)


class _Bookmark(_Said):
    metadata: _Progress


class _ListMeta(_Said):
    version: _Version = Field(alias="resourceVersion")
    token: Annotated[_Text, Unset("")] = Field("", alias="continue")


class _List(_Said):
    kind: _Text
    metadata: _ListMeta
    items: list[Any] | None


class _Line(_Said):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: dict[str, Any]


class _Status(_Said):
    message: Annotated[_Text, Unset("")] = ""
    code: Annotated[int, Field(strict=True, ge=400, le=599), Unset(500)] = 500


_T = TypeVar("_T", bound=_Said)


def _read(model: type[_T], subject: str, data: object) -> _T:
    """Take data as what it should be. Raises `BrokenAnswerError`, which names the field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise BrokenAnswerError(cut(str(problems(subject, error)[0]))) from None


def _decode(data: bytes, subject: str) -> Any:
    """Decode JSON. Raises `BrokenAnswerError`."""
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > MOST_VALUES:
        raise TooLargeError(f"{subject}: over {MOST_VALUES} values in {len(data)} bytes")
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        start = plain(data[:40].decode(errors="replace"))
        reason = f"is not JSON: {plain(str(error))}; {len(data)} bytes that begin with {start!r}"
        raise BrokenAnswerError(cut(f"{subject}: {reason}")) from None


# Objects.


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it came, and what tells it from others. `namespace` is empty for a Node."""

    namespace: str
    name: str
    version: int
    raw: Mapping[str, Any]

    @classmethod
    def of(cls, kind: str, raw: Any) -> Self:
        """Read an object's identity. Raises `BrokenAnswerError`, which names the field."""
        found = _read(_Object, subject_of(kind, raw), raw)
        if found.kind not in ("", kind):
            raise BrokenAnswerError(f"an object of kind {cut(plain(found.kind))} instead of {kind}")
        metadata = found.metadata
        if bool(metadata.namespace) is (kind == "Node"):
            what = "must not be set" if metadata.namespace else "is required"
            raise BrokenAnswerError(f"{subject_of(kind, raw)}: metadata.namespace: {what}")
        return cls(metadata.namespace, metadata.name, metadata.version, raw)


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list. `version` is that of the whole list, `token` is empty on the last page."""

    kind: str
    items: list[Any]
    version: int
    token: str

    def entries(self) -> Iterator[Entry | BrokenAnswerError]:
        """The objects, and in place of one that has no usable name or version what is wrong with it."""
        for number, item in enumerate(self.items):
            try:
                yield Entry.of(self.kind, item)
            except BrokenAnswerError as error:
                yield BrokenAnswerError(f"items[{number}]: {error}")

    @classmethod
    def of(cls, kind: str, body: bytes) -> Self:
        """Decode the body of a list. Raises `BrokenAnswerError`.

        A list without `items` is none: it would say that everything is gone. (Empty lists of old servers say null.)
        """
        subject = f"{kind}List"
        data = _read(_List, subject, _decode(body, subject))
        if data.kind != subject:
            raise BrokenAnswerError(f"a {cut(plain(data.kind))} instead of a {subject}")
        return cls(kind, data.items or [], data.metadata.version, data.metadata.token)


# Lines of a watch.


@dataclass(frozen=True, slots=True)
class Changed:
    """A line of a watch: an object is there, new or changed."""

    entry: Entry

    @property
    def version(self) -> int:
        """The resourceVersion at which this is so."""
        return self.entry.version


@dataclass(frozen=True, slots=True)
class Deleted:
    """A line of a watch: an object is no more, or no longer one that was asked for."""

    entry: Entry

    @property
    def version(self) -> int:
        """The resourceVersion at which this is so."""
        return self.entry.version


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A line of a watch: so far everything has been said; `initial_end`: everything that there was at first."""

    version: int
    initial_end: bool


def decode_line(kind: str, line: bytes) -> Changed | Deleted | Bookmark:
    """Decode a line of a watch. Raises `RefusedError` for an ERROR, `BrokenAnswerError` for what is no line."""
    said = _read(_Line, f"a line of a watch of {kind}", _decode(line, f"a line of a watch of {kind}"))
    match said.type:
        case "ADDED" | "MODIFIED":
            return Changed(Entry.of(kind, said.object))
        case "DELETED":
            return Deleted(Entry.of(kind, said.object))
        case "BOOKMARK":
            progress = _read(_Bookmark, f"a bookmark of {kind}", said.object).metadata
            return Bookmark(progress.version, progress.annotations.get(_END_OF_INITIAL_EVENTS) == "true")
        case "ERROR":
            status = _read(_Status, "Status", said.object)
            raise RefusedError(status.code, cut(plain(status.message)))


# Refusals.


async def refusal(response: aiohttp.ClientResponse) -> RefusedError:
    """What an answer with a bad status says."""
    body, _ = await read_at_most(response, LONGEST_REFUSAL)
    try:
        message = _read(_Status, "Status", _decode(body, "Status")).message
    except BrokenAnswerError:  # some proxy on the way
        message = f"{response.reason} {body[:200].decode(errors='replace')}"
    if 300 <= response.status < 400:
        message = f"a redirect to {response.headers.get('Location', 'nowhere')[:200]}, which is not followed"
    wait = response.headers.get("Retry-After", "")
    seconds = min(float(wait), _LONGEST_WAIT) if wait.isdecimal() else 0.0
    return RefusedError(response.status, cut(plain(message)), seconds)
