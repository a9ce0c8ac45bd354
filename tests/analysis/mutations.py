"""Damage to rules: one rule dropped or swapped with the next one, a probability, network, mark or port changed."""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kpx.analysis.simulate import Tables
from kpx.netfilter.ruleset import Rules


@dataclass(frozen=True)
class Mutation:
    """What was done, in words, and the tables with it."""

    kind: str
    where: str
    tables: Tables


def _dropped(rules: Rules, at: int, pick: random.Random) -> Rules:
    return rules[:at] + rules[at + 1 :]


def _swapped(rules: Rules, at: int, pick: random.Random) -> Rules:
    return (*rules[:at], *reversed(rules[at : at + 2]), *rules[at + 2 :])


def _replaced(pattern: str, by: Callable[[re.Match[str], random.Random], str]) -> "Change":
    def change(rules: Rules, at: int, pick: random.Random) -> Rules:
        changed = re.sub(pattern, lambda found: by(found, pick), rules[at], count=1)
        return (*rules[:at], changed, *rules[at + 1 :])

    return change


def _likelier(found: re.Match[str], pick: random.Random) -> str:
    old = float(found[1])
    return f"--probability {min(old + pick.choice([0.1, 0.3]), 1.0):.11f}"


def _wider(found: re.Match[str], pick: random.Random) -> str:
    return f"{found[1]}/{max(int(found[2]) - pick.choice([1, 4, 8]), 1)}"


def _other_bit(found: re.Match[str], pick: random.Random) -> str:
    return found[0].replace(found[1], hex(int(found[1], 0) << 1))


def _other_port(found: re.Match[str], pick: random.Random) -> str:
    return f"{found[1]}{int(found[2]) + 1}"


Change = Callable[[Rules, int, random.Random], Rules]

KINDS: Mapping[str, Change] = {
    "dropped": _dropped,
    "swapped": _swapped,
    "probability": _replaced(r"--probability (\S+)", _likelier),
    "network": _replaced(r"(?<=-[sd] )(\S+)/(\d+)", _wider),
    "mark": _replaced(r"(0x[0-9a-f]+)/\1", _other_bit),
    "DNAT port": _replaced(r"(--to-destination \S+:)(\d+)", _other_port),
}


def mutations(tables: Tables, kind: str, pick: random.Random) -> Iterator[Mutation]:
    """Mutations of one kind without end, each of which changes the text of some rule, or the order of two."""
    places = [
        (table, chain, at)
        for table, chains in tables.items()
        for chain, rules in chains.items()
        for at in range(len(rules))
    ]
    while True:
        table, chain, at = pick.choice(places)
        before = tables[table][chain]
        after = KINDS[kind](before, at, pick)
        if after != before:
            changed = {**tables, table: {**tables[table], chain: after}}
            yield Mutation(kind, f"{table} {chain} {at + 1}: {before[at]}", changed)
