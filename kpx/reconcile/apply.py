"""Bring the kernel to the desired ruleset: read, plan, restore. The reconciler's rim."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kpx.errors import KpxError
from kpx.netfilter import confirmed, legacy
from kpx.netfilter.names import ours
from kpx.netfilter.reading import read_tables
from kpx.netfilter.refusal import RestoreError, ToolError
from kpx.netfilter.restore import Transaction, payload
from kpx.netfilter.ruleset import TABLES, Ruleset, TableName
from kpx.netfilter.save import Saved, SavedChain, SavedTable
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.edit import Edit
from kpx.reconcile.owners import Owners, owners_of
from kpx.reconcile.phases import NFT_CHAINS, transactions
from kpx.reconcile.plan import Plan, make_plan, make_removal_plan


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an apply did.

    `restores` counts runs of `iptables-restore`, `lines` what they were sent, `plan` is what had to change, besides
    `ahead` new rules of the nat table that were written before there was a plan. `seconds` is what the restore took
    if there was no need to compare, else 0. `held` names stale chains that had to stay, `failed` the service ports
    that keep their old rules, with the reason.
    """

    restores: int = 0
    lines: int = 0
    plan: Plan = field(default_factory=Plan)
    held: tuple[tuple[TableName, str], ...] = ()
    failed: Mapping[str, KpxError] = field(default_factory=dict)
    ahead: int = 0
    seconds: float = 0.0


def read_live(tools: Tools, tables: Collection[str] = TABLES, niceness: int = 0) -> Saved:
    """The live tables of one family, by name, as `read_tables` reads them; `niceness` as in `Tools.save`.

    On the legacy backend the chains are looked at in-process first: a table without any of ours, as on a new node,
    need not be read in full, because nothing in it has to change but what is added.
    """
    clear = dict(_clear_tables(tools)) if tools.backend is Backend.LEGACY else {}
    return {**clear, **read_tables(tools, [table for table in tables if table not in clear], niceness)}


def _clear_tables(tools: Tools) -> Iterator[tuple[str, SavedTable]]:
    """The legacy tables that hold no chain of ours, and so no jump to one either; foreign rules are left out."""
    for name, found in legacy.survey(tools.family, tools.backend).items():
        if not any(ours(chain) for chain in found.chains):
            chains = {
                chain: SavedChain(one.policy, one.packets, one.bytes, (), None) for chain, one in found.chains.items()
            }
            yield name, SavedTable(chains)


Progress = Callable[[int, int], None]
"""Told how many chains the tool has been given so far, and of how many."""


def apply(desired: Ruleset, tools: Tools, progress: Progress = lambda done, total: None) -> Outcome:
    """Make the kernel hold `desired`, with the smallest change; nothing is run if it does already.

    A service port whose rules are refused keeps the old ones and is named in the outcome, while all others are
    applied. Raises RestoreError if the refused rules belong to no service port,
    ToolError or UnconfirmedError if the tools can't be relied on.
    """
    return _Applying(desired, tools, progress).run()


def remove(tools: Tools) -> Outcome:
    """Remove every chain and jump of ours, and nothing else."""
    live = read_live(tools, (*TABLES, "mangle"))
    nothing = Ruleset(tools.family, {})
    return _Applying(nothing, tools).restore(make_removal_plan(tools.family, live))


def payload_of(edits: Iterable[Edit], tools: Tools) -> str:
    """What to feed `tools.restore` to carry out `edits`; empty if there is nothing to do.

    The legacy kernel copies the whole table for each transaction, so there it is one.
    """
    return payload(_transactions(filter(None, edits), tools))


def _transactions(edits: Iterable[Edit], tools: Tools) -> Iterator[Transaction]:
    return transactions(edits, NFT_CHAINS if tools.backend is Backend.NFT else 0)


MOST_TRIES = 64
"""How often what was refused without a line is parted to find whose it is: enough for several of 50,000."""


class _Applying:
    """One apply: tries everything at once, then narrows down what is refused."""

    def __init__(self, desired: Ruleset, tools: Tools, progress: Progress = lambda done, total: None) -> None:
        self.desired, self.tools, self.progress = desired, tools, progress
        self.failed: dict[str, KpxError] = {}
        self.restores = self.lines = self._tries = 0

    def run(self) -> Outcome:
        live = read_live(self.tools)
        plan = make_plan(self.desired, live)
        try:
            return self.restore(plan)
        except RestoreError as error:
            self._probe()
            owners = owners_of(self.desired, live)
            self._settle(owners.of_edits(plan.edits), error, owners)
        return Outcome(self.restores, self.lines, plan, plan.held, self.failed)

    def _probe(self) -> None:
        """A tool that refuses even what changes nothing is no judge of anybody's rules. Raises ToolError."""
        try:
            self.tools.restore("*nat\nCOMMIT\n")
        except RestoreError as error:
            raise ToolError(f"everything is refused: {error}") from error

    def restore(self, plan: Plan) -> Outcome:
        self._run(plan.edits)
        return Outcome(self.restores, self.lines, plan, plan.held)

    def _settle(self, wanted: frozenset[str], error: RestoreError, owners: Owners) -> None:
        """Apply what can be applied of the service ports `wanted`, which together failed with `error`.

        Mostly the tools name the refused line, and with it the service port. Where they don't, halves are tried.
        """
        suspect = owners.of_line(error.line or "")
        if suspect is None and len(wanted) == 1:
            (suspect,) = wanted
        if suspect in wanted:
            self.failed[suspect] = error
            self._try(wanted - {suspect}, owners)
        elif not wanted:
            raise error
        else:
            self._tries += 1
            if self._tries > MOST_TRIES:  # whatever is refused, it isn't the rules of a few service ports
                raise error
            self._try(frozenset(), owners)  # if this fails, no service port is to blame
            ordered = sorted(wanted)
            middle = len(ordered) // 2
            self._try(frozenset(ordered[:middle]), owners)
            self._try(frozenset(ordered[middle:]), owners)

    def _try(self, wanted: frozenset[str], owners: Owners) -> None:
        # Transactions before a refused one went through: every try starts from what the kernel holds now.
        plan = make_plan(self.desired, read_live(self.tools))
        try:
            self._run(owners.part(plan.edits, wanted))
        except RestoreError as error:
            self._settle(wanted, error, owners)

    def _run(self, edits: Iterable[Edit]) -> None:
        wanted = [edit for edit in edits if edit]
        if wanted:
            self.restores += 1
            confirmed.restore(self.tools, self._pieces(wanted))

    def _pieces(self, edits: Sequence[Edit]) -> Iterator[str]:
        """The payload, made while the tool takes it in."""
        done, total = 0, len({(edit.table, edit.chain) for edit in edits})
        for transaction in _transactions(edits, self.tools):
            piece = payload([transaction])
            self.lines += piece.count("\n")
            yield piece
            done = min(total, done + len(transaction.declare))
            self.progress(done, total)
        self.progress(total, total)
