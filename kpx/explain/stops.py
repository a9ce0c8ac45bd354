"""What keeps a packet from a Service's endpoints: the rule, what it does, and whether the Service asks for it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from kpx.analysis.packet import Fate, Origin, Outcome, Packet, number
from kpx.analysis.simulate import Path, Simulator
from kpx.analysis.state import Step
from kpx.netfilter.destination import oddities
from kpx.netfilter.names import MARK_DROP, MARK_MASQ, is_policy, ours
from kpx.netfilter.owners import rule_owner
from kpx.netfilter.rule import RuleError, parse_rule, target_of
from kpx.netfilter.ruleset import Rules
from kpx.printable import printable


class Kind(Enum):
    """How a packet is kept from endpoints."""

    SERVICE = auto()
    """The Service refuses it: it has no endpoints, none on this node, or source ranges."""
    POLICY = auto()
    """A chain that carries out NetworkPolicies refuses it."""
    LOST_MATCH = auto()
    """A rule drops everything that should only drop what is marked."""
    REFUSED = auto()
    """A rule of somebody else refuses it."""
    AT_END = auto()
    """Nothing accepts it in a built-in chain that drops what nothing accepts."""
    UNTRACKED = auto()
    """It is kept from conntrack, and so from nat."""
    DNS_CACHE = auto()
    """So it is, and NodeLocal DNSCache answers it."""
    TAKEN = auto()
    """A rule of nat takes it away before a rule translates it."""
    NOT_LED = auto()
    """No rule leads to an endpoint."""
    ELSEWHERE = auto()
    """It is translated to where none of the Service's endpoints is."""
    UNMASQUERADED = auto()
    """It gets to an endpoint, but with its own source, although it was marked: the answer goes astray."""
    BROKEN = auto()
    """It is translated to where nobody is."""
    NOT_KNOWN = auto()
    """What becomes of it can't be known."""


@dataclass(frozen=True, slots=True)
class Stop:
    """What keeps packets from endpoints: how, and the rule, with its place; empty where there is none.

    `detail` is what is odd about a translation, or what isn't known.
    """

    kind: Kind
    fate: Fate
    table: str = ""
    chain: str = ""
    position: int = 0
    rule: str = ""
    detail: str = ""

    @classmethod
    def by(cls, kind: Kind, fate: Fate, step: Step, detail: str = "") -> "Stop":
        """What a rule, or a policy, does."""
        return cls(kind, fate, step.table, step.chain, step.position, step.rule, detail)

    @property
    def is_fault(self) -> bool:
        """Whether this can't be as it should be, as far as can be seen."""
        return self.kind not in (Kind.SERVICE, Kind.POLICY, Kind.DNS_CACHE, Kind.NOT_KNOWN)

    def brief(self, outcome: Outcome) -> str:
        """What becomes of packets, in few words: the rule by its place."""
        by = f" by {self.table} {self.chain} {self.position}" if self.position else ""
        match self.kind:
            case Kind.SERVICE | Kind.NOT_LED if outcome.fate is not Fate.UNTOUCHED:
                return f"rejected ({outcome.detail})" if outcome.fate is Fate.REJECTED else str(outcome.fate)
            case Kind.POLICY | Kind.REFUSED | Kind.LOST_MATCH:
                what = f"rejected ({outcome.detail})" if outcome.fate is Fate.REJECTED else str(outcome.fate)
                return f"{what}{by}"
            case Kind.AT_END:
                return f"dropped by the policy of {self.table} {self.chain}"
            case Kind.UNTRACKED | Kind.DNS_CACHE:
                return f"not translated, kept from nat{by}"
            case Kind.TAKEN:
                return f"not translated, taken{by}"
            case Kind.UNMASQUERADED:
                return f"{outcome.destination}, marked but not masqueraded{by}"
            case Kind.ELSEWHERE:
                return f"sent to {outcome.destination}, no endpoint of it,{by}"
            case Kind.BROKEN:
                return f"sent to where no endpoint is{by}"
            case Kind.NOT_KNOWN:
                return f"can't be known: {printable(outcome.detail)}"
        return "not translated, no rule leads to an endpoint"

    def words(self) -> str:
        """What becomes of packets, and by what."""
        place = f"rule {self.position} of {self.table} {self.chain}"
        by = f"by {place} ({printable(self.rule)})" if self.position else ""
        match self.kind:
            case Kind.SERVICE | Kind.POLICY | Kind.REFUSED | Kind.LOST_MATCH:
                return f"{self.fate} {by}".strip()
            case Kind.AT_END:
                return f"dropped by the policy of {self.table} {self.chain}: no rule there accepts them"
            case Kind.UNTRACKED | Kind.DNS_CACHE:
                return f"not translated: kept from conntrack, and so from nat, {by}"
            case Kind.TAKEN:
                return f"not translated: taken {by} before a rule translates them"
            case Kind.NOT_LED:
                return "not translated: no rule leads to an endpoint"
            case Kind.UNMASQUERADED:
                whose = f": taken {by} before KUBE-POSTROUTING" if by else ""
                return f"sent to endpoints with their own source, although marked for masquerading{whose}"
            case Kind.ELSEWHERE:
                return f"sent to {self.detail}, which is no endpoint of it, {by}".strip(" ,")
            case Kind.BROKEN:
                return f"sent to where no endpoint is {by}: the rule {self.detail}"
            case Kind.NOT_KNOWN:
                return f"lost to a rule that can't be judged: {printable(self.detail)}"


def stops(simulator: Simulator, packet: Packet, endpoints: Collection[str] | None = None) -> Mapping[Outcome, Stop]:
    """Why a packet doesn't get to an endpoint, by each outcome in which it doesn't.

    `endpoints` are all that there are, as `address:port`; None if that isn't known.
    """
    outcomes = simulator.outcomes(packet)
    if all(
        one.fate is Fate.TRANSLATED
        and one.masqueraded
        and _is_somewhere(one.destination)
        and (endpoints is None or one.destination in endpoints)
        for one in outcomes
    ):
        return {}
    paths = simulator.paths(packet)
    found: dict[Outcome, Stop] = {}
    for path in paths:
        stop = _stop(simulator, packet, path, endpoints)
        if stop and path.outcome not in found:
            found[path.outcome] = stop
    for one in outcomes:
        if one.fate is not Fate.TRANSLATED and one not in found:
            found[one] = Stop(Kind.REFUSED if one.fate in (Fate.DROPPED, Fate.REJECTED) else Kind.NOT_LED, one.fate)
    return found


def _is_somewhere(place: str) -> bool:
    address, _, port = place.rpartition(":")
    return port not in ("", "0") and address not in ("0.0.0.0", "[::]")


def _stop(simulator: Simulator, packet: Packet, path: Path, endpoints: Collection[str] | None) -> Stop | None:
    fate, last = path.outcome.fate, path.steps[-1] if path.steps else None
    match fate:
        case Fate.UNKNOWN:
            return _broken(path) or Stop(Kind.NOT_KNOWN, fate, detail=path.outcome.detail)
        case Fate.TRANSLATED:
            return _broken(path) or _elsewhere(path, endpoints) or _unmasqueraded(simulator, path)
        case Fate.UNTOUCHED:
            return _untranslated(simulator, packet, path)
    if last is None:
        return None
    if last.position == 0:
        return Stop.by(Kind.AT_END, fate, last)
    return _broken(path) or Stop.by(_refusal(path), fate, last)


def _refusal(path: Path) -> Kind:
    """Who refuses a packet, by its last rule and the way there."""
    last = path.steps[-1]
    if any(target_of(step.rule) == MARK_DROP for step in path.steps):
        return Kind.SERVICE
    if ours(last.chain) and rule_owner(last.rule):
        return Kind.SERVICE
    if any(is_policy(step.chain) for step in path.steps if (step.table, step.hook) == (last.table, last.hook)):
        return Kind.POLICY
    return Kind.LOST_MATCH if last.chain == "KUBE-FIREWALL" and _asks_nothing(last.rule) else Kind.REFUSED


def _asks_nothing(rule: str) -> bool:
    try:
        parsed = parse_rule(rule)
    except RuleError:
        return False
    return not parsed.head and all(match.module == "comment" for match in parsed.matches)


def _broken(path: Path) -> Stop | None:
    """The translation that leads to no endpoint, if one does."""
    for step in reversed(path.steps):
        if step.table == "nat" and target_of(step.rule) == "DNAT":
            odd = [one for one in _oddities(step.rule) if not one.startswith("has ")]
            return Stop.by(Kind.BROKEN, Fate.TRANSLATED, step, odd[0]) if odd else None
    return None


def _elsewhere(path: Path, endpoints: Collection[str] | None) -> Stop | None:
    to = path.outcome.destination
    if endpoints is None or to in endpoints:
        return None
    step = next((one for one in reversed(path.steps) if target_of(one.rule) in ("DNAT", "REDIRECT")), None)
    return Stop.by(Kind.ELSEWHERE, path.outcome.fate, step, to) if step else None


def _unmasqueraded(simulator: Simulator, path: Path) -> Stop | None:
    """Of what is for the host itself, as an endpoint on its network is, POSTROUTING is never asked."""
    marked = any(target_of(step.rule) == MARK_MASQ for step in path.steps)
    address = path.outcome.destination.rpartition(":")[0].strip("[]")
    if path.outcome.masqueraded or not marked or simulator.host.is_local(number(address), simulator.family):
        return None
    behind = (step for step in path.steps if (step.table, step.hook) == ("nat", "POSTROUTING"))
    takers = [step for step in behind if target_of(step.rule) in ("ACCEPT", "RETURN") and not ours(step.chain)]
    if takers:
        return Stop.by(Kind.UNMASQUERADED, path.outcome.fate, takers[-1])
    return Stop(Kind.UNMASQUERADED, path.outcome.fate)


def _oddities(rule: str) -> tuple[str, ...]:
    try:
        return oddities(parse_rule(rule).target_options)
    except RuleError:
        return ()


def _untranslated(simulator: Simulator, packet: Packet, path: Path) -> Stop:
    for step in path.steps:
        if step.table == "raw" and target_of(step.rule) in ("NOTRACK", "CT"):
            cached = _is_cached(simulator.tables.get("filter", {}).get("INPUT", ()), packet)
            return Stop.by(Kind.DNS_CACHE if cached else Kind.UNTRACKED, path.outcome.fate, step)
    if _is_left_out(simulator, packet, path):
        return Stop(Kind.SERVICE, path.outcome.fate)
    of_nat = [one for one in path.steps if one.table == "nat" and one.hook in ("PREROUTING", "OUTPUT")]
    taker = next((one for one in of_nat if target_of(one.rule) in ("RETURN", "ACCEPT")), None)
    if taker:
        return Stop.by(Kind.TAKEN, path.outcome.fate, taker)
    return Stop(Kind.NOT_LED, path.outcome.fate)


def _is_left_out(simulator: Simulator, packet: Packet, path: Path) -> bool:
    """Whether a kube-proxy before 1.26 leaves a packet out: outside of source ranges, or from the node itself.

    It marks the former for kubelet to drop, which drops only what is not forwarded.
    """
    if any(target_of(step.rule) == MARK_DROP for step in path.steps):
        return True
    entries = simulator.tables.get("nat", {}).get("KUBE-SERVICES", ())
    own = (rule for rule in entries if rule.startswith(f"-d {packet.destination}/"))
    return packet.origin is Origin.NODE and any("! --src-type LOCAL" in rule for rule in own)


def _is_cached(accepting: Rules, packet: Packet) -> bool:
    """Whether NodeLocal DNSCache takes a query: it has it accepted on this node, besides."""
    own = (rule for rule in accepting if rule.startswith(f"-d {packet.destination}/") and target_of(rule) == "ACCEPT")
    return packet.destination_port == 53 and any("--dport 53 " in rule for rule in own)
