"""`kpx verify`: how it is called."""

import click

from kpx.cli.options import FAMILIES, calls, json_options, rule_options


@click.command()
@click.option(
    "--equivalent",
    nargs=2,
    metavar="A B",
    help="Prove that two rulesets do the same to every packet, or print one that tells them apart. Each is a file of "
    "iptables-save, or manifests: a directory or a file *.yaml, *.yml, *.json.",
)
@click.option("--family", type=click.Choice(list(FAMILIES)), help="IP family [default: a dump's own, else ipv4].")
@json_options("kpx.cli.verify")
@rule_options
@calls("kpx.cli.verify")
def command() -> None:
    """Check the rules for Services: what is damaged, left over, out of order or in each other's way.

    Looks at the rules in the kernel, or with --rules at those of an iptables-save dump (kube-proxy's too), or with -f
    at those that manifests compile to. With --equivalent, compares two rulesets instead: every class of packets that
    any rule tells apart, with exact probabilities; so `equivalent` is a proof.

    Exit status 0: nothing found, or equivalent; 1: findings, a table that could not be read, or not equivalent.

    \b
    Example:
      kpx verify --rules dump.save
      kpx verify --equivalent dump.save shop/ --config config.yaml --node node-0
    """
