"""Notices what others change in the legacy tables. The kernel tells nobody, so this looks, once a second.

Two signs, which cost microseconds:

- IPT_SO_GET_INFO (`linux/netfilter_ipv4/ip_tables.h`) tells a table's number of entries, its size and where the
  built-in chains start and end. Rules and chains added, removed or flushed always show.
- Every run of an iptables-legacy tool locks `/run/xtables.lock`, and closes it when it is done, which inotify
  tells. So rules that were replaced or put into another order show too. A run that only lists can't be told
  from one that changes: it also counts as a change, and the check that follows finds nothing.

What stays unseen until the next full check: rules replaced by others of the same size and number by a program
that ignores the lock, or within the milliseconds of a run of ours; and replaced by anyone if the lock of the
host isn't mounted where the agent lives (`XTABLES_LOCKFILE`, else `/run/xtables.lock`).
"""

import asyncio
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.monitor import Change, Sink
from kpx.netfilter.ruleset import TABLES, TableName
from kpx.netfilter.tools import legacy_tables

_IPT_SO_GET_INFO = 64
_GETINFO = struct.Struct("=32s52x")
_ADDRESS_FAMILY = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_LEVEL = {Family.IPV4: socket.IPPROTO_IP, Family.IPV6: socket.IPPROTO_IPV6}
_LOCK_FILE = "/run/xtables.lock"
_IN_CLOSE, _IN_IGNORED = 0x18, 0x8000
_EVENT = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


def legacy_fingerprint(family: Family, table: TableName) -> bytes | None:
    """What changes when rules or chains of a legacy table are added or removed; None without such a table.

    Takes some 30 µs at any size. Never creates the table. A rule replaced by one of the same size, or moved,
    changes nothing here. Raises KpxError without CAP_NET_ADMIN.
    """
    if table not in legacy_tables(family):
        return None
    info = ctypes.create_string_buffer(_GETINFO.pack(table.encode()), _GETINFO.size)
    length = ctypes.c_uint32(_GETINFO.size)
    # No raw socket: any socket of the family takes the question, and this one needs no CAP_NET_RAW.
    with socket.socket(_ADDRESS_FAMILY[family], socket.SOCK_DGRAM) as one:
        if _libc.getsockopt(one.fileno(), _LEVEL[family], _IPT_SO_GET_INFO, info, ctypes.byref(length)):
            reason = os.strerror(ctypes.get_errno())
            raise KpxError(f"can't ask the kernel about the legacy table {table} of {family}: {reason}")
    return info.raw[32:]


class LegacyMonitor:
    """Tells what other processes change in this network namespace's legacy `filter` and `nat` tables.

    Looks from the moment it is made. Its changes name families, not processes or chains.
    """

    def __init__(self, period: float = 1.0) -> None:
        """Look every `period` seconds. Raises KpxError if the kernel refuses."""
        self._period = period
        self._lock_file = _LockFile()
        self._state = threading.Lock()
        self._busy: set[Family] = set()
        self._suspects: set[Family] = set()
        self._known = {family: _fingerprints(family) for family in Family}

    @contextmanager
    def recording(self, family: Family) -> Iterator[Callable[[int], None]]:
        """Surround the run of one child that changes tables of `family`; what this yields takes its pid."""
        with self._state:
            self._look()
            self._busy.add(family)
        try:
            yield lambda _: None
        finally:
            with self._state:
                self._busy.discard(family)
                self._lock_file.closed()
                self._known[family] = _fingerprints(family)

    async def run(self, sink: Sink) -> None:
        """Call `sink` for every foreign change, within the period, until cancelled."""
        while True:
            await asyncio.sleep(self._period)
            with self._state:
                self._look()
                suspects, self._suspects = self._suspects, set()
            if suspects:
                sink(Change(frozenset(suspects)))

    def close(self) -> None:
        """Free what watches the lock."""
        self._lock_file.close()

    def _look(self) -> None:
        """Find the families that others changed, except where a child of ours is at work."""
        ran = not self._busy and self._lock_file.closed()
        for family in set(Family) - self._busy:
            now = _fingerprints(family)
            if now != self._known[family] or (ran and any(now)):
                self._suspects.add(family)
            self._known[family] = now


def _fingerprints(family: Family) -> tuple[bytes | None, ...]:
    return tuple(legacy_fingerprint(family, table) for table in TABLES)


class _LockFile:
    """The lock of the legacy tools, watched by inotify; where that can't be had, it is as if nobody closed it."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watch()

    def _watch(self) -> None:
        path = os.environ.get("XTABLES_LOCKFILE", _LOCK_FILE)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))  # as the tools make it
        except OSError:
            return
        _libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_CLOSE)

    def closed(self) -> bool:
        """Whether anybody closed the lock since this was last asked."""
        try:
            events = os.read(self._fd, 1 << 16)
        except OSError:  # none (EAGAIN), or no inotify
            return False
        if any(mask & _IN_IGNORED for _, mask, _, _ in _EVENT.iter_unpack(events)):
            self._watch()  # the file was deleted
        return True

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
