"""Does the kernel hold what is desired? Looked at again and again, at low priority and beside updates.

The rules of 10,000 Services are not compiled for that: one number stands for the chains of all Services
(`kpx.agent.digest`), and only if it isn't the one of what the kernel holds, they are compiled and compared one by one,
a few at a time. Chains that belong to no single Service are always compared.
"""

import asyncio
import time
from collections.abc import Container
from dataclasses import replace

from kpx import logs
from kpx.agent import memory
from kpx.agent.digest import digest, minus, plus
from kpx.agent.kernel import Changes, Kernel, chunks
from kpx.agent.metrics import Metrics
from kpx.agent.suspects import ChainKey
from kpx.compiler.fragment import Fragment
from kpx.netfilter.owners import is_own_chain
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.save import Saved, SavedTable
from kpx.reconcile.apply import read_live
from kpx.reconcile.edit import Edit
from kpx.reconcile.plan import Planner

log = logs.get_logger()

REST = 19.0
"""How long the next look is away at least, in times of what the last one took: 5 % of the time go to looks."""
LEISURE = 3.0
"""How long a comparison one by one rests after each step, in times of what the step took; none if there is haste."""
STEP, PAUSE = 500, 0.003
"""Chains whose number is worked out in one go, and the seconds of rest after that, unless there is haste."""
NICENESS = 19


class Verification:
    """Looks at one family's kernel state."""

    def __init__(self, kernel: Kernel, metrics: Metrics) -> None:
        self._kernel, self._metrics = kernel, metrics
        self._desired, self._family = kernel.desired, kernel.tools.family

    async def look(self, haste: bool = False) -> frozenset[ChainKey]:
        """Chains that aren't as desired, but for those that were written meanwhile.

        None are named while a failed sync waits for its next try, which compares everything: then, and if this raises
        KpxError, as the kernel can't be read, nothing was verified.
        """
        try:
            with self._kernel.watching() as changes:
                async with self._kernel.turn:  # nothing is being written now
                    pass
                if self._kernel.behind:
                    return frozenset()
                live = await asyncio.to_thread(read_live, self._kernel.tools, niceness=0 if haste else NICENESS)
                if await self._is_sound(live, changes, haste):
                    found: set[ChainKey] = set()
                else:
                    found = await self._differing(live, 0.0 if haste else LEISURE)
                if changes.all or self._kernel.behind:
                    return frozenset()
                if not found - changes.chains:
                    self._metrics.verified(self._family, time.time())
                return frozenset(found - changes.chains)
        finally:
            await asyncio.to_thread(memory.trim)

    async def _is_sound(self, live: Saved, changes: Changes, haste: bool) -> bool:
        """Whether all is as desired, found without compiling; false if that takes a closer look."""
        desired = self._desired
        if not desired.keeps_entries:
            return False
        async with self._kernel.turn:  # for some ten milliseconds
            rest = {name: rules for one in desired.fragments(changes.services) for name, rules in one.chains.items()}
            wanted = minus(desired.digest, digest(rest.items()))
            left_out = rest.keys() | {name for _, name in changes.chains}
            shared = await asyncio.to_thread(desired.shared, ())
        pause = 0.0 if haste else PAUSE
        if await asyncio.to_thread(_digest_of_own, live, left_out, pause) != wanted:
            return False
        return _differing_of_others(live, shared) <= changes.chains

    async def _differing(self, live: Saved, leisure: float) -> set[ChainKey]:
        """The chains that don't look as desired, or shouldn't be."""
        desired = self._desired
        planner = await asyncio.to_thread(Planner, self._family, live)
        edits: list[Edit] = []
        entries: list[Fragment] = []
        for some in chunks(desired.services()):
            start = time.monotonic()
            for fragment in desired.fragments(some):
                edits += planner.chains("nat", fragment.chains)
                if not desired.keeps_entries:
                    entries.append(replace(fragment, chains={}))
            await asyncio.sleep(leisure * (time.monotonic() - start))
        async with self._kernel.turn:  # for some ten milliseconds
            shared = await asyncio.to_thread(desired.shared, entries)
        edits += await asyncio.to_thread(planner.take, shared)
        gone, _ = await asyncio.to_thread(planner.finish)
        return {(edit.table, edit.chain) for edit in (*edits, *gone)}


def _digest_of_own(live: Saved, left_out: Container[str], pause: float) -> int:
    """The number of the chains that belong to single service ports, but for some."""
    chains = live["nat"].chains if "nat" in live else {}
    found = 0
    for count, name in enumerate(chains):
        if count % STEP == 0:
            time.sleep(pause)
        if is_own_chain(name) and name not in left_out:
            found = plus(found, digest([(name, chains[name].rules)]))
    return found


def _differing_of_others(live: Saved, shared: Ruleset) -> set[ChainKey]:
    """The chains that belong to no single service port, or the jumps to them, that don't look as they should."""
    others = {
        name: SavedTable({one: table.chains[one] for one in table.chains if name != "nat" or not is_own_chain(one)})
        for name, table in live.items()
    }
    planner = Planner(shared.family, others)
    edits = planner.take(shared)
    gone, _ = planner.finish()
    return {(edit.table, edit.chain) for edit in (*edits, *gone)}
