"""`kpx graph`: how it is called."""

from pathlib import Path

import click

from kpx.cli.options import calls, json_options, rule_options
from kpx.family import Family


@click.command()
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@click.option("--format", "form", type=click.Choice(["svg", "dot", "mermaid"]), default="svg", show_default=True)
@click.option("--html", is_flag=True, help="One page, to search and to click in, that needs no network and no kpx.")
@json_options("kpx.cli.graph", "Boxes and arrows as JSON")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
@click.option(
    "--family", type=click.Choice([one.value for one in Family]), default=Family.IPV4.value, show_default=True
)
@rule_options
@calls("kpx.cli.graph")
def command() -> None:
    """Draw rules: all of them, or those of each SERVICE (namespace/name, or namespace/name:port).

    Ways in are blue, endpoints green, refusals red; arrows bear the share of packets that takes them. Asks the rules in
    the kernel, or with --rules those of an iptables-save dump (kube-proxy's too), or with -f those that manifests
    compile to. Of more than 24 endpoints of a Service a few are drawn, the others counted. SVG takes up to 500 service
    ports; the page shows one Service at a time, of both IP families. Endpoints bear the names of their pods where -f
    tells them. Exit status 1 if a table of the rules could not be read.

    \b
    Example:
      kpx graph shop/front-end -f shop/ --node node-0 -o front-end.svg
      kpx graph --rules dump.save --html -o rules.html
    """
