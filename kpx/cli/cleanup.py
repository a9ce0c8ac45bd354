"""`kpx cleanup`."""

import time

import click
import structlog

from kpx.cli.inputs import FAMILIES, backend_option, tools_for
from kpx.cli.output import json_options, json_text
from kpx.cli.written import Written, written
from kpx.reconcile.apply import remove

log = structlog.get_logger()


@click.command()
@backend_option
@click.option("--family", type=click.Choice(list(FAMILIES)), default="dual", show_default=True, help="IP family.")
@json_options(Written)
def command(backend: str, family: str, as_json: bool) -> None:
    """Remove every chain and jump of ours (or of kube-proxy in iptables mode), and nothing else.

    What kubelet shares with us stays where kubelet runs, and so do chains that other programs' rules jump to.

    \b
    Example:
      kpx cleanup --backend nft
    """
    for one in FAMILIES[family]:
        tools = tools_for(one, backend)
        start = time.monotonic()
        outcome = remove(tools)
        for table, chain in outcome.held:
            log.warning(f"{one}: chain {chain} in table {table} stays: rules of other programs jump to it")
        told = written(tools, outcome, time.monotonic() - start)
        what = f"{told.lines} lines written" if told.restores else "nothing to remove"
        click.echo(json_text(told, Written, indent=None) if as_json else f"{one}: {what} ({told.backend})")
