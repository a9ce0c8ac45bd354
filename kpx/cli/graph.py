"""`kpx graph`."""

from pathlib import Path

import click

from kpx import logs
from kpx.analysis.dot import dot, svg
from kpx.analysis.fold import folded
from kpx.analysis.mermaid import MOST_ARROWS, MOST_CHARACTERS, mermaid
from kpx.analysis.page import page
from kpx.analysis.picture import Picture, picture
from kpx.analysis.simulate import Tables
from kpx.cli.output import json_text
from kpx.cli.rules import RuleSource, with_rules
from kpx.errors import KpxError
from kpx.family import Family
from kpx.printable import excerpt

log = logs.get_logger()

_NAMED = 10
"""How many Services an error names."""


SHAPE = Picture


@with_rules
def command(
    source: RuleSource,
    services: tuple[str, ...],
    form: str,
    html: bool,
    as_json: bool,
    output: Path | None,
    family: str,
) -> None:
    """Draw rules: all of them, or those of each SERVICE (namespace/name, or namespace/name:port)."""
    if html and as_json:
        raise KpxError("--html and --json: choose one of them")
    held = source.held(Family(family))
    drawn = _drawn(held.simulator.tables, services)
    if html:
        text = page(held.simulator, drawn, held.origin)
    elif as_json:
        text = json_text(drawn, Picture) + "\n"
    else:
        shown = folded(drawn).legible()
        text = {"svg": svg, "dot": dot, "mermaid": mermaid}[form](shown)
        if form == "mermaid" and (len(text) > MOST_CHARACTERS or len(shown.arrows) > MOST_ARROWS):
            log.warning(
                f"GitHub will not draw this: Mermaid takes {MOST_CHARACTERS:,} characters and {MOST_ARROWS} arrows, "
                f"this has {len(text):,} and {len(shown.arrows):,}; name fewer Services"
            )
    _write(text, output)
    for line in (*held.about.unread, *held.about.notes):
        log.warning(f"{held.origin}: {line}")
    if held.about.unread:
        raise SystemExit(1)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        raise KpxError(f"{output}: {error.strerror}") from error


def _drawn(tables: Tables, services: tuple[str, ...]) -> Picture:
    drawn = picture(tables, services)
    for service in services:
        if not any(service in (group, group.partition(":")[0]) for group in drawn.groups):
            raise KpxError(f"no rules of a Service {excerpt(service)}; there are {_few(picture(tables).groups)}")
    return drawn.of(drawn.groups) if services else drawn


def _few(groups: tuple[str, ...]) -> str:
    more = f" and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
    return f"{', '.join(groups[:_NAMED])}{more}" if groups else "none at all"
