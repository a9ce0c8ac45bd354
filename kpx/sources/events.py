"""What a source tells as the cluster changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kpx.api import Object
from kpx.errors import Problem


@dataclass(frozen=True, slots=True)
class Put:
    """An object is there, new or changed."""

    object: Object


@dataclass(frozen=True, slots=True)
class Gone:
    """An object is no more. `kind` is `Service`, `EndpointSlice` or `Node` (whose namespace is empty)."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Unsound:
    """An object is there but can't be used; whoever knows an earlier version keeps to that."""

    kind: str
    namespace: str
    name: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything of a kind that was there at the start has been told. Comes once per kind."""

    kind: str


Event = Put | Gone | Unsound | Synced
Sink = Callable[[Event], None]


class Source(Protocol):
    """Where objects come from."""

    async def run(self, sink: Sink) -> None:
        """Tell everything there is, then every change, until cancelled. Connection trouble is no error."""
