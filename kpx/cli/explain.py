"""`kpx explain`."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kpx.analysis.report import OutcomeReport
from kpx.cli.inputs import Inputs
from kpx.cli.options import FAMILIES
from kpx.cli.output import json_text, page, put, put_setting, put_unread, share
from kpx.cli.rules import Held, RuleSource, with_rules
from kpx.errors import InputError
from kpx.explain.explain import explain
from kpx.explain.report import EndpointReport, Explanation, Finding, ServicePortReport, UseReport, WayReport
from kpx.explain.rules_alone import explain_rules
from kpx.explain.world import World
from kpx.family import Family, host_port
from kpx.model.balance import DEFAULT_WEIGHT, RECENT_CLIENTS, AffinityScope, Balance
from kpx.reconcile.layout import layout_of

SHOWN = 12
"""Endpoints that are listed, unless all are asked for."""


SHAPE = Explanation


@with_rules
def command(source: RuleSource, asked: str, family: str | None, everything: bool, as_json: bool) -> None:
    """Explain WHAT: a Service (shop/web, shop/web:http), a VIP, a node port, a pod's address or a chain."""
    families = FAMILIES[family] if family else source.families
    held = [] if source.compiles else [source.held(one) for one in families]
    if source.inputs:
        for one in held:
            one.require_whole()
        found = explain(asked, _worlds(source, source.inputs, families, held), held[0].origin if held else "manifests")
    else:
        found = explain_rules(asked, [one.simulator for one in held], held[0].origin)
    if held:
        found = found.model_copy(update={"about_rules": held[0].about})
    if as_json:
        click.echo(json_text(found, Explanation))
    else:
        with page() as out:
            _print(out, found, len(found.ports) * 10_000 if everything else SHOWN)
    if found.about_rules.unread:
        raise SystemExit(1)


def _worlds(source: RuleSource, inputs: Inputs, families: Sequence[Family], some: Sequence[Held]) -> list[World]:
    held = {one.simulator.family: one for one in some}
    hosts = {one: source.host(one) for one in families}
    saved = [one.saved for one in held.values() if one.saved is not None]
    layout = layout_of(saved) if saved and not _is_said("layout") else inputs.layout
    worlds = [
        World(
            objects=inputs.objects,
            config=inputs.config,
            node_name=inputs.node_name,
            family=one,
            layout=layout,
            host=hosts[one] if hosts[one].known else None,
            actual=held[one].simulator if one in held else None,
            saved=held[one].saved if one in held else None,
            broken=inputs.problems,
        )
        for one in families
    ]
    if not inputs.objects and inputs.problems:
        raise InputError(inputs.problems)
    return worlds


def _is_said(option: str) -> bool:
    """Whether an option was given, and isn't what it is by default."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


# ---- for people ----


def _print(out: Console, found: Explanation, shown: int) -> None:
    put_unread(out, found.about_rules)
    put(out, Text(found.about, "bold"))
    where = f" on node {found.node}" if found.node else ""
    put(out, Text(f"rules of {found.rules}{where}", "dim"))
    put_setting(out, found.about_rules)
    _print_findings(out, found)
    for port in found.ports:
        _print_port(out, port, shown)


def _print_findings(out: Console, found: Explanation) -> None:
    """What is wrong comes first, each thing once, with the ports that it concerns unless it is all."""
    for some in _paragraphs(found.every_finding):
        out.print()
        sign = ("! ", "bold yellow") if some[0].wrong else ("· ", "bold cyan")
        put(out, Text.assemble(sign, " ".join(f"{_whom(found, one)}{one.what}" for one in some)), 0, 2)
        advice = " ".join(dict.fromkeys(one.advice for one in reversed(some) if one.advice))
        if advice:
            put(out, Text.assemble(("What to do: ", "bold"), advice), 2, 2)
    if not any(one.wrong for one in found.every_finding) and not found.about_rules.unread:
        out.print()
        # Without manifests nobody can say that what is refused should be.
        if found.is_open:
            what = "No fault is seen; but what becomes of some packets can't be known here."
        elif found.refuses and not found.node:
            what = "Its rules refuse what they are to refuse, as far as can be seen here."
        else:
            what = "Nothing is wrong with it, as far as can be seen here."
        put(out, Text(what, "green"))


_DEVIATIONS = ("packets-differ", "rules-differ")


def _paragraphs(findings: Iterable[Finding]) -> Iterator[Sequence[Finding]]:
    """What to tell in one breath: what packets suffer from rules that differ, and which rules these are."""
    every = sorted(findings, key=lambda one: not one.wrong)
    differ = [one for code in _DEVIATIONS for one in every if one.code == code]
    if differ:
        yield differ
    yield from ([one] for one in every if one not in differ)


def _whom(found: Explanation, one: Finding) -> str:
    """Whom a finding concerns, unless it is all."""
    ports = [f"{port.name} ({port.family})" for port in found.ports if one in port.findings]
    return f"{', '.join(ports)}: " if 0 < len(ports) < len(found.ports) else ""


def _print_port(out: Console, port: ServicePortReport, shown: int) -> None:
    out.print()
    put(out, Text(f"{port.name}, {port.protocol}, {port.family}", "bold"))
    if port.chains:
        put(out, Text(f"chains {', '.join(port.chains)}", "dim"), 0, 7)
    for way in port.ways:
        _print_way(out, way)
    for line in _remarks(port):
        put(out, Text(line), 2, 2)
    if port.endpoints:
        put(out, Text("endpoints"), 2)
        _print_endpoints(out, port.endpoints, shown)


def _remarks(port: ServicePortReport) -> Iterator[str]:
    if port.balance == Balance.ROUND_ROBIN:
        yield "New connections go round: each endpoint has its turns."
    if port.balance == Balance.SOURCE_HASH:
        yield "A client's address says which endpoint it gets, always the same: above is where these senders go."
    if len({one.weight for one in port.endpoints if one.takes_part}) > 1:
        yield "Endpoints have as many new connections as they weigh."
    if port.local_weight:
        yield f"Endpoints on this node count {port.local_weight} % more."
    yield from _affinity(port)
    if port.source_ranges and not _is_open_to_all(port):
        yield f"The load balancer's addresses are for {', '.join(port.source_ranges)} only."


def _is_open_to_all(port: ServicePortReport) -> bool:
    """Whether somebody outside of the source ranges gets to an endpoint by a load balancer's address."""
    addresses = {way.address for way in port.ways if way.kind == "load balancer IP"}
    uses = (use for way in port.ways if way.address in addresses for use in way.uses)
    return any(out.fate == "translated" for use in uses if use.sender == "elsewhere outside" for out in use.outcomes)


def _affinity(port: ServicePortReport) -> Iterator[str]:
    if not port.affinity_seconds:
        return
    whom = "pod, for all ports," if port.affinity_scope == AffinityScope.SERVICE else "endpoint"
    yield f"A client stays with its {whom} for {port.affinity_seconds} s after its last connection."
    many = sum(one.takes_part for one in port.endpoints)
    if many > 1 and port.balance != Balance.SOURCE_HASH:
        yield (
            f"The kernel remembers {RECENT_CLIENTS} clients for each, {RECENT_CLIENTS * many} in all (unless "
            "ip_list_tot of xt_recent is set): where there are more, the oldest lose theirs. "
            f"kpx.dev/balance: {Balance.SOURCE_HASH} has no such limit."
        )


def _print_way(out: Console, way: WayReport) -> None:
    place = host_port(way.address, way.port)
    policy = f"  (policy {way.policy})" if way.policy else ""
    put(out, Text.assemble(f"{way.kind} ", (place, "cyan"), (policy, "dim")), 2)
    groups: dict[tuple[str, ...], list[str]] = {}
    for use in way.uses:
        groups.setdefault(_becomes(use), []).append(use.sender)
    for lines, who in groups.items():
        put(out, Text(f"from {', '.join(who)}: {lines[0]}"), 4)
        for line in lines[1:]:
            put(out, Text(line), 6)


def _becomes(use: UseReport) -> tuple[str, ...]:
    """What becomes of packets, in lines: endpoints that are equally likely in one."""
    groups: dict[str, list[OutcomeReport]] = {}
    for one, stopped in zip(use.outcomes, use.stopped, strict=True):
        groups.setdefault(_end(one, stopped), []).append(one)
    lines = []
    for end, some in groups.items():
        shares = sorted({share(one.exact) for one in some})
        total = sum((Fraction(one.exact) for one in some), Fraction(0))
        if any(stopped for one, stopped in zip(use.outcomes, use.stopped, strict=True) if one is some[0]):
            lines.append(end if total == 1 else f"{end}: {share(total)}")
        elif len(some) == 1:
            lines.append(f"{shares[0]} {some[0].destination}{end}" if total != 1 else f"{some[0].destination}{end}")
        elif len(shares) == 1:
            places = ", ".join(one.destination for one in some[:4]) + (", …" if len(some) > 4 else "")
            lines.append(
                f"{shares[0]} each to {len(some)} endpoints{end}"
                if len(some) > 4
                else f"{shares[0]} each to {places}{end}"
            )
        else:
            lines += [f"{share(one.exact)} {one.destination}{end}" for one in some]
    return tuple(lines)


def _end(one: OutcomeReport, stopped: str) -> str:
    """What becomes of packets; of those that get to an endpoint, how."""
    if stopped:
        return stopped
    return ", masqueraded" if one.masqueraded else ""


def _print_endpoints(out: Console, endpoints: Sequence[EndpointReport], shown: int) -> None:
    """A table, or lines if names and addresses are too long to stand side by side."""
    order = sorted(endpoints, key=lambda one: (one.takes_part, not one.why_not))
    listed = [one for one in endpoints if one in order[:shown]]
    filled = [column for column in ([one.pod for one in listed], [one.node for one in listed]) if any(column)]
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(len(filled) + 1):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for number, one in enumerate(listed):
        names = (Text(column[number]) for column in filled)
        table.add_row(Text.assemble("    ", _mark(one), " ", one.address), *names, _part(one))
    lengths = (max(map(len, column)) for column in ([one.address for one in listed], *filled))
    room = out.width - 6 - sum(length + 2 for length in lengths)
    if room >= _LEAST_ROOM:
        out.print(table)
    else:
        for one in listed:
            put(out, Text.assemble(_mark(one), " ", one.address, "  ", _part(one)), 4)
            if one.pod or one.node:
                put(out, Text(" ".join(filter(None, (one.pod, f"on {one.node}" if one.node else ""))), "dim"), 8)
    if len(endpoints) > shown:
        put(out, Text(f"… and {len(endpoints) - shown} more that take part (--all lists them)", "dim"), 4)


_LEAST_ROOM = 30
"""Columns that the table of endpoints needs beside names and addresses."""


def _mark(one: EndpointReport) -> Text:
    return Text("+", "green") if one.takes_part else Text("-", "red")


def _part(one: EndpointReport) -> str:
    """Whether an endpoint takes part, and why not."""
    if not one.takes_part:
        return one.why_not
    part = f"takes part; not always: {one.why_not}" if one.why_not else "takes part"
    return part if one.weight in (None, DEFAULT_WEIGHT) else f"{part}, weight {one.weight}"
