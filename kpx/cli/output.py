"""Printing for people: 80 columns unless the terminal has more, nothing that a terminal can't show."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from kpx.analysis.words import share as share


@contextmanager
def page() -> Iterator[Console]:
    """A console for standard output; what is printed appears at the end, without spaces at the ends of lines.

    Colours only on a terminal; texts are printed as they are, without markup.
    """
    width = None if sys.stdout.isatty() else 80
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        yield console
    click.echo("\n".join(line.rstrip() for line in captured.get().split("\n")), nl=False)


def put(console: Console, text: Text, indent: int = 0, hanging: int = 4) -> None:
    """Print a text `indent` columns from the left, and `hanging` more where it goes on in another line."""
    for number, line in enumerate(text.wrap(console, max(console.width - indent - hanging, 20))):
        console.print(Text(" " * (indent + (hanging if number else 0))) + line, soft_wrap=True)


def print_json(model: BaseModel) -> None:
    """A report as JSON."""
    click.echo(json.dumps(model.model_dump(mode="json"), indent=2))


def print_schema(model: type[BaseModel]) -> None:
    """The JSON schema of a report."""
    schema: Mapping[str, object] = model.model_json_schema(mode="serialization")
    click.echo(json.dumps(schema, indent=2))
