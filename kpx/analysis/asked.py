"""What rules ask for at all: what none asks for makes no difference."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from kpx.analysis.state import State
from kpx.netfilter.options import WORD
from kpx.netfilter.ruleset import Rules

_ASKS = re.compile(r"-m (?:conn)?mark ")
_ASKED = re.compile(r"-m (mark|connmark) (?:! )?--mark \w+(?:/(\w+))?(?= |$)")
_COPIED = re.compile(r"--(save|restore)-mark(?: --nfmask (\w+))?(?: --ctmask (\w+))?(?= |$)")


@dataclass(frozen=True, slots=True)
class Marks:
    """The bits that rules ask for, of the mark of packets and of that of connections."""

    packet: int
    connection: int

    def that_count(self, state: State) -> State:
        """A packet without the bits that nobody asks for."""
        mark, connmark = state.mark & self.packet, state.connmark & self.connection
        if (mark, connmark) == (state.mark, state.connmark):
            return state
        return state._replace(mark=mark, connmark=connmark)


def marks(tables: Mapping[str, Mapping[str, Rules]]) -> Marks:
    """The bits of marks that count: those that rules ask for, and those that are copied to where rules ask."""
    texts = {rule for chains in tables.values() for rules in chains.values() for rule in rules if "mark " in rule}
    asked = {"mark": 0, "connmark": 0}
    copies: list[tuple[str, int, int]] = []
    for text in texts:
        found = _ASKED.findall(text)
        if len(found) < len(_ASKS.findall(text)):  # written in some other way
            return Marks(WORD, WORD)
        for kind, mask in found:
            asked[kind] |= _number(mask)
        copies += [(kind, _number(of_packet), _number(other)) for kind, of_packet, other in _COPIED.findall(text)]
    return _with_copies(asked["mark"], asked["connmark"], copies)


def _with_copies(packet: int, connection: int, copies: Iterable[tuple[str, int, int]]) -> Marks:
    """xt_connmark copies bits to the same place."""
    before = None
    every = tuple(copies)
    while before != (packet, connection):
        before = packet, connection
        for kind, of_packet, of_connection in every:
            if kind == "restore":
                connection |= of_connection & packet
            else:
                packet |= of_packet & connection
    return Marks(packet, connection)


def _number(mask: str) -> int:
    """A mask; without one, or where it can't be read, every bit counts."""
    with suppress(ValueError):
        return int(mask, 0)
    return WORD
