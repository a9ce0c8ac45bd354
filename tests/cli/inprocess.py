"""Commands without a process for each: many can be tried in a second."""

from dataclasses import dataclass

import click
from click.testing import CliRunner

from kpx.cli import cli
from kpx.errors import InputError, KpxError


@dataclass(frozen=True, slots=True)
class Done:
    """What a command printed, what it complained of, and its exit status."""

    stdout: str
    complaint: str
    status: int


def run(*arguments: str, stdin: bytes = b"") -> Done:
    """Run `kpx ARGUMENTS`. What isn't meant for users to see, such as a traceback, is raised."""
    result = CliRunner().invoke(cli, arguments, input=stdin, standalone_mode=False)
    match result.exception:
        case None:
            return Done(result.stdout, result.stderr, 0)
        case SystemExit(code=code):
            return Done(result.stdout, result.stderr, int(code or 0))
        case InputError() as error:
            return Done(result.stdout, "\n".join(map(str, error.problems)), 2)
        case KpxError() | click.ClickException() as error:
            return Done(result.stdout, str(error.message if isinstance(error, click.ClickException) else error), 2)
        case other:
            raise other
