"""What targets do to a packet, as far as it is known. See the kernel's `net/netfilter/xt_*.c`."""

from collections.abc import Callable, Mapping

from kpx.analysis.chain import KernelRule
from kpx.analysis.packet import Fate, Outcome, number
from kpx.analysis.state import Scene, State
from kpx.family import Family
from kpx.netfilter.destination import Destination, destination_of
from kpx.netfilter.options import Option

SILENT = frozenset(
    {
        "",
        "LOG",
        "NFLOG",
        "ULOG",
        "TRACE",
        "AUDIT",
        "CHECKSUM",
        "TCPMSS",
        "TCPOPTSTRIP",
        "CLASSIFY",
        "DSCP",
        "TOS",
        "ECN",
    }
    | {"TTL", "HL", "SECMARK", "CONNSECMARK", "RATEEST", "IDLETIMER", "LED", "TEE", "SET"}
)
"""Targets, and the lack of one, after which a packet goes on and no rule sees a difference that is known of here."""


def _rejected(rule: KernelRule) -> Outcome:
    kinds = [value for option in rule.parsed.target_options for value in option.values]
    return Outcome(Fate.REJECTED, detail=" ".join(kinds))


REFUSALS: Mapping[str, Callable[[KernelRule], Outcome]] = {
    "DROP": lambda rule: Outcome(Fate.DROPPED),
    "REJECT": _rejected,
}
"""Targets that end a packet's way, with what becomes of it."""


def _mark(rule: KernelRule, state: State, scene: Scene) -> State | None:
    """xt_MARK: clear the mask's bits, then XOR the value."""
    match rule.parsed.target_options:
        case (Option("--set-xmark", (value,)),):
            return state._replace(mark=_xmark(state.mark, value))
    return None


def _connmark(rule: KernelRule, state: State, scene: Scene) -> State | None:
    """xt_connmark. The mark of a connection that is older than the packet isn't known."""
    options = {option.name: option.values for option in rule.parsed.target_options}
    if scene.conntrack_state(state) in ("UNTRACKED", "INVALID"):
        return state
    if "--set-xmark" in options:
        (value,) = options["--set-xmark"]
        return state._replace(connmark=_xmark(state.connmark, value))
    of_packet, of_connection = (int(options.get(name, ("0xffffffff",))[0], 0) for name in ("--nfmask", "--ctmask"))
    if "--save-mark" in options:
        return state._replace(connmark=(state.connmark & ~of_connection) ^ (state.mark & of_packet))
    if "--restore-mark" in options and scene.packet.state == "NEW":
        return state._replace(mark=(state.mark & ~of_packet) ^ (state.connmark & of_connection))
    return state if "--restore-mark" in options and not (of_packet | of_connection) & scene.marks else None


def _xmark(mark: int, value: str) -> int:
    stored, _, mask = value.partition("/")
    return mark & ~int(mask or "0xffffffff", 0) ^ int(stored, 0)


def _untracked(rule: KernelRule, state: State, scene: Scene) -> State | None:
    """Without conntrack there is no translation. What comes back through lo has been seen by conntrack already."""
    names = {option.name for option in rule.parsed.target_options}
    if rule.target == "NOTRACK" or names == {"--notrack"}:
        return state if scene.in_interface == "lo" else state._replace(tracked=False)
    return state if names <= {"--helper", "--ctevents", "--expevents", "--timeout"} else None


def _dnat(rule: KernelRule, state: State, scene: Scene) -> State | None:
    """xt_nat: what isn't given stays. Of one address and port, neither --random nor --persistent changes anything."""
    to = destination_of(rule.parsed.target_options)
    if to is None or "-" in to.port:
        return None
    destination = number(to.address) if to.address else state.destination
    if destination == 0 and scene.packet.family is Family.IPV6:
        return None
    return state._replace(destination=destination, port=int(to.port or state.port), translated=True)


def _redirect(rule: KernelRule, state: State, scene: Scene) -> State | None:
    """To the host itself: to loopback what it sends itself, else to an address that the interface tells."""
    ports = [option.values[0] for option in rule.parsed.target_options if option.name == "--to-ports"]
    if scene.hook != "OUTPUT" or len(ports) < len(rule.parsed.target_options):
        return None
    loopback = "127.0.0.1" if scene.packet.family is Family.IPV4 else "::1"
    return state._replace(destination=number(loopback), port=int(*ports or (state.port,)), translated=True)


def _snat(rule: KernelRule, state: State, scene: Scene) -> State | None:
    values = [option.values[0] for option in rule.parsed.target_options if option.name == "--to-source"]
    source = number(Destination.parsed(values[0]).address) if len(values) == 1 and "-" not in values[0] else None
    return state._replace(source=source, masqueraded=True)


def change(rule: KernelRule, state: State, scene: Scene) -> State | None:
    """The packet behind a target that changes it; None if what it does can't be known."""
    try:
        return CHANGES[rule.target](rule, state, scene)
    except (OSError, ValueError, TypeError, IndexError):  # options that make no sense
        return None


def _masquerade(rule: KernelRule, state: State, scene: Scene) -> State | None:
    return state._replace(source=None, masqueraded=True)


CHANGES: Mapping[str, Callable[[KernelRule, State, Scene], State | None]] = {
    "MARK": _mark,
    "CONNMARK": _connmark,
    "NOTRACK": _untracked,
    "CT": _untracked,
    "DNAT": _dnat,
    "REDIRECT": _redirect,
    "SNAT": _snat,
    "MASQUERADE": _masquerade,
}
"""Targets that change a packet; the change is None if what they do can't be known."""

GOES_ON = frozenset({"MARK", "CONNMARK", "NOTRACK", "CT"})
"""Those of them behind which the packet goes on in the chain."""

TARGETS = SILENT | REFUSALS.keys() | CHANGES.keys() | {"ACCEPT", "RETURN"}
"""Every target that isn't a chain, as far as it is known here what it does."""
