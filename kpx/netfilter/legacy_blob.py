"""A legacy table as the kernel hands it out, in one piece: the bytes of chains, without translating any rule.

`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`, `linux/netfilter/x_tables.h`: a table is a
sequence of entries. A chain that somebody made is a head, an entry whose target is called ERROR and bears the chain's
name, then its rules, and an entry for the return at its end. Built-in chains have no head; the kernel tells where they
start, and where their policy stands. A jump holds the position of the first rule of its chain. libiptc writes chains in
the order of their names, so that one is found without a walk through all of them.
"""

import ctypes
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Final

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.tools import legacy_tables

_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32s52x")
_INFO_NUMBERS = struct.Struct("=I5I5III")
"""Valid hooks, where each built-in chain starts, where its policy stands; number of entries, size of all."""
_ENTRIES_HEAD = 40
"""Bytes of `ipt_get_entries` before the first entry."""
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_HEAD = re.compile(rb"ERROR\0{25}([^\0]{1,29})\0")
_TARGET = struct.Struct("=H29sB")
_VERDICT = struct.Struct("=i")
_OFFSETS = struct.Struct("=HH")
_libc: Final = ctypes.CDLL(None, use_errno=True)

RuleDigests = tuple[int, ...]
"""A number for each rule of a chain, in order: the same for the same rule, as long as this process lives."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A family's sockets, and where things stand in its entries: the offsets of target and next entry, matches.

    `kept` are the parts of an entry's head that belong to the rule: the rest is the kernel's, or counts packets.
    """

    kind: int
    level: int
    offsets: int
    elements: int
    kept: tuple[tuple[int, int], ...]


_SHAPES = {
    Family.IPV4: _Shape(socket.AF_INET, socket.IPPROTO_IP, 88, 112, ((0, 84), (88, 92))),
    Family.IPV6: _Shape(socket.AF_INET6, socket.IPPROTO_IPV6, 140, 168, ((0, 136), (140, 144))),
}


class Blob:
    """One table at one moment."""

    def __init__(self, family: Family, info: bytes, data: memoryview) -> None:
        self._shape, self._data = _SHAPES[family], data
        valid, *positions = _INFO_NUMBERS.unpack(info)[:11]
        self._built_in = {
            name: (positions[hook], positions[5 + hook]) for hook, name in enumerate(_HOOKS) if valid >> hook & 1
        }

    def digests(self, chain: str) -> RuleDigests | None:
        """A number for each rule of a chain; None if there is no such chain."""
        if chain in self._built_in:
            start, end = self._built_in[chain]
            return tuple(self._digest(at) for at in takewhile(lambda at: at < end, self._entries(start)))
        head = self._find(chain.encode())
        if head is None:
            return None
        rules = []
        for at in self._entries(self._next(head)):
            if self._is_head(at):
                break
            rules.append(self._digest(at))
        return tuple(rules[:-1])  # the last one is the return at the end

    def _entries(self, at: int) -> Iterator[int]:
        """Where entries start, from one on."""
        while at < len(self._data):
            yield at
            at = self._next(at)

    def _next(self, at: int) -> int:
        size: int = _OFFSETS.unpack_from(self._data, at + self._shape.offsets)[1]
        return at + max(size, self._shape.elements)

    def _target(self, at: int) -> int:
        """Where an entry's target starts."""
        offset: int = _OFFSETS.unpack_from(self._data, at + self._shape.offsets)[0]
        return at + offset

    def _is_head(self, at: int) -> bool:
        _, name, _ = _TARGET.unpack_from(self._data, self._target(at))
        return bool(name.rstrip(b"\0") == b"ERROR")

    def _digest(self, at: int) -> int:
        """A rule's number: without counters, and with the name of the chain that it jumps to, not its place."""
        data, end, target = self._data, self._next(at), self._target(at)
        parts = [bytes(data[at + first : at + last]) for first, last in self._shape.kept]
        _, name, _ = _TARGET.unpack_from(data, target)
        if not name.rstrip(b"\0"):
            verdict = _VERDICT.unpack_from(data, target + _TARGET.size)[0]
            where = str(verdict).encode() if verdict < 0 else self._chain_at(verdict)
            return hash((*parts, bytes(data[at + self._shape.elements : target + _TARGET.size]), where))
        return hash((*parts, bytes(data[at + self._shape.elements : end])))

    def _chain_at(self, first_rule: int) -> bytes:
        """The name of the chain whose first rule stands there: its head is right before."""
        head = first_rule - self._shape.elements - _HEAD_TARGET
        name = bytes(self._data[head + self._shape.elements + _TARGET.size : first_rule])
        return name.partition(b"\0")[0]

    def _find(self, name: bytes) -> int | None:
        """Where a chain's head starts; None if there is no such chain."""
        if not self._sorted:
            return self._named(name, 0, len(self._data))
        first, last = 0, len(self._data)
        while last - first > _SHORT:
            middle = (first + last) // 2
            found = _HEAD.search(self._data, middle, last)
            if found is None or self._is_end(found) or found[1] > name:
                last = middle
            elif found[1] == name:
                return self._head_of(found)
            else:
                first = found.end()
        return self._named(name, max(0, first - _SHORT), min(len(self._data), last + _SHORT))

    @cached_property
    def _sorted(self) -> bool:
        """Whether chains stand in the order of their names, by a sample. The table's end is a head called ERROR."""
        step = max(_SHORT, len(self._data) // _SAMPLES)
        found = (_HEAD.search(self._data, at) for at in range(0, len(self._data), step))
        names = [one[1] for one in found if one and not self._is_end(one)]
        return names == sorted(names)

    def _named(self, name: bytes, first: int, last: int) -> int | None:
        found = re.compile(re.escape(b"ERROR" + bytes(25) + name + b"\0")).search(self._data, first, last)
        return self._head_of(found) if found else None

    def _is_end(self, found: re.Match[bytes]) -> bool:
        """Whether a head is the table's end: it is called ERROR, and so sorts before the chains that it follows."""
        return found.end() >= len(self._data) - _HEAD_TARGET

    def _head_of(self, found: re.Match[bytes]) -> int:
        return found.start() - 2 - self._shape.elements


_HEAD_TARGET = 64
"""Bytes of the target of a chain's head."""
_SHORT = 1 << 14
"""Bytes that are looked through in one go."""
_SAMPLES = 64


def read_blob(family: Family, table: str) -> Blob | None:
    """A legacy table of this network namespace; None if the kernel doesn't have it. Raises KpxError."""
    if table not in legacy_tables(family):
        return None
    shape = _SHAPES[family]
    with socket.socket(shape.kind, socket.SOCK_DGRAM) as one:
        for _ in range(_TRIES):
            info = _info(one, shape, table)
            size = _INFO_NUMBERS.unpack(info)[12]
            try:
                data = _ask(one, shape.level, _GET_ENTRIES, _entries_request(table, size))
            except BlockingIOError:  # another size by now
                continue
            except OSError as error:
                raise KpxError(f"can't read the legacy table {table} of {family}: {error.strerror}") from error
            return Blob(family, info, memoryview(data)[_ENTRIES_HEAD:])
    raise KpxError(f"can't read the legacy table {table} of {family}: it changes all the time")


def legacy_entries(family: Family, table: str) -> int | None:
    """How many entries a legacy table has; None if the kernel doesn't have it. Takes microseconds. Raises KpxError."""
    if table not in legacy_tables(family):
        return None
    shape = _SHAPES[family]
    try:
        with socket.socket(shape.kind, socket.SOCK_DGRAM) as one:
            info = _info(one, shape, table)
    except OSError as error:
        raise KpxError(f"can't ask about the legacy table {table} of {family}: {error.strerror}") from error
    return int(_INFO_NUMBERS.unpack(info)[11])


_TRIES = 100


def _info(one: socket.socket, shape: _Shape, table: str) -> bytes:
    """What the kernel tells of a table, behind its name: see `_INFO_NUMBERS`."""
    return bytes(_ask(one, shape.level, _GET_INFO, bytearray(_INFO.pack(table.encode()))))[32:]


def _entries_request(table: str, size: int) -> bytearray:
    request = bytearray(_ENTRIES_HEAD + size)
    struct.pack_into("=32sI", request, 0, table.encode(), size)
    return request


def _ask(one: socket.socket, level: int, option: int, request: bytearray) -> bytearray:
    """What getsockopt answers, in the place of the request, which is as long."""
    length = ctypes.c_uint32(len(request))
    place = (ctypes.c_char * len(request)).from_buffer(request)
    if _libc.getsockopt(one.fileno(), level, option, place, ctypes.byref(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return request


def digests(blob: Blob | None, chains: Iterable[str]) -> Mapping[str, RuleDigests | None]:
    """The numbers of these chains' rules; None for a chain, or all of a table, that isn't there."""
    return {chain: blob.digests(chain) if blob else None for chain in chains}
