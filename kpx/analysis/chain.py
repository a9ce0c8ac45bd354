"""Rules and chains to compare packets with."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from kpx.analysis.doubt import MOST_DOUBTS, implied
from kpx.analysis.match import Chance, Condition, Recent, Test, Truth, conditions, of_head, routed_to
from kpx.analysis.packet import number
from kpx.analysis.state import Key, Scene, State
from kpx.family import Family
from kpx.netfilter.options import Option, Options
from kpx.netfilter.rule import Match, Rule, RuleError, normal_rule, parse_rule
from kpx.netfilter.ruleset import Rules

_STATEFUL = frozenset({"limit", "hashlimit", "quota", "connlimit", "nfacct", "rateest", "statistic", "recent"})
"""Matches whose answer depends on which packets they were asked of before: the same, asked elsewhere, says another."""


@dataclass(frozen=True, slots=True)
class Question:
    """One thing that a rule asks. `what` is `-i`, or the match and the how manieth of its conditions this is."""

    condition: Condition
    what: str
    options: Options

    @property
    def negated(self) -> bool:
        """Whether the rule asks for the opposite of what `key` stands for."""
        return self._is_plain and self.options[0].negated

    def key(self, state: State, scene: Scene, place: Key) -> Key:
        """What stands for the answer where it isn't known: the same wherever the same is asked of the same packet."""
        if self.what == "-i":
            return "-i", self.options[0].values[0]
        if self.what == "-o":
            return "-o", self.options[0].values[0], routed_to(state, scene)
        if self._is_plain:
            address = state.source if self.options[0].name == "--src-type" else state.destination
            return "local", address
        asked = (self.what, *((one.name, one.values, one.negated) for one in self.options))
        packet = (state.source, state.destination, state.port, state.mark, state.connmark, state.masqueraded)
        return (*asked, *packet, *(place if self.what.partition(" ")[0] in _STATEFUL else ()))

    @property
    def _is_plain(self) -> bool:
        """Whether it is a question that others ask the other way round."""
        if self.what in ("-i", "-o"):
            return True
        return self.what == "addrtype 0" and len(self.options) == 1 and self.options[0].values == ("LOCAL",)


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
    def _questions(self) -> tuple[Question, ...]:
        heads = (Question(of_head(option), option.name, (option,)) for option in self.parsed.head)
        of_matches = (
            Question(one, f"{match.module} {number}", match.options)
            for match in self.parsed.matches
            for number, one in enumerate(conditions(match))
        )
        return (*heads, *of_matches)

    def ask(self, state: State, weight: Fraction, scene: Scene, place: Key) -> Iterator[tuple[Truth, State, Fraction]]:
        """Whether a packet matches: all cases, with their weights.

        Of what isn't known both answers are cases, each with the whole weight and borne by the packet as assumed; or
        None, if it bears too many already. `place` is where the rule stands.
        """
        on = [(state, weight)]
        doubted: list[Question] = []
        for one in self._questions:
            if isinstance(one.condition, Chance):
                chance = one.condition.probability
                yield from ((False, part, share * (1 - chance)) for part, share in on)
                on = [(part, share * chance) for part, share in on]
            elif isinstance(one.condition, Recent):
                cases = [*_both(on, doubted, scene, place)]
                yield from (case for case in cases if case[0] is not True)
                asked = [(*one.condition.ask(part, scene), share) for answer, part, share in cases if answer]
                yield from ((False, part, share) for holds, part, share in asked if not holds)
                on, doubted = [(part, share) for holds, part, share in asked if holds], []
            else:
                answer = one.condition(state, scene)
                if answer is False:
                    yield from ((False, part, share) for part, share in on)
                    return
                doubted += [one] if answer is None else []
        yield from _both(on, doubted, scene, place)


def _both(
    on: Iterable[tuple[State, Fraction]], doubted: Sequence[Question], scene: Scene, place: Key
) -> Iterator[tuple[Truth, State, Fraction]]:
    """Packets that match if some questions have the answer yes, and those that don't."""
    for state, weight in on:
        for question in doubted:
            key = question.key(state, scene, place)
            told = implied(state.assumed, key)
            if told is None:
                if len(state.assumed) == MOST_DOUBTS:
                    yield None, state, weight
                    break
                yield False, state._replace(assumed=(*state.assumed, (key, question.negated))), weight
                state = state._replace(assumed=(*state.assumed, (key, not question.negated)))
            elif told is question.negated:
                yield False, state, weight
                break
        else:
            yield True, state, weight


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
