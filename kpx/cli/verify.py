"""`kpx verify`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from kpx.analysis.checks import Finding, Tables, findings
from kpx.analysis.checks.backends import both_backends
from kpx.analysis.equivalence import Side, compare, examples
from kpx.analysis.verdict import (
    Equivalence,
    ExampleReport,
    FindingReport,
    RulesReport,
    ShareReport,
    Verification,
    equivalence_report,
    rules_report,
)
from kpx.cli.options import FAMILIES
from kpx.cli.output import json_text, page, place_of, put, put_setting, put_unread, share
from kpx.cli.rules import RuleSource, with_rules
from kpx.errors import KpxError
from kpx.explain.unaccepted import unaccepted
from kpx.family import Family
from kpx.netfilter.backend import available
from kpx.netfilter.reading import read_tables
from kpx.netfilter.tools import Tools, binary

_MANIFESTS = (".yaml", ".yml", ".json")
_SHOWN = 8


SHAPE = Verification | Equivalence


@with_rules
def command(source: RuleSource, equivalent: tuple[str, str] | None, family: str | None, as_json: bool) -> None:
    """Check the rules for Services: what is damaged, left over, out of order or in each other's way."""
    if equivalent:
        raise SystemExit(_compare(source, equivalent, family, as_json))
    found = Verification(verified=tuple(_verified(source, one) for one in _families((source,), family)))
    if as_json:
        click.echo(json_text(found, Verification))
    else:
        with page() as out:
            for report in found.verified:
                _print_findings(out, report)
    raise SystemExit(0 if found.sound else 1)


def _families(sources: tuple[RuleSource, ...], asked: str | None) -> tuple[Family, ...]:
    if asked:
        return FAMILIES[asked]
    known = (one.dump_family for one in sources)
    return (next((one for one in known if one), Family.IPV4),)


# ---- checks ----


def _verified(source: RuleSource, family: Family) -> RulesReport:
    held = source.held(family)
    host = held.simulator.host
    tables = Tables(held.simulator.tables, family, host.addresses(family) if host.known else None)
    found = [*(_two_backends(family) if source.is_live else ()), *findings(tables), *unaccepted(held.simulator)]
    return rules_report(held.origin, family, len(tables), found, held.about)


def _two_backends(family: Family) -> Iterator[Finding]:
    holding = {}
    for backend in available():
        if binary(backend, family, "-save"):
            nat = read_tables(Tools(backend, family), ["nat"]).get("nat")
            holding[backend.value] = [name for name, chain in nat.chains.items() if chain.rules] if nat else []
    return both_backends(holding)


def _print_findings(out: Console, report: RulesReport) -> None:
    put_unread(out, report.about)
    put_setting(out, report.about)
    for one in report.findings:
        place = f"{one.table} {one.chain}" + (f" {one.position}" if one.position else "")
        colour = {"error": "red", "warning": "yellow", "note": "cyan"}[one.severity]
        put(out, Text.assemble((f"{one.severity} ", colour), (place, "bold"), f"  {one.owner}" if one.owner else ""))
        put(out, Text(f"{one.message}  ({one.check})"), 2, 2)
        if one.rule:
            put(out, Text(one.rule, "dim"), 2)
        put(out, Text(f"→ {one.advice}", "green"), 2, 2)
    summary = _summary(report.findings)
    summary = f"not whole, {summary}" if report.about.unread else summary
    out.print(Text(f"{report.rules}: {summary} in {report.count} rules", "bold"), soft_wrap=True)


def _summary(found: tuple[FindingReport, ...]) -> str:
    counts = {name: sum(one.severity == name for one in found) for name in ("error", "warning", "note")}
    words = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    if not counts["error"] and not counts["warning"]:
        words.insert(0, "nothing wrong")
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


# ---- equivalence ----


def _compare(source: RuleSource, names: tuple[str, str], asked: str | None, as_json: bool) -> int:
    """Compare and print; the exit status."""
    sides = _sources(source, names)
    families = _families(sides, asked)
    if len(families) > 1:
        raise KpxError("--equivalent compares one family at a time; choose --family ipv4 or ipv6")
    report = _compared(sides, names, families[0])
    if as_json:
        click.echo(json_text(report, Equivalence))
    else:
        with page() as out:
            _print_equivalence(out, report)
    return 0 if report.equivalent else 1


def _sources(source: RuleSource, names: tuple[str, str]) -> tuple[RuleSource, RuleSource]:
    one, other = (_source(source, name) for name in names)
    return one, other


def _source(source: RuleSource, name: str) -> RuleSource:
    """Where the rules of one side are found; options for manifests hold for both."""
    if Path(name).is_dir() or name.endswith(_MANIFESTS):
        return replace(source, files=(name,), rules=None, live=False)
    return replace(source, files=(), rules=name, live=False)


def _compared(sources: tuple[RuleSource, RuleSource], names: tuple[str, str], family: Family) -> Equivalence:
    one, other = (_side(source, family) for source in sources)
    found = compare(one, other, family)
    plainest = next(iter(examples(found)), None)
    return equivalence_report(names, family, found.unknown, plainest)


def _side(source: RuleSource, family: Family) -> Side:
    held = source.held(family)
    held.require_whole()
    simulator = held.simulator
    return simulator.tables, simulator.policies


def _print_equivalence(out: Console, report: Equivalence) -> None:
    what = {True: "equivalent", False: "not equivalent", None: "not known whether equivalent"}[report.equivalent]
    put(out, Text.assemble((what, "bold"), f": {report.rules[0]} and {report.rules[1]} ({report.family})"))
    for one in report.unknown:
        put(out, Text(f"taken to be the same on both sides: {one}", "yellow"), 2)
    if report.example:
        _print_example(out, report.example, report.rules)


def _print_example(out: Console, one: ExampleReport, names: tuple[str, str]) -> None:
    where = {"outside": f"in through {one.in_interface}", "node": "from the node itself"}.get(one.origin, one.origin)
    mark = f", mark {one.mark:#x}" if one.mark else ""
    put(
        out,
        Text(
            f"{one.protocol} {place_of(one.source, one.source_port)} -> "
            f"{place_of(one.destination, one.destination_port)}, {where}, {one.ctstate}{mark}",
            "bold",
        ),
        2,
    )
    if one.addresses:
        put(out, Text(f"if the node has the address {' and '.join(one.addresses)}"), 2)
    for name, seconds in one.known.items():
        put(out, Text(f"from a client that {name} has known for {seconds:g} s"), 2)
    for assumption in one.assumed:
        put(out, Text(assumption, "yellow"), 2)
    for name, shares in zip(names, one.outcomes, strict=True):
        put(out, Text(f"{name}:", "cyan"), 2)
        for outcome in shares[:_SHOWN]:
            put(out, Text(_outcome(outcome)), 4)
        if len(shares) > _SHOWN:
            put(out, Text(f"… {len(shares) - _SHOWN} more", "dim"), 4)


def _outcome(one: ShareReport) -> str:
    noted = f"remembered by {', '.join(one.noted)}" if one.noted else ""
    masqueraded = "masqueraded" if one.masqueraded else ""
    return " ".join(filter(None, (share(one.exact), one.fate, one.destination, masqueraded, one.detail, noted)))
