"""Rules and chains to compare packets with."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cached_property

from kpx.analysis.match import Chance, Condition, Recent, Test, Truth, conditions, of_head
from kpx.analysis.packet import number
from kpx.analysis.state import Scene, State
from kpx.family import Family
from kpx.netfilter.options import Option
from kpx.netfilter.rule import Match, Rule, RuleError, normal_rule, parse_rule
from kpx.netfilter.ruleset import Rules


class KernelRule:
    """A rule to compare packets with. It is taken apart when a packet first gets past the quick look.

    A text that is no rule can't be judged; its target is no known one.
    """

    def __init__(self, text: str, family: Family) -> None:
        self.text, self._family = text, family
        self.quick = _quick_test(text)
        """Says False of most packets that don't match, and then the rule doesn't change them; None if there is none."""

    @property
    def target(self) -> str:
        """The target; empty if there is none."""
        return self.parsed.target or ""

    @cached_property
    def parsed(self) -> Rule:
        """The rule, in its normal form."""
        try:
            return normal_rule(parse_rule(self.text), self._family)
        except RuleError:
            return Rule(matches=(Match("?"),), target="?")

    @cached_property
    def _conditions(self) -> tuple[Condition, ...]:
        of_matches = (condition for match in self.parsed.matches for condition in conditions(match))
        return (*(of_head(option) for option in self.parsed.head), *of_matches)

    def ask(self, state: State, weight: Fraction, scene: Scene) -> Iterator[tuple[Truth, State, Fraction]]:
        """Whether a packet matches: all cases, with their weights, which add up to `weight`."""
        truth: Truth = True
        for condition in self._conditions:
            if isinstance(condition, Chance):
                yield False, state, weight * (1 - condition.probability)
                weight *= condition.probability
                continue
            answer: Truth
            if isinstance(condition, Recent):
                answer, state = condition.ask(state, scene)
            else:
                answer = condition(state, scene)
            if answer is False:
                yield False, state, weight
                return
            truth = truth if answer else None
        yield truth, state, weight


_QUICK = re.compile(r"-([dp]) (\S+)")


def _quick_test(text: str) -> Test | None:
    """The first match of a rule that starts with a destination or protocol, as most dispatch rules do."""
    found = _QUICK.match(text)
    return of_head(Option(f"-{found[1]}", (found[2],))) if found else None


_AT_HOST = re.compile(r"(?:(?:! )?-s \S+ )?-d ([^\s/]+)/(\d+) ")
"""A rule for one destination, of whatever source: kube-proxy before 1.24 marks so what comes from outside."""

_AT_PORT = re.compile(
    r"-p (tcp|udp|sctp) (?:-m comment --comment (?:[^\s\"]+|\"[^\"\\\\]*\") )?"
    r"(?:-m addrtype --dst-type LOCAL )?-m \1 --dport ([0-9]{1,5}) "
)
"""A rule for one port of any address, as the entries of node ports are."""


class Chain:
    """The rules of a chain, by destination: of 10,000 rules in a dispatch chain a packet can match a handful."""

    def __init__(self, rules: Rules, family: Family) -> None:
        self._texts, self._family = rules, family
        self._rules: dict[int, KernelRule] = {}
        self._others: list[int] = []
        self._by_host: dict[int, list[int]] = defaultdict(list)
        self._by_port: dict[int, list[int]] = defaultdict(list)
        for position, rule in enumerate(rules, 1):
            self._place(rule).append(position)

    def __len__(self) -> int:
        """How many rules there are."""
        return len(self._texts)

    def _place(self, rule: str) -> list[int]:
        if rule.startswith(("-d ", "! -s ", "-s ")) and (found := _AT_HOST.match(rule)):
            if found[2] == str(self._family.host_bits):
                with suppress(OSError, ValueError):
                    return self._by_host[number(found[1])]
        elif rule.startswith("-p ") and (found := _AT_PORT.match(rule)):
            return self._by_port[int(found[2])]
        return self._others

    def candidates(self, states: Iterable[State]) -> Sequence[int]:
        """The positions, counted from 1, of all rules that these packets can match, in order."""
        hosts = {state.destination for state in states}
        ports = {state.port for state in states}
        found = [position for host in hosts for position in self._by_host.get(host, ())]
        found += [position for port in ports for position in self._by_port.get(port, ())]
        return sorted(found + self._others) if found else self._others

    def rule(self, position: int) -> KernelRule:
        """The rule at a position."""
        if position not in self._rules:
            self._rules[position] = KernelRule(self._texts[position - 1], self._family)
        return self._rules[position]
