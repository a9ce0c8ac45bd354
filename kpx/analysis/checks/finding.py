"""What checks are given and what they say. Values."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from kpx.analysis.checks.advice import Advice
from kpx.family import Family
from kpx.netfilter.owners import chain_owners
from kpx.netfilter.rule import Match, Rule, RuleError, normal_rule, parse_rule, target_of
from kpx.netfilter.ruleset import Rules

BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
"""The chains that the kernel's hooks enter."""


class Severity(StrEnum):
    """ERROR: traffic goes wrong, or the kernel refuses the rules. WARNING: something is not as it should be.

    NOTE: nothing is wrong, but it explains what becomes of packets.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    `position` counts from 1 in the chain, as `iptables -L --line-numbers` does; 0 where a finding is about a chain or
    table as a whole, and then `rule` is empty. `owner` is the service port concerned (`namespace/name:port`), if known.
    """

    check: str
    severity: Severity
    table: str
    chain: str
    message: str
    advice: Advice
    position: int = 0
    rule: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule and its target: a chain, a verdict or an extension; empty if it has none."""

    table: str
    chain: str
    position: int
    rule: str
    target: str

    def found(self, check: str, severity: Severity, message: str, advice: Advice, owner: str = "") -> Finding:
        """A finding about this rule."""
        return Finding(check, severity, self.table, self.chain, message, advice, self.position, self.rule, owner)


class Tables:
    """The tables of one family, with what several checks ask for.

    `chains` are rules by table and chain, `own` the addresses of the node, None if they aren't known.
    """

    def __init__(
        self, chains: Mapping[str, Mapping[str, Rules]], family: Family, own: Collection[str] | None = None
    ) -> None:
        self.chains, self.family, self.own = chains, family, own

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Rules]]]:
        return iter(self.chains.items())

    def __len__(self) -> int:
        """How many rules there are."""
        return sum(len(rules) for chains in self.chains.values() for rules in chains.values())

    @cached_property
    def jumps(self) -> Mapping[str, Mapping[str, tuple[Jump, ...]]]:
        """Every rule with its target, by table and chain."""
        return {
            table: {
                chain: tuple(
                    Jump(table, chain, position, rule, target_of(rule) or "") for position, rule in enumerate(rules, 1)
                )
                for chain, rules in chains.items()
            }
            for table, chains in self.chains.items()
        }

    def of(self, table: str, chain: str) -> tuple[Jump, ...]:
        """The rules of a chain; none if it isn't there."""
        return self.jumps.get(table, {}).get(chain, ())

    def named(self, table: str, *prefixes: str) -> Iterator[tuple[str, tuple[Jump, ...]]]:
        """The chains whose names start with one of some prefixes."""
        return ((chain, rules) for chain, rules in self.jumps.get(table, {}).items() if chain.startswith(prefixes))

    @cached_property
    def _owners(self) -> Mapping[str, str]:
        return chain_owners(self.chains.get("nat", {}))

    def owner(self, chain: str) -> str:
        """The service port behind a chain of the nat table; empty if there is none."""
        return self._owners.get(chain, "")

    def parsed(self, rule: str) -> Rule:
        """A rule taken apart, in its normal form. A text that is no rule matches nobody knows what."""
        try:
            return normal_rule(parse_rule(rule), self.family)
        except RuleError:
            return Rule(matches=(Match("?"),), target="?")
