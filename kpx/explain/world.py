"""What is known when a question is asked: a cluster's objects, the rules they ask for, and the rules that are there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kpx import api
from kpx.analysis.packet import Host
from kpx.analysis.simulate import Simulator, tables_of
from kpx.compiler.compile import Layout, Prepared, Target, compile_cluster, prepare
from kpx.errors import Problem
from kpx.family import Family
from kpx.model.claims import Claims
from kpx.model.cluster import Cluster, claims_in, cluster_of
from kpx.model.endpoint import Endpoints, is_of, service_of
from kpx.model.policy import Selection, select
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.comments import commented_alike
from kpx.netfilter.counting import uncounted
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.save import Saved
from kpx.reconcile.owners import owners_of
from kpx.reconcile.plan import make_plan
from kpx.reconcile.report import Difference, differences


@dataclass(frozen=True)
class World:
    """One family's view. `actual` are the rules that are there and `saved` what they were read from.

    Without these, what the objects compile to stands for them. `broken` says what was wrong with objects that aren't
    among `objects`.
    """

    objects: tuple[api.Object, ...]
    config: api.KubeProxyConfiguration
    node_name: str
    family: Family
    layout: Layout = Layout.CLASSIC
    host: Host | None = None
    actual: Simulator | None = None
    saved: Saved | None = None
    broken: tuple[Problem, ...] = ()

    @cached_property
    def prepared(self) -> Prepared:
        """The Services that have rules, and the settings."""
        return prepare(self.objects, self.config, Target(self.node_name, self.family, self.layout))

    @cached_property
    def cluster(self) -> Cluster:
        """All Services, those whose addresses are taken too."""
        return cluster_of(self.objects, self.family, self.node_name)

    @cached_property
    def claims(self) -> Claims:
        """Who has which address and node port, and who goes without."""
        return claims_in(self.cluster, self.prepared.settings.node_port_places)

    @cached_property
    def ruleset(self) -> Ruleset:
        """The rules that the objects ask for."""
        return compile_cluster(self.prepared.cluster, self.prepared.settings, self.layout)

    @cached_property
    def desired(self) -> Simulator:
        """The way of packets through them."""
        return Simulator(tables_of(self.ruleset), self.family, self.host or Host(self.prepared.settings.node.addresses))

    @cached_property
    def simulator(self) -> Simulator:
        """The way of packets through the rules that are there."""
        return self.actual or self.desired

    @cached_property
    def differences(self) -> Mapping[str, Sequence[Difference]]:
        """What the rules that are there should be otherwise, by service port."""
        if self.saved is None:
            return {}
        there = commented_alike(uncounted(self.saved), self.ruleset)
        return differences(make_plan(self.ruleset, there).edits, owners_of(self.ruleset, there))

    @cached_property
    def node(self) -> api.Node | None:
        """This node's object."""
        return next((one for one in self.nodes() if one.metadata.name == self.node_name), None)

    def endpoints(self, name: ServicePortName) -> Endpoints:
        """All endpoints of a service port, those that don't take part too."""
        return self.cluster.endpoints.get(name, ())

    def selection(self, port: ServicePort) -> Selection:
        """Those that take part."""
        return select(self.endpoints(port.name), port, self.prepared.settings.node)

    def services(self) -> Iterator[api.Service]:
        """All Services."""
        return (one for one in self.objects if isinstance(one, api.Service))

    def nodes(self) -> Iterator[api.Node]:
        """All Nodes."""
        return (one for one in self.objects if isinstance(one, api.Node))

    def slices(self) -> Iterator[api.EndpointSlice]:
        """All EndpointSlices."""
        return (one for one in self.objects if isinstance(one, api.EndpointSlice))

    def slices_of(self, service: tuple[str, str]) -> tuple[api.EndpointSlice, ...]:
        """The EndpointSlices of a Service, of both families."""
        return tuple(one for one in self.slices() if service_of(one) == service)

    def is_of_family(self, endpoint_slice: api.EndpointSlice) -> bool:
        """Whether this family's rules concern a slice."""
        return is_of(endpoint_slice, self.family)
