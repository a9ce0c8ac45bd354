"""One family's loop: collect what changed, compile that, bring the kernel up to date. Families don't share fate."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from kpx.agent import memory
from kpx.agent.desired import Desired
from kpx.agent.health import Health
from kpx.agent.load import Load
from kpx.agent.metrics import Metrics
from kpx.agent.store import ServiceKey, Store
from kpx.agent.throttle import Backoff, Throttle
from kpx.compiler.fragment import Fragment
from kpx.compiler.tree import Change
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.ruleset import TABLES, TableName
from kpx.netfilter.save import Saved
from kpx.netfilter.tools import Backend, RestoreError, Tools
from kpx.reconcile.apply import Outcome, apply, payload_of, read_live
from kpx.reconcile.edit import Edit
from kpx.reconcile.owners import Owners
from kpx.reconcile.phases import NFT_CHAINS, harmless
from kpx.reconcile.plan import Plan, Planner
from kpx.reconcile.report import differences

log = structlog.get_logger()

FOREIGN_CHANGE, VERIFICATION = "foreign change", "verification"
REPAIRS = frozenset({FOREIGN_CHANGE, VERIFICATION})
"""Reasons for a full sync after which anything that had to change is damage."""

FALSE_ALARM_SECONDS = 1.0
"""How long the next foreign change waits after one that did our rules no harm."""

CHUNK = 20
"""How many Services to compile before other tasks get their turn: some 3 ms."""
PROGRESS_SECONDS = 2.0
"""How often a long load tells how far it is."""
LEISURE = 3.0
"""How long a verification rests after each step, in times of what the step took."""

ChainKey = tuple[TableName, str]


@dataclass(slots=True)
class Pending:
    """What waits for the next sync.

    Touched Services, how many changes of each kind of object that were, why a full check is due (if it is), and
    trigger times.
    """

    touched: set[ServiceKey] = field(default_factory=set)
    changes: Counter[str] = field(default_factory=Counter)
    full: str = ""
    triggers: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Synced:
    """A sync that went through: which Services it concerned, and whether the kernel was read and compared."""

    touched: frozenset[ServiceKey]
    full: bool


@dataclass(slots=True)
class Look:
    """A look at the kernel that goes on: which chains syncs have changed meanwhile; `void` if perhaps all."""

    changed: set[ChainKey] = field(default_factory=set)
    void: bool = False


class Progress:
    """Logs how far a long load is."""

    def __init__(self, family: Family, total: int) -> None:
        self._family, self._total, self._done = family, total, 0
        self._next = time.monotonic() + PROGRESS_SECONDS

    def done(self, count: int) -> None:
        """So many more Services are done."""
        self._done += count
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            log.info("loading", family=self._family, services=self._done, of=self._total)


class FamilySync:
    """Keeps one family's kernel rules equal to what the store says.

    The first sync reads the kernel and adopts what it holds; later ones send only edits of what changed. A refused
    edit, a report of foreign changes or a due verification lead to a full one again. If `adaptive`, `min_period`
    seconds between syncs become more where restores take long.
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
    ) -> None:
        self.store, self.desired, self.tools = store, desired, tools
        self.metrics, self.health = metrics, health
        self.family = tools.family
        self.last_payload = ""
        self.synced_once, self.attempted = asyncio.Event(), asyncio.Event()
        self._after_sync = after_sync
        self._pending = Pending()
        self._turn = asyncio.Lock()
        self._look: Look | None = None
        self._wanted = asyncio.Event()
        self._urgent = asyncio.Event()
        self._false_alarm = False
        self.throttle = Throttle(min_period, time.monotonic())
        self._min_period, self.adaptive = min_period, adaptive
        self._ahead: asyncio.Task[Saved] | None = None
        self._after_failure, self._after_refusal = Backoff(), Backoff()
        self._retry: asyncio.TimerHandle | None = None
        self._next_alarm: asyncio.TimerHandle | None = None
        self._rules: dict[TableName, int] = dict.fromkeys(TABLES, 0)

    def touch(self, keys: Iterable[ServiceKey], kind: str, trigger: float | None = None) -> None:
        """An object of `kind` changed, and with it these Services.

        `trigger` is when that came about, in seconds since the epoch.
        """
        self._pending.touched.update(keys)
        self._pending.changes[kind] += 1
        if trigger is not None:
            self._pending.triggers.append(trigger)
        self._want()

    def waiting(self, kind: str) -> int:
        """How many changes of objects of a kind wait for the next sync."""
        return self._pending.changes[kind]

    def verify(self, reason: str) -> None:
        """Compare the whole kernel state with what is desired, and repair it, as soon as may be."""
        self._pending.full = self._pending.full or reason
        if reason == FOREIGN_CHANGE:
            self._alarm()
        self._want()

    def read_ahead(self) -> None:
        """Read the kernel now, for the first sync: a second's work for another process while objects come in.

        What others change from now on must not go unnoticed.
        """
        self._ahead = asyncio.create_task(asyncio.to_thread(read_live, self.tools))

    async def look(self) -> None:
        """Look whether the kernel holds what is desired, at low priority and beside syncs; have it repaired if not.

        What syncs change meanwhile is left out: it has only just been written.
        """
        look = Look()
        try:
            async with self._turn:
                self._look = look
            found = await self._differing()
            async with self._turn:
                sound = look.void or found <= look.changed
        except KpxError as error:
            log.warning("verification failed", family=self.family, error=str(error))
            sound = False
        finally:
            self._look = None
            await asyncio.to_thread(memory.trim)
        if not sound:
            self.verify(VERIFICATION)

    async def once(self) -> None:
        """Compare the whole kernel state with what is desired, now. Raises KpxError if that fails in any part."""
        outcome = await self._sync(Pending(full="once"))
        if outcome.failed:
            raise KpxError(f"rules refused of {', '.join(outcome.failed)}")

    async def run(self) -> None:
        """Sync whenever there is cause, until cancelled."""
        while True:
            await self._wanted.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), self.throttle.delay(time.monotonic()))
            self._wanted.clear()
            self._urgent.clear()
            self.throttle.take(time.monotonic())
            await self._attempt()

    async def _attempt(self) -> None:
        """One sync of what is pending. A function of its own: nothing of it stays in memory until the next one."""
        pending, self._pending = self._pending, Pending()
        if pending.full and self._retry is not None:  # this is that retry
            self._retry.cancel()
            self._retry = None
        try:
            async with self._turn:
                outcome = await self._sync(pending)
        except KpxError as error:
            await self._failed(pending, error)
        else:
            if pending.full:
                self._compared(outcome)
        finally:
            self.attempted.set()

    def _alarm(self) -> None:
        """Damage can't wait for the next turn.

        But if the last alarm was a false one, somebody may be busy with rules of their own, and to check each time
        would cost more than it is worth.
        """
        if not self._false_alarm:
            self._urgent.set()
        elif self._next_alarm is None or self._next_alarm.when() < asyncio.get_running_loop().time():
            self._next_alarm = asyncio.get_running_loop().call_later(FALSE_ALARM_SECONDS, self._urgent.set)

    def _want(self) -> None:
        if not self._wanted.is_set():
            self.metrics.sync_queued(self.family, time.time())
            self.health.queued(self.family, time.time())
        self._wanted.set()

    def _compared(self, outcome: Outcome) -> None:
        """After a full sync: what was refused is tried again, ever more seldom."""
        self._after_failure.after_success()
        if outcome.failed:
            pause = self._after_refusal.after_failure()
            self._retry = asyncio.get_running_loop().call_later(pause, self.verify, "refused before")
        else:
            self._after_refusal.after_success()

    async def _failed(self, pending: Pending, error: KpxError) -> None:
        # Edits that don't fit are no reason to wait: comparing the whole kernel state shows those that do.
        pause = self._after_failure.after_failure() if pending.full else 0.0
        log.error("sync failed", family=self.family, retry_in=pause, error=str(error))
        self.metrics.sync_failed(self.family, bool(pending.full))
        self._pending.triggers += pending.triggers
        self._pending.touched |= pending.touched
        self._pending.changes += pending.changes
        await asyncio.sleep(pause)
        self.verify(pending.full or "retry")

    async def _sync(self, pending: Pending) -> Outcome:
        start = time.monotonic()
        edits = await self._compile(pending.touched) if self.desired.is_loaded else []
        if self.desired.order_counts and (not pending.full or pending.full in REPAIRS):
            pending.full = "order"
        if not self.desired.is_loaded or self.desired.settings_changed():
            pending.touched |= self.desired.begin()
            if not pending.full or pending.full in REPAIRS:
                pending.full = "settings"
        compiled = time.monotonic()
        outcome = await (self._compare(pending.full, edits) if pending.full else self._send(edits))
        self._account(pending, outcome, start, compiled)
        self.health.updated(self.family, time.time())
        if self._wanted.is_set():  # what came meanwhile waits from now on
            self.health.queued(self.family, time.time())
        self.synced_once.set()
        await self._after_sync(Synced(frozenset(pending.touched), bool(pending.full)))
        return outcome

    async def _compile(self, keys: Iterable[ServiceKey]) -> list[Edit]:
        changes: list[Change] = []
        for some in _chunks(sorted(keys)):
            changes += self.desired.recompile(some)
            await asyncio.sleep(0)
        # Edits have to be made in one go: only then is their order in the payload the right one.
        if len(changes) <= CHUNK:
            return list(self.desired.edits(changes))
        return list(await asyncio.to_thread(self.desired.edits, changes))

    async def _send(self, edits: list[Edit]) -> Outcome:
        """Send edits as they are. If one is refused, what the kernel holds is not what was believed."""
        text = payload_of(edits, self.tools)
        if not text:
            return Outcome()
        self.last_payload = text
        if self._look:
            self._look.changed.update((edit.table, edit.chain) for edit in edits)
        seconds = await self._restore(text)
        for edit in edits:
            self._rules[edit.table] += len(edit.added) - len(edit.removed)
        return Outcome(1, text.count("\n"), Plan(tuple(edits)), seconds=seconds)

    async def _restore(self, text: str) -> float:
        """Seconds that the tool and the kernel took."""
        seconds = await asyncio.to_thread(_timed, self.tools.restore, text)
        if self.adaptive:
            self.throttle.adapt(self._min_period, seconds, time.monotonic())
        return seconds

    async def _compare(self, reason: str, edits: list[Edit]) -> Outcome:
        """Bring the kernel to what is desired, whatever it holds."""
        if self._look:
            self._look.void = True
        sent = Outcome()
        if reason in REPAIRS:
            # What changed in the cluster goes first, so that all that is different then is damage.
            with suppress(KpxError):
                sent = await self._send(edits)
        edits.clear()
        outcome = await self._reconcile(reason)
        if reason == FOREIGN_CHANGE:
            self._false_alarm = not outcome.plan
        if reason in REPAIRS and outcome.plan:
            owners = await asyncio.to_thread(Owners, await asyncio.to_thread(self.desired.ruleset), {})
            self._report_repair(reason, outcome, owners)
        for name, error in outcome.failed.items():
            log.error("rules refused, the old ones stay", family=self.family, service=name, error=str(error))
        return replace(
            outcome,
            restores=sent.restores + outcome.restores,
            lines=sent.lines + outcome.lines,
            plan=Plan(sent.plan.edits + outcome.plan.edits),
        )

    async def _reconcile(self, reason: str) -> Outcome:
        """Compare the kernel with what is desired, Service by Service, and write what is different.

        New chains are written while later ones are compiled. If any rules are refused, `apply` narrows down which.
        """
        ahead, self._ahead = self._ahead, None
        live = await (ahead or asyncio.to_thread(read_live, self.tools))
        planner = await asyncio.to_thread(Planner, self.family, live)
        load = Load(self.tools)
        # To tell what was wrong takes all edits; and the legacy kernel copies its table with each transaction.
        early = reason not in REPAIRS and self.tools.backend is Backend.NFT
        edits: list[Edit] = []
        fragments: list[Fragment] = []
        rules = dict.fromkeys(TABLES, 0)
        ahead_of_plan = 0
        try:
            async for fragment in self._fragments():
                if not rules["nat"]:
                    edits += planner.chains("nat", self.desired.frame())
                edits += planner.chains("nat", fragment.chains)
                rules["nat"] += sum(map(len, fragment.chains.values()))
                if not self.desired.keeps_entries:
                    fragments.append(replace(fragment, chains={}))
                if early and len(edits) >= NFT_CHAINS:
                    some, edits = harmless(edits)
                    ahead_of_plan += sum(len(one.added) for one in some)
                    await load.send(payload_of(some, self.tools))
            shared = await asyncio.to_thread(self.desired.shared, fragments)
            edits += await asyncio.to_thread(planner.take, shared)
            gone, held = await asyncio.to_thread(planner.finish)
            text = await asyncio.to_thread(payload_of, edits + gone, self.tools)
            if text:
                await load.send(text)
            restores = await load.finish()
        except RestoreError as error:
            log.warning("rules refused, looking for the culprit", family=self.family, error=str(error))
            async for _ in self._fragments():  # where that has not come to its end
                pass
            ruleset = await asyncio.to_thread(self.desired.ruleset)
            return await asyncio.to_thread(apply, ruleset, self.tools)
        finally:
            load.end()
        for table in TABLES:
            self._rules[table] = rules[table] + sum(map(len, shared.tables[table].chains.values()))
        return Outcome(restores, load.lines, Plan((*edits, *gone), held), held, ahead=ahead_of_plan)

    async def _differing(self) -> set[ChainKey]:
        """The chains that don't look as desired, or shouldn't be."""
        live = await asyncio.to_thread(read_live, self.tools, niceness=19)
        planner = await asyncio.to_thread(Planner, self.family, live)
        edits: list[Edit] = []
        fragments: list[Fragment] = []
        for some in _chunks(self.desired.services()):
            start = time.monotonic()
            for fragment in self.desired.fragments(some):
                edits += planner.chains("nat", fragment.chains)
                if not self.desired.keeps_entries:
                    fragments.append(replace(fragment, chains={}))
            await asyncio.sleep(LEISURE * (time.monotonic() - start))
        async with self._turn:  # for some ten milliseconds
            shared = await asyncio.to_thread(self.desired.shared, fragments)
        edits += await asyncio.to_thread(planner.take, shared)
        gone, _ = await asyncio.to_thread(planner.finish)
        return {(edit.table, edit.chain) for edit in (*edits, *gone)}

    async def _fragments(self) -> AsyncIterator[Fragment]:
        """All service ports, compiled anew if need be; a little at a time, so that others get their turn."""
        desired = self.desired
        if desired.is_loaded:
            for some in _chunks(desired.services()):
                for fragment in desired.fragments(some):
                    yield fragment
                await asyncio.sleep(0)
            return
        for some in _chunks(sorted(desired.begin())):
            desired.prepare(some)
            await asyncio.sleep(0)
        keys = desired.prepared()
        progress = Progress(self.family, len(keys))
        for some in _chunks(keys):
            for fragment in desired.load(some):
                yield fragment
            progress.done(len(some))
            await asyncio.sleep(0)
        desired.loaded()

    def _report_repair(self, reason: str, outcome: Outcome, owners: Owners) -> None:
        found = differences(outcome.plan.edits, owners)
        count = sum(len(some) for some in found.values())
        wrong = [f"{one.kind} {one.table} {one.chain}" for some in found.values() for one in some]
        log.warning(
            "rules repaired",
            family=self.family,
            cause=reason,
            differences=count,
            services=sorted(found)[:10],
            wrong=list(dict.fromkeys(wrong))[:10],
        )
        self.metrics.repaired(self.family, "rules", count)

    def _account(self, pending: Pending, outcome: Outcome, start: float, compiled: float) -> None:
        now = time.monotonic()
        for trigger in pending.triggers:
            self.metrics.programmed(self.family, max(0.0, time.time() - trigger))
        written = Counter[TableName]()
        written["nat"] += outcome.ahead
        for edit in outcome.plan.edits:
            written[edit.table] += len(edit.added)
        self.metrics.synced(
            self.family,
            now - start,
            bool(pending.full),
            outcome.lines,
            outcome.restores,
            self._rules,
            written,
            time.time(),
        )
        # Of a Node, nearly all that ever changes is none of our business.
        tell = log.info if pending.touched or pending.full or outcome.lines else log.debug
        tell(
            "synced",
            family=self.family,
            full=pending.full or None,
            services=len(pending.touched),
            lines=outcome.lines,
            compile_ms=round((compiled - start) * 1000, 1),
            restore_ms=round(outcome.seconds * 1000, 1) if outcome.seconds else None,
            total_ms=round((now - start) * 1000, 1),
        )


def _chunks(keys: Sequence[ServiceKey]) -> Iterator[Sequence[ServiceKey]]:
    return (keys[at : at + CHUNK] for at in range(0, len(keys), CHUNK))


def _timed(run: Callable[[str], None], text: str) -> float:
    start = time.monotonic()
    run(text)
    return time.monotonic() - start
