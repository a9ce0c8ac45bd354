"""Printing: for people, as wide as their terminal, 80 columns elsewhere; for programs, JSON of a shape that is told."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from pydantic import TypeAdapter
from rich.console import Console
from rich.text import Text

from kpx.analysis.setting import About
from kpx.analysis.words import share as share
from kpx.family import host_port

Command = TypeVar("Command", bound=Callable[..., Any])


def columns() -> int:
    """How wide the terminal is; 80 if standard output is none."""
    return Console().width if sys.stdout.isatty() else 80


@contextmanager
def page() -> Iterator[Console]:
    """A console for standard output; what is printed appears at the end, without spaces at the ends of lines.

    Colours only on a terminal; texts are printed as they are, without markup.
    """
    console = Console(width=columns(), highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        yield console
    click.echo("\n".join(line.rstrip() for line in captured.get().split("\n")), nl=False)


def put(console: Console, text: Text, indent: int = 0, hanging: int = 4) -> None:
    """Print a text `indent` columns from the left, and `hanging` more where it goes on in another line."""
    for number, line in enumerate(text.wrap(console, max(console.width - indent - hanging, 20))):
        console.print(Text(" " * (indent + (hanging if number else 0))) + line, soft_wrap=True)


def put_unread(console: Console, about: About) -> None:
    """Say what of rules nobody could read, and what else one has to know of them first."""
    for line in (*about.unread, *about.notes):
        put(console, Text.assemble(("! ", "bold yellow"), line), 0, 2)


def put_setting(console: Console, about: About) -> None:
    """Say what wrote rules and what else is at work, if that is known."""
    if about.setting:
        put(console, Text(about.setting, "dim"))


def place_of(address: str, port: int | None) -> str:
    """`address:port`, or the address alone where there is no port (None or 0)."""
    return host_port(address, port) if port else address


def json_text(value: object, shape: Any, indent: int | None = 2) -> str:
    """A value of a shape as JSON, without the end of the line."""
    return json.dumps(TypeAdapter(shape).dump_python(value, mode="json"), indent=indent)
