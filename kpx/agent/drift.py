"""Watching for what others do to our rules."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kpx import logs
from kpx.agent.suspects import ChainKey, Culprit
from kpx.errors import KpxError
from kpx.family import Family
from kpx.host import process_name
from kpx.netfilter.legacy_monitor import LegacyMonitor
from kpx.netfilter.monitor import Change, NftMonitor, OwnCommits
from kpx.netfilter.refusal import RestoreError
from kpx.netfilter.tools import Backend, Recording

log = logs.get_logger()


class Drift:
    """Notices foreign changes of one backend's tables. `recording` has to surround each of our own restores."""

    def __init__(self, backend: Backend) -> None:
        self._monitor: NftMonitor | LegacyMonitor | None = None
        self.recording: Recording | None = None
        try:
            if backend is Backend.NFT:
                own = OwnCommits()
                self._monitor, self.recording = NftMonitor(own), own.recording
            else:
                self._monitor = LegacyMonitor()
                self.recording = self._monitor.recording
        except KpxError as error:
            log.warning("foreign changes are only found by looks at everything", error=str(error))

    @property
    def watching(self) -> bool:
        """Whether changes are noticed since this was made."""
        return self._monitor is not None

    async def run(self, changed: Callable[[Family, frozenset[ChainKey], Culprit], None]) -> None:
        """Call `changed` for every family that somebody else touched, with the chains, if they are known, and with who
        did it; until cancelled."""
        if self._monitor is None:
            await asyncio.Event().wait()
            return
        try:
            await self._monitor.run(lambda change: self._tell(change, changed))
        finally:
            self._monitor.close()

    def _tell(self, change: Change, changed: Callable[[Family, frozenset[ChainKey], Culprit], None]) -> None:
        culprit = Culprit(process_name(change.pid, change.process), change.pid)
        chains = sorted(f"{table} {chain}" for _, table, chain in change.chains)[:10]
        log.debug("foreign change", process=culprit.process, pid=change.pid, chains=chains)
        for family in change.families:
            changed(family, frozenset((table, chain) for one, table, chain in change.chains if one is family), culprit)


class Children:
    """The restores that are running, so that they can be stopped with the agent."""

    def __init__(self, inner: Recording | None) -> None:
        self._inner = inner
        self._pids: set[int] = set()
        self._stopped = False

    def stop(self) -> None:
        """End what is running, and start nothing more: threads can't be cancelled, and may be about to."""
        self._stopped = True
        for pid in tuple(self._pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    @contextmanager
    def recording(self, family: Family) -> Iterator[Callable[[int], None]]:
        """Surround a restore. Raises KpxError after `stop`."""
        if self._stopped:
            raise KpxError("stopped")
        if self._inner is None:
            with self._noting(lambda _: None) as note:
                yield note
        else:
            with self._inner(family) as started, self._noting(started) as note:
                yield note

    @contextmanager
    def _noting(self, started: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
        mine: list[int] = []

        def note(pid: int) -> None:
            mine.append(pid)
            self._pids.add(pid)
            started(pid)
            if self._stopped:
                os.kill(pid, signal.SIGTERM)

        try:
            yield note
        except RestoreError:
            if self._stopped:  # so it was ended, and the payload is not to blame
                raise KpxError("stopped") from None
            raise
        finally:
            self._pids.difference_update(mine)
