"""`kpx render`."""

from collections.abc import Mapping
from pathlib import Path

import click
from pydantic import Field

from kpx.cli.inputs import FAMILIES, nfacct_option, object_options, read_inputs
from kpx.cli.output import json_options, json_text
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Rules, Ruleset, TableName
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from kpx.shape import Part


class RenderedTable(Part):
    """The rules of one table, in order, as iptables-save prints them behind `-A CHAIN`."""

    chains: Mapping[str, Rules] = Field(description="the proxy's own chains by their names")
    jumps: Mapping[str, Rules] = Field(description="what the proxy adds to built-in chains, by their names")


class Rendered(Part):
    """The rules of one IP family."""

    family: Family
    node: str = Field(description="the name of the node that they are for")
    tables: Mapping[TableName, RenderedTable]


@click.command()
@object_options
@nfacct_option
@click.option("--format", "form", type=click.Choice(["restore", "json"]), default="restore", show_default=True)
@json_options(Rendered, "The same as --format json")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write ipv4 and ipv6 files into this directory.",
)
def command(
    files: tuple[str, ...],
    node: str | None,
    config_file: str | None,
    family: str,
    layout: str,
    keep_going: bool,
    nfacct: bool | None,
    form: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compile manifests and print the rules. Needs neither root nor iptables.

    The restore format is a payload for `iptables-restore --noflush` on a host without KUBE-* chains. The same
    objects in any order give the same bytes.

    \b
    Example:
      kpx render -f shop/ --config config.yaml | iptables-restore --noflush
    """
    families = tuple(Family) if output else FAMILIES[family]
    if not output and len(families) > 1:
        raise KpxError(f"--family {family}: a payload holds one family; choose --family ipv4 or ipv6, or --output")
    inputs = read_inputs(files, node, config_file, layout, keep_going)
    form = "json" if as_json else form
    compiled = inputs.compile(families, nfacct=families if nfacct else ())
    for one, ruleset in compiled.rulesets.items():
        text = _text(ruleset, form, inputs.node_name)
        if output is None:
            click.echo(text, nl=False)
        else:
            _write(output / f"{one}.{'rules' if form == 'restore' else 'json'}", text)
    compiled.exit_if_incomplete()


def _text(ruleset: Ruleset, form: str, node_name: str) -> str:
    if form == "restore":
        return payload(transactions(make_plan(ruleset, {}).edits))
    tables = {name: RenderedTable(chains=table.chains, jumps=table.jumps) for name, table in ruleset.tables.items()}
    return json_text(Rendered(family=ruleset.family, node=node_name, tables=tables), Rendered) + "\n"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise KpxError(f"{path}: {error.strerror}") from error
