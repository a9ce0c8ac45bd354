"""What a payload asks the kernel to do, and what the kernel says was done: counted chain by chain. Pure.

A tool that ends with status 0 has promised nothing: only what the kernel itself tells of a commit counts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TableChain = tuple[str, str]
"""Names of a table and of one of its chains."""


@dataclass(slots=True)
class Deeds:
    """What happens to one chain: how many rules come and go, and whether the chain itself is made or dropped.

    `emptied` says that whatever rules it had go, so that nobody knows how many. `open` says that the command is one
    of which nothing is expected. `gone` are the rules that are deleted, in words, and `kept` is how many of them are
    added again.
    """

    added: int = 0
    deleted: int = 0
    made: int = 0
    dropped: int = 0
    emptied: bool = False
    open: bool = False
    kept: int = 0
    gone: set[str] | None = None  # no set for each of 60,000 chains

    def then(self, other: "Deeds") -> "Deeds":
        """This, and then that."""
        if other.emptied:
            return other
        return Deeds(
            self.added + other.added,
            self.deleted + other.deleted,
            self.made + other.made,
            other.dropped,
            self.emptied,
            self.open or other.open,
            self.kept + other.kept,
        )


@dataclass(frozen=True, slots=True)
class Section:
    """One `*table … COMMIT` section of a payload: one transaction of the kernel."""

    table: str
    chains: Mapping[str, Deeds] = field(default_factory=dict)

    def unmet(self, seen: Mapping[TableChain, Deeds]) -> Iterator[str]:
        """How a commit, told by chains, differs from what this section asks for; nothing if it is the same."""
        for chain, asked in self.chains.items():
            done = seen.get((self.table, chain), _NOTHING)
            if not asked.open and not _same(asked, done):
                yield f"{self.table} {chain}: asked {_words(asked)}, done {_words(done)}"
        for (table, chain), done in seen.items():
            if (table != self.table or chain not in self.chains) and (done.added or done.deleted or done.dropped):
                yield f"{table} {chain}: asked nothing, done {_words(done)}"


_NOTHING = Deeds()


def sections(payload: str) -> Iterator[Section]:
    """The sections of a payload of whole ones, in order."""
    table, chains = "", dict[str, Deeds]()
    for line in payload.split("\n"):
        match line[:1]:
            case "-":
                chain, _, rule = line[3:].partition(" ")
                _count(chains.setdefault(chain, Deeds()), line[1], rule)
            case ":":
                chain, _, policy = line[1:].partition(" ")
                one = chains.setdefault(chain, Deeds())
                if policy.startswith("-"):
                    one.emptied = True
                else:
                    one.open = True
            case "*":
                table, chains = line[1:], {}
            case "C":
                yield Section(table, chains)


def _count(chain: Deeds, command: str, rule: str) -> None:
    match command:
        case "A" | "I":
            chain.added += 1
            if chain.gone and (rule if command == "A" else rule.partition(" ")[2]) in chain.gone:
                chain.kept += 1
        case "D":
            chain.deleted += 1
            chain.gone = (chain.gone or set()) | {rule}
        case "X":
            chain.dropped += 1
        case "F":
            chain.emptied = True
        case _:
            chain.open = True


def _same(asked: Deeds, done: Deeds) -> bool:
    if asked.dropped or done.dropped:
        return bool(asked.dropped) == bool(done.dropped) and asked.added == done.added
    if asked.emptied:  # one without rules shows if it was made or emptied; where it stood empty, nothing is told
        return asked.added == done.added and bool(done.added or done.made or done.deleted)
    return (asked.added, asked.deleted) == (done.added, done.deleted)


def _words(deeds: Deeds) -> str:
    if deeds.dropped:
        return "the chain dropped"
    made = "the chain made, " if deeds.made or (deeds.emptied and not deeds.deleted) else ""
    return f"{made}{deeds.added} rules added, {deeds.deleted} deleted"
