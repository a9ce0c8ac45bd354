"""The command `kpx`. One file per command; this one joins them and turns errors into exit statuses."""

import errno
import gc
import io
import logging
import os
import sys
from importlib import import_module
from inspect import cleandoc

import click
import structlog

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
    """Commands that are imported when they are called, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"kpx.cli.{cmd_name}").command
        command.short_help = COMMANDS[cmd_name]
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
    logs.configure(json=log_format == "json", level=logging.DEBUG if verbose else logging.INFO)


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Why results can't be written; a pipe that nobody reads any more is click's business."""


def main() -> None:
    """Run the command line; the entry point of the package."""
    # A command builds one large tree of objects and ends: looking for garbage in it finds none and takes time.
    gc.disable()
    _open_streams()
    logs.configure()
    try:
        cli(standalone_mode=False)
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
            structlog.get_logger().error(problem)
        sys.exit(2)
    except KpxError as error:
        structlog.get_logger().error(str(error))
        sys.exit(2)
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left over is not to be tried again at the end
        structlog.get_logger().error(f"standard output: {error.strerror}")
        sys.exit(2)
    except MemoryError:
        structlog.get_logger().error("not enough memory")
        sys.exit(2)


def _open_streams() -> None:
    """See to it that there are standard streams, and that standard output takes any text, whatever its encoding."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed when kpx was started
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
