"""`kpx cleanup`."""

import time

import click

from kpx import logs
from kpx.cli.inputs import tools_for
from kpx.cli.options import FAMILIES
from kpx.cli.output import json_text
from kpx.cli.written import Written, written
from kpx.reconcile.apply import remove

log = logs.get_logger()


SHAPE = Written


def command(backend: str, family: str, as_json: bool) -> None:
    """Remove every chain and jump of ours (or of kube-proxy in iptables mode), and nothing else."""
    for one in FAMILIES[family]:
        tools = tools_for(one, backend)
        start = time.monotonic()
        outcome = remove(tools)
        for table, chain in outcome.held:
            log.warning(f"{one}: chain {chain} in table {table} stays: rules of other programs jump to it")
        told = written(tools, outcome, time.monotonic() - start)
        what = f"{told.lines} lines written" if told.restores else "nothing to remove"
        click.echo(json_text(told, Written, indent=None) if as_json else f"{one}: {what} ({told.backend})")
