"""`kpx cleanup`."""

import click
import structlog

from kpx.cli.inputs import FAMILIES, backend_option, tools_for
from kpx.reconcile.apply import remove

log = structlog.get_logger()


@click.command()
@backend_option
@click.option("--family", type=click.Choice(list(FAMILIES)), default="dual", show_default=True, help="IP family.")
def command(backend: str, family: str) -> None:
    """Remove every chain and jump of ours (or of kube-proxy in iptables mode), and nothing else.

    What kubelet shares with us stays where kubelet runs, and so do chains that other programs' rules jump to.

    \b
    Example:
      kpx cleanup --backend nft
    """
    for one in FAMILIES[family]:
        tools = tools_for(one, backend)
        outcome = remove(tools)
        for table, chain in outcome.held:
            log.warning(f"{one}: chain {chain} in table {table} stays: rules of other programs jump to it")
        what = f"{outcome.lines} lines written" if outcome.restores else "nothing to remove"
        click.echo(f"{one}: {what} ({tools.backend})")
