"""What `-S CHAIN` prints, as a text of iptables-save. Pure.

`-S` spells a rule as iptables-save does; only a chain's head differs: `-N CHAIN`, or `-P CHAIN POLICY`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kpx.netfilter.save import open_quote


@dataclass(frozen=True, slots=True)
class Listing:
    """Some chains of one table: their names in order, and their declarations and rules in save's words."""

    names: tuple[str, ...]
    declarations: str
    rules: str

    @classmethod
    def of(cls, printed: str) -> "Listing":
        """Read what `-S` printed of some chains."""
        names, declarations, rules = [], [], []
        for line in _lines(printed):
            if line[:3] in ("-N ", "-P "):
                name, _, policy = line[3:].partition(" ")
                names.append(name)
                declarations.append(f":{name} {policy or '-'} [0:0]\n")
            elif line:
                rules.append(f"{line}\n")
        return cls(tuple(names), "".join(declarations), "".join(rules))


def as_save(table: str, listings: Iterable[Listing]) -> str:
    """The table as iptables-save would print it, if it had these chains alone."""
    listings = tuple(listings)
    declarations, rules = (one.declarations for one in listings), (one.rules for one in listings)
    return "".join((f"*{table}\n", *declarations, *rules, "COMMIT\n"))


def _lines(printed: str) -> Iterable[str]:
    """The lines; a comment that has line ends stays in one."""
    lines = printed.split("\n")
    whole = "\\" not in printed and not any("\n" in quoted for quoted in printed.split('"')[1::2])
    return lines if whole else _joined(iter(lines))


def _joined(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        whole = line
        while open_quote(whole) and (following := next(lines, None)) is not None:
            whole = f"{whole}\n{following}"
        yield whole
