"""`kpx render`."""

from pathlib import Path

import click

from kpx.cli.inputs import read_inputs
from kpx.cli.options import FAMILIES
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan


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
    """Compile manifests and print the rules. Needs neither root nor iptables."""
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
    from kpx.cli.rendered import rendered  # what makes JSON takes as long to import as all the rest

    return rendered(ruleset, node_name)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise KpxError(f"{path}: {error.strerror}") from error
