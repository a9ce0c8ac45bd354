"""Did the legacy kernel do what a tool was sent? It tells nobody, so the chains in question are looked at twice.

The look before costs no time: it happens while the tool parses what it was fed, but for the word COMMIT.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from kpx.family import Family
from kpx.netfilter.deeds import Deeds, sections
from kpx.netfilter.legacy_blob import RuleDigests, digests, read_blob

_COMMIT = "\nCOMMIT\n"
_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_Chain = tuple[str, str]


class LegacyWitness:
    """Sees what becomes of the chains that a payload names. Raises KpxError if the kernel can't be asked."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._asked: dict[_Chain, Deeds] = {}
        self._before: dict[_Chain, RuleDigests | None] = {}

    def announced(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same payload, in pieces of any length; what its chains hold before is noted before it can take effect."""
        for piece in pieces:
            # Each section can take effect with its own COMMIT.
            for section in piece.split(_COMMIT):
                if section:
                    yield f"{section}\n"
                    self._note(f"{section}{_COMMIT}")
                    yield _COMMIT[1:]

    def missing(self) -> Sequence[str]:
        """What hasn't been done, in words, once the tool has ended."""
        tables = {table for table, _ in self._asked}
        after = {table: read_blob(self._family, table) for table in tables}
        found = []
        for (table, chain), asked in self._asked.items():
            now = digests(after[table], (chain,))[chain]
            words = _differs(asked, self._before[table, chain], now)
            if words:
                found.append(f"{table} {chain}: {words}")
        return found

    def _note(self, piece: str) -> None:
        for section in sections(piece):
            blob = read_blob(self._family, section.table) if section.chains else None
            for chain, asked in section.chains.items():
                key = (section.table, chain)
                if key not in self._before:
                    self._before[key] = digests(blob, (chain,))[chain]
                    self._asked[key] = asked
                else:
                    self._asked[key] = self._asked[key].then(asked)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _differs(asked: Deeds, before: RuleDigests | None, after: RuleDigests | None) -> str:
    """How a chain isn't as it should be after what was asked for; empty if it is."""
    if asked.open:
        return ""
    if asked.dropped:
        return "" if after is None else "is still there"
    if after is None:
        return "is missing"
    if asked.emptied:
        wanted = asked.added - asked.deleted
        if len(after) != wanted:
            return f"has {len(after)} rules, not {wanted}"
        return "is as it was, not written anew" if wanted and after == before else ""
    had, has = Counter(before or ()), Counter(after)
    come, gone = (has - had).total(), (had - has).total()
    # A rule that is deleted and added again, elsewhere in the chain, neither comes nor goes.
    moved = asked.added - come
    if moved == asked.deleted - gone and 0 <= moved <= asked.kept:
        return ""
    return f"asked {asked.added} rules added, {asked.deleted} deleted; {come} came, {gone} went"
