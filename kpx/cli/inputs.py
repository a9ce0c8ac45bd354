"""What most commands share: their options, reading objects and configuration, compiling, complaining."""

import socket
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kpx import logs
from kpx.api import KubeProxyConfiguration, Object, parse_config
from kpx.cli.nodes import unknown_node
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.errors import InputError, KpxError, Problem
from kpx.family import Family
from kpx.model.balance import misread
from kpx.netfilter.backends import Backend
from kpx.netfilter.ruleset import Ruleset
from kpx.sources import manifests

if TYPE_CHECKING:
    from kpx.netfilter.tools import Tools

log = logs.get_logger()


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


def tools_for(family: Family, backend: str) -> "Tools":
    """The iptables of `family`, of the backend that was asked for or is in use."""
    from kpx.netfilter.backend import detect  # not to be imported by who only compiles
    from kpx.netfilter.tools import Tools

    return Tools(detect() if backend == "auto" else Backend(backend), family)
