"""`kpx diff`: how it is called."""

from pathlib import Path

import click

from kpx.cli.options import backend_option, calls, json_options, object_options_but_layout
from kpx.compiler.layout import Layout


@click.command()
@object_options_but_layout
@click.option(
    "--layout",
    type=click.Choice([one.value for one in Layout]),
    help="Compare with rules in this layout [default: the layout of the rules that are there].",
)
@backend_option
@click.option(
    "--against",
    type=click.Path(exists=True, allow_dash=True, path_type=Path),
    help="Compare with this instead of the kernel: an output of iptables-save (- for standard input), or other "
    "manifests (a directory, or a file that ends in .yaml, .yml or .json). Needs no root.",
)
@click.option("--format", "form", type=click.Choice(["text", "json", "markdown"]), default="text", show_default=True)
@json_options("kpx.cli.diff", "The same as --format json")
@calls("kpx.cli.diff")
def command() -> None:
    """Compare rules with what manifests ask for. Prints, per Service, what is missing, extra or changed.

    Rules of kube-proxy are compared in kube-proxy's layout, unless --layout says otherwise: the differences are those
    in what happens to packets, not in how rules are laid out. Against other manifests it tells, per Service, what a
    change from those to these means for the node: a review.

    Rules are printed in a line each, wrapped on a terminal. Exit status 0: no difference, 1: there are some.

    \b
    Example:
      kpx diff -f shop/ --config config.yaml --node node-0 --against dump.save
      kpx diff -f shop/ --against ../main/shop/ --format markdown
    """
