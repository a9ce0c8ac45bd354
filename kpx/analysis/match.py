"""One rule as the kernel asks it: its matches in order, each true or false of a packet, a matter of chance, or unknown.

What matches do is taken from the kernel's `net/netfilter/xt_*.c` and `net/ipv4/netfilter/ip_tables.c`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from typing import NamedTuple

from kpx.analysis.packet import Host, Packet, number
from kpx.family import Family
from kpx.netfilter.options import Option, protocol
from kpx.netfilter.rule import Match, Rule, RuleError, normal_rule, parse_rule
from kpx.netfilter.ruleset import Rules


class State(NamedTuple):
    """A packet on its way: what can change of it. `source` is None once it is translated to an unknown address.

    `noted` are the lists of xt_recent that the packet put its sender on, `forgotten` those it took it off.
    `trail` and `examined`, the number of rules it was compared with, are only kept for packets that are traced.
    """

    source: int | None
    destination: int
    port: int
    mark: int
    translated: bool = False
    masqueraded: bool = False
    noted: frozenset[str] = frozenset()
    forgotten: frozenset[str] = frozenset()
    trail: "Trail | None" = None
    examined: int = 0


class Step(NamedTuple):
    """A rule that a packet matched; `position` counts from 1 in its chain, as `iptables -L --line-numbers` does."""

    table: str
    hook: str
    chain: str
    position: int
    rule: str


class Trail(NamedTuple):
    """Steps, last first."""

    step: Step
    before: "Trail | None"


@dataclass(frozen=True, slots=True)
class Scene:
    """What stays the same while a packet is in one hook.

    An interface is None if it isn't known, and empty where there is none. `known` tells how many seconds ago the
    sender was last put on lists of xt_recent.
    """

    packet: Packet
    host: Host
    hook: str
    in_interface: str | None
    out_interface: str | None
    known: Mapping[str, float]


Truth = bool | None
"""None: can't be known."""

Test = Callable[[State, Scene], Truth]


@dataclass(frozen=True, slots=True)
class Chance:
    """A match that holds with a probability."""

    probability: Fraction


@dataclass(frozen=True, slots=True)
class Recent:
    """A list of xt_recent: `--set`, `--rcheck`, `--update` or `--remove` the packet's sender."""

    name: str
    action: str
    seconds: float

    def ask(self, state: State, scene: Scene) -> tuple[bool, State]:
        """Whether the match holds, and the packet behind it."""
        age = float("inf")
        if self.name in state.noted:
            age = 0
        elif self.name not in state.forgotten:
            age = scene.known.get(self.name, age)
        listed = age < float("inf")
        if self.action == "--remove":
            forgotten = state._replace(noted=state.noted - {self.name}, forgotten=state.forgotten | {self.name})
            return listed, forgotten if listed else state
        holds = self.action == "--set" or (listed and age <= self.seconds)
        if holds and self.action != "--rcheck":
            state = state._replace(noted=state.noted | {self.name}, forgotten=state.forgotten - {self.name})
        return holds, state


Condition = Test | Chance | Recent


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
        of_matches = (condition for match in self.parsed.matches for condition in _conditions(match))
        return (*(_test(_HEAD.get(option.name), option) for option in self.parsed.head), *of_matches)

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
    return _test(_HEAD[f"-{found[1]}"], Option(found[0], (found[2],))) if found else None


class Chain:
    """The rules of a chain, by destination: of 10,000 rules in a dispatch chain a packet can match a handful."""

    def __init__(self, rules: Rules, family: Family) -> None:
        self._texts, self._family = rules, family
        self._rules: dict[int, KernelRule] = {}
        self._others: list[int] = []
        self._by_host: dict[int, list[int]] = defaultdict(list)
        size = f"/{family.host_bits}"
        for position, rule in enumerate(rules, 1):
            place = self._others
            host = rule[3 : rule.find(" ", 3)] if rule.startswith("-d ") else ""
            if host.endswith(size):
                with suppress(OSError):
                    place = self._by_host[number(host.removesuffix(size))]
            place.append(position)

    def __len__(self) -> int:
        """How many rules there are."""
        return len(self._texts)

    def candidates(self, destinations: Iterable[int]) -> Sequence[int]:
        """The positions, counted from 1, of all rules that packets to these destinations can match, in order."""
        found = [position for one in destinations for position in self._by_host.get(one, ())]
        return sorted(found + self._others) if found else self._others

    def rule(self, position: int) -> KernelRule:
        """The rule at a position."""
        if position not in self._rules:
            self._rules[position] = KernelRule(self._texts[position - 1], self._family)
        return self._rules[position]


def _unknown(state: State, scene: Scene) -> Truth:
    return None


def _not(test: Test, state: State, scene: Scene) -> Truth:
    answer = test(state, scene)
    return None if answer is None else not answer


def _test(make: Callable[..., Test] | None, option: Option) -> Test:
    """The test that an option is, if it is known and has values that make sense."""
    try:
        test = make(*option.values) if make else _unknown
    except (TypeError, ValueError, OSError):
        return _unknown
    return partial(_not, test) if option.negated else test


# ---- the head: -s -d -i -o -p -f ----


def _network(value: str) -> tuple[int, int]:
    address, _, length = value.partition("/")
    size = 128 if ":" in address else 32
    mask = ((1 << int(length)) - 1) << (size - int(length)) if length.isdecimal() else number(length)
    return number(address) & mask, mask


def _source(value: str) -> Test:
    net, mask = _network(value)
    return lambda state, scene: None if state.source is None else state.source & mask == net


def _destination(value: str) -> Test:
    net, mask = _network(value)
    return lambda state, scene: state.destination & mask == net


def _in_interface(value: str) -> Test:
    return lambda state, scene: _is_interface(scene.in_interface, value)


def _out_interface(value: str) -> Test:
    return lambda state, scene: _is_interface(scene.out_interface, value)


def _is_interface(actual: str | None, wanted: str) -> Truth:
    if actual is None:
        return None
    return actual.startswith(wanted[:-1]) if wanted.endswith("+") else actual == wanted


def _protocol(value: str) -> Test:
    wanted = protocol(value, Family.IPV4)
    return lambda state, scene: wanted in (scene.packet.protocol, "all", "0")


def _fragment() -> Test:
    return lambda state, scene: False  # what begins a connection is no second fragment


_HEAD: Mapping[str, Callable[..., Test]] = {
    "-s": _source,
    "-d": _destination,
    "-i": _in_interface,
    "-o": _out_interface,
    "-p": _protocol,
    "-f": _fragment,
}


# ---- matches ----


def _conditions(match: Match) -> Iterator[Condition]:
    if match.module == "recent":
        yield _recent(match)
    elif match.module == "statistic":
        yield _statistic(match)
    elif match.module != "comment":
        known = _OPTIONS.get(match.module, {})
        if not match.options and match.module not in _OPTIONS:
            yield _unknown
        yield from (_test(known.get(option.name), option) for option in match.options)


def _port(of_packet: Callable[[State, Scene], int], value: str) -> Test:
    low, _, high = value.partition(":")
    if not (low.isdecimal() and (high or low).isdecimal()):
        return _unknown
    first, last = int(low), int(high or low)
    return lambda state, scene: first <= of_packet(state, scene) <= last


def _mark(value: str) -> Test:
    stored, _, mask = value.partition("/")
    wanted, bits = int(stored, 0), int(mask or "0xffffffff", 0)
    return lambda state, scene: state.mark & bits == wanted


def _ctstate(value: str) -> Test:
    wanted = frozenset(value.split(","))

    def test(state: State, scene: Scene) -> Truth:
        is_now = {scene.packet.state, "DNAT" if state.translated else "", "SNAT" if state.masqueraded else ""}
        return not wanted.isdisjoint(is_now)

    return test


def _type(of_packet: Callable[[State, Scene], int | None], value: str) -> Test:
    """Only LOCAL can be told from the host's addresses; what isn't LOCAL may be anything else."""
    wanted = value.split(",")

    def test(state: State, scene: Scene) -> Truth:
        address = of_packet(state, scene)
        if address is None:
            return None
        local = scene.host.is_local(address, scene.packet.family)
        if local or wanted == ["LOCAL"]:
            return local and "LOCAL" in wanted
        return None

    return test


_PORTS = {
    "--dport": partial(_port, lambda state, scene: state.port),
    "--sport": partial(_port, lambda state, scene: scene.packet.source_port),
}

_OPTIONS: Mapping[str, Mapping[str, Callable[..., Test]]] = {
    "tcp": _PORTS,
    "udp": _PORTS,
    "sctp": _PORTS,
    "mark": {"--mark": _mark},
    "conntrack": {"--ctstate": _ctstate},
    "state": {"--state": _ctstate},
    "addrtype": {
        "--src-type": partial(_type, lambda state, scene: state.source),
        "--dst-type": partial(_type, lambda state, scene: state.destination),
    },
}


def _statistic(match: Match) -> Condition:
    """A random choice, in the kernel's steps of 2^-31. Of `nth`, what the first packet behind a fresh rule meets."""
    options = {option.name: option for option in match.options}
    mode = options["--mode"].values if "--mode" in options else ()
    with suppress(ValueError):
        if mode == ("random",) and "--probability" in options:
            (value,), negated = options["--probability"].values, options["--probability"].negated
            probability = Fraction(round(float(value) * 2**31), 2**31)
            return Chance(1 - probability if negated else probability)
        if mode == ("nth",) and "--every" in options:
            (packet,) = options["--packet"].values if "--packet" in options else ("0",)
            holds = (int(packet) == 0) != options["--every"].negated
            return lambda state, scene: holds
    return _unknown


_RECENT = ("--set", "--rcheck", "--update", "--remove")
_RECENT_DETAILS = {"--name", "--mask", "--rsource", "--seconds", "--reap"}


def _recent(match: Match) -> Condition:
    options = {option.name: option.values for option in match.options if not option.negated}
    actions = [name for name in _RECENT if name in options]
    if len(options) < len(match.options) or len(actions) != 1 or not options.keys() <= {*actions, *_RECENT_DETAILS}:
        return _unknown
    with suppress(ValueError):
        (name,), (seconds,) = options["--name"], options.get("--seconds", ("inf",))
        return Recent(name, actions[0], float(seconds))
    return _unknown
