"""One family's desired rules, kept up to date Service by Service. Pure.

Rules aren't kept: what they are made of takes a tenth of the memory, and a service port is compiled in a fraction of a
millisecond. So a change is compiled twice, from what was known before and from what is known now. Only dispatch trees,
which all Services share, stand in memory.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kpx.agent.digest import digest, minus, plus
from kpx.agent.inputs import NO_INPUTS, Inputs, every_port, first_of, in_turn, nearer, only, step, todo_of, weight
from kpx.agent.steady import Steady
from kpx.agent.store import Ports, ServiceKey, Store
from kpx.api import KubeProxyConfiguration
from kpx.compiler.classic import Clashes
from kpx.compiler.compile import Target, compile_fragment, join, target_settings
from kpx.compiler.fragment import Fragment
from kpx.compiler.frame import nat_chains
from kpx.compiler.settings import Settings
from kpx.compiler.tree import Change, Forest
from kpx.model.claims import NO_SHIFT, Claims, Shift
from kpx.model.cluster import LARGE_CLUSTER_ENDPOINTS
from kpx.model.endpoint import Endpoints, count_endpoints, merge_slices
from kpx.model.policy import Selection, select
from kpx.model.rights import API_SERVER, Claim, Loss, api_server_claims
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.ruleset import Rules, Ruleset
from kpx.reconcile.edit import Edit
from kpx.reconcile.update import linear_dispatch_edits, own_chain_edits, tree_dispatch_edits

Policy = Literal["internal", "external"]
Fragments = Mapping[ServicePortName, Fragment]

STEP = 200
"""Rules, more or less: so much of a Service with many ports is changed in one go."""
ENDPOINTS = 100
"""So many endpoints of a Service, more or less, change in one go: each is some twenty lines for the tool."""
LARGE, KEPT = 500, 4
"""The rules of Services with more chains than `LARGE` are kept after all: of the last `KEPT` that changed."""


@dataclass(frozen=True, slots=True)
class Served:
    """A service port, its endpoints, and those that this node uses."""

    port: ServicePort
    endpoints: Endpoints
    selection: Selection


class Desired:
    """Everything one family's kernel should hold.

    It begins with a load of everything: `begin`, then `prepare` and, when that is done for all Services, `load`, in
    as many steps as the caller likes, then `loaded`. From then on `refresh` recompiles only what a change touches.
    `settings` are what all service ports were compiled with; when they change, everything has to be loaded anew.
    `counting` tells whether rules may count for kube-proxy's metrics now.
    """

    def __init__(
        self,
        store: Store,
        config: KubeProxyConfiguration,
        target: Target,
        counting: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.config, self.target = store, config, target
        self._counting = counting
        self._clock, self._comments = clock, Steady()
        self._gone: dict[ServicePort, None] = {}
        self._inputs: dict[ServiceKey, Inputs] = {}
        self._udp_before: dict[ServicePort, None] = {}
        self._losers: dict[ServiceKey, ServiceKey] = {}
        self._new_losers: dict[ServiceKey, ServiceKey] = {}
        self.begin()

    # -- everything ------------------------------------------------------------------------------------

    def begin(self) -> frozenset[ServiceKey]:
        """Forget everything; returns the Services to prepare and load."""
        self.is_loaded = False
        self._udp_before |= dict.fromkeys(port for one in self._inputs.values() for port in _udp(one.ports))
        self.service_ports = 0
        self.without_local: dict[Policy, set[ServicePortName]] = {"internal": set(), "external": set()}
        self._inputs = {}
        self._kept: dict[ServiceKey, tuple[Inputs, Fragments]] = {}
        self._endpoint_total = 0
        self.digest = 0
        self.order_counts = False
        self.settings = self._settings(comments=True)
        self._claims = Claims(self.settings.node_port_places)
        self._claimed: dict[ServiceKey, Ports] = {}
        self._put(API_SERVER)
        self._forest, self._clashes = Forest(self.settings), Clashes()
        return self.store.keys()

    def prepare(self, keys: Iterable[ServiceKey]) -> None:
        """The first pass of a load: who claims what, and how many endpoints there are."""
        for key in keys:
            ports = self.store.ports(key, self.target.family)
            if ports:
                self._inputs[key] = inputs = Inputs(ports, self.store.slices(key))
                self._put(key)
                self._endpoint_total += self._count(inputs)

    def prepared(self) -> list[ServiceKey]:
        """End the first pass; returns the Services to load, in the order of their names."""
        before, self._losers = self._losers, dict(self._claims.losers())
        self._new_losers |= {key: one for key, one in self._losers.items() if before.get(key) != one}
        for key in self._losers:
            inputs = self._inputs.pop(key)
            left = inputs._replace(ports=self._claims.kept(key, inputs.ports))
            if left.ports:
                self._inputs[key] = left
            self._endpoint_total += self._count(left) - self._count(inputs)
        self.settings = self._settings(self._comments.settle(self._want_comments(), self._clock()))
        self._forest, self._clashes = Forest(self.settings), Clashes()
        return sorted(self._inputs)

    def load(self, keys: Iterable[ServiceKey]) -> Iterator[Fragment]:
        """The second pass: compile these Services."""
        for key in keys:
            for fragment in self._compile(self._inputs[key], note=True).values():
                if not self.target.layout.has_trees:
                    self._clashes.update(None, fragment)
                else:
                    self._forest.add(fragment)
                self.digest = plus(self.digest, digest(fragment.chains.items()))
                self.service_ports += 1
                yield fragment

    def loaded(self) -> None:
        """End the second pass."""
        before, self._udp_before = self._udp_before, {}
        now = {port for one in self._inputs.values() for port in _udp(one.ports)} if before else set()
        self._gone |= dict.fromkeys(port for port in before if port not in now)
        self.is_loaded = True

    def load_all(self) -> None:
        """All of a load in one go."""
        self.prepare(self.begin())
        for _ in self.load(self.prepared()):
            pass
        self.loaded()

    def services(self) -> list[ServiceKey]:
        """Every Service that has rules, in no order."""
        return list(self._inputs)

    def fragments(self, keys: Iterable[ServiceKey]) -> Iterator[Fragment]:
        """The service ports of these Services, compiled as they are in force."""
        for key in keys:
            if key in self._inputs:
                yield from self._compile(self._inputs[key]).values()

    def frame(self) -> Mapping[str, Rules]:
        """The chains of the nat table that service ports' own chains jump to."""
        return nat_chains(self.settings)

    def shared(self, fragments: Iterable[Fragment]) -> Ruleset:
        """The chains that don't belong to single service ports, and the jumps to them; `fragments` are all there are.

        A layout with trees needs none: its dispatch trees are kept.
        """
        if self.target.layout.has_trees:
            return self._forest.ruleset({})
        entries = (Fragment(one.name, {}, one.entries) for one in sorted(fragments, key=lambda one: one.name))
        return join(entries, self.settings, self.target.layout)

    @property
    def keeps_entries(self) -> bool:
        """Whether `shared` needs no fragments."""
        return self.target.layout.has_trees

    def ruleset(self) -> Ruleset:
        """The whole ruleset."""
        if self.target.layout.has_trees:
            own: dict[str, Rules] = {}
            for one in self.fragments(sorted(self._inputs)):
                own.update(one.chains)
            return self._forest.ruleset(own)
        return join(self.fragments(sorted(self._inputs)), self.settings, self.target.layout)

    def settings_changed(self) -> bool:
        """Whether everything has to be loaded anew."""
        settings = self._settings(self._comments.settle(self._want_comments(), self._clock()))
        return settings != self.settings or frozenset(settings.node_port_places) != self._claims.node_addresses

    def settings_due(self) -> float | None:
        """Seconds until the settings will have changed although nothing else does; None if they won't."""
        return self._comments.due(self._want_comments(), self._clock())

    def weight(self, key: ServiceKey) -> int:
        """How many rules a Service has, more or less: what it had, or will have, whichever is more."""
        inputs = Inputs(self.store.ports(key, self.target.family), self.store.slices(key))
        return max(map(weight, (self._inputs.get(key, NO_INPUTS), inputs)))

    # -- changes ---------------------------------------------------------------------------------------

    def refresh(self, touched: Iterable[ServiceKey]) -> tuple[Edit, ...]:
        """Recompile these Services, and those that win or lose an address by it; returns the edits."""
        return self.edits(self.recompile(touched))

    def recompile(self, touched: Iterable[ServiceKey]) -> list[Change]:
        """The first half of `refresh`. What several calls return may go into one call of `edits`."""
        return [change for key in self._with_rivals(touched) for change in self._recompile(key, None)]

    def recompile_step(self, touched: Iterable[ServiceKey]) -> tuple[list[Change], frozenset[ServiceKey]]:
        """The same, but large Services not all at once; also returns those with which to go on."""
        changes: list[Change] = []
        keys = self._with_rivals(touched)
        for key in keys:
            changes += self._recompile(key, STEP)
        return changes, frozenset(key for key in keys if self._unfinished(key))

    def edits(self, changes: Iterable[Change]) -> tuple[Edit, ...]:
        """The second half of `refresh`: what `changes` mean for the kernel.

        Afterwards `order_counts` tells whether that is not enough, and the whole ruleset has to be compared: in layout
        `classic`, edits of dispatch chains don't put rules where they belong.
        """
        merged = _merged(changes)
        return tuple(filter(None, (*own_chain_edits(merged, self.target.family), *self._dispatch_edits(merged))))

    def _dispatch_edits(self, changes: list[Change]) -> Iterable[Edit]:
        if not self.target.layout.has_trees:
            clashes = [self._clashes.update(*change) for change in changes]
            self.order_counts = any(clashes)
            return linear_dispatch_edits(changes)
        return tree_dispatch_edits(self._forest.update(changes), self.target.family)

    def take_gone(self) -> tuple[ServicePort, ...]:
        """UDP service ports as they were before they vanished or changed, since this was last asked."""
        gone, self._gone = tuple(self._gone), {}
        return gone

    def take_new_losers(self) -> Mapping[ServiceKey, ServiceKey]:
        """What is new of `losers` since this was last asked."""
        new, self._new_losers = self._new_losers, {}
        return new

    # -- questions -------------------------------------------------------------------------------------

    def losers(self) -> Mapping[ServiceKey, ServiceKey]:
        """Services that go without an address or a node port because another one has it; and which."""
        return self._losers

    def losses(self, key: ServiceKey) -> Iterator[Loss]:
        """What a Service goes without."""
        return self._claims.losses(key)

    def holders(self, claims: Iterable[Claim]) -> frozenset[ServiceKey]:
        """The Services that have any of these."""
        return frozenset(filter(None, map(self._claims.holder, claims)))

    def inputs(self, key: ServiceKey) -> Inputs:
        """What a Service that is in force was compiled from."""
        return self._inputs.get(key, NO_INPUTS)

    def ports(self, key: ServiceKey) -> Ports:
        """The service ports of a Service that are in force."""
        return tuple(port for part in self.inputs(key).parts() for port in part.ports)

    def served(self, key: ServiceKey) -> Iterator[Served]:
        """What is in force for a Service."""
        if key in self._inputs:
            yield from self._served(self._inputs[key])

    # -- one Service -----------------------------------------------------------------------------------

    def _with_rivals(self, touched: Iterable[ServiceKey]) -> frozenset[ServiceKey]:
        """These Services, and those that win or lose something by what they claim now."""
        keys = frozenset(touched)
        shifts = [self._put(key) for key in keys]
        rivals = frozenset[ServiceKey]().union(*(one.changed for one in shifts))
        for key in keys.union(rivals, *(one.beaten_by_another for one in shifts)):
            self._note_loser(key)
        return keys.union(key for key in rivals if self._kept_ports(key) != self.ports(key))

    def _kept_ports(self, key: ServiceKey) -> Ports:
        return self._claims.kept(key, self.store.ports(key, self.target.family))

    def _put(self, key: ServiceKey) -> Shift:
        """Say what a Service claims now; where its ports are the very same, as when endpoints change, that is known."""
        ports = self.store.ports(key, self.target.family)
        if self._claimed.get(key) is ports and key != API_SERVER:
            return NO_SHIFT
        if ports:
            self._claimed[key] = ports
        else:
            self._claimed.pop(key, None)
        held = api_server_claims(self._merged_slices(key)) if key == API_SERVER else frozenset()
        return self._claims.put(key, ports, held)

    def _merged_slices(self, key: ServiceKey) -> Mapping[ServicePortName, Endpoints]:
        return merge_slices(self.store.slices(key), self.target.family)

    def _note_loser(self, key: ServiceKey) -> None:
        winner = self._claims.beaten_by(key)
        if winner is None:
            self._losers.pop(key, None)
            self._new_losers.pop(key, None)
        elif self._losers.get(key) != winner:
            self._losers[key] = self._new_losers[key] = winner

    def _recompile(self, key: ServiceKey, room: int | None) -> list[Change]:
        """Bring a Service up to date, or, if there is only `room` for so many rules, some of its ports and slices."""
        before = self._inputs.pop(key, NO_INPUTS)
        ports = self._claims.kept(key, self.store.ports(key, self.target.family))
        last = self.store.slices(key)
        wanted = Inputs(ports, last if room is None else nearer(before.slices, last, ENDPOINTS))
        todo = todo_of(before, wanted)
        names = todo if room is None else frozenset(first_of(in_turn(todo, before), before, wanted, room))
        now = wanted if names == todo and wanted.slices is last else step(before, wanted, todo, names)
        if now.ports or now.rest:
            self._inputs[key] = now
        self._endpoint_total += self._count(now) - self._count(before)
        self.service_ports += len(list(every_port(now))) - len(list(every_port(before)))
        self._note_gone(before, now)
        for port in every_port(before):
            if port.name in names:
                self._note_local(port, Selection())
        old, new = self._in_force(key, before, names), self._compile(only(wanted, names), note=True)
        self._keep(key, now, new)
        for one in old.values():
            self.digest = minus(self.digest, digest(one.chains.items()))
        for one in new.values():
            self.digest = plus(self.digest, digest(one.chains.items()))
        return [(old.get(name), new.get(name)) for name in dict.fromkeys((*old, *new))]

    def _unfinished(self, key: ServiceKey) -> bool:
        """Whether a Service isn't in force as it should be."""
        return self.inputs(key).rest is not None

    def _in_force(self, key: ServiceKey, inputs: Inputs, names: Collection[ServicePortName]) -> Fragments:
        """What these ports of a Service were compiled to from these inputs."""
        kept = self._kept.get(key)
        if kept and kept[0] is inputs:
            return {name: one for name, one in kept[1].items() if name in names}
        return {name: one for part in inputs.parts() for name, one in self._compile(only(part, names)).items()}

    def _keep(self, key: ServiceKey, inputs: Inputs, fragments: Fragments) -> None:
        """Keep the rules of a large Service that changes: the next change is twice as fast."""
        self._kept.pop(key, None)
        if sum(len(one.chains) for one in fragments.values()) > LARGE:
            self._kept[key] = inputs, fragments
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]

    def _compile(self, inputs: Inputs, note: bool = False) -> Fragments:
        """The fragments of a Service; `note` if they come into force now."""
        fragments: dict[ServicePortName, Fragment] = {}
        for one in self._served(inputs):
            fragments[one.port.name] = compile_fragment(one.port, one.selection, self.settings, self.target.layout)
            if note:
                self._note_local(one.port, one.selection)
        return fragments

    def _served(self, inputs: Inputs) -> Iterator[Served]:
        for part in inputs.parts():
            endpoints = merge_slices(part.slices, self.target.family) if part.ports else {}
            for port in sorted(part.ports, key=lambda one: one.name):
                of_port = endpoints.get(port.name, ())
                yield Served(port, of_port, select(of_port, port, self.settings.node))

    def _count(self, inputs: Inputs) -> int:
        family = self.target.family
        return sum(count_endpoints(part.slices, port.name, family) for part in inputs.parts() for port in part.ports)

    def _note_gone(self, before: Inputs, now: Inputs) -> None:
        if before.ports is not now.ports:
            kept = frozenset(every_port(now))
            self._gone |= dict.fromkeys(port for port in _udp(every_port(before)) if port not in kept)

    def _note_local(self, port: ServicePort, selection: Selection) -> None:
        starved = selection.anywhere and not selection.local
        for policy, names in self.without_local.items():
            if starved and (port.internal_local if policy == "internal" else port.external_local):
                names.add(port.name)
            else:
                names.discard(port.name)

    def _settings(self, comments: bool) -> Settings:
        target = replace(self.target, nfacct=self.target.nfacct or self._counting())
        return target_settings(self.config, target, self.store.node, comments)

    def _want_comments(self) -> bool:
        return self._endpoint_total <= LARGE_CLUSTER_ENDPOINTS


def _udp(ports: Iterable[ServicePort]) -> Iterator[ServicePort]:
    return (port for port in ports if port.protocol == "udp")


def _merged(changes: Iterable[Change]) -> list[Change]:
    """One change for each service port: from what it was at first to what it is in the end."""
    merged: dict[ServicePortName, Change] = {}
    for before, after in changes:
        one = after or before
        if one is not None:
            merged[one.name] = (merged[one.name][0] if one.name in merged else before), after
    return list(merged.values())
