"""`kpx render`: how it is called."""

from pathlib import Path

import click

from kpx.cli.options import calls, json_options, nfacct_option, object_options


@click.command()
@object_options
@nfacct_option
@click.option("--format", "form", type=click.Choice(["restore", "json"]), default="restore", show_default=True)
@json_options("kpx.cli.rendered", "The same as --format json")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write ipv4 and ipv6 files into this directory.",
)
@calls("kpx.cli.render")
def command() -> None:
    """Compile manifests and print the rules. Needs neither root nor iptables.

    The restore format is a payload for `iptables-restore --noflush` on a host without KUBE-* chains. The same
    objects in any order give the same bytes.

    \b
    Example:
      kpx render -f shop/ --config config.yaml | iptables-restore --noflush
    """
