"""Which Services have something wrong, for lists: read from what becomes of packets to their ways in, and nothing else.

So a list can't say other things of a Service than the packets that are sent to it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_network

from kpx.analysis.packet import Fate, Origin, Outcome
from kpx.analysis.page import Trouble
from kpx.analysis.picture import Box, Picture
from kpx.analysis.simulate import Simulator
from kpx.explain.ways import Sender, Way, senders
from kpx.family import Family, host_port
from kpx.model.node import contains
from kpx.netfilter.rule import Rule, RuleError, comment_of, parse_rule
from kpx.netfilter.ruleset import Rules

_PODS = re.compile(r"! -s (\S+) -d ")
_RANGE = re.compile(r"-s (\S+) ")
_NODE_PORTS = "KUBE-NODEPORTS"
_BAD: Mapping[Fate, str] = {
    Fate.REJECTED: "rejected",
    Fate.DROPPED: "dropped",
    Fate.UNTOUCHED: "not translated",
}


@dataclass(frozen=True, slots=True)
class _Use:
    """What becomes of one kind of sender's packets to one way in."""

    sender: str
    place: str
    ends: Mapping[Outcome, Fraction]

    def share(self, *fates: Fate) -> Fraction:
        """The part of the packets that ends like this."""
        return sum((part for end, part in self.ends.items() if end.fate in fates), Fraction(0))


def troubles(simulator: Simulator, drawn: Picture) -> Mapping[str, Trouble]:
    """The service ports of a picture that not everybody gets through to, by `namespace/name:port`.

    Nothing is said of senders whom a load balancer's source ranges keep out: that is what was asked for. Packets
    to node ports are sent to an address of the node; where none is known, none is sent.
    """
    places, pods = _node_port_places(simulator), _pods(simulator)
    found = {}
    for group, boxes in drawn.grouped.items():
        trouble = _trouble(list(_uses(simulator, boxes, pods, places))) if group else None
        if trouble is not None:
            found[group] = trouble
    return found


def _trouble(uses: Sequence[_Use]) -> Trouble | None:
    bad = [one for one in uses if one.share(*_BAD)]
    lost = [one for one in uses if one.share(Fate.UNKNOWN)]
    if bad:
        broken = not any(one.share(Fate.TRANSLATED, Fate.UNKNOWN) for one in uses)
        fates = dict.fromkeys(_BAD[end.fate] for one in bad for end in one.ends if end.fate in _BAD)
        word = ", ".join(fates)
        return Trouble("broken" if broken else "partly", word if broken else f"partly {word}", _said(bad))
    return Trouble("unknown", "can't be known", _said(lost)) if lost else None


def _said(uses: Iterable[_Use]) -> tuple[str, ...]:
    """Lines, one for everybody of whom the same becomes at the same place."""
    senders_of: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in uses:
        senders_of[one.place, _becomes(one)].append(one.sender)
    return tuple(f"from {', '.join(who)} to {place}: {end}" for (place, end), who in senders_of.items())


def _becomes(use: _Use) -> str:
    parts: dict[str, Fraction] = defaultdict(Fraction)
    for end, part in use.ends.items():
        if end.fate in _BAD:
            parts[_BAD[end.fate] + (f" ({end.detail})" if end.detail else "")] += part
        elif end.fate is Fate.UNKNOWN:
            parts[f"can't be known: {end.detail}"] += part
    return "; ".join(what if part == 1 else f"{float(part):.0%} {what}" for what, part in parts.items())


# ---- who sends what ----


def _pods(simulator: Simulator) -> str:
    """What tells this node's pods, as rules for masquerading ask for it: `-s CIDR`; empty if none does."""
    rules = (rule for rules in simulator.tables.get("nat", {}).values() for rule in rules)
    found = (match[1] for match in map(_PODS.match, rules) if match)
    return next((f"-s {cidr}" for cidr in found if _is_network(cidr, simulator.family)), "")


def _uses(simulator: Simulator, boxes: Sequence[Box], pods: str, places: Sequence[str]) -> Iterator[_Use]:
    ranges = _ranges(simulator, boxes)
    endpoints = [box.title.rpartition(":")[0].strip("[]") for box in boxes if box.kind == "endpoint"]
    own = next(iter(simulator.host.addresses(simulator.family)), "")
    everybody = senders(simulator.family, pods, own, endpoints)
    allowed = [one for one in senders(simulator.family, pods, own, endpoints, ranges) if _is_allowed(one, ranges)]
    for way, firewalled in _ways(simulator, boxes, places).items():
        some = allowed if firewalled and ranges else everybody
        where = f"{way.kind} {host_port(way.address, way.port)}".strip()
        for sender in some:
            yield _Use(sender.words, where, simulator.outcomes(sender.packet(way)))


def _is_allowed(sender: Sender, ranges: Iterable[str]) -> bool:
    return sender.origin is Origin.OUTSIDE and any(contains(one, sender.address) for one in ranges)


def _rules(simulator: Simulator, box: Box) -> Rules:
    """The rules of a chain that a box stands for; of a way in the chain that it stands in."""
    return simulator.tables.get(box.table, {}).get(box.chain, ())


def _ranges(simulator: Simulator, boxes: Iterable[Box]) -> Sequence[str]:
    """The sources that the firewall chain of a load balancer lets through."""
    rules = (rule for box in boxes if box.chain.startswith("KUBE-FW-") for rule in _rules(simulator, box))
    found = dict.fromkeys(match[1] for match in map(_RANGE.match, rules) if match)
    return tuple(one for one in found if _is_network(one, simulator.family))


def _is_network(words: str, family: Family) -> bool:
    try:
        return ip_network(words, strict=False).version == (4 if family is Family.IPV4 else 6)
    except ValueError:
        return False


def _ways(simulator: Simulator, boxes: Iterable[Box], places: Sequence[str]) -> Mapping[Way, bool]:
    """The ways in, and of each whether a firewall chain is behind it. What nat knows comes before what filter does."""
    found: dict[Way, bool] = {}
    seen: set[tuple[str, int, str]] = set()
    ways_in = [box for box in boxes if box.kind == "way in" and box.position]
    for box in sorted(ways_in, key=lambda one: one.table != "nat"):
        text = _rules(simulator, box)[box.position - 1]
        rule = _parsed(text)
        address, port, protocol = _destination(rule)
        node_port = not address
        if not port or not protocol or not (_is_network(address, simulator.family) or (node_port and places)):
            continue
        place = (address or places[0], port, protocol)
        if place not in seen:
            seen.add(place)
            kind = "node port" if node_port else _kind(text)
            found[Way(kind, *place)] = (rule.target or "").startswith("KUBE-FW-")
    return found


def _kind(text: str) -> str:
    comment = comment_of(text) or ""
    kinds = {"cluster IP": "cluster IP", "external IP": "external IP", "loadbalancer IP": "load balancer IP"}
    return next((kind for words, kind in kinds.items() if words in comment), "")


def _destination(rule: Rule) -> tuple[str, int, str]:
    """The address, port and protocol that a rule asks for; empty or 0 where it asks for none, or for a network."""
    heads = {one.name: one for one in rule.head if not one.negated and one.values}
    address, _, length = heads["-d"].values[0].partition("/") if "-d" in heads else ("", "", "")
    whole = length in ("", "32", "128")
    ports = [
        one.values[0] for match in rule.matches for one in match.options if one.name == "--dport" and not one.negated
    ]
    number = int(ports[0]) if len(ports) == 1 and ports[0].isdigit() and whole else 0
    return address, number, heads["-p"].values[0] if "-p" in heads else ""


def _node_port_places(simulator: Simulator) -> Sequence[str]:
    """Addresses of the node that node ports are open on; all that are known if rules name none."""
    own = simulator.host.addresses(simulator.family)
    named = [
        _destination_address(rule)
        for rules in simulator.tables.get("nat", {}).values()
        for rule in rules
        if rule.endswith(f"-j {_NODE_PORTS}")
    ]
    only = [one for one in own if one in named]
    return own if "" in named else only


def _destination_address(text: str) -> str:
    match = re.match(r"-d ([^/ ]+)(?:/(?:32|128))? ", text)
    return match[1] if match else ""


def _parsed(text: str) -> Rule:
    try:
        return parse_rule(text)
    except RuleError:
        return Rule()
