"""One family's loop: what is due, when it is written, and what follows if it fails. Families don't share fate."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from kpx import logs
from kpx.agent import told
from kpx.agent.desired import Desired
from kpx.agent.health import Health
from kpx.agent.kernel import CHUNK, Kernel, chunks
from kpx.agent.metrics import Metrics
from kpx.agent.pending import Batch, Pending
from kpx.agent.repair import DAMAGE, Repairs
from kpx.agent.store import ServiceKey, Store
from kpx.agent.throttle import Backoff, Throttle
from kpx.compiler.tree import Change
from kpx.errors import KpxError
from kpx.netfilter.refusal import WANT, ToolError, wanting
from kpx.netfilter.tools import Tools
from kpx.reconcile.apply import Outcome
from kpx.reconcile.edit import Edit
from kpx.reconcile.owners import owners_of
from kpx.reconcile.plan import Plan

log = logs.get_logger()

LONGEST_PAUSE = 5.0
"""Seconds between tries while nothing can be written, at most: what hinders may end at any time."""
FULL_SHARE = 4.0
"""How long nothing is tried after a comparison of everything that failed, in times of what it took."""


@dataclass(frozen=True, slots=True)
class Synced:
    """A sync that went through: which Services it concerned, and whether the kernel was read and compared."""

    touched: frozenset[ServiceKey]
    full: bool


class FamilySync:
    """Keeps one family's kernel rules equal to what the store says.

    The first sync reads the kernel and adopts what it holds; later ones send only edits of what changed. A refused or
    unconfirmed edit leads to a comparison of everything. If `adaptive`, `min_period` seconds between syncs become more
    where restores take long.
    """

    def __init__(
        self,
        store: Store,
        desired: Desired,
        tools: Tools,
        metrics: Metrics,
        health: Health,
        min_period: float,
        adaptive: bool,
        after_sync: Callable[[Synced], Awaitable[None]],
        verify_period: float = 30.0,
    ) -> None:
        self.store, self.desired, self.tools = store, desired, tools
        self.metrics, self.health = metrics, health
        self.family, self.kernel = tools.family, Kernel(tools, desired)
        self.synced_once, self.attempted = asyncio.Event(), asyncio.Event()
        self._min_period, self.adaptive = min_period, adaptive
        self._after_sync = after_sync
        self.repairs = Repairs(self.kernel, metrics, health, verify_period, self.compare)
        self._pending = Pending(desired.weight, min_period, time.monotonic())
        self._woken = asyncio.Event()
        self._urgent = False
        self._paused_until = 0.0
        self._after_failure, self._after_refusal = Backoff(longest=LONGEST_PAUSE), Backoff()
        self._later: dict[str, asyncio.TimerHandle] = {}

    # -- what is due -----------------------------------------------------------------------------------

    def touch(self, keys: Iterable[ServiceKey], kind: str, trigger: float | None = None) -> None:
        """An object of `kind` changed, and with it these Services.

        `trigger` is when that came about, in seconds since the epoch.
        """
        self._pending.touch(keys, kind, trigger, time.monotonic())
        if len(self._pending):
            self._wake()

    def waiting(self, kind: str) -> int:
        """How many changes of objects of a kind wait for the next sync."""
        return self._pending.waiting(kind)

    def compare(self, reason: str) -> None:
        """Compare the whole kernel state with what is desired, and put it right, as soon as may be."""
        self._pending.compare(reason)
        self._urgent = self._urgent or reason == DAMAGE
        self._wake()

    @property
    def throttle(self) -> Throttle:
        """How often syncs may come."""
        return self._pending.throttle

    async def once(self) -> None:
        """Compare the whole kernel state with what is desired, now. Raises KpxError if that fails in any part."""
        async with self.kernel.turn:
            outcome = await self._sync(Batch(full="once"))
        if outcome.failed:
            raise KpxError(f"rules refused of {', '.join(outcome.failed)}")

    async def run(self) -> None:
        """Sync whenever there is cause, until cancelled."""
        while True:
            while wait := self._delay():
                self._woken.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), wait if wait < float("inf") else None)
            self._urgent = False
            await self._attempt()

    def _delay(self) -> float:
        """Seconds until the next sync; infinite if there is no cause for one."""
        now = time.monotonic()
        due = self._pending.due(now)
        if due is None:
            return float("inf")
        return max(self._paused_until - now, 0.0 if self._urgent else due, 0.0)

    def _wake(self) -> None:
        self.metrics.sync_queued(self.family, time.time())
        self.health.queued(self.family, time.time())
        self._woken.set()

    def _waiting_since(self) -> float | None:
        """Since when what waits has waited, in seconds since the epoch."""
        since = self._pending.since()
        if since is None:
            return time.time() if self._pending.full else None
        return time.time() - (time.monotonic() - since)

    def _compare_later(self, pause: float, reason: str) -> None:
        if reason in self._later:
            self._later[reason].cancel()
        self._later[reason] = asyncio.get_running_loop().call_later(pause, self.compare, reason)

    # -- one sync --------------------------------------------------------------------------------------

    async def _attempt(self) -> None:
        """One sync of what is pending. A function of its own: nothing of it stays in memory until the next one."""
        start = time.monotonic()
        batch = self._pending.take(start)
        try:
            async with self.kernel.turn:
                outcome = await self._sync(batch)
        except KpxError as error:
            self._failed(batch, error, time.monotonic() - start)
        except WANT as error:
            self._failed(batch, wanting(error), time.monotonic() - start)
        else:
            self._pending.served(batch, time.monotonic() - start, time.monotonic())
            if batch.full:
                self._compared(outcome)
        finally:
            self.attempted.set()

    def _compared(self, outcome: Outcome) -> None:
        """After a comparison of everything: what was refused is tried again, ever more seldom."""
        self._after_failure.after_success()
        self.health.refused(self.family, len(outcome.failed))
        self.kernel.refuses = bool(outcome.failed)
        if outcome.failed:
            self._compare_later(self._after_refusal.after_failure(), "refused before")
        else:
            self._after_refusal.after_success()

    def _failed(self, batch: Batch, error: KpxError, seconds: float) -> None:
        """What could not be written waits for a comparison of everything, which shows what the kernel holds."""
        # Edits that don't fit are no reason to wait for that.
        pause = max(self._after_failure.after_failure(), FULL_SHARE * seconds) if batch.full else 0.0
        # A tool that hung has cost nothing.
        pause = min(pause, LONGEST_PAUSE if isinstance(error, ToolError) else max(LONGEST_PAUSE, seconds))
        told.failure(self.metrics, self.family, error, bool(batch.full), pause)
        self.kernel.behind = True
        self._pending.put_back(batch)
        self._pending.compare("retry")
        self._paused_until = time.monotonic() + pause
        self._wake()

    async def _sync(self, batch: Batch) -> Outcome:
        start = time.monotonic()
        edits, unfinished = await self._compile(batch.services) if self.desired.is_loaded else ([], frozenset())
        reload = not self.desired.is_loaded or self.desired.settings_changed()
        full = self._reason(batch.full, reload)
        touched = frozenset(batch.services)
        if reload:
            touched |= self.desired.begin()
            unfinished = frozenset()
        self._pending.go_on(unfinished, time.monotonic())  # also if the rest can't be written now
        compiled = time.monotonic()
        outcome = await (self._compare(full, edits, touched) if full else self._send(edits, touched))
        self.kernel.behind = False
        sync = told.Sync(self.family, full, len(touched), outcome, start, compiled, time.monotonic())
        told.success(self.metrics, sync, batch.triggers, self.kernel.rules)
        self.health.updated(self.family, time.time(), self._waiting_since())
        pause = self.desired.settings_due()
        if pause is not None:
            self._compare_later(pause, "settings")
        self.synced_once.set()
        await self._after_sync(Synced(touched, bool(full)))
        return outcome

    def _reason(self, full: str, reload: bool) -> str:
        """Why everything has to be compared, now that it is known what changed; empty if it need not be."""
        if full == DAMAGE and self.kernel.behind:  # then some of what is different is ours, and nobody is to blame
            return "retry"
        if full not in ("", DAMAGE):
            return full
        if reload:
            return "settings"
        return "order" if self.desired.order_counts else full

    async def _compile(self, keys: Iterable[ServiceKey]) -> tuple[list[Edit], frozenset[ServiceKey]]:
        """The edits that bring Services up to date; and those with which to go on, as they are too large."""
        changes: list[Change] = []
        unfinished: frozenset[ServiceKey] = frozenset()
        for some in chunks(sorted(keys)):
            made, left = self.desired.recompile_step(some)
            changes += made
            unfinished |= left
            await asyncio.sleep(0)
        # Edits have to be made in one go: only then is their order in the payload the right one.
        if len(changes) <= CHUNK:
            return list(self.desired.edits(changes)), unfinished
        return list(await asyncio.to_thread(self.desired.edits, changes)), unfinished

    async def _send(self, edits: list[Edit], services: Iterable[ServiceKey]) -> Outcome:
        outcome = await self.kernel.send(edits, services)
        if self.adaptive and outcome.restores:
            self._pending.adapt(self._min_period, outcome.seconds, time.monotonic())
        return outcome

    async def _compare(self, reason: str, edits: list[Edit], services: Iterable[ServiceKey]) -> Outcome:
        sent = Outcome()
        if reason == DAMAGE:
            # What changed in the cluster goes first, so that all that is different then is damage.
            try:
                sent = await self._send(edits, services)
            except KpxError as error:  # then some of it is ours, and nobody is to blame
                told.failure(self.metrics, self.family, error, full=False, retry_in=0.0)
                reason = "retry"
        edits.clear()
        outcome = await self.kernel.compare(early=reason != DAMAGE)
        if not outcome.failed:
            self.metrics.verified(self.family, time.time())
        if reason == DAMAGE and outcome.plan:
            ruleset = await asyncio.to_thread(self.desired.ruleset)
            owners = await asyncio.to_thread(owners_of, ruleset)
            self.repairs.repaired(outcome.plan.edits, owners)
        for name, reason_why in outcome.failed.items():
            log.error("rules refused, the old ones stay", family=self.family, service=name, error=str(reason_why))
        return replace(
            outcome,
            restores=sent.restores + outcome.restores,
            lines=sent.lines + outcome.lines,
            plan=Plan(sent.plan.edits + outcome.plan.edits),
        )
