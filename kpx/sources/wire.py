"""What an API server says on the wire: lists, events of a watch, refusals (kubernetes.io, "API concepts").

In JSON or in protobuf, whichever the answer says it is; the same is made of both. Nothing here believes a server: what
it sends is taken only as far as it has the form that it should have, and only as much of it as an API server would
send.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError, from_json

from kpx.api.grammar import DNS_LABEL, SUBDOMAIN, DnsSubdomain, OptionalDnsLabel, Unset
from kpx.api.parse import subject_of
from kpx.api.problems import plain, problems
from kpx.errors import InputError, Problem
from kpx.sources import packed
from kpx.sources.answer import Answer
from kpx.sources.body import LONGEST, LONGEST_REFUSAL, FrameSplitter, LineSplitter, Splitter, read_at_most
from kpx.sources.liststream import ListStream
from kpx.sources.packed import PackingError
from kpx.sources.trouble import BrokenAnswerError, RefusedError, TooLargeError, cut

MOST_VALUES = 200_000
"""Values in one line or one page: `[[],[],…]` would take 24 times its size in memory, and to note what is wrong with
each of them more. Real answers have one in 16 bytes: a page of 500 Services 60,000, a slice of 1,000 endpoints 35,000.
"""

_LONGEST_WAIT = 300.0
_LONGEST_LABEL, _LONGEST_NAME = 63, 253
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
class Packed:
    """An object that is still in protobuf."""

    kind: str
    data: bytes

    def unpacked(self) -> Mapping[str, Any]:
        """What JSON would have said. Raises `InputError`."""
        try:
            return packed.an_object(self.kind, self.data)
        except PackingError as error:
            subject = subject_of(self.kind, {"metadata": packed.an_identity(self.data)})
            raise InputError([Problem(subject, str(error))]) from None


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it came, and what tells it from others. `namespace` is empty for a Node."""

    namespace: str
    name: str
    version: int
    raw: Mapping[str, Any] | Packed

    @classmethod
    def of(cls, kind: str, raw: Any) -> Self:
        """Read the identity of an object that came in JSON. Raises `BrokenAnswerError`, which names the field."""
        return cls._of(kind, raw, raw)

    @classmethod
    def packed(cls, kind: str, data: bytes, said: str = "") -> Self:
        """Read the identity of an object that came in protobuf, said to be of some kind. Raises `BrokenAnswerError`."""
        try:
            identity = {"metadata": packed.an_identity(data), "kind": said}
        except PackingError as error:
            raise BrokenAnswerError(f"{kind}: {error}") from None
        return cls._of(kind, identity, Packed(kind, data))

    @classmethod
    def _of(cls, kind: str, identity: Any, raw: Mapping[str, Any] | Packed) -> Self:
        if sound := _sound(kind, identity):
            return cls(*sound, raw)
        found = _read(_Object, subject_of(kind, identity), identity)
        if found.kind not in ("", kind):
            raise BrokenAnswerError(f"an object of kind {cut(plain(found.kind))} instead of {kind}")
        metadata = found.metadata
        if bool(metadata.namespace) is (kind == "Node"):
            what = "must not be set" if metadata.namespace else "is required"
            raise BrokenAnswerError(f"{subject_of(kind, identity)}: metadata.namespace: {what}")
        return cls(metadata.namespace, metadata.name, metadata.version, raw)

    def content(self) -> Mapping[str, Any]:
        """The whole object. Raises `InputError`."""
        return self.raw.unpacked() if isinstance(self.raw, Packed) else self.raw


def _sound(kind: str, identity: Any) -> tuple[str, str, int] | None:
    """Namespace, name and version at a glance, None where a closer look is due: nearly all objects are as they should.

    Takes nothing that `_Object` wouldn't take.
    """
    metadata = identity.get("metadata") if type(identity) is dict else None
    if type(metadata) is not dict or identity.get("kind", "") not in ("", kind):
        return None
    namespace, name, version = metadata.get("namespace", ""), metadata.get("name"), metadata.get("resourceVersion")
    if (
        type(namespace) is str
        and type(name) is str
        and type(version) is str
        and len(name) <= _LONGEST_NAME
        and len(namespace) <= _LONGEST_LABEL
        and SUBDOMAIN.fullmatch(name)
        and (not namespace if kind == "Node" else DNS_LABEL.fullmatch(namespace))
        and _VERSION.fullmatch(version)
    ):
        return namespace, name, int(version)
    return None


# Lists.

Item = Entry | BrokenAnswerError
"""An object of a list, or in place of one that has no usable name or version what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a list, or a part of one, says of itself. `version` is that of the whole, `token` is empty at its end."""

    version: int
    token: str


class ListReader(Protocol):
    """Reads the body of a list as it comes. A list of another kind, or without `items`, is none."""

    def feed(self, chunk: bytes) -> Iterator[Item]:
        """The objects that this chunk completes; to be used up. Raises `BrokenAnswerError`."""

    def rest(self) -> Iterator[Item]:
        """The objects that only the end completes; to be used up. Raises `BrokenAnswerError`."""

    def page(self) -> Page:
        """What it says of itself; once all objects have been given. Raises `BrokenAnswerError`."""


class _JsonList:
    """JSON has to be there whole. (Empty lists of old servers have null for `items`.)"""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._subject = f"{kind}List"
        self._pieces: list[bytes] = []
        self._size = 0
        self._page: Page | None = None

    def feed(self, chunk: bytes) -> Iterator[Item]:
        """See `ListReader`."""
        self._pieces.append(chunk)
        self._size += len(chunk)
        if self._size > LONGEST:
            self._pieces.clear()
            raise TooLargeError(f"a page of over {LONGEST} bytes")
        return iter(())

    def rest(self) -> Iterator[Item]:
        """See `ListReader`."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        said = _read(_List, self._subject, _decode(body, self._subject))
        _check_kind(said.kind, self._subject)
        self._page = Page(said.metadata.version, said.metadata.token)
        for number, item in enumerate(said.items or ()):
            try:
                yield Entry.of(self._kind, item)
            except BrokenAnswerError as error:
                yield BrokenAnswerError(f"items[{number}]: {error}")

    def page(self) -> Page:
        """See `ListReader`."""
        assert self._page is not None, "read to its end"
        return self._page


class _PackedList:
    """In protobuf no more than an object has to be there."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._subject = f"{kind}List"
        self._stream = ListStream()
        self._count = 0

    def feed(self, chunk: bytes) -> Iterator[Item]:
        """See `ListReader`."""
        try:
            for data in self._stream.feed(chunk):
                if not self._count:
                    _check_kind(self._stream.kind, self._subject)
                yield self._entry(data)
                self._count += 1
        except PackingError as error:
            raise BrokenAnswerError(f"{self._subject}: {error}") from None

    def rest(self) -> Iterator[Item]:
        """See `ListReader`."""
        return iter(())

    def page(self) -> Page:
        """See `ListReader`."""
        if not self._stream.complete:
            raise BrokenAnswerError(f"{self._subject}: ends before its end")
        _check_kind(self._stream.kind, self._subject)
        found = _read(_ListMeta, self._subject, self._stream.metadata)
        return Page(found.version, found.token)

    def _entry(self, data: bytes) -> Item:
        try:
            return Entry.packed(self._kind, data)
        except BrokenAnswerError as error:
            return BrokenAnswerError(f"items[{self._count}]: {error}")


def _check_kind(said: str, wanted: str) -> None:
    if said != wanted:
        raise BrokenAnswerError(f"a {cut(plain(str(said)))} instead of a {wanted}")


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


Said = Changed | Deleted | Bookmark


def decode_line(kind: str, line: bytes) -> Said:
    """Decode a line of a watch. Raises `RefusedError` for an ERROR, `BrokenAnswerError` for what is no line."""
    said = _read(_Line, f"a line of a watch of {kind}", _decode(line, f"a line of a watch of {kind}"))
    match said.type:
        case "ADDED" | "MODIFIED":
            return Changed(Entry.of(kind, said.object))
        case "DELETED":
            return Deleted(Entry.of(kind, said.object))
        case "BOOKMARK":
            return _bookmark(kind, said.object)
        case "ERROR":
            raise _error(said.object)


def decode_frame(kind: str, frame: bytes) -> Said:
    """Decode a frame of a watch in protobuf. Raises as `decode_line` does."""
    subject = f"a line of a watch of {kind}"
    try:
        event_type, data = packed.an_event(frame)
        said, content = packed.unwrap(data)
        match event_type:
            case "ADDED" | "MODIFIED":
                return Changed(Entry.packed(kind, content, said))
            case "DELETED":
                return Deleted(Entry.packed(kind, content, said))
            case "BOOKMARK":
                return _bookmark(kind, {"metadata": packed.a_progress(content)})
            case "ERROR":
                raise _error(packed.a_status(content))
    except PackingError as error:
        raise BrokenAnswerError(f"{subject}: {error}") from None
    _read(_Line, subject, {"type": event_type, "object": {}})  # says what a type must be
    raise BrokenAnswerError(f"{subject}: type: makes no sense")


def _bookmark(kind: str, content: object) -> Bookmark:
    progress = _read(_Bookmark, f"a bookmark of {kind}", content).metadata
    return Bookmark(progress.version, progress.annotations.get(_END_OF_INITIAL_EVENTS) == "true")


def _error(content: object) -> RefusedError:
    status = _read(_Status, "Status", content)
    return RefusedError(status.code, cut(plain(status.message)))


# Encodings.


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a server spells what it says. `wish` is what to ask for with a list, `stream` with a watch."""

    media_type: str
    wish: str
    stream: str
    splitter: Callable[[], Splitter]
    event: Callable[[str, bytes], Said]
    reader: Callable[[str], ListReader]


JSON = Encoding("application/json", "application/json", "application/json", LineSplitter, decode_line, _JsonList)
_PACKED = "application/vnd.kubernetes.protobuf"
PROTOBUF = Encoding(
    _PACKED,
    f"{_PACKED},application/json;q=0.9",
    f"{_PACKED};stream=watch,application/json;q=0.9",
    FrameSplitter,
    decode_frame,
    _PackedList,
)
_ENCODINGS = {encoding.media_type: encoding for encoding in (JSON, PROTOBUF)}


def encoding_of(answer: Answer) -> Encoding:
    """How an answer is spelled, by what it says. Raises `BrokenAnswerError` where that is nothing we ask for."""
    encoding = _ENCODINGS.get(answer.media_type)
    if encoding is None:
        said = cut(plain(answer.media_type))
        raise BrokenAnswerError(f"content type {said} instead of {' or '.join(sorted(_ENCODINGS))}")
    return encoding


# Refusals.


async def refusal(answer: Answer) -> RefusedError:
    """What an answer with a bad status says."""
    body, _ = await read_at_most(answer, LONGEST_REFUSAL)
    try:
        message = _read(_Status, "Status", _status(answer, body)).message
    except BrokenAnswerError:  # some proxy on the way
        message = f"{answer.reason} {body[:200].decode(errors='replace')}"
    if 300 <= answer.status < 400:
        message = f"a redirect to {answer.headers.get('location', 'nowhere')[:200]}, which is not followed"
    wait = answer.headers.get("retry-after", "")
    seconds = min(float(wait), _LONGEST_WAIT) if wait.isdecimal() else 0.0
    return RefusedError(answer.status, cut(plain(message)), seconds)


def _status(answer: Answer, body: bytes) -> object:
    if answer.media_type != PROTOBUF.media_type:
        return _decode(body, "Status")
    try:
        return packed.a_status(packed.unwrap(body)[1])
    except PackingError as error:
        raise BrokenAnswerError(f"Status: {error}") from None
