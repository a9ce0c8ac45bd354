"""`kpx apply`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn
from rich.progress import Progress as Bar

from kpx import host, logs
from kpx.cli.inputs import read_inputs, tools_for
from kpx.cli.options import FAMILIES
from kpx.cli.output import json_text
from kpx.cli.written import Written, written
from kpx.compiler.names import FORWARD, NODEPORTS
from kpx.family import Family
from kpx.netfilter import nfacct as counters
from kpx.netfilter.counting import counts
from kpx.netfilter.reading import read_chains
from kpx.netfilter.refusal import RestoreError
from kpx.netfilter.tools import Tools
from kpx.reconcile.apply import Outcome, Progress, apply, payload_of, read_live
from kpx.reconcile.fitness import check_layout
from kpx.reconcile.plan import make_plan

log = logs.get_logger()


SHAPE = Written


def command(
    files: tuple[str, ...],
    node: str | None,
    config_file: str | None,
    family: str,
    layout: str,
    keep_going: bool,
    backend: str,
    nfacct: bool | None,
    dry_run: bool,
    form: str,
    as_json: bool,
) -> None:
    """Bring the kernel's rules up to date with manifests: only the difference is written, in one go."""
    inputs = read_inputs(files, node, config_file, layout, keep_going)
    families = FAMILIES[family]
    counting = [one for one in families if _counts(tools_for(one, backend), nfacct)]
    compiled = inputs.compile(families, host.tcp_be_liberal(), counting)
    refused = False
    if counting and not dry_run:
        counters.ensure()
    for one, ruleset in compiled.rulesets.items():
        tools = tools_for(one, backend)
        start = time.monotonic()
        payload = None
        if dry_run:
            plan = make_plan(ruleset, read_live(tools))
            payload = payload_of(plan.edits, tools)
            outcome = Outcome(lines=payload.count("\n"), plan=plan, held=plan.held)
        else:
            with _bar(one) as progress:
                try:
                    outcome = apply(ruleset, tools, progress)
                except RestoreError:
                    check_layout(inputs.layout, tools)
                    raise
        _complain(outcome)
        _print(written(tools, outcome, time.monotonic() - start, payload), as_json or form == "json")
        refused = refused or bool(outcome.failed)
    if refused:
        raise SystemExit(2)
    compiled.exit_if_incomplete()


def _counts(tools: Tools, asked: bool | None) -> bool:
    """Whether rules are to count: as asked, else as those do that are there, else where the kernel takes it."""
    if asked is not None:
        return asked
    chains = {
        (table, chain): read_chains(tools, table, [chain])[chain]
        for table, chain in (("filter", FORWARD), ("nat", NODEPORTS))
    }
    if any(counts(rule) for one in chains.values() if one for rule in one.rules):
        return True
    forward = chains["filter", FORWARD]
    if forward is not None and any("--ctstate INVALID" in rule for rule in forward.rules):
        return False
    return counters.takes(tools)


@contextmanager
def _bar(family: Family) -> Iterator[Progress]:
    """A bar on standard error while chains are written, if that is a terminal."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{family}: chains", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield progress


def _complain(outcome: Outcome) -> None:
    for name, error in outcome.failed.items():
        log.error(f"Service {name}: rules refused, the old ones stay: {error}")
    for table, chain in outcome.held:
        log.warning(f"stale chain {chain} in table {table} stays: rules of other programs jump to it")


def _print(told: Written, as_json: bool) -> None:
    if as_json:
        click.echo(json_text(told, Written, indent=None))
    elif told.payload is not None:
        click.echo(told.payload, nl=False)
    elif told.restores == 0:
        click.echo(f"{told.family}: up to date, nothing written ({told.backend}, {told.seconds:.2f} s)")
    else:
        click.echo(f"{told.family}: {told.lines} lines written ({told.backend}, {told.seconds:.2f} s)")
