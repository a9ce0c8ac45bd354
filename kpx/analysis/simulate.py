"""What becomes of a packet: its way through all tables, with the exact probability of every outcome.

The order is the kernel's (`enum nf_ip_hook_priorities` in linux/netfilter_ipv4.h). A packet that enters the host passes
PREROUTING (raw, mangle, nat), and then, by the destination that it has by now, INPUT (mangle, filter, security, nat) or
FORWARD (mangle, filter, security) and POSTROUTING (mangle, nat). One that the host sends passes OUTPUT (raw, mangle,
nat, filter, security) and POSTROUTING; and PREROUTING and INPUT if it is for the host itself. nat is asked once for a
connection and direction of translation. Tables that aren't given are taken to be empty.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction
from functools import cached_property

from kpx.analysis import asked
from kpx.analysis.chain import Chain, KernelRule
from kpx.analysis.doubt import Doubt, End, Weights, bare, implied, joined, settled
from kpx.analysis.packet import Fate, Host, Origin, Outcome, Packet, endpoint, is_address, number, text
from kpx.analysis.state import Key, Sample, Scene, State, Step, Trail
from kpx.analysis.targets import CHANGES, GOES_ON, REFUSALS, SILENT, change
from kpx.family import Family
from kpx.netfilter.ruleset import Rules, Ruleset
from kpx.netfilter.save import Saved

Tables = Mapping[str, Mapping[str, Rules]]
"""Rules by table and chain, the built-in chains included."""

Policies = Mapping[tuple[str, str], str]
"""What built-in chains do with a packet at their end, by table and chain: ACCEPT where nothing is said."""

Way = Callable[[Weights], None]

_TABLES_OF: Mapping[str, tuple[str, ...]] = {
    "PREROUTING": ("raw", "mangle", "nat"),
    "INPUT": ("mangle", "filter", "security", "nat"),
    "FORWARD": ("mangle", "filter", "security"),
    "OUTPUT": ("raw", "mangle", "nat", "filter", "security"),
    "POSTROUTING": ("mangle", "nat"),
}
"""The tables that have a chain in each hook, in the kernel's order."""


def tables_of(ruleset: Ruleset) -> Tables:
    """The tables that hold a ruleset and nothing else."""
    return {name: {**table.chains, **table.jumps} for name, table in ruleset.tables.items()}


def tables_of_save(saved: Saved) -> tuple[Tables, Policies]:
    """Tables and policies as `iptables-save` printed them."""
    tables: Tables = {name: {chain: one.rules for chain, one in table.chains.items()} for name, table in saved.items()}
    policies = {
        (name, chain): one.policy for name, table in saved.items() for chain, one in table.chains.items() if one.policy
    }
    return tables, policies


_DESTINATION = re.compile(r"-j DNAT --to-destination (?:\[([0-9a-f:.]+)\]|([0-9.]+))(?::\d+)?(?: |$)")


def translated_to(tables: Tables) -> frozenset[str]:
    """The addresses that rules translate to, as iptables-save prints them."""
    rules = (rule for chain in tables.get("nat", {}).values() for rule in chain if "DNAT" in rule)
    found = {match[1] or match[2] for match in map(_DESTINATION.search, rules) if match}
    return frozenset(one for one in found if is_address(one))


MOST_WAYS = 20_000
"""Ways that are told apart. Of more, one stands for all that come to the same."""
DEEPEST = 128
"""Chains that a packet may be in at once; nf_tables takes 16."""


class _Mode(Enum):
    """What is kept of the ways that packets take: nothing, one of those that come to the same, or all."""

    OUTCOMES = auto()
    SAMPLES = auto()
    WAYS = auto()


class _WaysError(Exception):
    """A packet has too many ways to tell them apart, or passes the same chains as the same too often."""


@dataclass(frozen=True, slots=True)
class Path:
    """One way that a packet can take: the rules it matches, in order, and what comes of it with which probability.

    `examined` counts all rules that it is compared with, `noted` are the lists of xt_recent that its sender is on then.
    `is_sample` says that it stands for all ways that come to the same, since these are too many to list.
    """

    outcome: Outcome
    probability: Fraction
    steps: tuple[Step, ...]
    examined: int
    noted: frozenset[str] = frozenset()
    is_sample: bool = False


class Simulator:
    """Sends packets through tables of one family. Rules are taken apart when a packet first meets them.

    `unread` are tables that may hold rules which nobody could read, with why: behind them nothing is certain.
    """

    def __init__(
        self,
        tables: Tables,
        family: Family,
        host: Host,
        policies: Policies | None = None,
        unread: Mapping[str, str] | None = None,
    ) -> None:
        self.family, self.host, self.policies, self.unread = family, host, policies or {}, unread or {}
        self.tables = tables
        self._chains: dict[tuple[str, str], Chain] = {}

    @cached_property
    def marks(self) -> asked.Marks:
        """The bits of marks that rules ask for."""
        return asked.marks(self.tables)

    def outcomes(self, packet: Packet, known: Mapping[str, float] | None = None) -> Mapping[Outcome, Fraction]:
        """Every outcome with its probability; they add up to 1.

        `known` are the lists of xt_recent that the sender is on, with the seconds since it was last put there.
        """
        return _outcomes(_Journey(self, packet, known or {}, _Mode.OUTCOMES).ends())

    def paths(self, packet: Packet, known: Mapping[str, float] | None = None) -> tuple[Path, ...]:
        """Every way to an outcome, the likeliest first. A match of chance makes two of one, whatever its effect.

        Where chains branch and join so that ways are too many, each path stands for all that come to the same.
        """
        try:
            ends = _Journey(self, packet, known or {}, _Mode.WAYS).ends()
        except _WaysError:
            ends = _Journey(self, packet, known or {}, _Mode.SAMPLES).ends()
        return tuple(sorted((_path(*end) for end in ends), key=lambda path: -path.probability))

    def chain(self, table: str, name: str) -> Chain | None:
        """A chain, ready to be passed; None if there is none of this name."""
        key = (table, name)
        if key not in self._chains:
            rules = self.tables.get(table, {}).get(name)
            if rules is None:
                return None
            self._chains[key] = Chain(rules, self.family)
        return self._chains[key]


def _path(outcome: Outcome, state: State, probability: Fraction) -> Path:
    if isinstance(state.trail, Sample):
        return Path(outcome, probability, _steps(state.trail.trail), state.trail.examined, state.noted, is_sample=True)
    return Path(outcome, probability, _steps(state.trail), state.examined, state.noted)


def _steps(trail: Trail | None) -> tuple[Step, ...]:
    steps = []
    while trail is not None:
        steps.append(trail.step)
        trail = trail.before
    return tuple(reversed(steps))


class _Journey:
    """One packet's way through the hooks."""

    def __init__(self, simulator: Simulator, packet: Packet, known: Mapping[str, float], mode: _Mode) -> None:
        self.simulator, self.packet, self.known, self.mode = simulator, packet, known, mode
        self.toll = _Toll()
        self.ended: list[tuple[Outcome, State, Fraction]] = []
        self.doubts: dict[Key, Doubt] = {}

    def ends(self) -> Sequence[tuple[Outcome, State, Fraction]]:
        """What can become of the packet."""
        packet = self.packet
        start = State(number(packet.source), number(packet.destination), packet.destination_port, packet.mark)
        if self.mode is _Mode.SAMPLES:
            start = start._replace(trail=Sample())
        if packet.origin is Origin.NODE:
            self._send({start: Fraction(1)})
        else:
            weights = self._pass("PREROUTING", {start: Fraction(1)}, packet.in_interface, "")
            self._route(self._routable(weights), self._take_in, self._forward)
        return settled(self.ended, self.doubts)

    def note(self, key: Key, doubt: Doubt) -> None:
        """A question came up whose answer isn't known."""
        if key not in self.doubts or doubt.order < self.doubts[key].order:
            self.doubts[key] = doubt

    def end(self, outcome: Outcome, state: State, weight: Fraction) -> None:
        """The packet's way ends here. Behind rules that nobody could read, that isn't certain."""
        if state.unread and outcome.fate is not Fate.UNKNOWN:
            why = " and ".join(self.simulator.unread[table] for table in state.unread)
            outcome = Outcome(Fate.UNKNOWN, detail=f"{why}; by the other tables: {outcome}")
        self.ended.append((outcome, state, weight))

    def _arrive(self, weights: Weights) -> None:
        """Nothing kept these packets from where they go."""
        for state, weight in weights.items():
            if state.translated:
                to = endpoint(state.destination, state.port, self.simulator.family)
                self.end(Outcome(Fate.TRANSLATED, to, state.masqueraded), state, weight)
            else:
                self.end(Outcome(Fate.UNTOUCHED, masqueraded=state.masqueraded), state, weight)

    def _take_in(self, weights: Weights) -> None:
        self._arrive(self._pass("INPUT", weights, self.packet.in_interface, ""))

    def _forward(self, weights: Weights) -> None:
        come, leave = self.packet.in_interface, self.packet.out_interface
        weights = self._pass("FORWARD", weights, come, leave)
        self._arrive(self._pass("POSTROUTING", weights, come, leave))

    def _send(self, weights: Weights) -> None:
        leave = self.packet.out_interface
        weights = self._pass("OUTPUT", weights, "", leave)
        weights = self._pass("POSTROUTING", weights, "", leave)
        self._route(weights, self._loop, self._arrive)

    def _loop(self, weights: Weights) -> None:
        """What the host sends to itself comes in again; it is translated already, if it is."""
        weights = self._pass("PREROUTING", weights, "lo", "", frozenset({"nat"}))
        self._arrive(self._pass("INPUT", weights, "lo", "", frozenset({"nat"})))

    def _routable(self, weights: Weights) -> Weights:
        """Packets but for those that were translated to 0.0.0.0: the kernel drops them (`martian destination`)."""
        for state in [state for state in weights if state.translated and self._is_nowhere(state)]:
            self.end(Outcome(Fate.DROPPED), state, weights.pop(state))
        return weights

    def _is_nowhere(self, state: State) -> bool:
        return self.simulator.family is Family.IPV4 and state.destination == 0

    def _route(self, weights: Weights, here: Way, on: Way) -> None:
        """Send what is for the host itself one way, and what isn't the other.

        Where that isn't known, both ways.
        """
        family, host = self.simulator.family, self.simulator.host
        ways: dict[bool, Weights] = {True: {}, False: {}}
        for state, weight in weights.items():
            # What the host itself sends to 0.0.0.0 it delivers to itself: `ip_route_output_key_hash_rcu`.
            local = self._is_nowhere(state) or host.is_local(state.destination, family)
            key = ("local", state.destination)
            if local is None:
                local = implied(state.assumed, key)
            if local is not None:
                _add(ways[local], state, weight)
                continue
            detail = f"whether {text(state.destination, family)} is an address of the host"
            self.note(key, Doubt((-1, 0, "", 0), detail, state.trail))
            for answer, way in ways.items():
                _add(way, state._replace(assumed=(*state.assumed, (key, answer))), weight)
        here(ways[True])
        on(ways[False])

    def _pass(
        self,
        hook: str,
        weights: Weights,
        in_interface: str | None,
        out_interface: str | None,
        passed_over: frozenset[str] = frozenset(),
    ) -> Weights:
        """Pass the tables of one hook; returns what goes on behind it."""
        for table in _TABLES_OF[hook]:
            if table in passed_over:
                continue
            if table in self.simulator.unread:
                weights = self._pass_unread(table, weights)
            elif weights and self.simulator.chain(table, hook) is not None:
                host, marks = self.simulator.host, self.simulator.marks.packet
                scene = Scene(self.packet, host, table, hook, in_interface, out_interface, self.known, marks)
                weights = self._pass_table(scene, weights)
        return weights

    def _pass_unread(self, table: str, weights: Weights) -> Weights:
        """Pass a table of which nobody knows the rules."""
        passed: Weights = {}
        for state, weight in weights.items():
            met = table not in state.unread and (table != "nat" or self._is_translatable(state))
            _add(passed, state._replace(unread=(*state.unread, table)) if met else state, weight)
        return passed

    def _is_translatable(self, state: State) -> bool:
        """Whether nat is asked: for what begins a connection that conntrack knows of."""
        new = self.packet.state == "NEW" or (self.packet.state == "RELATED" and self.packet.protocol != "icmp")
        return new and state.tracked

    def _pass_table(self, scene: Scene, weights: Weights) -> Weights:
        table = scene.table
        untranslatable: Weights = {}
        if table == "nat":
            untranslatable = {state: weight for state, weight in weights.items() if not self._is_translatable(state)}
            weights = {state: weight for state, weight in weights.items() if state not in untranslatable}
        visit = _Visit(self, scene)
        at_end = visit.chain(scene.hook, weights) if weights else {}
        policy = self.simulator.policies.get((table, scene.hook), "ACCEPT")
        if policy == "ACCEPT":
            _merge(visit.accepted, at_end)
        else:
            step = Step(table, scene.hook, scene.hook, 0, f"policy {policy}")
            for state, weight in at_end.items():
                self.end(Outcome(Fate.DROPPED), visit.traced(step, state), weight)
        _merge(visit.accepted, untranslatable)
        return joined(visit.accepted)


def _outcomes(ends: Sequence[tuple[Outcome, State, Fraction]]) -> Mapping[Outcome, Fraction]:
    found: dict[Outcome, Fraction] = defaultdict(Fraction)
    for outcome, _, weight in ends:
        found[outcome] += weight
    return dict(found)


class _Toll:
    """Counts how often chains are passed, to stop where the same is done over and over."""

    def __init__(self) -> None:
        self._passed = 0
        self._met: set[tuple[str, str, State]] = set()

    def pay(self, table: str, name: str, states: Iterable[State]) -> None:
        """Some packets enter a chain. Raises _WaysError."""
        for state in states:
            self._passed += 1
            self._met.add((table, name, bare(state)))
        if self._passed > 200 + 8 * len(self._met):
            raise _WaysError


@dataclass(frozen=True, slots=True)
class _Passage:
    """What comes of one packet that enters a chain: what comes back, what is accepted, whose way ends there."""

    back: Weights
    accepted: Weights
    ended: Mapping[tuple[Outcome, State], Fraction]


class _Visit:
    """One table in one hook. What is accepted there is collected in `accepted`.

    What comes of a packet that enters a chain is worked out once, unless all ways are to be told apart: so the work
    grows with the rules, and not with the ways through chains that branch and join.
    """

    def __init__(self, journey: _Journey, scene: Scene) -> None:
        self.journey, self.table, self.scene = journey, scene.table, scene
        self.accepted: Weights = {}
        self._above: list[str] = []
        self._passages: dict[tuple[str, State], _Passage] = {}

    def chain(self, name: str, weights: Weights) -> Weights:
        """Pass a chain; returns what comes back from it."""
        if self.journey.mode is _Mode.WAYS:
            self.journey.toll.pay(self.table, name, weights)
            return self._walk(name, weights)
        back: Weights = {}
        for state, weight in weights.items():
            passage = self._passage(name, state)
            _scale(back, passage.back, state, weight)
            _scale(self.accepted, passage.accepted, state, weight)
            for (outcome, after), part in passage.ended.items():
                self.journey.ended.append((outcome, _behind(state, after), weight * part))
        return joined(back)

    def _passage(self, name: str, state: State) -> _Passage:
        key = (name, bare(state))
        found = self._passages.get(key)
        if found is None:
            kept = self.accepted, self.journey.ended
            self.accepted, self.journey.ended = {}, []
            trail = Sample() if self.journey.mode is _Mode.SAMPLES else None
            back = self._walk(name, {key[1]._replace(trail=trail): Fraction(1)})
            found = _Passage(back, self.accepted, _summed(self.journey.ended))
            self.accepted, self.journey.ended = kept
            if name not in self._above and len(self._above) < DEEPEST:
                self._passages[key] = found
        return found

    def _walk(self, name: str, weights: Weights) -> Weights:
        """Pass a chain, rule by rule."""
        chain = self.journey.simulator.chain(self.table, name)
        if chain is None or name in self._above or len(self._above) == DEEPEST:
            self._strand(name, weights)
            return {}
        self._above.append(name)
        on, back = dict(weights), Weights()
        passed = 0
        for position in chain.candidates(on):
            on, passed = self._counted(on, position - passed), position
            rule = chain.rule(position)
            asked = [state for state in on if rule.quick is None or rule.quick(state, self.scene) is not False]
            step = Step(self.table, self.scene.hook, name, position, rule.text)
            for state, weight in [(state, on.pop(state)) for state in asked]:
                for stays, returns in self._cases(step, rule, state, weight):
                    _merge(on, stays)
                    _merge(back, returns)
            on = joined(on) if self.journey.doubts else on
            if len(on) + len(back) > MOST_WAYS or len(self.journey.ended) > MOST_WAYS:
                on = self._crowded(step, on)
        self._above.pop()
        _merge(back, self._counted(on, len(chain) - passed))
        return joined(back)

    def _crowded(self, step: Step, weights: Weights) -> Weights:
        """Where packets have become too many different ones, what comes of them isn't known. Raises _WaysError."""
        if self.journey.mode is _Mode.WAYS:
            raise _WaysError
        if len(weights) <= MOST_WAYS:
            return weights
        detail = f"{step.table} {step.chain}: up to rule {step.position} packets have more than {MOST_WAYS} fates"
        for state, weight in weights.items():
            self.journey.end(Outcome(Fate.UNKNOWN, detail=detail), state, weight)
        return {}

    def _strand(self, name: str, weights: Weights) -> None:
        """End the way of packets that no chain of this name can take."""
        why = (
            "leads to itself"
            if name in self._above
            else "lies too deep"
            if len(self._above) == DEEPEST
            else "is missing"
        )
        for state, weight in weights.items():
            self.journey.end(Outcome(Fate.UNKNOWN, detail=f"{self.table}: {name} {why}"), state, weight)

    def _counted(self, weights: Weights, rules: int) -> Weights:
        """Packets that have been compared with so many more rules."""
        match self.journey.mode:
            case _Mode.OUTCOMES:
                return weights
            case _Mode.WAYS:
                return {state._replace(examined=state.examined + rules): weight for state, weight in weights.items()}
            case _Mode.SAMPLES:
                return {_compared(state, rules): weight for state, weight in weights.items()}

    def _cases(self, step: Step, rule: KernelRule, state: State, weight: Fraction) -> Iterator[tuple[Weights, Weights]]:
        """What comes of asking a rule: what goes on behind it, and what leaves the chain for its caller."""
        for truth, after, part in rule.ask(state, weight, self.scene, step[:4]):
            if not part:
                continue
            for key, _ in after.assumed[len(state.assumed) :]:
                self.journey.note(key, Doubt.of(step, self.traced(step, state).trail))
            if truth is False:
                yield {after: part}, {}
            elif truth is None:
                self._lost(step, after, part)
            else:
                yield self._act(step, rule, self.traced(step, after), part)

    def _act(self, step: Step, rule: KernelRule, state: State, weight: Fraction) -> tuple[Weights, Weights]:
        """Carry out a rule's target."""
        target = rule.target
        if target in SILENT:
            return {state: weight}, {}
        if target == "RETURN":
            return {}, {state: weight}
        if target == "ACCEPT":
            _add(self.accepted, state, weight)
        elif target in REFUSALS:
            self.journey.end(REFUSALS[target](rule), state, weight)
        elif target in CHANGES:
            changed = change(rule, state, self.scene)
            if changed is None:
                self._lost(step, state, weight)
                return {}, {}
            changed = self.journey.simulator.marks.that_count(changed)
            if target in GOES_ON:
                return {changed: weight}, {}
            _add(self.accepted, changed, weight)
        elif self.journey.simulator.chain(self.table, target) is None:
            self._lost(step, state, weight)
        else:
            back = self.chain(target, {state: weight})
            return ({}, back) if rule.parsed.goto else (back, {})
        return {}, {}

    def traced(self, step: Step, state: State) -> State:
        """The packet with one more step on its trail, if trails are kept."""
        trail = state.trail
        if isinstance(trail, Sample):
            return state._replace(trail=trail.step(step))
        return state._replace(trail=Trail(step, trail)) if self.journey.mode is _Mode.WAYS else state

    def _lost(self, step: Step, state: State, weight: Fraction) -> None:
        """What becomes of the packet behind a rule that can't be judged isn't known."""
        outcome = Outcome(Fate.UNKNOWN, detail=f"{step.table} {step.chain}: {step.rule}")
        self.journey.end(outcome, self.traced(step, state), weight)


def _add(weights: Weights, state: State, weight: Fraction) -> None:
    weights[state] = weights[state] + weight if state in weights else weight


def _merge(weights: Weights, more: Weights) -> None:
    for state, weight in more.items():
        _add(weights, state, weight)


def _scale(weights: Weights, more: Weights, before: State, by: Fraction) -> None:
    """Add what comes of a packet that has a way behind it."""
    for state, weight in more.items():
        _add(weights, _behind(before, state), by * weight)


def _compared(state: State, rules: int) -> State:
    trail = state.trail
    return state._replace(trail=trail.compared(rules)) if isinstance(trail, Sample) else state


def _behind(before: State, state: State) -> State:
    if isinstance(before.trail, Sample) and isinstance(state.trail, Sample):
        return state._replace(trail=before.trail.then(state.trail))
    return state


def _summed(ends: Sequence[End]) -> Mapping[tuple[Outcome, State], Fraction]:
    found: dict[tuple[Outcome, State], Fraction] = defaultdict(Fraction)
    for outcome, state, weight in ends:
        found[outcome, state] += weight
    return found
