"""`kpx cleanup`: how it is called."""

import click

from kpx.cli.options import FAMILIES, backend_option, calls, json_options


@click.command()
@backend_option
@click.option("--family", type=click.Choice(list(FAMILIES)), default="dual", show_default=True, help="IP family.")
@json_options("kpx.cli.cleanup")
@calls("kpx.cli.cleanup")
def command() -> None:
    """Remove every chain and jump of ours (or of kube-proxy in iptables mode), and nothing else.

    What kubelet shares with us stays where kubelet runs, and so do chains that other programs' rules jump to.

    \b
    Example:
      kpx cleanup --backend nft
    """
