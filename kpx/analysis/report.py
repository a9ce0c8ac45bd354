"""What a trace tells, as data: the shape of `kpx trace --json`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from kpx.analysis.packet import Outcome, Packet
from kpx.analysis.setting import NOTHING_KNOWN, About
from kpx.analysis.simulate import Path, Simulator
from kpx.analysis.state import Step
from kpx.netfilter.owners import is_own_chain, rule_owner
from kpx.netfilter.rule import Rule, RuleError, format_rule, parse_rule
from kpx.netfilter.ruleset import Rules
from kpx.printable import printable
from kpx.shape import Part

NameOf = Callable[[str], str | None]
"""What a chain is called beside its hash: `shop/web:http`, an endpoint's with `-> address:port`; None if unknown."""


class AskedPacket(Part):
    """The first packet of a connection, as it comes in."""

    protocol: str
    source: str
    source_port: int | None = Field(description="null if not given")
    destination: str
    destination_port: int = Field(description="0 for protocols without ports")
    origin: Literal["pod", "outside", "node"] = Field(description="where it comes from")
    in_interface: str | None = Field(description="null if not known, empty if there is none")
    out_interface: str | None
    mark: int
    ctstate: str
    known: Mapping[str, float] = Field(
        description="lists of xt_recent that the sender is on, with the seconds since it was put there"
    )


class PacketReport(AskedPacket):
    """The packet that was traced, and the rules that it was sent through."""

    rules: str = Field(description="where the rules are from: a file, the kernel, manifests")
    about: About = Field(description="what one has to know of the rules first")
    host_known: bool = Field(
        description="whether the host's addresses are known; if not, endpoints are taken to be elsewhere"
    )


class OutcomeReport(Part):
    """One thing that can become of the packet."""

    share: float = Field(description="probability, rounded to a float", ge=0, le=1)
    exact: str = Field(description="probability as a fraction")
    fate: Literal["translated", "untouched", "rejected", "dropped", "unknown"]
    destination: str = Field(description="where a translated packet arrives, as address:port, else empty")
    masqueraded: bool = Field(description="whether the source address is replaced")
    detail: str = Field(description="the kind of rejection, or what could not be judged")


class StepReport(Part):
    """One rule that the packet matched, or the policy of a built-in chain (position 0)."""

    hook: str
    table: str
    chain: str
    position: int = Field(description="counts from 1, as iptables -L --line-numbers does")
    rule: str
    match: str = Field(description="what the rule asks for, without comments")
    comment: str
    action: str = Field(description="the rule's target with its options, empty if it has none")
    chain_name: str | None = Field(description="the Service, or the endpoint, that the chain belongs to")
    target_name: str | None = Field(description="the same of the chain that the rule leads to")


class PathReport(Part):
    """One way to an outcome: the rules that lead there, in order."""

    is_sample: bool = Field(
        description="whether it stands for all ways that come to the same, since these are too many to list"
    )

    outcome: OutcomeReport
    examined: int = Field(description="how many rules the packet is compared with")
    remembered: Sequence[str] = Field(description="lists of xt_recent that the sender is on behind it")
    steps: Sequence[StepReport]


class Trace(Part):
    """Everything about one packet: its outcomes with their probabilities, and the ways to them, the likeliest first."""

    packet: PacketReport
    outcomes: Sequence[OutcomeReport]
    paths: Sequence[PathReport]


def trace(
    simulator: Simulator,
    packet: Packet,
    known: Mapping[str, float] | None = None,
    *,
    rules: str = "",
    about: About = NOTHING_KNOWN,
    name_of: NameOf = lambda chain: None,
) -> Trace:
    """Send a packet through rules and tell all about it. `rules` says where these are from.

    Chains that `name_of` can't name get their name from the comments that the packet meets.
    """
    paths = simulator.paths(packet, known)
    shares: dict[Outcome, Fraction] = {}
    for path in paths:
        shares[path.outcome] = shares.get(path.outcome, Fraction(0)) + path.probability
    return Trace(
        packet=PacketReport(
            rules=printable(rules), about=about, host_known=simulator.host.known, **packet_fields(packet, known or {})
        ),
        outcomes=outcome_reports(shares),
        paths=[_path(path, name_of) for path in paths],
    )


def outcome_reports(shares: Mapping[Outcome, Fraction]) -> Sequence[OutcomeReport]:
    """Outcomes as data, the likeliest first."""
    return [
        OutcomeReport(**outcome_fields(one, shares[one])) for one in sorted(shares, key=lambda one: (-shares[one], one))
    ]


def packet_fields(packet: Packet, known: Mapping[str, float]) -> Mapping[str, Any]:
    """The fields of an AskedPacket."""
    return {
        "protocol": packet.protocol,
        "source": packet.source,
        "source_port": packet.source_port,
        "destination": packet.destination,
        "destination_port": packet.destination_port,
        "origin": packet.origin.value,
        "in_interface": packet.in_interface,
        "out_interface": packet.out_interface,
        "mark": packet.mark,
        "ctstate": packet.state,
        "known": {printable(name): seconds for name, seconds in known.items()},
    }


def outcome_fields(outcome: Outcome, share: Fraction) -> Mapping[str, Any]:
    """The fields of an OutcomeReport."""
    return {
        "share": float(share),
        "exact": str(share),
        "fate": outcome.fate.value,
        "destination": outcome.destination,
        "masqueraded": outcome.masqueraded,
        "detail": printable(outcome.detail),
    }


def _path(path: Path, name_of: NameOf) -> PathReport:
    names = _names(path, name_of)
    return PathReport(
        outcome=OutcomeReport(**outcome_fields(path.outcome, path.probability)),
        is_sample=path.is_sample,
        examined=path.examined,
        remembered=sorted(map(printable, path.noted)),
        steps=[_step(step, names) for step in path.steps],
    )


def _names(path: Path, name_of: NameOf) -> Mapping[str, str]:
    """The names of the chains on a path: as told, else as the rules on the way there tell."""
    owners: dict[str, str] = {}
    names: dict[str, str] = {}
    for step in path.steps:
        rule = _parsed(step.rule)
        target = rule.target or ""
        for chain in (step.chain, target):
            if chain not in names and (told := name_of(chain)):
                names[chain] = told
        owner = owners.get(step.chain) or rule_owner(step.rule)
        if owner and _belongs_to_one(target):
            owners[target] = owner
            names.setdefault(target, owner)
        if target == "DNAT" and "-SEP-" in step.chain and " -> " not in names.get(step.chain, ""):
            to = next((one.values for one in rule.target_options if one.name == "--to-destination"), ())
            names[step.chain] = " -> ".join((names.get(step.chain) or owner or "endpoint", *to))
    return names


def _belongs_to_one(chain: str) -> bool:
    """Whether a chain is one service port's alone: its own, or a group of its endpoints in the layout `tree`."""
    return is_own_chain(chain) or chain.startswith(("KPX-SV", "KPX-AF"))


def _step(step: Step, names: Mapping[str, str]) -> StepReport:
    rule = _parsed(step.rule)
    matches = tuple(match for match in rule.matches if match.module != "comment")
    action = replace(rule, head=(), matches=())
    return StepReport(
        hook=step.hook,
        table=step.table,
        chain=printable(step.chain),
        position=step.position,
        rule=printable(step.rule),
        match=printable(format_rule(Rule(rule.head, matches))),
        comment=printable(rule.comment or ""),
        action=printable(format_rule(action).removeprefix("-j ") if step.position else step.rule),
        chain_name=_printable(names.get(step.chain)),
        target_name=_printable(names.get(rule.target or "")),
    )


def _parsed(text: str) -> Rule:
    """A rule; one that only says a policy, or is none, as a target."""
    try:
        rule = parse_rule(text)
    except RuleError:
        return Rule(target=text)
    return rule


def _printable(text: str | None) -> str | None:
    return text and printable(text)


def segments(steps: Iterable[StepReport]) -> Iterator[tuple[tuple[str, str], tuple[StepReport, ...]]]:
    """The steps of each table and hook that a path passes, in order."""
    found: dict[tuple[str, str], list[StepReport]] = {}
    for step in steps:
        found.setdefault((step.hook, step.table), []).append(step)
    yield from ((where, tuple(some)) for where, some in found.items())


def unknowns(trace: Trace) -> Rules:
    """What could not be judged, each once."""
    found = (one.detail for one in trace.outcomes if one.fate == "unknown")
    return tuple(dict.fromkeys(found))
