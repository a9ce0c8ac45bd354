"""Ruleset values: what a family's filter and nat tables hold, or should hold, for Services.

A rule is kept as one string: the words after `-A CHAIN`, spelled as `iptables-save` prints them. So a rule
that the kernel prints is, nearly always, the very string that was sent, and equality costs nothing;
`kpx.netfilter.rule.canonical` settles the other cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kpx.family import Family

TableName = Literal["filter", "nat"]
Rules = tuple[str, ...]

TABLES: tuple[TableName, ...] = ("filter", "nat")


@dataclass(frozen=True, slots=True)
class Table:
    """One table's part of a ruleset.

    `chains` holds the chains that are ours, by name, rules in order, each chain after those it jumps to.
    `jumps` holds, by built-in chain, the rules that lead from there into our chains, in order; other rules of
    a built-in chain are not ours. `unordered` says how many leading rules of a chain may stand in any order,
    because no packet matches two of them; where a chain is missing, order counts throughout.
    """

    chains: Mapping[str, Rules]
    jumps: Mapping[str, Rules]
    unordered: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything one family should hold: a table of each name in `TABLES`."""

    family: Family
    tables: Mapping[TableName, Table]
