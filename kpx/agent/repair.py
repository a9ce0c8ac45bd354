"""Puts right what others do to single chains of ours and to the jumps to them. Apart from updates, which go first.

The kernel's notifications name chains. So only these are read, and only the Services behind them are compiled: what
other programs do in the built-in chains, however often, costs an update nothing but a few milliseconds of waiting.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from kpx import logs
from kpx.agent import told
from kpx.agent.health import Health
from kpx.agent.kernel import Kernel, chunks
from kpx.agent.metrics import Metrics
from kpx.agent.store import ServiceKey
from kpx.agent.suspects import PERIOD, ChainKey, Culprit, Suspects
from kpx.agent.verification import REST, Verification
from kpx.compiler.names import port_hash
from kpx.errors import KpxError
from kpx.netfilter.names import ours
from kpx.netfilter.owners import is_own_chain
from kpx.netfilter.refusal import WANT, RestoreError, wanting
from kpx.reconcile.apply import Outcome
from kpx.reconcile.edit import Edit
from kpx.reconcile.owners import Owners

log = logs.get_logger()

FALSE_ALARM_SECONDS = 1.0
"""How long the next look waits after one that found no harm: somebody may be busy with rules of their own."""
LONGEST_REST = 100.0
"""Seconds from one look at everything to the next, at most: it takes 5 s of CPU for 50,000 Services."""
HASTE_REST = 5.0
"""How long a comparison of everything waits after one before, in times of what that took."""
DAMAGE = "damage"
"""The reason for a comparison after which anything that had to change is damage."""


class Repairs:
    """One family's. `give_up` has the whole state compared and written, where single chains won't do.

    `after` is called when single chains were mended: connections may have begun while they were wrong.
    """

    def __init__(
        self,
        kernel: Kernel,
        metrics: Metrics,
        health: Health,
        verify_period: float,
        give_up: Callable[[str], None],
    ) -> None:
        self.verification = Verification(kernel, metrics)
        self._kernel, self._metrics, self._health = kernel, metrics, health
        self._family, self._desired = kernel.tools.family, kernel.desired
        self._verify_period, self._give_up = verify_period, give_up
        self._suspects = Suspects()
        self._woken, self._doubted = asyncio.Event(), asyncio.Event()
        self._urgent_from = 0.0
        self.after: Callable[[], None] = lambda: None

    @property
    def culprit(self) -> Culprit | None:
        """Who touched our rules last; None if it isn't that which had them looked at."""
        return self._suspects.culprit

    def suspect(self, chains: Iterable[ChainKey], culprit: Culprit) -> None:
        """Somebody else touched these chains; none means that it isn't known which."""
        self._suspects.add(chains, culprit)
        if not self._desired.keeps_entries and any(self._takes_everything(one) for one in chains):
            self._suspects.doubt_all()
        self._woken.set()
        if self._suspects.everything:
            self._doubted.set()

    def _takes_everything(self, one: ChainKey) -> bool:
        """Whether a chain is one that can only be made from all Services: the dispatch chains of layout `classic`."""
        return ours(one[1]) and not is_own_chain(one[1])

    # -- single chains ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at what is suspect, and mend it, until cancelled."""
        while True:
            while (wait := self._suspects.due(time.monotonic())) != 0:
                self._woken.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), wait)
            if not await self._mend(self._suspects.take()):
                await asyncio.sleep(FALSE_ALARM_SECONDS)

    async def _mend(self, chains: Mapping[ChainKey, Culprit | None]) -> bool:
        """Mend some chains, each given with who touched it; whether anything was wrong with them."""
        if not self._desired.is_loaded:  # nobody knows yet what they should be
            self._suspects.put_back(chains)
            return False
        try:
            with self._kernel.watching() as changes:
                owners = await self._owners(chains)
                async with self._kernel.turn:
                    # What was written meanwhile may belong to a Service that nobody had when owners were looked for.
                    doubtful = {one for one in changes.chains if is_own_chain(one[1]) and not owners.get(one)}
                    known = {one: key for one, key in owners.items() if one not in doubtful}
                    sure = self._desired.is_loaded and not changes.all
                    outcome = await self._kernel.mend(known) if sure else Outcome()
        except RestoreError as error:
            if len(chains) == 1:
                self._failed(chains, error)
                return False
            return await self._mend_apart(chains)
        except (KpxError, *WANT) as error:
            self._failed(chains, error if isinstance(error, KpxError) else wanting(error))
            return False
        if not sure:  # what was compared meanwhile may have been read before the damage
            self._suspects.put_back(chains)
        if outcome.plan:
            self.after()
            self._tell(outcome, known, chains)
        return bool(outcome.plan)

    async def _mend_apart(self, chains: Mapping[ChainKey, Culprit | None]) -> bool:
        """Mend one half after the other, so that what is refused holds up nothing else; whether anything was wrong."""
        every = list(chains.items())
        middle = len(every) // 2
        first = await self._mend(dict(every[:middle]))
        return await self._mend(dict(every[middle:])) or first

    def _failed(self, chains: Mapping[ChainKey, Culprit | None], error: KpxError) -> None:
        """Chains that could not be mended stay suspect. In a fight that is no reason to compare everything each time:
        whoever changes a chain while it is being mended is mostly the one who undid the repair before."""
        self._suspects.put_back(chains)
        held = self._suspects.repaired(chains, time.monotonic())
        told.failure(self._metrics, self._family, error, full=False, retry_in=max(held.values(), default=0.0))
        known = self._kernel.refuses and isinstance(error, RestoreError)  # and so tried again anyway
        if not held and not known:
            self._give_up(DAMAGE)

    async def _owners(self, chains: Iterable[ChainKey]) -> dict[ChainKey, ServiceKey | None]:
        """The Services behind chains; None where no single Service has it, or none at all."""
        found: dict[ChainKey, ServiceKey | None] = dict.fromkeys(chains)
        missing = {name for table, name in found if table == "nat" and is_own_chain(name)}
        if not missing:
            return found
        hashes = {name[-16:] for name in missing}
        services = self._desired.services()
        likely = [key for key in services if any(port_hash(one.name) in hashes for one in self._desired.ports(key))]
        for some in (*chunks(likely), *chunks(services)):
            for key in some:
                for fragment in self._desired.fragments((key,)):
                    for name in fragment.chains.keys() & missing:
                        found["nat", name] = key
                        missing.discard(name)
            if not missing:
                break
            await asyncio.sleep(0)
        return found

    def _tell(
        self,
        outcome: Outcome,
        owners: Mapping[ChainKey, ServiceKey | None],
        touched: Mapping[ChainKey, Culprit | None],
    ) -> None:
        chains = {
            chain: str(fragment.name)
            for fragment in self._desired.fragments({key for key in owners.values() if key})
            for chain in fragment.chains
        }
        damaged = [(edit.table, edit.chain) for edit in outcome.plan.edits]
        culprit = next((who for one in damaged if (who := touched.get(one))), None)
        self._repaired(outcome.plan.edits, Owners(chains), culprit)

    def repaired(self, edits: Sequence[Edit], owners: Owners) -> None:
        """A comparison of everything found this damage and put it right; it counts for how soon the next one may be."""
        wait = self._repaired(edits, owners, self.culprit)
        self._urgent_from = max(self._urgent_from, time.monotonic() + wait)

    def _repaired(self, edits: Sequence[Edit], owners: Owners, culprit: Culprit | None) -> float:
        """Tell of a repair. Returns the seconds until the next one of the same chains."""
        told.repair(self._metrics, self._family, edits, owners, culprit)
        held = self._suspects.repaired([(edit.table, edit.chain) for edit in edits], time.monotonic())
        wait = max(held.values(), default=0.0)
        if held:
            self._undone(culprit or Culprit(), len(held), wait)
        return wait

    def _undone(self, culprit: Culprit, count: int, wait: float) -> None:
        """Somebody damages the same chains again and again."""
        self._health.undone(self._family, str(culprit), time.time() + 2 * PERIOD)
        self._metrics.undone(self._family, culprit.process, count)
        log.warning(
            "repairs are undone again and again, and made more seldom now",
            family=self._family,
            by=str(culprit),
            chains=count,
            next_in=round(wait, 1),
        )

    # -- everything ------------------------------------------------------------------------------------

    async def verify(self) -> None:
        """Look at everything in turns, and at once if it isn't known what others touched, until cancelled."""
        pause = self._verify_period
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), pause)
            haste = self._doubted.is_set()
            if haste:
                await asyncio.sleep(max(0.0, self._urgent_from - time.monotonic()))
            start = time.monotonic()
            await self.look(haste)
            took = time.monotonic() - start
            pause = max(self._verify_period, min(REST * took, LONGEST_REST))
            self._urgent_from = max(self._urgent_from, time.monotonic() + max(FALSE_ALARM_SECONDS, HASTE_REST * took))

    async def look(self, haste: bool = False) -> None:
        """Look at everything, and have repaired what isn't as desired."""
        self._doubted.clear()
        self._suspects.everything = False
        culprit = self._suspects.culprit if haste else None
        if not self._desired.is_loaded:
            return
        try:
            found = await self.verification.look(haste)
        except (KpxError, *WANT) as error:
            log.warning("verification failed", family=self._family, error=str(error))
            return
        if found and not self._kernel.refuses:  # what is refused is tried again with everything, and would be found
            self._found(found, culprit)

    def _found(self, chains: frozenset[ChainKey], culprit: Culprit | None) -> None:
        self._suspects.add(chains, culprit)
        if self._suspects.everything or any(
            self._takes_everything(one) for one in chains if not self._desired.keeps_entries
        ):
            self._suspects.everything = False
            self._give_up(DAMAGE)
        self._woken.set()
