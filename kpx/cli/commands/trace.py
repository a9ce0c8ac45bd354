"""`kpx trace`: how it is called."""

import click

from kpx.analysis.origin import Origin
from kpx.cli.options import calls, json_options, rule_options

STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")


class _Arrow(click.Command):
    """A command with `->` among its arguments, which would be an option otherwise."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["to" if arg == "->" else arg for arg in args])


def _mark(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        mark = int(value, 0)
    except ValueError:
        mark = -1
    if not 0 <= mark < 1 << 32:
        raise click.BadParameter(f"{value!r} is no mark: a number of 32 bits, such as 0x4000")
    return mark


@click.command(cls=_Arrow)
@click.argument("packet", nargs=-1, required=True)
@click.option(
    "--from",
    "origin",
    type=click.Choice([one.value for one in Origin]),
    help="Where the packet comes from [default: node if the source is the node's address, else outside].",
)
@click.option(
    "--interface", metavar="NAME", help="The interface it comes in by [default: of a pod what the rules tell]."
)
@click.option("--out-interface", metavar="NAME", help="The interface it leaves by.")
@click.option("--bridged/--not-bridged", default=None, help="Whether it comes in through a port of a bridge.")
@click.option("--mark", default="0", callback=_mark, help="Its mark when it comes in.")
@click.option("--ctstate", type=click.Choice(STATES), default="NEW", show_default=True, help="What conntrack says.")
@click.option(
    "--known",
    multiple=True,
    metavar="WHOM[@SECONDS]",
    help="The client was there so many seconds ago: an endpoint ADDRESS:PORT, or a list of -m recent. May be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="Print all branches, however many there are.")
@json_options("kpx.cli.trace")
@rule_options
@calls("kpx.cli.trace")
def command() -> None:
    """Follow a PACKET, 'tcp 10.244.1.5 -> 10.96.1.10:80', through the rules: every step, every outcome.

    Asks the rules in the kernel, or with --rules those of an iptables-save dump (kube-proxy's too), or with -f
    those that manifests compile to. Probabilities are exact. What can't be known is said, never guessed.

    Exit status 1 if a table of the rules could not be read, so that nothing behind it is certain.

    \b
    Example:
      kpx trace 'tcp 10.244.1.5 -> 10.96.1.10:80' --from pod --rules dump.save
    """
