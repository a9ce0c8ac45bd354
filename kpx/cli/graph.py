"""`kpx graph`."""

from pathlib import Path

import click
import structlog

from kpx.analysis.dot import dot, svg
from kpx.analysis.fold import folded
from kpx.analysis.mermaid import MOST_ARROWS, MOST_CHARACTERS, mermaid
from kpx.analysis.page import page
from kpx.analysis.picture import Picture, picture
from kpx.analysis.simulate import Tables
from kpx.cli.output import json_options, json_text
from kpx.cli.rules import RuleSource, rule_options
from kpx.errors import KpxError
from kpx.family import Family
from kpx.printable import excerpt

log = structlog.get_logger()

_NAMED = 10
"""How many Services an error names."""


@click.command()
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@click.option("--format", "form", type=click.Choice(["svg", "dot", "mermaid"]), default="svg", show_default=True)
@click.option("--html", is_flag=True, help="One page, to search and to click in, that needs no network and no kpx.")
@json_options(Picture, "Boxes and arrows as JSON")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
@click.option(
    "--family", type=click.Choice([one.value for one in Family]), default=Family.IPV4.value, show_default=True
)
@rule_options
def command(
    source: RuleSource,
    services: tuple[str, ...],
    form: str,
    html: bool,
    as_json: bool,
    output: Path | None,
    family: str,
) -> None:
    """Draw rules: all of them, or those of each SERVICE (namespace/name, or namespace/name:port).

    Ways in are blue, endpoints green, refusals red; arrows bear the share of packets that takes them. Asks the rules in
    the kernel, or with --rules those of an iptables-save dump (kube-proxy's too), or with -f those that manifests
    compile to. Of more than 24 endpoints of a Service a few are drawn, the others counted. SVG needs Graphviz and takes
    up to 500 service ports; the page, DOT and Mermaid don't. Exit status 1 if a table of the rules could not be read.

    \b
    Example:
      kpx graph shop/front-end -f shop/ --node node-0 -o front-end.svg
      kpx graph --rules dump.save --html -o rules.html
    """
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
