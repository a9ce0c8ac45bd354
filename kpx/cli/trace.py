"""`kpx trace`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kpx.analysis.notation import parse_flow, parse_place
from kpx.analysis.packet import Fate, Origin, Packet, endpoint, number
from kpx.analysis.report import OutcomeReport, PathReport, StepReport, Trace, segments, trace, unknowns
from kpx.analysis.simulate import Simulator
from kpx.analysis.targets import TARGETS
from kpx.analysis.words import is_to_itself
from kpx.cli.output import json_text, page, place_of, put, put_setting, put_unread, share
from kpx.cli.rules import RuleSource, with_rules
from kpx.compiler import names
from kpx.errors import KpxError
from kpx.family import Family
from kpx.model.cluster import cluster_of
from kpx.printable import excerpt

SHOWN = 8
"""Branches that are printed in full, unless all are asked for."""


SHAPE = Trace


@with_rules
def command(
    source: RuleSource,
    packet: tuple[str, ...],
    origin: str | None,
    known: tuple[str, ...],
    everything: bool,
    as_json: bool,
    **details: Any,
) -> None:
    """Follow a PACKET, 'tcp 10.244.1.5 -> 10.96.1.10:80', through the rules: every step, every outcome."""
    if packet[-1] == "-":
        raise KpxError("the shell took > for a redirection: put the packet in quotes, or write 'to' for the arrow")
    flow = parse_flow(" ".join(packet))
    held = source.held(flow.family)
    sender = Origin(origin) if origin else _origin(held.simulator, flow.source)
    asked = Packet(
        source=flow.source,
        destination=flow.destination,
        protocol=flow.protocol,
        destination_port=flow.destination_port or 0,
        source_port=flow.source_port,
        origin=sender,
        in_interface=details["interface"] or (held.pods if sender is Origin.POD else None),
        out_interface=details["out_interface"],
        mark=details["mark"],
        state=details["ctstate"],
        bridged=details["bridged"],
    )
    lists = _known(held.simulator, asked, known)
    names = _names(source, held.simulator)
    found = trace(held.simulator, asked, lists, rules=held.origin, about=held.about, name_of=names.get)
    if as_json:
        click.echo(json_text(found, Trace))
    else:
        with page() as out:
            _print(out, found, len(found.paths) if everything else SHOWN)
    if found.packet.about.unread:
        raise SystemExit(1)


def _origin(simulator: Simulator, address: str) -> Origin:
    local = simulator.host.is_local(number(address), simulator.family)
    return Origin.NODE if local else Origin.OUTSIDE


def _names(source: RuleSource, simulator: Simulator) -> Mapping[str, str]:
    """The chains of manifests' Services by their hashes."""
    if source.inputs is None:
        return {}
    cluster = cluster_of(source.inputs.objects, simulator.family, source.inputs.node_name)
    found = {f"KUBE-{kind}-{names.port_hash(one)}": str(one) for one in cluster.ports for kind in names.KINDS}
    for one in cluster.ports:
        for place in cluster.endpoints.get(one, ()):
            found[names.endpoint_chain(one, str(place))] = f"{one} -> {place}"
    return found


_SECONDS = re.compile("[0-9]{1,10}")


def _known(simulator: Simulator, packet: Packet, words: Sequence[str]) -> Mapping[str, float]:
    """The lists of xt_recent on which the client is."""
    found: dict[str, float] = {}
    for word in words:
        whom, _, seconds = word.rpartition("@") if "@" in word else (word, "", "0")
        if not _SECONDS.fullmatch(seconds):
            raise KpxError(f"--known {excerpt(word)}: not a number of seconds: '{excerpt(seconds)}'")
        lists = {whom}
        if ":" in whom:
            address, port = parse_place(whom)
            if Family.of(address) is not simulator.family:
                raise KpxError(f"--known {word}: the packet is one of {simulator.family}")
            there = endpoint(number(address), port or 0, simulator.family)
            paths = [path for path in simulator.paths(packet) if path.outcome.destination == there]
            lists = {name for path in paths for name in path.noted}
            if not paths:
                raise KpxError(f"--known {word}: no way of this packet leads there")
            if not lists:
                raise KpxError(f"--known {word}: the rules don't remember who goes there (no session affinity)")
        found |= dict.fromkeys(lists, float(seconds))
    return found


# ---- for people ----


def _print(out: Console, found: Trace, shown: int) -> None:
    packet = found.packet
    put_unread(out, packet.about)
    source = place_of(packet.source, packet.source_port)
    destination = place_of(packet.destination, packet.destination_port)
    where = {"pod": "from a pod", "outside": "from outside", "node": "from the node itself"}[packet.origin]
    put(out, Text.assemble((f"{packet.protocol} {source} -> {destination}", "bold"), f" {where}, {packet.ctstate}"))
    put(out, Text(f"through the rules of {packet.rules}", "dim"))
    put_setting(out, packet.about)
    if not packet.host_known:
        put(out, Text("the node's addresses aren't known (--node-address): endpoints are taken to be elsewhere", "dim"))
    for title, ways in _by_segment(found.paths):
        out.print()
        out.print(Text(title, "bold"))
        _print_ways(out, ways, 2, shown)
    if any(path.is_sample for path in found.paths):
        put(out, Text("There are too many ways to list: of those that come to the same, one is shown.", "dim"))
    out.print()
    _print_outcomes(out, found, shown)
    for what in unknowns(found):
        put(out, Text(f"can't be known: {what}", "yellow"))
    if unknowns(found):
        help_ = "Options that may help: --interface, --out-interface, --node-address, --bridged, a source port."
        put(out, Text(help_))


Way = tuple[tuple[StepReport, ...], Fraction]


def _by_segment(paths: Sequence[PathReport]) -> Iterator[tuple[str, list[Way]]]:
    """For each table and hook, in order, the different ways through it, with their shares of all packets."""
    found: dict[tuple[str, str], dict[tuple[StepReport, ...], Fraction]] = {}
    for path in paths:
        for where, steps in segments(path.steps):
            ways = found.setdefault(where, {})
            ways[steps] = ways.get(steps, Fraction(0)) + Fraction(path.outcome.exact)
    order = sorted(found, key=lambda where: _ORDER.index(where) if where in _ORDER else len(_ORDER))
    for hook, table in order:
        yield f"{hook}, table {table}", list(found[hook, table].items())


_ORDER = [
    (hook, table)
    for hook, tables in (
        ("OUTPUT", ("raw", "mangle", "nat", "filter", "security")),
        ("FORWARD", ()),
        ("PREROUTING", ("raw", "mangle", "nat")),
        ("INPUT", ("mangle", "filter", "security", "nat")),
        ("FORWARD", ("mangle", "filter", "security")),
        ("POSTROUTING", ("mangle", "nat")),
    )
    for table in tables
]


def _print_ways(out: Console, ways: Sequence[Way], indent: int, shown: int) -> None:
    """What all ways have in common first, then each branch."""
    common = 0
    first = ways[0][0]
    while all(len(steps) > common and steps[common] == first[common] for steps, _ in ways) and common < len(first):
        common += 1
    for at in range(common):
        _print_step(out, first, at, indent)
    rest = [(steps[common:], part) for steps, part in ways]
    if len(rest) == 1:
        return
    for steps, part in rest[:shown]:
        put(out, Text(f"{share(part)} of packets:", "cyan"), indent)
        if not steps:
            put(out, Text("nothing more", "dim"), indent + 2)
        for at in range(len(steps)):
            _print_step(out, steps, at, indent + 2)
    if len(rest) > shown:
        left = sum((part for _, part in rest[shown:]), Fraction(0))
        more = f"… {len(rest) - shown} more branches, {share(left)} of packets (--all prints them)"
        put(out, Text(more, "dim"), indent)


def _print_step(out: Console, steps: Sequence[StepReport], at: int, indent: int) -> None:
    step = steps[at]
    place = f"{step.chain} {step.position}" if step.position else step.chain
    match = _plain_match(step.match)
    put(out, Text.assemble((place, "bold"), f"  {match}" if match else ""), indent)
    target = step.action.split(" ")[0]
    note = ""
    if target == "RETURN":
        note = "back to where the packet came from"
    elif target in ("", "DROP", "REJECT"):
        note = step.comment
    elif step.target_name:
        note = step.target_name
    if step.position and _is_chain(target) and not (at + 1 < len(steps) and steps[at + 1].chain == target):
        note = f"{note}; nothing there matches" if note else "nothing there matches"
    words = Text.assemble(("→ ", "green"), step.action or "goes on", (f"  ({note})" if note else "", "magenta"))
    put(out, words, indent + 2)


def _is_chain(target: str) -> bool:
    return target not in TARGETS


_CHANCE = re.compile(r"-m statistic --mode random --probability ([0-9.]+)")
_TURN = re.compile(r"-m statistic --mode nth --every (\d+) --packet 0")
_PROGRAM = re.compile(r'-m bpf --bytecode "([^"]*)"')
_HASHED = "by a hash of the source"
_WHOLE = re.compile(" --mask (?:255.255.255.255|ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff) --rsource")
_IDLE = re.compile(r" ?-m (?:tcp|udp|sctp)(?= -m |$)")


def _plain_match(match: str) -> str:
    """What a rule asks for, without the words that don't help a reader."""
    simple = _CHANCE.sub(lambda found: f"by chance, {share(found[1])}", match)
    simple = _TURN.sub(lambda found: f"every {found[1]}. in turn", simple)
    simple = _PROGRAM.sub(lambda found: "to its own source" if is_to_itself(found[1]) else _HASHED, simple)
    return _WHOLE.sub("", _IDLE.sub("", simple)).strip()


_FATES = {
    Fate.TRANSLATED: "translated",
    Fate.UNTOUCHED: "passes, not translated",
    Fate.REJECTED: "rejected",
    Fate.DROPPED: "dropped",
    Fate.UNKNOWN: "unknown",
}


def _print_outcomes(out: Console, found: Trace, shown: int) -> None:
    """A table, the likeliest first."""
    last = {_what(path.outcome): path.steps[-1] for path in reversed(found.paths) if path.steps}
    rows = [_row(one, last.get(_what(one))) for one in found.outcomes[:shown]]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    filled = [column for column in range(len(_HEAD)) if any(row[column] for row in rows)]
    for column in filled:
        table.add_column(_HEAD[column], overflow="fold", no_wrap=_HEAD[column] in ("Share", "Arrives at"))
    for row in rows:
        table.add_row(*(row[column] for column in filled))
    out.print(table)
    if rest := found.outcomes[shown:]:
        left = sum((Fraction(one.exact) for one in rest), Fraction(0))
        put(out, Text(f"… {len(rest)} more outcomes, {share(left)} of packets (--all prints them)", "dim"))


_HEAD = ("Share", "Outcome", "Arrives at", "Source", "By")


def _what(one: OutcomeReport) -> tuple[str, str, bool, str]:
    """An outcome without its share."""
    return one.fate, one.destination, one.masqueraded, one.detail


def _row(one: OutcomeReport, last: StepReport | None) -> tuple[str, ...]:
    """A line of the table; `last` is the rule that the packet met last."""
    fate = Fate(one.fate)
    refused = fate in (Fate.REJECTED, Fate.DROPPED)
    by = f"{last.table} {last.chain} {last.position or 'policy'}" if refused and last else ""
    source = "" if refused or fate is Fate.UNKNOWN else "masqueraded" if one.masqueraded else "kept"
    outcome = f"{_FATES[fate]}: {one.detail}" if fate is Fate.REJECTED else _FATES[fate]
    return share(one.exact), outcome, one.destination, source, by
