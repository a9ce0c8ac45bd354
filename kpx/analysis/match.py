"""What a rule's matches ask, one by one: true or false of a packet, a matter of chance, or unknown.

What they do is taken from the kernel's `net/netfilter/xt_*.c` and `net/ipv4/netfilter/ip_tables.c`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from kpx.analysis import bpf
from kpx.analysis.packet import Origin, Packet, kind, number
from kpx.analysis.state import Scene, State
from kpx.family import Family
from kpx.netfilter.counting import NAMES
from kpx.netfilter.options import Option, protocol
from kpx.netfilter.rule import Match

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

_PORT = re.compile("[0-9]{1,5}")
_LENGTH = re.compile("[0-9]{1,3}")


def _unknown(state: State, scene: Scene) -> Truth:
    return None


def _not(test: Test, state: State, scene: Scene) -> Truth:
    answer = test(state, scene)
    return None if answer is None else not answer


def of_head(option: Option) -> Test:
    """What an option before all matches asks."""
    return _test(_HEAD.get(option.name), option)


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
    mask = ((1 << int(length)) - 1) << (size - int(length)) if _LENGTH.fullmatch(length) else number(length)
    return number(address) & mask, mask


def _source(value: str) -> Test:
    net, mask = _network(value)
    return lambda state, scene: None if state.source is None else state.source & mask == net


def _destination(value: str) -> Test:
    net, mask = _network(value)
    return lambda state, scene: state.destination & mask == net


def _in_interface(value: str) -> Test:
    return lambda state, scene: _is_interface(scene.in_interface, value, elsewhere=True)


def _out_interface(value: str) -> Test:
    def test(state: State, scene: Scene) -> Truth:
        if scene.out_interface is not None or scene.packet.origin is not Origin.NODE:
            return _is_interface(scene.out_interface, value, elsewhere=True)
        local = scene.host.is_local(routed_to(state, scene), scene.packet.family)
        return _is_interface("lo" if local else None, value, elsewhere=local is False)

    return test


def routed_to(state: State, scene: Scene) -> int:
    """The destination that tells the interface; in OUTPUT it is still the one that was right before DNAT."""
    return number(scene.packet.destination) if scene.hook == "OUTPUT" else state.destination


def _is_interface(actual: str | None, wanted: str, elsewhere: bool) -> Truth:
    """Whether an interface is the wanted one. If it isn't known, it may still be known not to be loopback's.

    Of an interface of which only the start of its name is known, that and a + stand for it.
    """
    if actual is None:
        return False if elsewhere and wanted == "lo" else None
    if actual.endswith("+"):  # one of those that are called so
        start, other = actual[:-1], wanted.removesuffix("+")
        if wanted.endswith("+") and start.startswith(other):
            return True
        return None if other.startswith(start) else False
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


def conditions(match: Match) -> Iterator[Condition]:
    """What a match asks, in order."""
    if match.module == "recent":
        yield _recent(match)
    elif match.module == "statistic":
        yield _statistic(match)
    elif match.module != "comment":
        known = _OPTIONS.get(match.module, {})
        if not match.options and match.module not in _OPTIONS:
            yield _unknown
        if match.module == "connmark":
            yield _has_connection
        if match.module == "addrtype" and any(option.name in LIMITS for option in match.options):
            yield from (_of_one_interface(option) for option in match.options if option.name not in LIMITS)
            return
        yield from (_test(known.get(option.name), option) for option in match.options)


def _port(of_packet: Callable[[State, Scene], int | None], value: str) -> Test:
    low, _, high = value.partition(":")
    if not (_PORT.fullmatch(low) and _PORT.fullmatch(high or low)):
        return _unknown
    first, last = int(low), int(high or low)

    def test(state: State, scene: Scene) -> Truth:
        port = of_packet(state, scene)
        return first <= port <= last if port is not None else None

    return test


def _mark(value: str) -> Test:
    stored, _, mask = value.partition("/")
    wanted, bits = int(stored, 0), int(mask or "0xffffffff", 0)
    return lambda state, scene: state.mark & bits == wanted


def _connmark(value: str) -> Test:
    stored, _, mask = value.partition("/")
    wanted, bits = int(stored, 0), int(mask or "0xffffffff", 0)
    # A connection that is older than this packet may bear any mark.
    return lambda state, scene: state.connmark & bits == wanted if scene.packet.state == "NEW" else None


def _has_connection(state: State, scene: Scene) -> Truth:
    return scene.conntrack_state(state) not in ("UNTRACKED", "INVALID")


def _ctstate(value: str) -> Test:
    wanted = frozenset(value.split(","))

    def test(state: State, scene: Scene) -> Truth:
        now = scene.conntrack_state(state)
        if now in wanted:
            return True
        if now == "NEW":
            return ("DNAT" in wanted and _moved(state, scene.packet)) or ("SNAT" in wanted and state.masqueraded)
        return None if now in ("ESTABLISHED", "RELATED") and wanted & {"DNAT", "SNAT"} else False

    return test


def _moved(state: State, packet: Packet) -> bool:
    """Whether conntrack knows of a DNAT; one to where the packet goes anyway is none."""
    return state.translated and (state.destination, state.port) != (
        number(packet.destination),
        packet.destination_port,
    )


def _destination_type(value: str) -> Test:
    def test(state: State, scene: Scene) -> Truth:
        family = scene.packet.family
        return _is_type(kind(state.destination, family), scene.host.is_local(state.destination, family), value)

    return test


def _source_type(value: str) -> Test:
    def test(state: State, scene: Scene) -> Truth:
        if state.source is None:  # masqueraded: some address of the host
            return _is_type("", True, value)
        family = scene.packet.family
        local = scene.host.is_local(state.source, family)
        if local is None:  # the kernel takes no packet from elsewhere that bears an address of the host as its source
            local = scene.packet.origin is Origin.NODE
        return _is_type(kind(state.source, family), local, value)

    return test


def _is_type(special: str, local: Truth, value: str) -> Truth:
    """Of what is neither LOCAL nor special, the type can't be told: it may be UNICAST, BLACKHOLE, PROHIBIT, …"""
    wanted = set(value.split(","))
    certain = "LOCAL" if local else special
    if certain:
        return certain in wanted
    possible = wanted - {"MULTICAST"} - ({"LOCAL"} if local is False else set())
    return None if possible else False


LIMITS = frozenset({"--limit-iface-in", "--limit-iface-out"})
"""With these, `-m addrtype` takes an address that is local on another interface for one that is not."""


def _of_one_interface(option: Option) -> Test:
    """Who has no such address at all has none on an interface; more isn't known."""
    if option.values != ("LOCAL",):
        return _unknown
    of_host = _OPTIONS["addrtype"][option.name](*option.values)

    def test(state: State, scene: Scene) -> Truth:
        return None if of_host(state, scene) is not False else option.negated

    return test


def _tcp_flags(mask: str, flags: str) -> Test:
    """Of a packet that begins a connection only SYN is set."""
    asked, wanted = set(mask.split(",")), {flag for flag in flags.split(",") if flag != "NONE"}
    holds = asked & {"SYN"} == wanted
    return lambda state, scene: holds if scene.packet.state == "NEW" and scene.packet.protocol == "tcp" else None


def _ports(of_packet: Sequence[Callable[[State, Scene], int | None]], value: str) -> Test:
    tests = [_port(one, item) for item in value.split(",") for one in of_packet]
    if _unknown in tests:
        return _unknown

    def test(state: State, scene: Scene) -> Truth:
        answers = {one(state, scene) for one in tests}
        return True if True in answers else None if None in answers else False

    return test


def _range(of_packet: Callable[[State], int | None], value: str) -> Test:
    first, _, last = value.partition("-")
    low, high = number(first), number(last or first)

    def test(state: State, scene: Scene) -> Truth:
        address = of_packet(state)
        return None if address is None else low <= address <= high

    return test


def _is_bridged() -> Test:
    return lambda state, scene: scene.packet.bridged if scene.packet.origin is not Origin.NODE else False


def _bridge_port(name: str = "") -> Test:
    """Which port it is of a bridge, or whether it leaves through one: false of what came through none."""
    return lambda state, scene: None if _is_bridged()(state, scene) is not False else False


def _counts(name: str) -> Test:
    """The objects of kube-proxy have no quota, so that the match only counts."""
    return (lambda state, scene: True) if name in NAMES else _unknown


def _of_own_process(*values: str) -> Test:
    return lambda state, scene: None if scene.packet.origin is Origin.NODE else False


def _to_port(state: State, scene: Scene) -> int:
    return state.port


def _from_port(state: State, scene: Scene) -> int | None:
    return scene.packet.source_port


def _bytecode(text: str) -> Test:
    """A BPF program, if it looks at nothing but the packet's addresses."""
    try:
        program = bpf.parse(text)
    except bpf.BytecodeError:
        return _unknown

    def test(state: State, scene: Scene) -> Truth:
        return bpf.matches(program, state.source, state.destination, scene.packet.family)

    return test


_PORTS = {"--dport": partial(_port, _to_port), "--sport": partial(_port, _from_port)}

_OPTIONS: Mapping[str, Mapping[str, Callable[..., Test]]] = {
    "tcp": {**_PORTS, "--tcp-flags": _tcp_flags},
    "udp": _PORTS,
    "sctp": _PORTS,
    "multiport": {
        "--dports": partial(_ports, (_to_port,)),
        "--sports": partial(_ports, (_from_port,)),
        "--ports": partial(_ports, (_from_port, _to_port)),
    },
    "iprange": {
        "--src-range": partial(_range, lambda state: state.source),
        "--dst-range": partial(_range, lambda state: state.destination),
    },
    "mark": {"--mark": _mark},
    "connmark": {"--mark": _connmark},
    "conntrack": {"--ctstate": _ctstate},
    "state": {"--state": _ctstate},
    "addrtype": {"--src-type": _source_type, "--dst-type": _destination_type},
    "physdev": {
        "--physdev-is-in": _is_bridged,
        "--physdev-is-out": _bridge_port,
        "--physdev-is-bridged": _bridge_port,
        "--physdev-in": _bridge_port,
        "--physdev-out": _bridge_port,
    },
    "bpf": {"--bytecode": _bytecode},
    "nfacct": {"--nfacct-name": _counts},
    "owner": {"--uid-owner": _of_own_process, "--gid-owner": _of_own_process, "--socket-exists": _of_own_process},
}


def _statistic(match: Match) -> Condition:
    """A random choice, in the kernel's steps of 2^-31. Of `nth`, the share that it takes of many packets."""
    options = {option.name: option for option in match.options}
    mode = options["--mode"].values if "--mode" in options else ()
    with suppress(ValueError):
        if mode == ("random",) and "--probability" in options:
            (value,), negated = options["--probability"].values, options["--probability"].negated
            if not 0 <= float(value) <= 1:
                return _unknown
            probability = Fraction(round(float(value) * 2**31), 2**31)
            return Chance(1 - probability if negated else probability)
        if mode == ("nth",) and "--every" in options:
            (every,), negated = options["--every"].values, options["--every"].negated
            share = Fraction(1, int(every) or 1)
            return Chance(1 - share if negated else share)
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
