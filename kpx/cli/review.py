"""What `kpx diff` prints of two revisions of manifests."""

from collections.abc import Mapping, Sequence
from textwrap import TextWrapper
from typing import Annotated, NoReturn

import click
from pydantic import Field

from kpx import logs
from kpx.api import Node
from kpx.cli.inputs import Inputs
from kpx.cli.output import columns, json_text
from kpx.compiler.settings import settings_for
from kpx.errors import Problem
from kpx.family import Family
from kpx.model.cluster import cluster_of, without_conflicts
from kpx.model.node import node_view
from kpx.model.review import Finding, Revision, review

log = logs.get_logger()

Reviews = Annotated[
    Mapping[Family, Sequence[Finding]],
    Field(
        description="of two revisions of manifests: the changes by IP family, the node's first, then by service port"
    ),
]


def command(old: Inputs, new: Inputs, families: Sequence[Family], form: str) -> NoReturn:
    """Print what changed from `old` to `new`; ends with the exit status of a diff.

    What is wrong in the old revision is told, but doesn't stop: the new one may mend it.
    """
    found: dict[Family, Sequence[Finding]] = {}
    conflicts: list[Problem] = []
    for problem in old.problems:
        log.warning(f"in the old revision: {problem}")
    for family in families:
        before, of_old = _revision(old, family)
        after, of_new = _revision(new, family)
        for problem in of_old:
            log.warning(f"in the old revision: {problem}")
        conflicts += of_new
        found[family] = review(before, after)
    complete = new.complain(conflicts)
    click.echo({"json": _json, "markdown": _markdown, "text": _text}[form](found))
    raise SystemExit(2 if not complete else 1 if any(found.values()) else 0)


def _revision(inputs: Inputs, family: Family) -> tuple[Revision, tuple[Problem, ...]]:
    nodes = (one for one in inputs.objects if isinstance(one, Node) and one.metadata.name == inputs.node_name)
    view = node_view(inputs.node_name, family, next(nodes, None), inputs.config.bind_address)
    places = settings_for(inputs.config, view).node_port_places
    cluster, conflicts = without_conflicts(cluster_of(inputs.objects, family, inputs.node_name), places)
    return Revision(cluster, view), conflicts


def _json(found: Reviews) -> str:
    return json_text(found, Reviews)


def _text(found: Reviews) -> str:
    wrapper = TextWrapper(columns(), subsequent_indent="    ", break_on_hyphens=False)
    lines = [
        wrapper.fill(f"{_subject(found, family, one)}: {_sentence(one)}")
        for family, some in found.items()
        for one in some
    ]
    return "\n".join([*lines, "", *_summary(found)]) if lines else "same"


def _markdown(found: Reviews) -> str:
    rows = [
        f"| `{_subject(found, family, one)}` | {'⚠️ ' if one.breaking else ''}{_sentence(one)} |"
        for family, some in found.items()
        for one in some
    ]
    if not rows:
        return "No change to Services."
    return "\n".join([" ".join(_summary(found)), "", "| Service port | Change |", "| --- | --- |", *rows])


def _subject(found: Reviews, family: Family, one: Finding) -> str:
    return one.subject if len(found) == 1 else f"{one.subject} ({family})"


def _sentence(one: Finding) -> str:
    return "; ".join(statement.text for statement in one.statements)


def _summary(found: Reviews) -> list[str]:
    every = [one for some in found.values() for one in some]
    counts = {kind: sum(one.kind == kind for one in every) for kind in ("new", "gone", "changed")}
    text = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) + "."
    broken = sum(one.breaking for one in every)
    return [text, f"{broken} no longer serve{'s' if broken == 1 else ''} all that was served."] if broken else [text]
