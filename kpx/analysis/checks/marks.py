"""Marks of packets: which chains set, and which rules ask for."""

from collections.abc import Iterator
from contextlib import suppress

from kpx.analysis.checks.finding import Jump, Tables
from kpx.netfilter.rule import Rule


def is_used(tables: Tables, chain: str) -> bool:
    """Whether rules of the nat table lead to a chain."""
    return any(jump.target == chain for rules in tables.jumps.get("nat", {}).values() for jump in rules)


def marks_set(tables: Tables, chain: str) -> list[int]:
    """The marks that a chain of the nat table sets."""
    return [mark for jump in tables.of("nat", chain) for mark in _set_by(tables, jump)]


def _set_by(tables: Tables, jump: Jump) -> Iterator[int]:
    for option in tables.parsed(jump.rule).target_options if jump.target == "MARK" else ():
        with suppress(ValueError, IndexError):
            yield int(option.values[0].partition("/")[0], 0) if option.name == "--set-xmark" else 0


def asks_for(rule: Rule, mark: int) -> bool:
    """Whether a rule that asks for the mark alone matches; what else it asks for, some packets have."""
    for match in rule.matches:
        for option in match.options if match.module == "mark" else ():
            with suppress(ValueError, IndexError):
                value, _, mask = option.values[0].partition("/")
                if (mark & int(mask or "0xffffffff", 0) == int(value, 0)) == option.negated:
                    return False
    return True
