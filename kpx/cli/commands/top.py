"""`kpx top`: how it is called."""

from pathlib import Path

import click

from kpx.analysis.order import Order
from kpx.cli.options import FAMILIES, backend_option, calls, json_options


@click.command()
@click.option(
    "--sort",
    type=click.Choice([one.value for one in Order]),
    default="rate",
    show_default=True,
    help="What comes first.",
)
@click.option(
    "--filter",
    "wanted",
    default="*",
    metavar="TEXT",
    help="Only service ports and endpoints with this in their name; or a pattern, such as 'shop/*'.",
)
@click.option("--endpoints", is_flag=True, help="Show each endpoint below its Service.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds between readings."
)
@click.option("--once", is_flag=True, help="Print one table, or one JSON document, and end.")
@json_options("kpx.cli.top", "Print JSON, a line per reading without --once")
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Only the totals that iptables-save -c wrote to this file.",
)
@click.option("--family", type=click.Choice(list(FAMILIES)), default="dual", show_default=True, help="IP family.")
@backend_option
@calls("kpx.cli.top")
def command() -> None:
    """Show how many new connections each Service gets, from the counters of the kernel's rules. Needs root.

    Works on rules of kube-proxy, too, in both backends; nothing is written, and no packet is looked at. A count begins
    when its rule is written. Ends with Ctrl-C.

    \b
    Example:
      kpx top --filter shop/ --endpoints
      kpx top --once --json --interval 10
    """
