"""What becomes of a packet: its way through the filter and nat tables, with the exact probability of every outcome.

The order is the kernel's. A packet that enters the host passes PREROUTING (nat), and then, by the destination that it
has by now, INPUT (filter, nat) or FORWARD (filter) and POSTROUTING (nat). One that the host sends passes OUTPUT (nat,
filter) and POSTROUTING (nat), and INPUT (filter) if it is for the host itself: nat is asked once for a connection.
Tables other than filter and nat are taken to be empty.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from kpx.analysis.match import Chain, KernelRule, Scene, State, Step, Trail
from kpx.analysis.packet import Fate, Host, Origin, Outcome, Packet, endpoint, number
from kpx.family import Family
from kpx.netfilter.options import Option
from kpx.netfilter.ruleset import TABLES, Rules, Ruleset, TableName
from kpx.netfilter.save import Saved

Tables = Mapping[TableName, Mapping[str, Rules]]
"""Rules by table and chain, the built-in chains included."""

Policies = Mapping[tuple[TableName, str], str]
"""What built-in chains do with a packet at their end, by table and chain: ACCEPT where nothing is said."""

Weights = dict[State, Fraction]
"""Packets on their way, with their probabilities."""


def tables_of(ruleset: Ruleset) -> Tables:
    """The tables that hold a ruleset and nothing else."""
    return {name: {**table.chains, **table.jumps} for name, table in ruleset.tables.items()}


def tables_of_save(saved: Saved) -> tuple[Tables, Policies]:
    """Tables and policies as `iptables-save` printed them."""
    chains = {name: saved[name].chains for name in TABLES if name in saved}
    tables: Tables = {name: {chain: one.rules for chain, one in found.items()} for name, found in chains.items()}
    policies = {
        (name, chain): one.policy for name, found in chains.items() for chain, one in found.items() if one.policy
    }
    return tables, policies


def simulate(
    tables: Tables, packet: Packet, host: Host, known: Mapping[str, float] | None = None
) -> Mapping[Outcome, Fraction]:
    """The outcomes of a packet, with their probabilities; see `Simulator`, which serves for many packets."""
    return Simulator(tables, packet.family, host).outcomes(packet, known)


@dataclass(frozen=True, slots=True)
class Path:
    """One way that a packet can take: the rules it matches, in order, and what comes of it with which probability.

    `examined` counts all rules that it is compared with.
    """

    outcome: Outcome
    probability: Fraction
    steps: tuple[Step, ...]
    examined: int


class Simulator:
    """Sends packets through tables of one family. Rules are taken apart when a packet first meets them."""

    def __init__(self, tables: Tables, family: Family, host: Host, policies: Policies | None = None) -> None:
        self.family, self.host, self.policies = family, host, policies or {}
        self._tables = tables
        self._chains: dict[tuple[TableName, str], Chain] = {}

    def outcomes(self, packet: Packet, known: Mapping[str, float] | None = None) -> Mapping[Outcome, Fraction]:
        """Every outcome with its probability; they add up to 1.

        `known` are the lists of xt_recent that the sender is on, with the seconds since it was last put there.
        """
        found: dict[Outcome, Fraction] = defaultdict(Fraction)
        for outcome, _, weight in _Journey(self, packet, known or {}, traced=False).ends():
            found[outcome] += weight
        return dict(found)

    def paths(self, packet: Packet, known: Mapping[str, float] | None = None) -> tuple[Path, ...]:
        """Every way to an outcome, the likeliest first. A match of chance makes two of one, whatever its effect."""
        ends = _Journey(self, packet, known or {}, traced=True).ends()
        paths = (Path(outcome, weight, _steps(state.trail), state.examined) for outcome, state, weight in ends)
        return tuple(sorted(paths, key=lambda path: -path.probability))

    def chain(self, table: TableName, name: str) -> Chain | None:
        """A chain, ready to be passed; None if there is none of this name."""
        key = (table, name)
        if key not in self._chains:
            rules = self._tables.get(table, {}).get(name)
            if rules is None:
                return None
            self._chains[key] = Chain(rules, self.family)
        return self._chains[key]


def _steps(trail: Trail | None) -> tuple[Step, ...]:
    steps = []
    while trail is not None:
        steps.append(trail.step)
        trail = trail.before
    return tuple(reversed(steps))


class _Journey:
    """One packet's way through the hooks. `traced` keeps apart what took different ways."""

    def __init__(self, simulator: Simulator, packet: Packet, known: Mapping[str, float], traced: bool) -> None:
        self.simulator, self.packet, self.known, self.traced = simulator, packet, known, traced
        self.ended: list[tuple[Outcome, State, Fraction]] = []

    def ends(self) -> Sequence[tuple[Outcome, State, Fraction]]:
        """What can become of the packet."""
        packet = self.packet
        start = State(number(packet.source), number(packet.destination), packet.destination_port, packet.mark)
        passed = self._sent if packet.origin is Origin.NODE else self._received
        for state, weight in passed({start: Fraction(1)}):
            self.end(self._passing(state), state, weight)
        return self.ended

    def end(self, outcome: Outcome, state: State, weight: Fraction) -> None:
        """The packet's way ends here."""
        self.ended.append((outcome, state, weight))

    def _passing(self, state: State) -> Outcome:
        if not state.translated:
            return Outcome(Fate.UNTOUCHED, masqueraded=state.masqueraded)
        to = endpoint(state.destination, state.port, self.simulator.family)
        return Outcome(Fate.TRANSLATED, to, state.masqueraded)

    def _received(self, weights: Weights) -> Iterator[tuple[State, Fraction]]:
        come, leave = self.packet.in_interface, self.packet.out_interface
        weights = self._pass("nat", "PREROUTING", weights, come, "")
        here, on = self._routed(weights)
        here = self._pass("filter", "INPUT", here, come, "")
        yield from self._pass("nat", "INPUT", here, come, "").items()
        on = self._pass("filter", "FORWARD", on, come, leave)
        yield from self._pass("nat", "POSTROUTING", on, come, leave).items()

    def _sent(self, weights: Weights) -> Iterator[tuple[State, Fraction]]:
        leave = self.packet.out_interface
        for table in ("nat", "filter"):
            weights = self._pass(table, "OUTPUT", weights, "", leave)
        weights = self._pass("nat", "POSTROUTING", weights, "", leave)
        here, on = self._routed(weights)
        yield from on.items()
        yield from self._pass("filter", "INPUT", here, "lo", "").items()

    def _routed(self, weights: Weights) -> tuple[Weights, Weights]:
        """What is for the host itself, and what isn't."""
        local = {state for state in weights if self.simulator.host.is_local(state.destination, self.simulator.family)}
        here = {state: weight for state, weight in weights.items() if state in local}
        return here, {state: weight for state, weight in weights.items() if state not in local}

    def _pass(
        self, table: TableName, hook: str, weights: Weights, in_interface: str | None, out_interface: str | None
    ) -> Weights:
        """Pass one table in one hook; returns what goes on behind it."""
        if not weights or (table == "nat" and self.packet.state != "NEW"):
            return weights
        if self.simulator.chain(table, hook) is None:
            return weights
        scene = Scene(self.packet, self.simulator.host, hook, in_interface, out_interface, self.known)
        visit = _Visit(self, table, scene)
        at_end = visit.chain(hook, weights)
        if self.simulator.policies.get((table, hook), "ACCEPT") == "ACCEPT":
            _merge(visit.accepted, at_end)
        else:
            for state, weight in at_end.items():
                self.end(Outcome(Fate.DROPPED), state, weight)
        return visit.accepted


class _Visit:
    """One table in one hook. What is accepted there is collected in `accepted`."""

    def __init__(self, journey: _Journey, table: TableName, scene: Scene) -> None:
        self.journey, self.table, self.scene = journey, table, scene
        self.accepted: Weights = {}
        self._above: list[str] = []

    def chain(self, name: str, weights: Weights) -> Weights:
        """Pass a chain; returns what comes back from it."""
        chain = self.journey.simulator.chain(self.table, name)
        if chain is None or name in self._above:
            why = f"{self.table}: {name} leads to itself" if chain else f"{self.table}: there is no chain {name}"
            for state, weight in weights.items():
                self.journey.end(Outcome(Fate.UNKNOWN, detail=why), state, weight)
            return {}
        self._above.append(name)
        on, back = dict(weights), Weights()
        passed = 0
        for position in chain.candidates({state.destination for state in on}):
            on, passed = self._counted(on, position - passed), position
            rule = chain.rule(position)
            asked = [state for state in on if rule.quick is None or rule.quick(state, self.scene) is not False]
            for state, weight in [(state, on.pop(state)) for state in asked]:
                step = Step(self.table, self.scene.hook, name, position, rule.text)
                for stays, returns in self._cases(step, rule, state, weight):
                    _merge(on, stays)
                    _merge(back, returns)
        self._above.pop()
        _merge(back, self._counted(on, len(chain) - passed))
        return back

    def _counted(self, weights: Weights, rules: int) -> Weights:
        """Packets that have been compared with so many more rules."""
        if not self.journey.traced:
            return weights
        return {state._replace(examined=state.examined + rules): weight for state, weight in weights.items()}

    def _cases(self, step: Step, rule: KernelRule, state: State, weight: Fraction) -> Iterator[tuple[Weights, Weights]]:
        """What comes of asking a rule: what goes on behind it, and what leaves the chain for its caller."""
        for truth, after, part in rule.ask(state, weight, self.scene):
            if not part:
                continue
            if truth is False or (truth is None and rule.target in _SILENT):
                yield {after: part}, {}
            elif truth is None:
                self._lost(step, after, part)
            else:
                yield self._act(step, rule, self._traced(step, after), part)

    def _act(self, step: Step, rule: KernelRule, state: State, weight: Fraction) -> tuple[Weights, Weights]:
        """Carry out a rule's target."""
        target = rule.target
        if target in _SILENT:
            return {state: weight}, {}
        if target == "RETURN":
            return {}, {state: weight}
        if target == "ACCEPT":
            _add(self.accepted, state, weight)
        elif target in _REFUSALS:
            self.journey.end(_REFUSALS[target](rule), state, weight)
        elif target in _CHANGES:
            changed = _CHANGES[target](rule, state, self.scene)
            if changed is None:
                self._lost(step, state, weight)
            elif target == "MARK":
                return {changed: weight}, {}
            else:
                _add(self.accepted, changed, weight)
        elif self.journey.simulator.chain(self.table, target) is None:
            self._lost(step, state, weight)
        else:
            back = self.chain(target, {state: weight})
            return ({}, back) if rule.parsed.goto else (back, {})
        return {}, {}

    def _traced(self, step: Step, state: State) -> State:
        return state._replace(trail=Trail(step, state.trail)) if self.journey.traced else state

    def _lost(self, step: Step, state: State, weight: Fraction) -> None:
        """What becomes of the packet behind a rule that can't be judged isn't known."""
        outcome = Outcome(Fate.UNKNOWN, detail=f"{step.table} {step.chain}: {step.rule}")
        self.journey.end(outcome, self._traced(step, state), weight)


def _add(weights: Weights, state: State, weight: Fraction) -> None:
    weights[state] = weights[state] + weight if state in weights else weight


def _merge(weights: Weights, more: Weights) -> None:
    for state, weight in more.items():
        _add(weights, state, weight)


# ---- targets ----

_SILENT = frozenset({"", "LOG", "NFLOG"})
"""Targets, and the lack of one, after which a packet goes on as if nothing had been."""


def _rejected(rule: KernelRule) -> Outcome:
    kinds = [value for option in rule.parsed.target_options for value in option.values]
    return Outcome(Fate.REJECTED, detail=" ".join(kinds))


_REFUSALS: Mapping[str, Callable[[KernelRule], Outcome]] = {
    "DROP": lambda rule: Outcome(Fate.DROPPED),
    "REJECT": _rejected,
}


def _mark(rule: KernelRule, state: State, scene: Scene) -> State | None:
    """xt_MARK: clear the mask's bits, then XOR the value."""
    match rule.parsed.target_options:
        case (Option("--set-xmark", (value,)),):
            stored, _, mask = value.partition("/")
            return state._replace(mark=state.mark & ~int(mask, 0) ^ int(stored, 0))
    return None


def _dnat(rule: KernelRule, state: State, scene: Scene) -> State | None:
    match rule.parsed.target_options:
        case (Option("--to-destination", (value,)),):
            host, port = _address_and_port(value)
            with suppress(OSError, ValueError):
                return state._replace(destination=number(host), port=int(port or state.port), translated=True)
    return None


def _address_and_port(value: str) -> tuple[str, str]:
    if value.startswith("["):
        host, _, port = value[1:].partition("]")
        return host, port.removeprefix(":")
    if value.count(":") > 1:
        return value, ""
    host, _, port = value.partition(":")
    return host, port


def _masquerade(rule: KernelRule, state: State, scene: Scene) -> State | None:
    return state._replace(source=None, masqueraded=True)


_CHANGES: Mapping[str, Callable[[KernelRule, State, Scene], State | None]] = {
    "MARK": _mark,
    "DNAT": _dnat,
    "MASQUERADE": _masquerade,
}
"""Targets that change a packet; the change is None if what they do can't be known."""
