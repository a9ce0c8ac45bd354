"""`kpx diff`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Annotated

import click
from pydantic import Field

from kpx import host, logs
from kpx.cli import review
from kpx.cli.dumps import load_dump
from kpx.cli.inputs import Inputs, read_inputs, tools_for
from kpx.cli.options import FAMILIES
from kpx.cli.output import columns, json_text
from kpx.compiler.compile import Layout
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.comments import commented_alike
from kpx.netfilter.counting import any_counts, uncounted
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.save import Saved
from kpx.printable import printable
from kpx.reconcile.apply import read_live
from kpx.reconcile.layout import layout_of
from kpx.reconcile.owners import owners_of
from kpx.reconcile.plan import make_plan
from kpx.reconcile.report import FRAME, Difference, differences
from kpx.sources.manifests import SUFFIXES

log = logs.get_logger()

STDIN = Path("-")

Found = Mapping[str, Sequence[Difference]]
Differences = Annotated[
    Mapping[Family, Found],
    Field(
        description="of rules: those that aren't as desired, by IP family and service port; "
        f"of those that belong to no Service in particular, under {FRAME!r}"
    ),
]


SHAPE = Differences | review.Reviews


def command(
    files: tuple[str, ...],
    node: str | None,
    config_file: str | None,
    family: str,
    layout: str | None,
    keep_going: bool,
    backend: str,
    against: Path | None,
    form: str,
    as_json: bool,
) -> None:
    """Compare rules with what manifests ask for. Prints, per Service, what is missing, extra or changed."""
    form = "json" if as_json else form
    if against == STDIN and str(STDIN) in files:
        raise KpxError("--against - and -f -: standard input can be read only once")
    inputs = read_inputs(files, node, config_file, layout or Layout.TREE, keep_going)
    families = FAMILIES[family]
    if against is not None and _are_manifests(against):
        old = read_inputs((str(against),), inputs.node_name, config_file, Layout.TREE, keep_going=True)
        review.command(old, inputs, families, form)
    if against is not None and family == "dual":
        raise KpxError("--against: a dump holds one family; choose --family ipv4 or ipv6")
    _compare_rules(inputs, families, layout is None, backend, against, form)


def _are_manifests(path: Path) -> bool:
    return path.is_dir() or path.suffix in SUFFIXES


def _compare_rules(
    inputs: Inputs, families: Sequence[Family], any_layout: bool, backend: str, against: Path | None, form: str
) -> None:
    dump = load_dump(str(against)) if against else None
    live = {one: dump.whole(one) if dump else read_live(tools_for(one, backend)) for one in families}
    if any_layout:
        inputs = replace(inputs, layout=layout_of(live.values()))
    liberal = against is None and host.tcp_be_liberal()
    compiled = inputs.compile(families, liberal)
    found = {one: _differences(ruleset, live[one]) for one, ruleset in compiled.rulesets.items()}
    if not any(found.values()):
        _tell_of_counters(inputs, live, liberal)
    click.echo({"json": _json, "markdown": _markdown, "text": _text}[form](found))
    compiled.exit_if_incomplete()
    raise SystemExit(1 if any(found.values()) else 0)


def _differences(desired: Ruleset, live: Saved) -> Found:
    live = commented_alike(uncounted(live), desired)
    plan = make_plan(desired, live)
    return differences(plan.edits, owners_of(desired, live)) if plan else {}


def _tell_of_counters(inputs: Inputs, live: Mapping[Family, Saved], liberal: bool) -> None:
    """Say where rules that only count packets aren't as kube-proxy has them: no packet meets anything else by it."""
    counting = [family for family, saved in live.items() if any_counts(saved)]
    if not counting:
        return
    for family, ruleset in inputs.compile(counting, liberal, nfacct=counting).rulesets.items():
        if make_plan(ruleset, live[family]):
            log.info(f"{family}: rules that only count packets (-m nfacct) aren't as kube-proxy has them")


def _json(found: Differences) -> str:
    return json_text(found, Differences)


def _text(found: Differences) -> str:
    lines = [
        line
        for family, of_family in found.items()
        for owner, some in of_family.items()
        for line in (
            printable(owner) if len(found) == 1 else f"{printable(owner)} ({family})",
            *(_fitting(f"  {printable(line)}") for one in some for line in one.lines()),
        )
    ]
    return "\n".join(lines) if lines else "same"


def _fitting(line: str) -> str:
    """A line as wide as the terminal; whole where others than people read it."""
    if not sys.stdout.isatty():
        return line
    return fill(line, columns(), subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)


def _markdown(found: Differences) -> str:
    lines: list[str] = []
    for family, of_family in found.items():
        for owner, some in of_family.items():
            lines += [f"### `{printable(owner)}` ({family})", "", "```text"]
            lines += [printable(line) for one in some for line in one.lines()] + ["```", ""]
    return "\n".join(lines).rstrip() if lines else "No difference."
