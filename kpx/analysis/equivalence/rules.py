"""One rule as decision diagrams: its conditions, and what it does to packets of which they all hold.

What matches and targets do is what `kpx.analysis.match` and `kpx.analysis.simulate` know of them. What isn't known is a
test of its own, whose answer is the same wherever the same is asked of the same packet.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from kpx.analysis import bpf
from kpx.analysis.equivalence import fields
from kpx.analysis.equivalence.diagram import STEP, STEPS, UNIT, Diagram
from kpx.analysis.equivalence.exits import MASQUERADE, Change, Exit, Exits, Kind
from kpx.analysis.equivalence.fields import FOREVER, HOMES, STATES, Fields
from kpx.analysis.match import LIMITS
from kpx.analysis.packet import number
from kpx.family import Family
from kpx.netfilter.counting import NAMES
from kpx.netfilter.destination import destination_of
from kpx.netfilter.options import Option, Options
from kpx.netfilter.rule import Match, Rule, RuleError, format_rule, normal_rule, parse_rule


@dataclass(frozen=True, slots=True)
class Chance:
    """A match that holds with a probability, given as a weight."""

    weight: int


@dataclass(frozen=True, slots=True)
class Note:
    """A match that puts the sender on a list where a test holds, and then holds itself."""

    name: str
    test: Diagram


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A match of which nothing is known but that its answer depends on where it stands."""

    text: str


Condition = Diagram | Chance | Note | Elsewhere


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A rule's conditions, in the order in which they are asked. `asked` are the lists of clients that they look at."""

    rule: Rule
    conditions: tuple[Condition, ...]
    asked: tuple[str, ...]

    @property
    def has_place(self) -> bool:
        """Whether it depends on where it stands what the rule does."""
        return any(isinstance(one, Elsewhere) for one in self.conditions)


_STATEFUL = frozenset({"limit", "hashlimit", "quota", "connlimit", "nfacct", "rateest", "statistic", "recent"})
"""Matches whose answer depends on which packets they were asked of before, and so on where they stand."""


def _only_counts(match: Match) -> bool:
    """Whether a match is one of kube-proxy's counters, which have no quota: it always holds."""
    return match.module == "nfacct" and all(one.values in _COUNTERS and not one.negated for one in match.options)


_COUNTERS = frozenset((name,) for name in NAMES)

SILENT = frozenset(
    {"", "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "CHECKSUM", "TCPMSS", "TCPOPTSTRIP", "CLASSIFY", "DSCP", "TOS"}
    | {"ECN", "TTL", "HL", "SECMARK", "CONNSECMARK", "RATEEST", "IDLETIMER", "LED", "TEE", "SET"}
)
"""Targets, and the lack of one, after which a packet goes on and no rule sees a difference that is known of here."""


class Rules:
    """Reads rules, each text once."""

    def __init__(self, exits: Exits) -> None:
        self.exits, self.fields, self.diagrams = exits, exits.fields, exits.diagrams
        self._forms: dict[str, Form] = {}

    def form(self, text: str) -> Form:
        """A rule taken apart. A text that is no rule has an unknown match and an unknown target."""
        found = self._forms.get(text)
        if found is None:
            try:
                rule = normal_rule(parse_rule(text), self.fields.family)
            except RuleError:
                rule = Rule(matches=(Match("?", (Option(text),)),), target="?")
            found = self._forms[text] = self._form(rule)
        return found

    def _form(self, rule: Rule) -> Form:
        conditions: list[Condition] = [_test(self.fields, _HEAD.get(option.name), option) for option in rule.head]
        asked: list[str] = []
        for match in rule.matches:
            conditions += self._conditions(match, asked)
        return Form(rule, tuple(conditions), tuple(asked))

    def applied(self, form: Form, action: Diagram, place: Callable[[Form], str]) -> Diagram:
        """What a rule does, if `action` is what it does where it matches; `place` says where it stands."""
        on, diagrams = self.exits.on, self.diagrams
        for condition in reversed(form.conditions):
            if isinstance(condition, Diagram):
                action = diagrams.pick(condition, action, on)
            elif isinstance(condition, Chance):
                action = diagrams.chance(condition.weight, action, on)
            elif isinstance(condition, Note):
                noted = self.exits.then(Change(noted=(condition.name,)), action)
                action = diagrams.pick(condition.test, noted, on)
            else:
                action = diagrams.pick(self.fields.unknown(condition.text, place(form)), action, on)
        return action

    # -- matches -----------------------------------------------------------------------------------------

    def _conditions(self, match: Match, asked: list[str]) -> Iterator[Condition]:
        if match.module == "comment" or _only_counts(match):
            return
        if match.module == "statistic":
            yield _chance(match)
        elif match.module == "recent":
            yield self._recent(match, asked)
        elif match.module in _STATEFUL:
            yield Elsewhere(_text(match))
        elif match.module == "addrtype" and any(option.name in LIMITS for option in match.options):
            yield self.fields.unknown(_text(match))
        else:
            known = _OPTIONS.get(match.module, {})
            if not match.options and match.module not in _OPTIONS:
                yield self.fields.unknown(match.module)
            for option in match.options:
                yield _test(self.fields, known.get(option.name), option, match.module)

    def _recent(self, match: Match, asked: list[str]) -> Condition:
        options = {option.name: option.values for option in match.options if not option.negated}
        actions = options.keys() & {"--set", "--rcheck", "--update"}
        details = {"--name", "--mask", "--rsource", "--seconds", "--reap"}
        with suppress(OSError, ValueError, KeyError):
            (name,), (seconds,), (mask,) = options["--name"], options.get("--seconds", (FOREVER,)), options["--mask"]
            everything = (1 << self.fields.family.host_bits) - 1
            single = (
                number(mask) == everything
                and len(options) == len(match.options)
                and options.keys() - actions <= details
            )
            if single and actions == {"--set"}:
                return Note(name, self.diagrams.true)
            if single and len(actions) == 1 and 0 <= int(seconds) <= FOREVER:
                asked.append(name)
                test = self._known(name, int(seconds))
                return Note(name, test) if actions == {"--update"} else test
        return Elsewhere(_text(match))

    def _known(self, name: str, seconds: int) -> Diagram:
        """The test that a list has known the sender for so many seconds at most."""
        if not name.startswith(HOMES):
            return self.fields.between(self.fields.named("list", name), 0, seconds)
        home = self.fields.home(name)
        young = self.fields.between(fields.AGE, 0, seconds)
        return self.diagrams.pick(self.fields.between(fields.HOME, home, home), young, self.diagrams.false)


def _text(match: Match) -> str:
    return format_rule(Rule(matches=(match,)))


def _chance(match: Match) -> Condition:
    """A random choice, or one in turn (`nth`), which takes the same share of connections."""
    options = {option.name: option for option in match.options}
    with suppress(ValueError, OverflowError, KeyError):
        (mode,) = options["--mode"].values
        name = {"random": "--probability", "nth": "--every"}[mode]
        (value,), negated = options[name].values, options[name].negated
        if options.keys() <= ({"--mode", name} if mode == "random" else {"--mode", name, "--packet"}):
            weight = round(float(value) * (1 << STEPS)) * STEP if mode == "random" else UNIT // max(int(value), 1)
            if 0 <= weight <= UNIT:
                return Chance(UNIT - weight if negated else weight)
    return Elsewhere(_text(match))


Maker = Callable[..., Diagram]


def _test(some: Fields, make: Maker | None, option: Option, module: str = "") -> Diagram:
    """The test that an option is."""
    test: Diagram | None = None
    if make is not None:
        with suppress(TypeError, ValueError, OSError):
            test = make(some, *option.values)
    if test is None:
        test = some.unknown(" ".join(filter(None, (module, option.name, *option.values))))
    return some.diagrams.negated(test) if option.negated else test


def _network(var: int, some: Fields, value: str) -> Diagram:
    address, _, length = value.partition("/")
    size = some.family.host_bits
    if (":" in address) != (some.family is Family.IPV6):
        raise ValueError(value)
    first, bits = number(address), size - int(length)  # a mask with holes is no number: unknown
    return some.between(var, first >> bits << bits, (first >> bits << bits) + (1 << bits) - 1)


def _interface(var: int, some: Fields, value: str) -> Diagram:
    return some.interface(var, value)


def _protocol(some: Fields, value: str) -> Diagram:
    if value in ("all", "0"):
        return some.diagrams.true
    wanted = some.protocol(value)
    return some.between(fields.PROTOCOL, wanted, wanted)


def _no_fragment(some: Fields) -> Diagram:
    return some.diagrams.false  # what begins a connection is no second fragment


_HEAD: Mapping[str, Maker] = {
    "-s": partial(_network, fields.SOURCE),
    "-d": partial(_network, fields.DESTINATION),
    "-i": partial(_interface, fields.IN),
    "-o": partial(_interface, fields.OUT),
    "-p": _protocol,
    "-f": _no_fragment,
}


def _port(var: int, some: Fields, value: str) -> Diagram:
    low, _, high = value.partition(":")
    first, last = int(low), int(high or low)
    if last > 65_535:
        raise ValueError(value)
    return some.between(var, first, last) if first <= last else some.diagrams.false


def _ports(var: int, some: Fields, value: str) -> Diagram:
    result = some.diagrams.false
    for one in value.split(","):
        result = some.diagrams.pick(_port(var, some, one), some.diagrams.true, result)
    return result


def _mark(some: Fields, value: str) -> Diagram:
    stored, _, mask = value.partition("/")
    wanted, bits = int(stored, 0), int(mask or "0xffffffff", 0)
    if wanted & ~bits:
        return some.diagrams.false
    result = some.diagrams.true
    for bit in reversed(range(32)):
        if bits >> bit & 1:
            set_ = some.holds(fields.MARK + bit)
            result = some.diagrams.pick(
                set_ if wanted >> bit & 1 else some.diagrams.negated(set_), result, some.diagrams.false
            )
    return result


def _state(some: Fields, value: str) -> Diagram:
    result = some.diagrams.false
    for name in value.split(","):
        if name in STATES:
            test = some.between(fields.STATE, STATES.index(name), STATES.index(name))
        else:  # of a packet without a connection neither is true
            test = some.holds({"DNAT": fields.TRANSLATED, "SNAT": fields.REPLACED}.get(name, -1))
            test = some.diagrams.pick(some.between(fields.STATE, 0, fields.RELATED), test, some.diagrams.false)
        result = some.diagrams.pick(test, some.diagrams.true, result)
    return result


def _type(address: int, is_local: int, some: Fields, value: str) -> Diagram:
    wanted = value.split(",")
    others = some.diagrams.false
    if wanted != ["LOCAL"]:
        others = some.unknown(f"addrtype {'source' if address == fields.SOURCE else 'destination'}", value)
    here = some.diagrams.true if "LOCAL" in wanted else some.diagrams.false
    return some.diagrams.pick(some.local(address, is_local), here, others)


def _bytecode(some: Fields, value: str) -> Diagram:
    program = bpf.parse(value)
    if bpf.asks_to_itself(program, some.family):
        return some.to_itself()
    if not bpf.asks_source_alone(program, some.family):
        return some.unknown("bpf --bytecode", value)
    number, bound = bpf.threshold(program) or (program, 0)
    hashed = some.named("hash", number)
    if number is program:
        return some.between(hashed, 1, some.size(hashed) - 1)
    return some.between(hashed, 0, bound - 1) if bound else some.diagrams.false


_PORTS: Mapping[str, Maker] = {"--dport": partial(_port, fields.PORT), "--sport": partial(_port, fields.SOURCE_PORT)}

_OPTIONS: Mapping[str, Mapping[str, Maker]] = {
    "tcp": _PORTS,
    "udp": _PORTS,
    "sctp": _PORTS,
    "multiport": {"--dports": partial(_ports, fields.PORT), "--sports": partial(_ports, fields.SOURCE_PORT)},
    "mark": {"--mark": _mark},
    "conntrack": {"--ctstate": _state},
    "state": {"--state": _state},
    "bpf": {"--bytecode": _bytecode},
    "addrtype": {
        "--src-type": partial(_type, fields.SOURCE, fields.SOURCE_LOCAL),
        "--dst-type": partial(_type, fields.DESTINATION, fields.DESTINATION_LOCAL),
    },
}


# ---- targets ----


def exit_of(rule: Rule, family: Family) -> Exit | None:
    """How packets leave a rule that they match; None if its target is a chain, or isn't known."""
    target, options = rule.target or "", rule.target_options
    if target in SILENT:
        return Exit(Kind.ON)
    if target in _VERDICTS:
        return _VERDICTS[target]
    if target == "REJECT":
        return Exit(Kind.END, why=" ".join(["rejected", *(value for option in options for value in option.values)]))
    with suppress(TypeError, ValueError, OSError, KeyError):
        if target == "DNAT":
            return _dnat(family, options)
        return _EXITS[target](**_values(options))
    return None


def _values(options: Options) -> dict[str, Any]:
    return {option.name.lstrip("-").replace("-", "_"): option.values for option in options}


_VERDICTS = {
    "ACCEPT": Exit(Kind.ACCEPT),
    "RETURN": Exit(Kind.BACK),
    "DROP": Exit(Kind.END, why="dropped"),
}


def _set_mark(set_xmark: tuple[str]) -> Exit:
    (value,) = set_xmark
    stored, _, mask = value.partition("/")
    return Exit(Kind.ON, Change(clear=int(mask or "0xffffffff", 0), flip=int(stored, 0)))


def _dnat(family: Family, options: Options) -> Exit:
    to = destination_of(options)
    if to is None:
        raise ValueError(options)
    address = number(to.address)
    if (":" in to.address) != (family is Family.IPV6) or int(to.port or 0) > 65_535 or not address:
        raise ValueError(options)
    return Exit(Kind.ACCEPT, Change(to=(address, int(to.port) if to.port else None)))


def _masquerade(random: tuple[()] = (), random_fully: tuple[()] = (), to_ports: tuple[str, ...] = ()) -> Exit:
    return Exit(Kind.ACCEPT, Change(source=" ".join([MASQUERADE, *to_ports])))


def _snat(to_source: tuple[str], **_: tuple[str, ...]) -> Exit:
    (value,) = to_source
    return Exit(Kind.ACCEPT, Change(source=value))


def _untracked(notrack: tuple[()] = ()) -> Exit:
    return Exit(Kind.ON, Change(tracked=False))


_EXITS: Mapping[str, Callable[..., Exit]] = {
    "MARK": _set_mark,
    "MASQUERADE": _masquerade,
    "SNAT": _snat,
    "NOTRACK": _untracked,
    "CT": _untracked,
}
