"""Which claims a run looks at, in which order; and how each becomes a line of the table."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tests.cluster.table import Line
from tests.cluster.waiting import NotSeenError
from tests.lab import LabError

T = TypeVar("T")
FAILURES = (NotSeenError, LabError, AssertionError, OSError, ValueError, LookupError, subprocess.SubprocessError)
"""What a claim may fail with: it becomes a line, and the run goes on."""
_LENGTH = 600


@dataclass(frozen=True, slots=True)
class Claim(Generic[T]):
    """Something to be seen on a cluster: `look` returns what was seen, or raises."""

    what: str
    look: Callable[[T], str]


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Claims that belong together, under a name for the command line."""

    name: str
    title: str
    claims: tuple[Claim[T], ...]


def select(groups: Sequence[Group[T]], names: Sequence[str]) -> list[Group[T]]:
    """The groups of these names in their own order; all, if there are none. Raises ValueError for a wrong name."""
    if unknown := [name for name in names if name not in {group.name for group in groups}]:
        known = ", ".join(group.name for group in groups)
        raise ValueError(f"no group {', '.join(unknown)}; there are {known}")
    return [group for group in groups if not names or group.name in names]


def run(groups: Sequence[Group[T]], subject: T) -> Iterator[Line]:
    """Look at every claim, one after the other."""
    for group in groups:
        for claim in group.claims:
            start = time.monotonic()
            try:
                seen, fine = claim.look(subject), True
            except FAILURES as error:
                seen, fine = f"{type(error).__name__}: {error}"[:_LENGTH], False
            yield Line(group.title, claim.what, seen, fine, time.monotonic() - start)
