"""`kpx diff`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from kpx import host
from kpx.cli.inputs import FAMILIES, backend_option, object_options, read_inputs, tools_for
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.save import Saved, SaveError, parse_save
from kpx.reconcile.apply import read_live
from kpx.reconcile.owners import Owners
from kpx.reconcile.plan import make_plan
from kpx.reconcile.report import Difference, differences

Found = Mapping[str, Sequence[Difference]]


@click.command()
@object_options
@backend_option
@click.option(
    "--against",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Compare with this output of iptables-save instead of the kernel; needs no root.",
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(
    files: tuple[str, ...],
    node: str | None,
    config_file: str | None,
    family: str,
    layout: str,
    keep_going: bool,
    backend: str,
    against: Path | None,
    form: str,
) -> None:
    """Compare rules with what manifests ask for. Prints, per Service, what is missing, extra or changed.

    Exit status 0: no difference, 1: there are some.

    \b
    Example:
      kpx diff -f shop/ --config config.yaml --node node-0 --against dump.save
    """
    if against is not None and family == "dual":
        raise KpxError("--against: a dump holds one family; choose --family ipv4 or ipv6")
    inputs = read_inputs(files, node, config_file, layout, keep_going)
    compiled = inputs.compile(FAMILIES[family], against is None and host.tcp_be_liberal())
    found: dict[Family, Found] = {}
    for one, ruleset in compiled.rulesets.items():
        live = _read_dump(against) if against else read_live(tools_for(one, backend))
        found[one] = _differences(ruleset, live)
    click.echo(_json(found) if form == "json" else _text(found))
    compiled.exit_if_incomplete()
    raise SystemExit(1 if any(found.values()) else 0)


def _differences(desired: Ruleset, live: Saved) -> Found:
    plan = make_plan(desired, live)
    return differences(plan.edits, Owners(desired, live)) if plan else {}


def _read_dump(path: Path) -> Saved:
    try:
        return parse_save(path.read_text(errors="surrogateescape"))
    except OSError as error:
        raise KpxError(f"{path}: {error.strerror}") from error
    except SaveError as error:
        raise KpxError(f"{path}: {error}") from error


def _json(found: Mapping[Family, Found]) -> str:
    return json.dumps(
        {
            family: {owner: [asdict(one) for one in some] for owner, some in of_family.items()}
            for family, of_family in found.items()
        },
        indent=2,
    )


def _text(found: Mapping[Family, Found]) -> str:
    lines = [
        line
        for family, of_family in found.items()
        for owner, some in of_family.items()
        for line in (
            f"{owner}" if len(found) == 1 else f"{owner} ({family})",
            *(line for one in some for line in _lines(one)),
        )
    ]
    return "\n".join(lines) if lines else "same"


def _lines(one: Difference) -> tuple[str, ...]:
    where = f"  {one.kind:<8}{one.table} {one.chain}"
    rules = {"live": one.live, "want": one.desired}
    if one.kind == "changed":
        return (where, *(f"      {side}  {rule}" for side, rule in rules.items()))
    return (f"{where}  {one.live or one.desired or '(the chain itself)'}",)
