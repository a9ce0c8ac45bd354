"""What is told of syncs and repairs: the log, and the metrics."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kpx import logs
from kpx.agent.metrics import Metrics
from kpx.agent.suspects import Culprit
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.refusal import UnconfirmedError
from kpx.netfilter.ruleset import TableName
from kpx.reconcile.apply import Outcome
from kpx.reconcile.edit import Edit
from kpx.reconcile.owners import Owners
from kpx.reconcile.report import differences

log = logs.get_logger()


@dataclass(frozen=True, slots=True)
class Sync:
    """A sync that the kernel confirmed: why everything was compared, if it was, how many Services it concerned, what it
    did, and when it started, had compiled and ended, on a monotonic clock."""

    family: Family
    full: str
    services: int
    outcome: Outcome
    start: float
    compiled: float
    end: float

    @property
    def seconds(self) -> float:
        """What it took in all."""
        return self.end - self.start


def success(metrics: Metrics, sync: Sync, triggers: Iterable[float], rules: Mapping[TableName, int]) -> None:
    """A sync went through; `triggers` are when its changes came about, `rules` how many are in force by table."""
    now, outcome = time.time(), sync.outcome
    for trigger in triggers:
        metrics.programmed(sync.family, max(0.0, now - trigger))
    written = Counter[TableName]()
    written["nat"] += outcome.ahead
    for edit in outcome.plan.edits:
        written[edit.table] += len(edit.added)
    metrics.synced(sync.family, sync.seconds, bool(sync.full), outcome.lines, outcome.restores, rules, written, now)
    # Of a Node, nearly all that ever changes is none of our business.
    tell = log.info if sync.services or sync.full or outcome.lines else log.debug
    tell(
        "synced",
        family=sync.family,
        full=sync.full or None,
        services=sync.services,
        lines=outcome.lines,
        compile_ms=round((sync.compiled - sync.start) * 1000, 1),
        restore_ms=round(outcome.seconds * 1000, 1) if outcome.seconds else None,
        total_ms=round(sync.seconds * 1000, 1),
    )


def failure(metrics: Metrics, family: Family, error: KpxError, full: bool, retry_in: float) -> None:
    """A sync, of everything or not, or a repair, could not be written, or was not confirmed."""
    metrics.sync_failed(family, full)
    if isinstance(error, UnconfirmedError):
        metrics.unconfirmed(family)
    log.error("sync failed", family=family, retry_in=round(retry_in, 1), error=str(error))


def repair(
    metrics: Metrics, family: Family, edits: Sequence[Edit], owners: Owners, culprit: Culprit | None = None
) -> None:
    """What others had done to the rules was put right; `culprit` is who, if the kernel told of it."""
    found = differences(edits, owners)
    count = sum(len(some) for some in found.values())
    wrong = [f"{one.kind} {one.table} {one.chain}" for some in found.values() for one in some]
    log.warning(
        "rules repaired",
        family=family,
        cause="foreign change" if culprit else "verification",
        by=str(culprit) if culprit else None,
        differences=count,
        services=sorted(found)[:10],
        wrong=list(dict.fromkeys(wrong))[:10],
    )
    metrics.repaired(family, "rules", count)
