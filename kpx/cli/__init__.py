"""The command `kpx`. One file per command; this one joins them and turns errors into exit statuses."""

import errno
import gc
import io
import os
import sys
from importlib import import_module
from inspect import cleandoc

import click

from kpx import logs
from kpx.errors import InputError, KpxError
from kpx.printable import printable
from kpx.version import __version__

COMMANDS = {
    "apply": "Bring the kernel's rules up to date with manifests.",
    "cleanup": "Remove every rule and chain of ours, and nothing else.",
    "diff": "Compare the kernel, or a dump, with what manifests ask for.",
    "explain": "Tell what is up with a Service, an address, a node port, a pod or a chain.",
    "doctor": "Look whether this node is fit for kpx.",
    "graph": "Draw rules: SVG, DOT, Mermaid, or a page to search and click in.",
    "render": "Compile manifests to rules.",
    "trace": "Follow a packet through rules: every step, every outcome.",
    "top": "Count new connections per Service and endpoint, live.",
    "run": "Keep this node's rules equal to the cluster's Services.",
    "verify": "Check rules, or prove that two rulesets do the same.",
}


class _Commands(click.Group):
    """Commands that are imported when they are called, so that each starts at once.

    To list them, or to complete a word, their names and one line of each will do.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return click.Command(cmd_name, short_help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        return name, _declared(name) if name and found else None, rest


def _declared(name: str) -> click.Command:
    """A command with its options and its help."""
    command: click.Command = import_module(f"kpx.cli.commands.{name}").command
    command.short_help = COMMANDS[name]
    text, mark, example = cleandoc(command.help or "").partition("\b\nExample:")
    if mark:  # the last thing that help shows, below the options
        command.help, command.epilog = text.rstrip(), mark + example
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kpx")
@click.option("--log-format", type=click.Choice(["console", "json"]), default="console", show_default=True)
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
def cli(log_format: str, verbose: bool) -> None:
    """Kubernetes Services as iptables rules: compiled, reconciled, questionable.

    Exit status: 0 done (diff: same), 1 differs or a check failed, 2 bad input or environment.

    \b
    Example:
      kpx render -f manifests/ --node node-0 --config config.yaml
    """
    logs.configure(json=log_format == "json", level=logs.DEBUG if verbose else logs.INFO)


log = logs.get_logger()

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Why results can't be written; a pipe that nobody reads any more is click's business."""


def main() -> None:
    """Run the command line; the entry point of the package."""
    # A command builds one large tree of objects and ends: looking for garbage in it finds none and takes time.
    gc.disable()
    _open_streams()
    logs.configure()
    try:
        cli(prog_name="kpx", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        click.echo("\n".join(map(printable, text.getvalue().splitlines())), err=True)
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except InputError as error:
        for problem in dict.fromkeys(map(str, error.problems)):
            log.error(problem)
        sys.exit(2)
    except KpxError as error:
        log.error(str(error))
        sys.exit(2)
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left over is not to be tried again at the end
        log.error(f"standard output: {error.strerror}")
        sys.exit(2)
    except MemoryError as error:
        error.with_traceback(None)  # it holds on to all that was in memory
        log.error("not enough memory")
        sys.exit(2)


def _open_streams() -> None:
    """See to it that there are standard streams, and that standard output takes any text, whatever its encoding."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed when kpx was started
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
