"""Did the kernel do what a tool was sent? On nft the kernel tells of every commit, to whoever listens.

A witness listens from before the tool starts. Each section of the payload is one commit; the notifications of a
commit name the chain of every rule and every chain that came or went, and end with the new generation
(`kpx.netfilter.monitor` has the details). All of them are in the socket before the tool hears that its commit went
through, so once the tool has ended nothing is on its way.

A commit counts for what it did, not for who made it: a tool may do its work in a child of its own.
"""

import errno
from collections import deque
from collections.abc import Iterable

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.deeds import Deeds, Section, TableChain
from kpx.netfilter.netlink import ATTRIBUTE, HEADER, NETLINK_NETFILTER, Netlink
from kpx.netfilter.nftables import (
    CHAIN_ATTRIBUTE,
    DELCHAIN,
    DELRULE,
    FAMILIES,
    GROUP,
    NEWCHAIN,
    NEWGEN,
    NEWRULE,
    SUBSYSTEM,
    TABLE_ATTRIBUTE,
)

_ROOM = 32 << 20
"""Bytes for notifications that wait: those of some 100,000 rules."""


class Witness:
    """Watches commits to one family's tables of nf_tables, in the network namespace of this thread.

    Tell it of each section with `expect` before the tool can commit it. Raises KpxError if the kernel refuses.
    """

    def __init__(self, family: Family) -> None:
        try:
            self._link = Netlink(NETLINK_NETFILTER, 1 << (GROUP - 1), _ROOM)
        except OSError as error:
            raise KpxError(f"can't listen to nf_tables: {error.strerror}") from error
        self._link.socket.setblocking(False)
        self._family = family
        self._buffer = bytearray(1 << 16)
        self._expected: deque[Section] = deque()
        self._commit: dict[TableChain, Deeds] = {}
        self._lost = False

    def expect(self, sections: Iterable[Section]) -> None:
        """These come next, in this order."""
        self._expected.extend(sections)
        self._read()

    def missing(self) -> list[str]:
        """What was expected and hasn't been told of, in words; nothing if all of it has been done, and no more."""
        self._read()
        if self._lost:
            return ["notifications of the kernel were lost"]
        return [words for section in self._expected for words in section.unmet({})]

    def _read(self) -> None:
        """Take in all that waits."""
        while True:
            try:
                size = self._link.socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KpxError(f"can't listen to nf_tables: {error.strerror}") from error
                self._lost = True
            else:
                self._take(size)

    def _take(self, size: int) -> None:
        """The messages of one datagram."""
        buffer, at = self._buffer, 0
        while at < size:
            length, kind, _, _, _ = HEADER.unpack_from(buffer, at)
            if kind == SUBSYSTEM | NEWGEN:
                self._committed()
            elif FAMILIES.get(buffer[at + HEADER.size]) is self._family:
                self._note(kind & 0xFF, at + HEADER.size + 4, at + length)
            at += length + 3 & ~3

    def _committed(self) -> None:
        if self._commit and self._expected and not any(self._expected[0].unmet(self._commit)):
            self._expected.popleft()
        self._commit = {}

    def _note(self, kind: int, at: int, end: int) -> None:
        """One message: the table's name comes first, the chain's, if any, soon after."""
        wanted = CHAIN_ATTRIBUTE.get(kind)
        if not wanted:
            return
        buffer = self._buffer
        length, attribute = ATTRIBUTE.unpack_from(buffer, at)
        if attribute != TABLE_ATTRIBUTE:
            return
        table = buffer[at + 4 : at + length - 1]
        while (at := at + (length + 3 & ~3)) < end:
            length, attribute = ATTRIBUTE.unpack_from(buffer, at)
            if attribute == wanted:
                self._count(kind, table.decode(errors="replace"), buffer[at + 4 : at + length - 1])
                return

    def _count(self, kind: int, table: str, chain: bytearray) -> None:
        deeds = self._commit.setdefault((table, chain.decode(errors="replace")), Deeds())
        if kind == NEWRULE:
            deeds.added += 1
        elif kind == DELRULE:
            deeds.deleted += 1
        elif kind == NEWCHAIN:
            deeds.made += 1
        elif kind == DELCHAIN:
            deeds.dropped += 1

    def close(self) -> None:
        """Stop listening."""
        self._link.close()
