"""How one family's kernel state is brought up to date: send edits, compare all of it, mend single chains.

Everything that is written is confirmed by the kernel (`kpx.netfilter.confirmed`); what isn't, raises. One at a time:
whoever calls holds `turn`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from kpx import logs
from kpx.agent.desired import Desired
from kpx.agent.load import Load
from kpx.agent.store import ServiceKey
from kpx.agent.suspects import ChainKey
from kpx.compiler.fragment import Fragment
from kpx.compiler.frame import JUMPS
from kpx.family import Family
from kpx.netfilter import confirmed
from kpx.netfilter.reading import read_chains
from kpx.netfilter.refusal import RestoreError
from kpx.netfilter.ruleset import TABLES, Ruleset, Table, TableName
from kpx.netfilter.save import Saved, SavedTable
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.apply import Outcome, apply, payload_of, read_live
from kpx.reconcile.edit import Edit
from kpx.reconcile.phases import NFT_CHAINS, harmless
from kpx.reconcile.plan import Plan, Planner

log = logs.get_logger()

CHUNK = 20
"""How many Services to compile before other tasks get their turn: some 3 ms."""
PROGRESS_SECONDS = 2.0
"""How often a long load tells how far it is."""


@dataclass(slots=True, eq=False)
class Changes:
    """What was written while somebody looked: which chains, of which Services; `all` if perhaps everything."""

    chains: set[ChainKey] = field(default_factory=set)
    services: set[ServiceKey] = field(default_factory=set)
    all: bool = False


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


class Kernel:
    """One family's tables. `rules` counts what is in force, by table; `last_payload` is what was sent last."""

    def __init__(self, tools: Tools, desired: Desired) -> None:
        self.tools, self.desired = tools, desired
        self.turn = asyncio.Lock()
        self.rules: dict[TableName, int] = dict.fromkeys(TABLES, 0)
        self.last_payload = ""
        self.refuses = False
        """Whether some Services keep their old rules, as the kernel refuses the new ones."""
        self.behind = False
        """Whether the last sync failed, so that the kernel holds something else than what is desired."""
        self._ahead: asyncio.Task[Saved] | None = None
        self._watched: list[Changes] = []

    def read_ahead(self) -> None:
        """Read the kernel now, for the first comparison: a second's work for another process while objects come in.

        What others change from now on must not go unnoticed.
        """
        self._ahead = asyncio.create_task(asyncio.to_thread(read_live, self.tools))

    @contextmanager
    def watching(self) -> Iterator[Changes]:
        """What is written from now on, until the context ends."""
        changes = Changes()
        self._watched.append(changes)
        try:
            yield changes
        finally:
            self._watched.remove(changes)

    async def send(self, edits: Sequence[Edit], services: Iterable[ServiceKey]) -> Outcome:
        """Send edits of these Services as they are.

        If one is refused, or not confirmed, the kernel holds something else than was believed.
        """
        text = payload_of(edits, self.tools)
        if not text:
            return Outcome()
        self.last_payload = text
        chains = {(edit.table, edit.chain) for edit in edits}
        for changes in self._watched:
            changes.chains |= chains
            changes.services.update(services)
        seconds = await asyncio.to_thread(_timed, lambda: confirmed.restore(self.tools, text))
        for edit in edits:
            self.rules[edit.table] += len(edit.added) - len(edit.removed)
        return Outcome(1, text.count("\n"), Plan(tuple(edits)), seconds=seconds)

    async def mend(self, chains: Mapping[ChainKey, ServiceKey | None]) -> Outcome:
        """Read these chains, each given with its Service (None: of no single one), and put them right."""
        live = await asyncio.to_thread(self._read, chains)
        planner = Planner(self.tools.family, live)
        edits: list[Edit] = []
        services = {key for key in chains.values() if key}
        for fragment in self.desired.fragments(services):
            own = {name: rules for name, rules in fragment.chains.items() if ("nat", name) in chains}
            edits += planner.chains("nat", own)
        edits += planner.take(self._shared(chains))
        gone, _ = planner.finish()
        return await self.send([*edits, *gone], services)

    def _read(self, chains: Iterable[ChainKey]) -> Saved:
        saved: dict[str, SavedTable] = {}
        for table in TABLES:
            names = [chain for one, chain in chains if one == table]
            if names:
                found = read_chains(self.tools, table, names)
                saved[table] = SavedTable({name: chain for name, chain in found.items() if chain})
        return saved

    def _shared(self, chains: Mapping[ChainKey, ServiceKey | None]) -> Ruleset:
        """Of what belongs to no single Service, and of the jumps, only these chains."""
        if any(table_chain[1] not in JUMPS[table_chain[0]] for table_chain, key in chains.items() if not key):
            tables = self.desired.shared(()).tables
        else:  # built-in chains alone, as mostly
            tables = {table: Table({}, JUMPS[table]) for table in TABLES}
        return Ruleset(self.tools.family, {table: _part(one, table, chains) for table, one in tables.items()})

    async def compare(self, early: bool) -> Outcome:
        """Compare the whole kernel state with what is desired, Service by Service, and write what is different.

        If `early`, new chains are written while later ones are compiled; on legacy they never are, since that kernel
        copies its table with each transaction. If any rules are refused, `apply` narrows down which.
        """
        for changes in self._watched:
            changes.all = True
        ahead, self._ahead = self._ahead, None
        live = await (ahead or asyncio.to_thread(read_live, self.tools))
        planner = await asyncio.to_thread(Planner, self.tools.family, live)
        comparison = _Comparison(self, planner, early and self.tools.backend is Backend.NFT)
        try:
            return await comparison.run()
        except RestoreError as error:
            log.warning("rules refused, looking for the culprit", family=self.tools.family, error=str(error))
            async for _ in self.fragments():  # where that has not come to its end
                pass
            ruleset = await asyncio.to_thread(self.desired.ruleset)
            return await asyncio.to_thread(apply, ruleset, self.tools)
        finally:
            comparison.load.end()

    async def fragments(self) -> AsyncIterator[Fragment]:
        """All service ports, compiled anew if need be; a little at a time, so that others get their turn."""
        desired = self.desired
        if desired.is_loaded:
            for some in chunks(desired.services()):
                for fragment in desired.fragments(some):
                    yield fragment
                await asyncio.sleep(0)
            return
        for some in chunks(sorted(desired.begin())):
            desired.prepare(some)
            await asyncio.sleep(0)
        keys = desired.prepared()
        progress = Progress(self.tools.family, len(keys))
        for some in chunks(keys):
            for fragment in desired.load(some):
                yield fragment
            progress.done(len(some))
            await asyncio.sleep(0)
        desired.loaded()


class _Comparison:
    """One comparison of everything, with what is written on the way."""

    def __init__(self, kernel: Kernel, planner: Planner, early: bool) -> None:
        self.kernel, self.planner, self.early = kernel, planner, early
        self.load = Load(kernel.tools)
        self._fresh: list[Edit] = []
        self._edits: list[Edit] = []
        self._entries: list[Fragment] = []
        self._rules: dict[TableName, int] = dict.fromkeys(TABLES, 0)
        self._ahead = 0

    async def run(self) -> Outcome:
        desired, planner, tools = self.kernel.desired, self.planner, self.kernel.tools
        async for fragment in self.kernel.fragments():
            await self._take(fragment)
        shared = await asyncio.to_thread(desired.shared, self._entries)
        self._edits += self._fresh
        self._edits += await asyncio.to_thread(planner.take, shared)
        gone, held = await asyncio.to_thread(planner.finish)
        await self.load.send(await asyncio.to_thread(payload_of, self._edits + gone, tools))
        restores = await self.load.finish()
        for table in TABLES:
            self.kernel.rules[table] = self._rules[table] + sum(map(len, shared.tables[table].chains.values()))
        return Outcome(restores, self.load.lines, Plan((*self._edits, *gone), held), held, ahead=self._ahead)

    async def _take(self, fragment: Fragment) -> None:
        desired = self.kernel.desired
        if not self._rules["nat"]:
            self._fresh += self.planner.chains("nat", desired.frame())
        self._fresh += self.planner.chains("nat", fragment.chains)
        self._rules["nat"] += sum(map(len, fragment.chains.values()))
        if not desired.keeps_entries:
            self._entries.append(replace(fragment, chains={}))
        if self.early and len(self._fresh) >= NFT_CHAINS:
            some, rest = harmless(self._fresh)
            self._edits += rest
            self._fresh = []
            self._ahead += sum(len(one.added) for one in some)
            await self.load.send(payload_of(some, self.kernel.tools))


def _part(table: Table, name: TableName, chains: Mapping[ChainKey, ServiceKey | None]) -> Table:
    """Only those chains and jumps of a table that are among `chains`."""
    return Table(
        {chain: rules for chain, rules in table.chains.items() if (name, chain) in chains},
        {chain: rules for chain, rules in table.jumps.items() if (name, chain) in chains},
        table.unordered,
    )


def chunks(keys: Sequence[ServiceKey]) -> Iterator[Sequence[ServiceKey]]:
    """A few Services at a time."""
    return (keys[at : at + CHUNK] for at in range(0, len(keys), CHUNK))


def _timed(run: Callable[[], None]) -> float:
    """Seconds that something took."""
    start = time.monotonic()
    run()
    return time.monotonic() - start
