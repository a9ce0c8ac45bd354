"""`kpx doctor`."""

import os

import click
from rich.console import Console
from rich.text import Text

from kpx.cli.inputs import read_config
from kpx.cli.output import json_text, page, put
from kpx.doctor.checks import Finding, Level, examine
from kpx.doctor.gather import gather
from kpx.errors import KpxError

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
_MESSAGES = 18
"""The column where messages begin."""


SHAPE = list[Finding]


def command(config_file: str | None, backend: str, as_json: bool) -> None:
    """Look whether this node is fit for kpx, and what other proxies have left on it. Changes nothing."""
    if os.geteuid() != 0:
        raise KpxError("only root may look at a node's rules")
    findings = examine(gather(backend, read_config(config_file) if config_file else None))
    if as_json:
        click.echo(json_text(list(findings), list[Finding]))
    else:
        with page() as out:
            for finding in findings:
                _print(out, finding)
    if any(finding.level is Level.FAIL for finding in findings):
        raise SystemExit(1)


def _print(out: Console, finding: Finding) -> None:
    label = Text.assemble((f"{finding.level:<4}", _COLOURS[finding.level]), f"  {finding.check:<10}  ")
    for line in Text(finding.message).wrap(out, max(out.width - _MESSAGES, 20)):
        out.print(label + line, soft_wrap=True)
        label = Text(" " * _MESSAGES)
    if finding.advice:
        put(out, Text(f"-> {finding.advice}"), _MESSAGES, 3)
