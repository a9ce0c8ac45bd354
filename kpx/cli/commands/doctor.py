"""`kpx doctor`: how it is called."""

import click

from kpx.cli.options import backend_option, calls, config_option, json_options


@click.command()
@config_option
@backend_option
@json_options("kpx.cli.doctor", "Print a JSON array of findings")
@calls("kpx.cli.doctor")
def command() -> None:
    """Look whether this node is fit for kpx, and what other proxies have left on it. Changes nothing.

    Every kind of rule that kpx writes is tried on the kernel, in a network namespace that lives only for that. With
    --config, the kernel settings that it asks for are looked at, too. Exit status: 0 nothing fails, 1 something does,
    2 it couldn't look.

    \b
    Example:
      kpx doctor --config /var/lib/kube-proxy/config.conf
    """
