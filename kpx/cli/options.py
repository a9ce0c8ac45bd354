"""The options that commands share. Imports nothing but click: see `kpx.cli.commands`."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import click

from kpx.compiler.layout import Layout
from kpx.family import Family
from kpx.netfilter.backends import Backend

Command = TypeVar("Command", bound=Callable[..., Any])

FAMILIES = {"ipv4": (Family.IPV4,), "ipv6": (Family.IPV6,), "dual": tuple(Family)}


def calls(module: str) -> Callable[[Callable[[], None]], Callable[..., None]]:
    """Make of a description a command that calls the function `command` of this module with what the options say."""

    def decorate(described: Callable[[], None]) -> Callable[..., None]:
        @wraps(described)
        def call(**values: Any) -> None:
            _use_no_plugins()
            import_module(module).command(**values)

        return call

    return decorate


def _use_no_plugins() -> None:
    """Keep pydantic from looking through all packages for plugins: it takes a tenth of `kpx render` to find none.

    Who uses kpx as a library keeps theirs.
    """
    loader = ModuleType("pydantic.plugin._loader")
    vars(loader)["get_plugins"] = lambda: ()
    sys.modules.setdefault(loader.__name__, loader)


files_option = click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="PATH",
    help="Manifests: a file, a directory (recursive) or - for standard input. May be repeated.",
)
family_option = click.option(
    "--family", type=click.Choice(list(FAMILIES)), default="ipv4", show_default=True, help="IP family."
)
backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", *(one.value for one in Backend)]),
    default="auto",
    show_default=True,
    help="Which iptables; auto finds the one that this host uses.",
)

layout_option = click.option(
    "--layout",
    type=click.Choice([one.value for one in Layout]),
    default=Layout.TREE.value,
    show_default=True,
    help="Search trees where chains would be long, or always lists, as kube-proxy has them. The verdicts are the same.",
)
node_option = click.option("--node", metavar="NAME", help="This node's name [default: hostnameOverride or hostname].")
config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False),
    help="KubeProxyConfiguration, the file of a kube-proxy DaemonSet.",
)


nfacct_option = click.option(
    "--nfacct/--no-nfacct",
    default=None,
    help="Rules that count packets for kube-proxy's metrics, as kube-proxy has them where the kernel has nfacct.",
)


def object_options(command: Command) -> Command:
    """The options of every command that compiles objects."""
    return layout_option(object_options_but_layout(command))


def object_options_but_layout(command: Command) -> Command:
    """The same for a command that knows better which layout is wanted."""
    for option in reversed(
        (
            files_option,
            node_option,
            config_option,
            family_option,
            click.option(
                "--keep-going",
                is_flag=True,
                help="Leave broken objects out instead of stopping; still exit 2.",
            ),
        )
    ):
        command = option(command)
    return command


def _addresses(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        return ()
    from kpx.analysis.notation import unscoped

    try:
        return tuple(unscoped(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_RULE_OPTIONS = (
    click.option(
        "--rules", metavar="FILE", help="The rules that iptables-save wrote to this file (- for standard input)."
    ),
    click.option(
        "--live", is_flag=True, help="The rules in the kernel; the default without -f and --rules. Needs root."
    ),
    backend_option,
    click.option(
        "-f",
        "--file",
        "files",
        multiple=True,
        metavar="PATH",
        help="Manifests: a file, a directory (recursive) or - for standard input. May be repeated.",
    ),
    node_option,
    config_option,
    layout_option,
    click.option("--keep-going", is_flag=True, help="Leave broken objects out instead of stopping."),
    click.option(
        "--node-address",
        "node_addresses",
        multiple=True,
        metavar="ADDRESS",
        callback=_addresses,
        help="An address of the node, where neither the kernel nor a Node object tells. May be repeated.",
    ),
)


def rule_options(command: Command) -> Command:
    """The options that name rules: what `kpx.cli.rules.with_rules` makes a RuleSource of."""
    decorated: Any = command
    for option in reversed(_RULE_OPTIONS):
        decorated = option(decorated)
    result: Command = decorated
    return result


def json_options(module: str, words: str = "Print JSON") -> Callable[[Command], Command]:
    """The options `--json`, the argument `as_json` of the command, and `--schema`, which prints the schema of that.

    Its shape is what the module has as `SHAPE`: any type that pydantic knows; a union if what is printed depends on
    what is asked.
    """

    def print_schema(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            from pydantic import TypeAdapter

            shape = import_module(module).SHAPE
            click.echo(json.dumps(TypeAdapter(shape).json_schema(mode="serialization"), indent=2))
            ctx.exit()

    def decorate(command: Command) -> Command:
        for option in (
            click.option(
                "--schema",
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=print_schema,
                help="Print the JSON schema of what --json prints, and end.",
            ),
            click.option("--json", "as_json", is_flag=True, help=f"{words}; --schema tells its shape."),
        ):
            command = option(command)
        return command

    return decorate
