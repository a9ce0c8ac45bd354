"""`kpx explain`: how it is called."""

import click

from kpx.cli.options import FAMILIES, calls, json_options, rule_options


@click.command()
@click.argument("asked", metavar="WHAT")
@click.option("--family", type=click.Choice(list(FAMILIES)), help="IP family [default: those that there are rules of].")
@click.option("--all", "everything", is_flag=True, help="List all endpoints, however many there are.")
@json_options("kpx.cli.explain")
@rule_options
@calls("kpx.cli.explain")
def command() -> None:
    """Explain WHAT: a Service (shop/web, shop/web:http), a VIP, a node port, a pod's address or a chain.

    Says every way in and who may use it, which endpoints take part on this node and which don't and why, and what is
    wrong. With manifests (-f) and rules (--rules or --live) it also says where the rules are not as they should be;
    with rules alone, what these tell. Exit status 1 if a table of the rules could not be read.

    \b
    Example:
      kpx explain shop/web -f shop/ --config config.yaml --rules dump.save
    """
