"""Which part of a plan belongs to which service port. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from kpx.netfilter.owners import chain_owners, is_own_chain, rule_owner
from kpx.netfilter.ruleset import TABLES, Ruleset, TableName
from kpx.netfilter.save import Saved
from kpx.reconcile.edit import Edit


class Owners:
    """The service ports (`namespace/name:port`) behind chains and rules; `chains` are those known by name."""

    def __init__(self, chains: Mapping[str, str]) -> None:
        self._chains = chains

    def of(self, chain: str, rule: str = "") -> str | None:
        """The service port that a rule of `chain` belongs to; None if it is there for all."""
        return self._chains.get(chain) if is_own_chain(chain) else rule_owner(rule)

    def of_line(self, line: str) -> str | None:
        """The service port that a command of a payload (`-A CHAIN rule`) belongs to."""
        _, _, rest = line.partition(" ")
        chain, _, rule = rest.partition(" ")
        return self.of(chain, rule)

    def of_edits(self, edits: Iterable[Edit]) -> frozenset[str]:
        """Every service port that `edits` concern."""
        owners = {self.of(edit.chain, rule) for edit in edits for rule in edit.rules()}
        return frozenset(owner for owner in owners if owner)

    def part(self, edits: Iterable[Edit], wanted: frozenset[str]) -> Iterator[Edit]:
        """What of `edits` concerns the service ports `wanted`, or none in particular.

        A rule that only moves to another chain belongs to what all need: where a tree grows or shrinks, the entries of
        service ports that stay as they are have to go along.
        """
        every = tuple(edits)
        moved = _gone(every) & _come(every)
        for edit in every:
            if edit.separable:
                rules = edit.rules()
                yield edit.keeping(
                    rule for rule in rules if (edit.table, rule) in moved or self._is_in(wanted, edit.chain, rule)
                )
            elif self._is_in(wanted, edit.chain):
                yield edit

    def _is_in(self, wanted: frozenset[str], chain: str, rule: str = "") -> bool:
        owner = self.of(chain, rule)
        return owner is None or owner in wanted


def owners_of(desired: Ruleset, live: Saved | None = None) -> Owners:
    """The service ports behind the chains and rules of a desired ruleset, and of a live one, if it is given."""
    chains: dict[str, str] = {}
    for table in TABLES:
        if live and table in live:
            chains |= chain_owners({name: one.rules for name, one in live[table].chains.items()})
    for table in TABLES:
        if table in desired.tables:
            chains |= chain_owners(desired.tables[table].chains)
    return Owners(chains)


def _gone(edits: Iterable[Edit]) -> set[tuple[TableName, str]]:
    return {(edit.table, rule) for edit in edits for rule in edit.removed}


def _come(edits: Iterable[Edit]) -> set[tuple[TableName, str]]:
    return {(edit.table, one.rule) for edit in edits for one in edit.added}
