"""What `kpx apply` and `kpx cleanup` tell of what they wrote to the kernel, as data."""

from collections.abc import Sequence

from pydantic import Field

from kpx.family import Family
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.apply import Outcome
from kpx.shape import Part


class Written(Part):
    """What was written for one IP family; a line of JSON for each."""

    family: Family
    backend: Backend
    restores: int = Field(description="how often iptables-restore was run; 0 if there was nothing to write")
    lines: int = Field(description="how many lines it was sent, or with --dry-run would be")
    seconds: float
    failed: Sequence[str] = Field(description="service ports whose rules were refused: they keep their old ones")
    held: Sequence[str] = Field(description="chains (table/chain) that stay because other programs' rules jump to them")
    payload: str | None = Field(description="what iptables-restore would be sent; null without --dry-run")


def written(tools: Tools, outcome: Outcome, seconds: float, payload: str | None = None) -> Written:
    """What an apply or a removal did, or would do with this payload."""
    return Written(
        family=tools.family,
        backend=tools.backend,
        restores=outcome.restores,
        lines=outcome.lines,
        seconds=round(seconds, 3),
        failed=sorted(outcome.failed),
        held=[f"{table}/{chain}" for table, chain in outcome.held],
        payload=payload,
    )
