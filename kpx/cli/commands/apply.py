"""`kpx apply`: how it is called."""

import click

from kpx.cli.options import backend_option, calls, json_options, nfacct_option, object_options


@click.command()
@object_options
@backend_option
@nfacct_option
@click.option("--dry-run", is_flag=True, help="Print what would be sent to iptables-restore; change nothing.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@json_options("kpx.cli.apply", "The same as --format json")
@calls("kpx.cli.apply")
def command() -> None:
    """Bring the kernel's rules up to date with manifests: only the difference is written, in one go.

    Rules that stay keep their counters; foreign rules and chains are not touched; rules of kube-proxy are taken
    over. A Service whose rules the kernel refuses keeps its old ones while the others are applied.

    \b
    Example:
      kpx apply -f shop/ --config config.yaml --node node-0 --dry-run
    """
