"""`kpx render`."""

import json
from pathlib import Path

import click

from kpx.cli.inputs import FAMILIES, object_options, read_inputs
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan


@click.command()
@object_options
@click.option("--format", "form", type=click.Choice(["restore", "json"]), default="restore", show_default=True)
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
    form: str,
    output: Path | None,
) -> None:
    """Compile manifests and print the rules. Needs neither root nor iptables.

    The restore format is a payload for `iptables-restore --noflush` on a host without KUBE-* chains. The same
    objects in any order give the same bytes.

    \b
    Example:
      kpx render -f shop/ --config config.yaml --node node-0 | iptables-restore --noflush
    """
    inputs = read_inputs(files, node, config_file, layout, keep_going)
    families = tuple(Family) if output else FAMILIES[family]
    compiled = inputs.compile(families)
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
    tables = {
        name: {"chains": dict(table.chains), "jumps": dict(table.jumps)} for name, table in ruleset.tables.items()
    }
    return json.dumps({"family": ruleset.family, "node": node_name, "tables": tables}, indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise KpxError(f"{path}: {error.strerror}") from error
