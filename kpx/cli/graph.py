"""`kpx graph`."""

from collections.abc import Iterator
from pathlib import Path

import click

from kpx import logs
from kpx.analysis.dot import dot
from kpx.analysis.fold import folded
from kpx.analysis.mermaid import MOST_ARROWS, MOST_CHARACTERS, mermaid
from kpx.analysis.page import Side, page
from kpx.analysis.picture import Picture, picture
from kpx.analysis.simulate import Tables
from kpx.analysis.svg import svg
from kpx.cli.output import json_text
from kpx.cli.rules import Held, RuleSource, with_rules
from kpx.errors import InputError, KpxError
from kpx.explain.pods import pod_names, with_pods
from kpx.explain.troubles import troubles
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
    drawn = _named(source, _drawn(held.simulator.tables, services), held)
    if html:
        marks = troubles(held.simulator, drawn)
        text = page(held.simulator, drawn, held.origin, marks, list(_others(source, held, services)))
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


def _others(source: RuleSource, shown: Held, services: tuple[str, ...]) -> Iterator[Side]:
    """The rules of the other family, if there are any: the page is turned to them."""
    for family in source.families:
        if family is not shown.simulator.family:
            try:
                held = source.held(family)
            except InputError:
                raise
            except KpxError as error:
                log.warning(f"the page has no rules of {family}: {error}")
                continue
            drawn = picture(held.simulator.tables, services)
            drawn = _named(source, drawn.of(drawn.groups) if services else drawn, held)
            yield Side(held.simulator, drawn, troubles(held.simulator, drawn))


def _named(source: RuleSource, drawn: Picture, held: Held) -> Picture:
    """With the names of pods, if there are objects that tell them."""
    inputs = source.inputs
    return with_pods(drawn, pod_names(inputs.objects, held.simulator.family)) if inputs else drawn


def _drawn(tables: Tables, services: tuple[str, ...]) -> Picture:
    drawn = picture(tables, services)
    for service in services:
        if not any(service in (group, group.partition(":")[0]) for group in drawn.groups):
            raise KpxError(f"no rules of a Service {excerpt(service)}; there are {_few(picture(tables).groups)}")
    return drawn.of(drawn.groups) if services else drawn


def _few(groups: tuple[str, ...]) -> str:
    more = f" and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
    return f"{', '.join(groups[:_NAMED])}{more}" if groups else "none at all"
