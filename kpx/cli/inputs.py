"""What most commands share: their options, reading objects and configuration, compiling, complaining."""

import socket
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from kpx.api import KubeProxyConfiguration, Object, parse_config
from kpx.cli.nodes import unknown_node
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.errors import InputError, KpxError, Problem
from kpx.family import Family
from kpx.model.balance import misread
from kpx.netfilter.backend import detect
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.tools import Backend, Tools
from kpx.sources import manifests

log = structlog.get_logger()
Command = TypeVar("Command", bound=Callable[..., Any])

FAMILIES = {"ipv4": (Family.IPV4,), "ipv6": (Family.IPV6,), "dual": tuple(Family)}

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


@dataclass(frozen=True, slots=True)
class Inputs:
    """The objects that passed validation, the problems of those that didn't, and for whom to compile."""

    objects: tuple[Object, ...]
    problems: tuple[Problem, ...]
    config: KubeProxyConfiguration
    node_name: str
    layout: Layout
    keep_going: bool

    def compile(
        self, families: Iterable[Family], tcp_be_liberal: bool = False, nfacct: Container[Family] = ()
    ) -> "Compiled":
        """Compile for each family; `nfacct` are those whose rules count packets for kube-proxy's metrics.

        Raises InputError if any object is unsound, unless told to keep going."""
        conflicts: list[Problem] = []
        rulesets: dict[Family, Ruleset] = {}
        for family in families:
            target = Target(self.node_name, family, self.layout, tcp_be_liberal, family in nfacct)
            rulesets[family], problems = compile_sound(self.objects, self.config, target)
            conflicts += problems
        return Compiled(rulesets, complete=self.complain(conflicts))

    def complain(self, conflicts: Iterable[Problem]) -> bool:
        """Say what is wrong with objects, alone or with each other; returns whether nothing is.

        Raises InputError instead, unless told to keep going.
        """
        problems = {str(problem): problem for problem in (*self.problems, *conflicts)}
        if problems and not self.keep_going:
            raise InputError(problems.values())
        for text in problems:
            log.error(text)
        return not problems


@dataclass(frozen=True, slots=True)
class Compiled:
    """Rulesets by family; `complete` if no object had to be left out."""

    rulesets: Mapping[Family, Ruleset]
    complete: bool

    def exit_if_incomplete(self) -> None:
        """End with status 2 if objects were left out."""
        if not self.complete:
            raise SystemExit(2)


def read_inputs(
    files: tuple[str, ...], node: str | None, config_file: str | None, layout: str, keep_going: bool
) -> Inputs:
    """Read what the options of `object_options` name. Problems of single objects are kept, not raised."""
    config = read_config(config_file)
    loaded = manifests.load(files, sys.stdin.buffer)
    if loaded.skipped:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(loaded.skipped.items()))
        log.info(f"skipped objects of other kinds: {counts}")
    for problem in (problem for one in loaded.objects for problem in misread(one)):
        log.warning(str(problem))
    name = node_name(node, config)
    if not (node or config.hostname_override) and (warning := unknown_node(loaded.objects, name)):
        log.warning(warning)
    return Inputs(loaded.objects, loaded.problems, config, name, Layout(layout), keep_going)


def node_name(node: str | None, config: KubeProxyConfiguration) -> str:
    """This node's name: as told, else hostnameOverride, else the host's name in lower case."""
    return node or config.hostname_override or socket.gethostname().lower()


def read_config(config_file: str | None) -> KubeProxyConfiguration:
    """The configuration, with a warning for every field that means nothing to kpx."""
    if config_file is None:
        return KubeProxyConfiguration()
    try:
        data = Path(config_file).read_bytes()
    except OSError as error:
        raise KpxError(f"{config_file}: {error.strerror}") from error
    config, warnings = parse_config(data)
    for warning in warnings:
        log.warning(warning)
    return config


def tools_for(family: Family, backend: str) -> Tools:
    """The iptables of `family`, of the backend that was asked for or is in use."""
    return Tools(detect() if backend == "auto" else Backend(backend), family)
