"""What was looked at and what was seen: one line for each claim."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MARKS = {True: "✓", False: "✗ failed"}


@dataclass(frozen=True, slots=True)
class Line:
    """One claim. `seen` says what was seen, also if that is `fine` not."""

    group: str
    claim: str
    seen: str
    fine: bool
    seconds: float


def markdown(lines: Iterable[Line], facts: Mapping[str, str]) -> str:
    """A table for each group, under a list of what it was run with."""
    parts = [f"- {name}: {fact}\n" for name, fact in facts.items()]
    group = ""
    for line in lines:
        if line.group != group:
            group = line.group
            parts.append(f"\n### {group}\n\n| what | seen | | seconds |\n| --- | --- | --- | --- |\n")
        parts.append(f"| {_cell(line.claim)} | {_cell(line.seen)} | {MARKS[line.fine]} | {line.seconds:.0f} |\n")
    return "".join(parts)


def into(page: str, table: str) -> str:
    """A page with this table in place of the one that it has between its marks."""
    made, count = re.subn(r"(?<=<!-- seen -->\n).*?(?=<!-- end -->)", lambda _: table, page, flags=re.DOTALL)
    if not count:
        raise ValueError("the page has no marks `<!-- seen -->` and `<!-- end -->`")
    return made


def _cell(text: str) -> str:
    """Text that can't end a cell."""
    return " ".join(text.split()).replace("|", "\\|")
