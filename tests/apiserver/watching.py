"""A watch: a cursor in the store's log, and one HTTP answer that grows line by line."""

import asyncio
import contextlib
from collections.abc import Sequence

from . import refusals
from .faults import BOOKMARK, DELIVERY
from .options import Options
from .refusals import RefusalError
from .resources import Resource
from .sabotage import Sabotage, StreamEndError, forever
from .speech import Event, Speech
from .state import OpenWatch, State
from .store import Event as Change
from .store import ExpiredError, Stored

_BATCH = 500
_CHUNK = 1 << 18


class Watch:
    """One watch request. `begin` fixes where it starts, `run` sends until it ends."""

    def __init__(self, state: State, watch: OpenWatch, options: Options, speech: Speech) -> None:
        self._state = state
        self._speech = speech
        self._watch = watch
        self._options = options
        self._resource = watch.resource
        self._connection = watch.connection
        self._initial: list[Event] = []
        self._cursor = 0
        self._after = 0

    async def begin(self) -> None:
        """Find the start. Raises RefusalError (410, 504)."""
        options, store = self._options, self._state.store
        version = options.version or 0
        wants_state = not version if options.initial_events is None else options.initial_events
        if options.initial_events and not await self._state.fresh(version):
            raise refusals.too_large_version(version, store.version)
        if version and not wants_state:
            self._cursor = self._position(version)
            self._after = self._watch.sent = version
            return
        view = store.view(self._resource)
        self._cursor, self._watch.sent = view.cursor, view.version
        if wants_state:
            entries = [stored for stored in view.entries if stored.matches(options.wanted)]
            self._initial = [Event("ADDED", self._resource, stored) for stored in entries]

    async def run(self) -> None:
        """Send until the time is over, a fault ends it, or history that it needs is forgotten."""
        deadline = asyncio.get_running_loop().time() + self._lifetime()
        self._state.watches.append(self._watch)
        try:
            await self._send_initial()
            await self._follow(deadline)
        except RefusalError as refusal:
            await self._connection.chunk(error_line(self._speech, self._resource, refusal))
        except StreamEndError:
            pass
        finally:
            self._state.watches.remove(self._watch)

    async def _send_initial(self) -> None:
        if self._initial:
            await self._deliver(self._initial)
        self._initial = []
        if self._options.initial_events:
            await self._bookmark(end=True)

    async def _follow(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        interval = self._state.promises.bookmark_interval
        due = loop.time() + interval
        while True:
            if self._watch.stalled:
                await forever()
            self._watch.changed.clear()
            busy = await self._catch_up()
            now = loop.time()
            if now >= min(due, deadline):
                await self._bookmark()
                due = now + interval
            if now >= deadline:
                return
            if not busy:
                await self._sleep_until(min(due, deadline))

    async def _catch_up(self) -> bool:
        """Send a batch of events; whether there may be more at once."""
        try:
            batch = self._state.store.since(self._resource, self._cursor, _BATCH)
        except ExpiredError as problem:
            raise refusals.expired(str(problem)) from problem
        self._cursor = batch.cursor
        events = [event for change in batch.events if (event := self._translate(change))]
        if self._state.dice.possible(DELIVERY):
            for event in events:
                await self._deliver([event])
        elif events:
            await self._send([self._spoken(event) for event in events])
        self._watch.sent = max(self._watch.sent, batch.version)
        return bool(batch.events)

    def _translate(self, change: Change) -> Event | None:
        """What this watch's selectors make of a change; None if it isn't concerned."""
        if change.version <= self._after:
            return None
        now = change.current if self._wants(change.current) else None
        before = change.previous if self._wants(change.previous) else None
        if now is not None:
            return Event("MODIFIED" if before is not None else "ADDED", self._resource, now)
        return None if before is None else Event("DELETED", self._resource, before.at(change.version))

    def _spoken(self, event: Event) -> bytes:
        return self._speech.event(event, 0)

    def _wants(self, stored: Stored | None) -> bool:
        return stored is not None and stored.matches(self._options.wanted)

    async def _bookmark(self, end: bool = False) -> None:
        """Say how far the stream is. The object has only a resourceVersion, and what a typed encoder adds."""
        if not self._options.bookmarks or self._watch.sent < self._after:
            return
        if self._state.dice.strike(BOOKMARK, "watch", self._resource.plural):
            return
        event = Event("BOOKMARK", self._resource, version=self._watch.sent, end_of_initial=end)
        await self._connection.chunk(self._spoken(event))

    async def _deliver(self, events: Sequence[Event]) -> None:
        """Send events that are one opportunity for a fault; it strikes at one of them."""
        dice = self._state.dice
        fault = dice.strike(DELIVERY, "watch", self._resource.plural)
        lines = [self._spoken(event) for event in events]
        if not fault:
            await self._send(lines)
            return
        at = dice.random.randrange(len(lines))
        await self._send(lines[:at])
        sabotage = Sabotage(self._watch, dice, self._speech, lambda line: self._send([line]))
        await sabotage.strike(fault, events[at])
        await self._send(lines[at + 1 :])

    async def _send(self, lines: Sequence[bytes]) -> None:
        """Send lines, several in a chunk."""
        start = size = 0
        for index, line in enumerate(lines):
            size += len(line)
            if size >= _CHUNK or index == len(lines) - 1:
                await self._connection.chunk(b"".join(lines[start : index + 1]))
                start, size = index + 1, 0
        self._watch.events += len(lines)
        self._state.event_count += len(lines)
        self._state.note_answer("watch", self._resource, self._watch.arrival)

    def _position(self, version: int) -> int:
        try:
            return self._state.store.position(self._resource, version)
        except ExpiredError as problem:
            raise refusals.expired(str(problem)) from problem

    def _lifetime(self) -> float:
        if self._options.timeout is not None:
            return self._options.timeout
        return self._state.dice.random.uniform(*self._state.promises.watch_timeout)

    async def _sleep_until(self, moment: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(moment):
                await self._watch.changed.wait()


def error_line(speech: Speech, resource: Resource, refusal: RefusalError) -> bytes:
    """The ERROR event that a refusal is once the answer has begun."""
    return speech.event(Event("ERROR", resource, refusal=refusal), 0)
