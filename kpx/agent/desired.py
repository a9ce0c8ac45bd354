"""One family's desired rules, kept up to date Service by Service. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kpx.agent.store import ServiceKey, Store
from kpx.api import KubeProxyConfiguration
from kpx.compiler.compile import Layout, Target, compile_fragment, join
from kpx.compiler.fragment import Fragment
from kpx.compiler.settings import Settings, settings_for
from kpx.compiler.tree import Change, Forest
from kpx.model.claims import Claims
from kpx.model.cluster import LARGE_CLUSTER_ENDPOINTS
from kpx.model.endpoint import Endpoints
from kpx.model.node import node_view
from kpx.model.policy import Selection, select
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.ruleset import Ruleset
from kpx.reconcile.edit import Edit
from kpx.reconcile.update import linear_dispatch_edits, own_chain_edits, tree_dispatch_edits

Policy = Literal["internal", "external"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A service port as it was compiled last."""

    port: ServicePort
    endpoints: Endpoints
    selection: Selection
    fragment: Fragment


class Desired:
    """Everything one family's kernel should hold.

    `refresh` recompiles only what a change touches. `settings` are what all service ports were compiled with; when
    they change, all have to be compiled anew.
    """

    def __init__(self, store: Store, config: KubeProxyConfiguration, target: Target) -> None:
        self.store, self.config, self.target = store, config, target
        self.compiled: dict[ServicePortName, Compiled] = {}
        self._names: dict[ServiceKey, tuple[ServicePortName, ...]] = {}
        self._claims = Claims()
        self._endpoints: dict[ServiceKey, int] = {}
        self.without_local: dict[Policy, set[ServicePortName]] = {"internal": set(), "external": set()}
        self._endpoint_total = 0
        self._gone: list[ServicePort] = []
        self.settings = self._settings()
        self._forest = Forest(self.settings)

    def refresh(self, touched: Iterable[ServiceKey]) -> tuple[Edit, ...]:
        """Recompile these Services, and those that win or lose an address by it; returns the edits."""
        return self.edits(self.recompile(touched))

    def recompile(self, touched: Iterable[ServiceKey]) -> list[Change]:
        """The first half of `refresh`. What several calls return may go into one call of `edits`."""
        return [change for key in self._with_rivals(touched) for change in self._recompile(key)]

    def edits(self, changes: Iterable[Change]) -> tuple[Edit, ...]:
        """The second half of `refresh`: what `changes` mean for the kernel."""
        merged = _merged(changes)
        return tuple(filter(None, (*own_chain_edits(merged, self.target.family), *self._dispatch_edits(merged))))

    def settings_changed(self) -> bool:
        """Whether all Services have to be compiled anew; takes over the new settings."""
        now = self._settings()
        changed = now != self.settings
        if changed:
            self.settings = now
            # Edits from old fragments to new ones would be of no use: the whole ruleset is compared with the kernel.
            self.compiled.clear()
            self._forest = Forest(now)
        return changed

    def _dispatch_edits(self, changes: list[Change]) -> Iterable[Edit]:
        if self.target.layout is Layout.CLASSIC:
            return linear_dispatch_edits(changes)
        return tree_dispatch_edits(self._forest.update(changes), self.target.family)

    def ruleset(self) -> Ruleset:
        """The whole ruleset."""
        fragments = (self.compiled[name].fragment for name in sorted(self.compiled))
        if self.target.layout is Layout.CLASSIC:
            return join(fragments, self.settings, self.target.layout)
        return self._forest.ruleset({chain: rules for one in fragments for chain, rules in one.chains.items()})

    def take_gone(self) -> tuple[ServicePort, ...]:
        """Service ports as they were before they vanished or changed, since this was last asked."""
        gone, self._gone = tuple(self._gone), []
        return gone

    def keep_gone(self, gone: Iterable[ServicePort]) -> None:
        """Keep for the next time what `take_gone` gave."""
        self._gone += gone

    def losers(self) -> frozenset[ServiceKey]:
        """Services without rules because another one has their address or node port."""
        return frozenset(key for key in self._names if self._claims.loses(key))

    def of_service(self, key: ServiceKey) -> tuple[Compiled, ...]:
        """What is compiled for a Service."""
        return tuple(self.compiled[name] for name in self._names.get(key, ()) if name in self.compiled)

    def _with_rivals(self, touched: Iterable[ServiceKey]) -> frozenset[ServiceKey]:
        keys = frozenset(touched)
        rivals: set[ServiceKey] = set()
        for key in keys:
            rivals |= self._claims.set(key, self.store.ports(key, self.target.family))
        return keys | rivals

    def _recompile(self, key: ServiceKey) -> list[Change]:
        endpoints = self.store.endpoints(key, self.target.family)
        ports = {port.name: port for port in self.store.ports(key, self.target.family)}
        if self._claims.loses(key):
            ports = {}
        self._count_endpoints(key, sum(len(endpoints.get(name, ())) for name in ports))
        before = self._names.pop(key, ())
        if ports or key in self.store.services:
            self._names[key] = tuple(ports)
        changes: list[Change] = []
        for name in dict.fromkeys((*before, *ports)):
            old = self.compiled.pop(name, None)
            new = self._compile(ports[name], endpoints.get(name, ())) if name in ports else None
            if new is not None:
                self.compiled[name] = new
            self._note_local(name, new)
            if old is not None and (new is None or old.port != new.port):
                self._gone.append(old.port)
            changes.append((old.fragment if old else None, new.fragment if new else None))
        return changes

    def _compile(self, port: ServicePort, endpoints: Endpoints) -> Compiled:
        selection = select(endpoints, port, self.settings.node)
        fragment = compile_fragment(port, selection, self.settings, self.target.layout)
        return Compiled(port, endpoints, selection, fragment)

    def _note_local(self, name: ServicePortName, compiled: Compiled | None) -> None:
        starved = compiled is not None and compiled.selection.anywhere and not compiled.selection.local
        for policy, names in self.without_local.items():
            if (
                compiled
                and starved
                and (compiled.port.internal_local if policy == "internal" else compiled.port.external_local)
            ):
                names.add(name)
            else:
                names.discard(name)

    def _count_endpoints(self, key: ServiceKey, count: int) -> None:
        self._endpoint_total += count - self._endpoints.pop(key, 0)
        if count:
            self._endpoints[key] = count

    def _settings(self) -> Settings:
        view = node_view(
            self.target.node_name,
            self.target.family,
            self.store.node,
            self.config.bind_address,
            self.target.tcp_be_liberal or self.config.conntrack.tcp_be_liberal,
        )
        return settings_for(self.config, view, comments=self._endpoint_total <= LARGE_CLUSTER_ENDPOINTS)


def _merged(changes: Iterable[Change]) -> list[Change]:
    """One change for each service port: from what it was at first to what it is in the end."""
    merged: dict[ServicePortName, Change] = {}
    for before, after in changes:
        one = after or before
        if one is not None:
            merged[one.name] = (merged[one.name][0] if one.name in merged else before), after
    return list(merged.values())
