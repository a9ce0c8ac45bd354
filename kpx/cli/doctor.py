"""`kpx doctor`."""

import json
import os
from dataclasses import asdict

import click

from kpx.cli.inputs import backend_option, config_option, read_config
from kpx.doctor.checks import Finding, Level, examine
from kpx.doctor.gather import gather
from kpx.errors import KpxError

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@click.command()
@config_option
@backend_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of findings.")
def command(config_file: str | None, backend: str, as_json: bool) -> None:
    """Look whether this node is fit for kpx, and what other proxies have left on it. Changes nothing.

    Every kind of rule that kpx writes is tried on the kernel, in a network namespace that lives only for that. With
    --config, the kernel settings that it asks for are looked at, too. Exit status: 0 nothing fails, 1 something does,
    2 it couldn't look.

    \b
    Example:
      kpx doctor --config /var/lib/kube-proxy/config.conf
    """
    if os.geteuid() != 0:
        raise KpxError("only root may look at a node's rules")
    findings = examine(gather(backend, read_config(config_file) if config_file else None))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(_line(finding))
    if any(finding.level is Level.FAIL for finding in findings):
        raise SystemExit(1)


def _line(finding: Finding) -> str:
    level = click.style(f"{finding.level:<4}", fg=_COLOURS[finding.level])
    advice = f"\n      {'':<10}  -> {finding.advice}" if finding.advice else ""
    return f"{level}  {finding.check:<10}  {finding.message}{advice}"
