"""The message of a list, taken apart as it comes: it may be as long as all objects together.

How protobuf is laid out: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

from kpx.sources.body import LONGEST_PACKED
from kpx.sources.packed import MAGIC, PackingError, a_list_meta, a_type
from kpx.sources.trouble import TooLargeError

_TYPE, _RAW = 1, 2
_METADATA, _ITEMS = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class ListStream:
    """Gives the items of a list in their own messages, each as soon as it is whole.

    `kind` is known before the first item, `version` and `token` at the end.
    """

    def __init__(self) -> None:
        self.kind = ""
        self.metadata: dict[str, object] = {}
        self._waiting = bytearray()
        self._inside = False
        self._begun = False
        self._left = 0

    @property
    def complete(self) -> bool:
        """Whether all of it has come."""
        return self._inside and self._left == 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The items that this chunk completes; to be used up. Raises `PackingError`, `TooLargeError`."""
        if self.complete:
            return  # what comes behind the list says nothing that counts
        self._waiting += chunk
        at = 0
        if not self._begun:
            if len(self._waiting) < len(MAGIC):
                return
            if not self._waiting.startswith(MAGIC):
                raise PackingError("has no envelope")
            self._begun, at = True, len(MAGIC)
        while not self.complete and (field := _field(self._waiting, at, self._inside)):
            number, wire, start, end = field
            if not self._inside and (number, wire) == (_RAW, _BYTES):
                self._inside, self._left, at = True, end - start, start
                continue
            if end > len(self._waiting):
                break
            content = bytes(self._waiting[start:end])
            if self._inside:
                self._left -= end - at
                if self._left < 0:
                    raise PackingError("ends in the middle of a field")
            at = end
            if not self._inside and number == _TYPE:
                self.kind = a_type(content)
            elif self._inside and (number, wire) == (_METADATA, _BYTES):
                self.metadata = a_list_meta(content)
            elif self._inside and (number, wire) == (_ITEMS, _BYTES):
                yield content
        del self._waiting[:at]


def _field(data: bytearray, at: int, bounded: bool) -> tuple[int, int, int, int] | None:
    """Number, wire type, where the content begins and where it ends, maybe beyond what is there.

    None if not even that has come. Raises `PackingError`, and `TooLargeError` for a content that is too long.
    """
    if (key := _varint(data, at)) is None:
        return None
    number, wire, start = key[0] >> 3, key[0] & 7, key[1]
    match wire:
        case 0:
            value = _varint(data, start)
            return None if value is None else (number, wire, start, value[1])
        case 1 | 5:
            return number, wire, start, start + (8 if wire == _FIXED64 else 4)
        case 2:
            if (length := _varint(data, start)) is None:
                return None
            if length[0] > LONGEST_PACKED and (bounded or number != _RAW):
                raise TooLargeError(f"an object of {length[0]} bytes")
            return number, wire, length[1], length[1] + length[0]
        case _:
            raise PackingError("is no list in protobuf")


def _varint(data: bytearray, at: int) -> tuple[int, int] | None:
    """A number and where it ends; None if it isn't whole."""
    value = 0
    for index in range(_LONGEST_VARINT):
        if at + index >= len(data):
            return None
        byte = data[at + index]
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise PackingError("is no list in protobuf")
