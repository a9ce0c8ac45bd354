"""Objects compiled by hand, step by step, so that a test can choose what `compile` has fixed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import kpx
from kpx.api import Object, parse_object
from kpx.compiler import classic, tree
from kpx.compiler.choice import Choose, Grouped, linear
from kpx.compiler.dispatch import Thresholds
from kpx.compiler.fragment import Fragment, compile_port
from kpx.compiler.prefix_tree import Shape
from kpx.compiler.settings import Settings, settings_for
from kpx.family import Family
from kpx.model.cluster import cluster_of
from kpx.model.node import node_view
from kpx.model.policy import select
from kpx.netfilter.ruleset import Ruleset
from tests.compiler.clusters import Manifest

LOW = Thresholds(linear=2, shape=Shape(leaf=2, crowd=3, inline=1, height=4))
"""Trees from a handful of Services on."""

FEW = Grouped(limit=2, inline=1, depth=2, listed=3)
"""Groups from a handful of endpoints on."""


@dataclass(frozen=True, slots=True)
class Input:
    """Parsed objects with a configuration, for one family."""

    objects: tuple[Object, ...]
    config: kpx.KubeProxyConfiguration
    family: Family
    node_name: str = "node-0"

    @classmethod
    def of(cls, manifests: Iterable[Manifest], config: Manifest, family: Family) -> "Input":
        objects = tuple(parse_object(one["kind"], one) for one in manifests)
        return cls(objects, kpx.parse_config(json.dumps(config).encode())[0], family)

    @property
    def settings(self) -> Settings:
        return self._settings()

    def _settings(self, direct: bool = False) -> Settings:
        node = next((one for one in self.objects if isinstance(one, kpx.api.Node)), None)
        comments = not cluster_of(self.objects, self.family, self.node_name).is_large
        return settings_for(self.config, node_view(self.node_name, self.family, node), comments, direct=direct)

    def fragments(self, choose: Choose = linear, direct: bool = False) -> list[Fragment]:
        cluster = cluster_of(self.objects, self.family, self.node_name)
        settings = self._settings(direct)
        return [
            compile_port(port, select(cluster.endpoints.get(name, ()), port, settings.node), settings, choose)
            for name, port in cluster.ports.items()
        ]

    def classic(self) -> Ruleset:
        return classic.join(self.fragments(), self.settings)

    def tree(self, thresholds: Thresholds = LOW, choose: Choose = FEW) -> Ruleset:
        return tree.join(self.fragments(choose), self.settings, thresholds)

    def compact(self, thresholds: Thresholds = LOW, choose: Choose = FEW) -> Ruleset:
        return tree.join(self.fragments(choose, direct=True), self._settings(direct=True), thresholds)
