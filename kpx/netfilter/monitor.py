"""Notices what others commit to the iptables-nft tables, from the kernel's own notifications.

What the kernel tells (`nf_tables_api.c`), in one multicast group per network namespace:

- Each commit sends what it did to tables, chains and rules, several messages to a datagram, all of one commit;
  then, alone, NFT_MSG_NEWGEN: the new generation, and of the process that committed its pid and name.
- That pid is the one of the *initial* pid namespace (`task_pid_nr(current)`). An agent in a container with its
  own pid namespace can't compare it with the pids of its children.
- The port in the header of every one of these messages is that of the sender's netlink socket. The tools let
  the kernel choose it, which takes the pid in the sender's *own* pid namespace (`netlink_autobind`: a
  negative number if another socket of the network namespace has that port). So this one can be compared, but
  processes of other pid namespaces may bear the same number, at other times.
- Of a chain that is renamed the kernel tells the new name only. But the tools send a new chain with NLM_F_CREATE or
  NLM_F_EXCL, which the kernel repeats, and a rename without.
- GETGEN answers with the present generation, and the asking thread's pid in the initial pid namespace.

So a commit is our own if its port is the pid of a child of ours and its generation lies between the one just
before the child was started and the one just after it ended; and, where the asking thread's pid shows that we
live in the initial pid namespace, if the pid is the child's too. Nothing depends on how late the notifications
are read. Left over is a process of another pid namespace that has our child's number and commits in the
milliseconds in which the child has no socket yet or no more: what it does is found by the next full check.
Where the kernel had to choose a negative port, our own commit counts as foreign: a check for nothing.
"""

import asyncio
import errno
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.names import ours
from kpx.netfilter.netlink import ATTRIBUTE, HEADER, NETLINK_NETFILTER, NFGENMSG, Netlink, attributes
from kpx.netfilter.nftables import (
    CHAIN_ATTRIBUTE,
    FAMILIES,
    GETGEN,
    GROUP,
    NEWCHAIN,
    NEWGEN,
    SUBSYSTEM,
    TABLE_ATTRIBUTE,
)
from kpx.netfilter.ruleset import TABLES, TableName

_GEN_ID, _GEN_PROC_PID, _GEN_PROC_NAME = 1, 2, 3
_NEW = 0x600
"""NLM_F_CREATE and NLM_F_EXCL."""
_TABLES: dict[bytes, TableName] = {f"{name}\0".encode(): name for name in TABLES}
_WORD = struct.Struct(">I")

_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_ROOM = 32 << 20
"""Bytes for notifications that wait; the kernel doubles it. A load at full speed fills it in about a second and
a half, so long may the event loop be busy. Reading the notifications of our own 60,000 chains and 180,000 rules
takes 0.3 s of CPU; of foreign ones, 0.7 s."""
_READS = 64
"""Datagrams read before the event loop gets its turn."""
_RUNS = 64
"""Runs that are remembered: far more than can end before their notifications are read."""

Chain = tuple[Family, TableName, str]


@dataclass(frozen=True, slots=True)
class Change:
    """Somebody else changed tables of ours, or may have.

    `process` and `pid` (in the initial pid namespace) are whoever did it, empty and 0 if unknown, `generation`
    is the ruleset's after it. `chains` are the chains that it touched as far as they concern us: ours, and the
    built-in ones. A family of which there are none was touched nobody knows where.
    """

    families: frozenset[Family]
    process: str = ""
    pid: int = 0
    generation: int = 0
    chains: frozenset[Chain] = frozenset()


Sink = Callable[[Change], None]
UNKNOWN: Final = Change(frozenset(Family))
"""Stands for notifications that were lost."""


@dataclass(slots=True)
class _Run:
    """One run of a tool of ours: the generation before it, and the one after it once it has ended."""

    first: int
    pid: int = 0
    initial_pids: bool = False
    last: int | None = None

    def made(self, generation: int, pid: int) -> bool:
        ended = self.last is not None and _later(generation, self.last)
        return _later(generation, self.first) and not ended and (not self.initial_pids or pid == self.pid)


def _later(one: int, other: int) -> bool:
    """Whether a generation comes after another one: they are counted modulo 2³²."""
    return 0 < (one - other) % (1 << 32) < 1 << 31


class OwnCommits:
    """Knows which commits are ours: told of every run of a tool, in whatever thread."""

    def __init__(self) -> None:
        self._runs: dict[int, _Run] = {}
        self._starting = threading.Lock()

    @contextmanager
    def recording(self, family: Family | None = None) -> Iterator[Callable[[int], None]]:
        """Surround the run of one child; call what this yields with the child's pid, once, as soon as known.

        `family` makes no difference here. Raises KpxError if the kernel has no nf_tables.
        """
        first, initial_pids = _generation()
        run = _Run(first, initial_pids=initial_pids)
        # Until the pid is known nobody can say whose a commit is: `mine` waits for that millisecond.
        self._starting.acquire()

        def started(pid: int) -> None:
            run.pid = pid
            self._runs.pop(pid, None)
            self._runs[pid] = run
            if len(self._runs) > _RUNS:
                del self._runs[next(iter(self._runs))]
            self._starting.release()

        try:
            yield started
        finally:
            if run.pid:
                run.last, _ = _generation()
            else:
                self._starting.release()

    def likely(self, port: int) -> bool:
        """Whether a netlink port is the pid of a child of ours, now or not long ago."""
        return port in self._runs

    def mine(self, port: int, pid: int, generation: int) -> bool:
        """Whether a commit is ours, by what its notification says."""
        with self._starting:
            run = self._runs.get(port)
        return run is not None and run.made(generation, pid)


def _generation() -> tuple[int, bool]:
    """The ruleset's generation, and whether this thread's pid is that of the initial pid namespace."""
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            found = [attributes(body, NFGENMSG.size) for body in link.ask(SUBSYSTEM | GETGEN, NFGENMSG.pack(0, 0, 0))]
    except OSError as error:
        raise KpxError(f"can't ask nf_tables for its generation: {error.strerror}") from error
    (pid,) = _WORD.unpack(found[0][_GEN_PROC_PID])
    return _WORD.unpack(found[0][_GEN_ID])[0], pid == threading.get_native_id()


class NftMonitor:
    """Tells what other processes change in this network namespace's `filter` and `nat` tables of iptables-nft.

    Listens from the moment it is made: what is read from the tables afterwards can't go stale unnoticed.
    Commits that touch neither chains of ours nor built-in ones are left out; any chain
    that is renamed may have been ours.
    """

    def __init__(self, own: OwnCommits, room: int = _ROOM) -> None:
        """Start to listen, with `room` bytes for what waits to be read. Raises KpxError if the kernel refuses."""
        try:
            self._link = Netlink(NETLINK_NETFILTER, 1 << (GROUP - 1), room)
        except OSError as error:
            raise KpxError(f"can't listen to nf_tables: {error.strerror}") from error
        self._link.socket.setblocking(False)
        self._own = own
        self._buffer = bytearray(1 << 16)
        self._forget()

    async def run(self, sink: Sink) -> None:
        """Call `sink` for every foreign change, within milliseconds, until cancelled."""
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._link.socket, self._readable, sink, failed)
        try:
            await failed
        finally:
            loop.remove_reader(self._link.socket)

    def close(self) -> None:
        """Stop listening."""
        self._link.close()

    def _readable(self, sink: Sink, failed: asyncio.Future[None]) -> None:
        try:
            for _ in range(_READS):
                change = self._read()
                if change:
                    sink(change)
        except BlockingIOError:
            return
        except Exception as error:
            if not failed.done():
                failed.set_exception(error)

    def _read(self) -> Change | None:
        """Take one datagram. Raises BlockingIOError if there is none."""
        try:
            size = self._link.socket.recv_into(self._buffer)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._discard()
            return UNKNOWN
        _, kind, _, _, port = HEADER.unpack_from(self._buffer)
        if kind == SUBSYSTEM | NEWGEN:
            return self._committed(size, port)
        if self._own.likely(port):
            self._skipped = True  # what it holds only matters if the commit turns out to be foreign
        else:
            self._note(size)
        return None

    def _discard(self) -> None:
        """After an overrun: drop what still waits. It is in pieces, and goes before whoever is told can look."""
        self._forget()
        while True:
            try:
                self._link.socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _committed(self, size: int, port: int) -> Change | None:
        """The end of a commit: whose was it, and did it concern us?"""
        found = attributes(bytes(self._buffer[:size]), HEADER.size + NFGENMSG.size)
        generation, pid = (_WORD.unpack(found[kind])[0] for kind in (_GEN_ID, _GEN_PROC_PID))
        families = frozenset(Family) if self._skipped else frozenset(self._families)
        known = () if self._skipped else (one for one in self._chains if one[0] not in self._renamed)
        chains = frozenset(known)
        self._forget()
        if not families or self._own.mine(port, pid, generation):
            return None
        name = found[_GEN_PROC_NAME].rstrip(b"\0").decode(errors="replace")
        return Change(families, name, pid, generation, chains)

    def _forget(self) -> None:
        self._skipped = False
        self._families: set[Family] = set()
        self._chains: set[Chain] = set()
        self._renamed: set[Family] = set()

    def _note(self, size: int) -> None:
        """Remember which of our tables and chains the messages of one datagram name."""
        buffer, at = self._buffer, 0
        while at < size:
            length, kind, flags, _, _ = HEADER.unpack_from(buffer, at)
            wanted = CHAIN_ATTRIBUTE.get(kind & 0xFF)
            family = FAMILIES.get(buffer[at + HEADER.size])
            if wanted is not None and family is not None:
                renamed = kind & 0xFF == NEWCHAIN and not flags & _NEW
                self._note_one(family, wanted, renamed, at + HEADER.size + NFGENMSG.size, at + length)
            at += length + 3 & ~3

    def _note_one(self, family: Family, wanted: int, renamed: bool, at: int, end: int) -> None:
        """One message's attributes: the table's name comes first, the chain's, if any, soon after."""
        length, kind = ATTRIBUTE.unpack_from(self._buffer, at)
        table = _TABLES.get(bytes(self._buffer[at + 4 : at + length]))
        if kind != TABLE_ATTRIBUTE or table is None:
            return
        if not wanted:
            self._families.add(family)
        while wanted and (at := at + length + 3 & ~3) < end:
            length, kind = ATTRIBUTE.unpack_from(self._buffer, at)
            if kind == wanted:
                name = self._buffer[at + 4 : at + length - 1].decode(errors="replace")
                if renamed or name in _BUILT_IN or ours(name):
                    self._families.add(family)
                    self._chains.add((family, table, name))
                if renamed and name not in _BUILT_IN:  # what it was called before isn't told
                    self._renamed.add(family)
                return
