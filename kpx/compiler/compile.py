"""The whole compiler: objects and a configuration in, a ruleset out. Pure, and the same for any input order."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from kpx import api
from kpx.compiler import choice, classic, rounds, tree
from kpx.compiler.fragment import Fragment, compile_port
from kpx.compiler.layout import Layout as Layout
from kpx.compiler.settings import Settings, settings_for
from kpx.errors import InputError, Problem
from kpx.family import Family
from kpx.model.balance import Balance
from kpx.model.cluster import Cluster, cluster_of, without_conflicts
from kpx.model.node import node_view
from kpx.model.policy import Selection, select
from kpx.model.service import ServicePort
from kpx.netfilter.ruleset import Ruleset

_CHOOSE: dict[bool, choice.Choose] = {False: choice.linear, True: tree.choose}
_JOIN: dict[bool, Callable[[Iterable[Fragment], Settings], Ruleset]] = {False: classic.join, True: tree.join}


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to compile for: which node (by name; its Node object may be among the objects), family and layout.

    `tcp_be_liberal` tells what the host has in `nf_conntrack_tcp_be_liberal`, where that is known; `nfacct` whether its
    kernel takes rules that count for kube-proxy's metrics.
    """

    node_name: str
    family: Family = Family.IPV4
    layout: Layout = Layout.TREE
    tcp_be_liberal: bool = False
    nfacct: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is compiled: the Services that don't claim what is taken, and the settings; `problems` names the others."""

    cluster: Cluster
    settings: Settings
    problems: tuple[Problem, ...]


def prepare(objects: Iterable[api.Object], config: api.KubeProxyConfiguration, target: Target) -> Prepared:
    """Sort out what a target needs to know of objects and configuration."""
    every = tuple(objects)
    node = next((one for one in every if isinstance(one, api.Node) and one.metadata.name == target.node_name), None)
    settings = target_settings(config, target, node, comments=True)
    everything = cluster_of(every, target.family, target.node_name)
    cluster, problems = without_conflicts(everything, settings.node_port_places)
    return Prepared(cluster, replace(settings, comments=not cluster.is_large), problems)


def target_settings(
    config: api.KubeProxyConfiguration, target: Target, node: api.Node | None, comments: bool
) -> Settings:
    """The settings that `config` means for a target, whose Node object `node` is."""
    liberal = target.tcp_be_liberal or config.conntrack.tcp_be_liberal
    view = node_view(target.node_name, target.family, node, config.bind_address, liberal)
    return settings_for(config, view, comments, target.nfacct, direct=target.layout is Layout.COMPACT)


def compile_sound(
    objects: Iterable[api.Object], config: api.KubeProxyConfiguration, target: Target
) -> tuple[Ruleset, tuple[Problem, ...]]:
    """Compile all Services but for what others have already (`without_conflicts`); say what that is."""
    prepared = prepare(objects, config, target)
    return compile_cluster(prepared.cluster, prepared.settings, target.layout), prepared.problems


def compile_objects(objects: Iterable[api.Object], config: api.KubeProxyConfiguration, target: Target) -> Ruleset:
    """Compile objects into what `target`'s kernel should hold.

    Raises InputError if two Services claim the same address and port or node port.
    """
    ruleset, problems = compile_sound(objects, config, target)
    if problems:
        raise InputError(problems)
    return ruleset


def compile_cluster(cluster: Cluster, settings: Settings, layout: Layout = Layout.TREE) -> Ruleset:
    """Compile all service ports of `cluster` and join them by `layout`."""
    return join(_fragments(cluster, settings, layout), settings, layout)


def join(fragments: Iterable[Fragment], settings: Settings, layout: Layout) -> Ruleset:
    """Join fragments, sorted by the names of their service ports, into a ruleset."""
    return _JOIN[layout.has_trees](fragments, settings)


def compile_fragment(port: ServicePort, selection: Selection, settings: Settings, layout: Layout) -> Fragment:
    """Compile one service port alone, as `layout` wants it; `settings` are `target_settings` of that layout."""
    return compile_port(port, selection, settings, _choose(port.balancing.balance, settings.family, layout))


def _choose(balance: Balance, family: Family, layout: Layout) -> choice.Choose:
    match balance:
        case Balance.ROUND_ROBIN:
            return rounds.in_turn
        case Balance.SOURCE_HASH:
            return choice.hashed(family)
        case _:
            return _CHOOSE[layout.has_trees]


def _fragments(cluster: Cluster, settings: Settings, layout: Layout) -> Iterator[Fragment]:
    for name, port in cluster.ports.items():
        selection = select(cluster.endpoints.get(name, ()), port, settings.node)
        yield compile_fragment(port, selection, settings, layout)
