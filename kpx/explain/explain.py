"""The answer to a question about a Service, an address, a node port, a pod or a chain, from objects and rules."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address

from kpx import api
from kpx.analysis.notation import parse_place, parse_port
from kpx.analysis.packet import Origin
from kpx.compiler import names
from kpx.errors import KpxError
from kpx.explain import causes, deviations
from kpx.explain.report import EndpointReport, Explanation, Finding, ServicePortReport
from kpx.explain.ways import Sender, Way, senders, way_report
from kpx.explain.world import World
from kpx.family import Family, host_port
from kpx.model.balance import Balance
from kpx.model.endpoint import port_names, takes_over
from kpx.model.rights import claims_of
from kpx.model.service import ServicePort, ServicePortName
from kpx.printable import excerpt
from kpx.reconcile.report import FRAME

CHAIN = re.compile(r"(?:KUBE|KPX)-[A-Z0-9-]+")

_KINDS = {
    "spec.clusterIP": "cluster IP",
    "spec.externalIPs": "external IP",
    "status.loadBalancer.ingress": "load balancer IP",
    "spec.ports.nodePort": "node port",
}


@dataclass(frozen=True, slots=True)
class _Subject:
    """What was asked about: some service ports, or a Service that has none; of one family, or of all."""

    about: str
    ports: frozenset[ServicePortName] = frozenset()
    services: frozenset[tuple[str, str]] = frozenset()
    family: Family | None = None


def explain(asked: str, worlds: Sequence[World], rules: str) -> Explanation:
    """Everything about what was asked, in every family of `worlds`. Raises KpxError if there is no such thing."""
    subject = _find(asked, worlds)
    findings: dict[Finding, None] = {}
    ports: list[ServicePortReport] = []
    for world in (one for one in worlds if subject.family in (one.family, None)):
        services = {(one.metadata.namespace, one.metadata.name): one for one in world.services()}
        for key in sorted(subject.services):
            some = causes.of_service(world, services[key]) if key in services else causes.broken_service(world, *key)
            findings |= dict.fromkeys(some)
        known = (world.cluster.ports[name] for name in sorted(subject.ports) if name in world.cluster.ports)
        ports += [_port(world, services[one.name.namespace, one.name.name], one) for one in known]
        if subject.ports:
            findings |= dict.fromkeys(deviations.of_rules(world, FRAME))
    return Explanation(
        asked=asked,
        about=subject.about,
        rules=rules,
        node=worlds[0].node_name,
        findings=list(findings),
        ports=ports,
    )


# ---- what is meant ----


def _find(asked: str, worlds: Sequence[World]) -> _Subject:
    if CHAIN.fullmatch(asked):
        found = _by_chain(asked, worlds)
    elif "/" in asked:
        found = _by_name(asked, worlds)
    elif (port := parse_port(asked)) is not None:
        found = _by_node_port(port, worlds)
    else:
        found = _by_address(asked, worlds)
    if found is None:
        raise KpxError(f"nothing here is called {excerpt(asked)}{_like(asked, worlds)}")
    return found


def _like(asked: str, worlds: Sequence[World]) -> str:
    every = {f"{one.metadata.namespace}/{one.metadata.name}" for world in worlds for one in world.services()}
    near = get_close_matches(asked, sorted(every), 3, 0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _subject(about: str, ports: Iterable[ServicePortName], family: Family | None = None) -> _Subject:
    every = frozenset(ports)
    return _Subject(about, every, frozenset((one.namespace, one.name) for one in every), family)


def _by_name(asked: str, worlds: Sequence[World]) -> _Subject | None:
    name, _, port = asked.partition(":")
    namespace, _, own = name.partition("/")
    ports = {
        one
        for world in worlds
        for one in world.cluster.ports
        if (one.namespace, one.name) == (namespace, own) and port in ("", one.port)
    }
    if ports:
        return _subject(f"Service {name}", ports)
    exists = any(
        (one.metadata.namespace, one.metadata.name) == (namespace, own) for w in worlds for one in w.services()
    )
    broken = any(problem.subject == f"Service {name}" for world in worlds for problem in world.broken)
    if not (exists or broken) or (exists and port):
        return None
    return _Subject(f"Service {name}", services=frozenset({(namespace, own)}))


def _by_node_port(number: int, worlds: Sequence[World]) -> _Subject | None:
    ports = {one.name: one for world in worlds for one in world.cluster.ports.values()}
    of_service = frozenset(name for name, one in ports.items() if one.node_port == number)
    if of_service:
        return _subject(f"node port {number} of {_list(of_service)}", of_service)
    of_check = frozenset(name for name, one in ports.items() if one.health_check_node_port == number)
    if of_check:
        return _subject(f"health check node port {number} of {_list(of_check)}", of_check)
    return None


def _by_address(asked: str, worlds: Sequence[World]) -> _Subject | None:
    try:
        address, port = parse_place(asked)
    except KpxError:
        raise KpxError(f"'{excerpt(asked)}' is no namespace/name, address, node port or chain") from None
    claimed: dict[ServicePortName, str] = {}
    behind: set[ServicePortName] = set()
    for world in worlds:
        for name, one in world.cluster.ports.items():
            for field, (_, of_claim, number) in claims_of(one):
                if of_claim == address and port in (None, number):
                    claimed.setdefault(name, _KINDS[field])
            places = world.cluster.endpoints.get(name, ())
            if any(place.address == address and port in (None, place.port) for place in places):
                behind.add(name)
    if claimed:
        kinds = " and ".join(sorted(set(claimed.values())))
        return _subject(f"{kinds} {asked} of {_list(claimed)}", claimed, Family.of(address))
    if behind:
        return _subject(f"{asked}: an endpoint of {_list(behind)}", behind, Family.of(address))
    node_ports = {one.name for w in worlds for one in w.cluster.ports.values() if one.node_port}
    if port is None and any(address in world.prepared.settings.node.addresses for world in worlds):
        return _subject(
            f"{asked}: an address of {worlds[0].node_name}, where node ports are open", frozenset(node_ports)
        )
    return None


def _by_chain(asked: str, worlds: Sequence[World]) -> _Subject | None:
    kinds = {
        "SVC": "all endpoints that this node may use of",
        "SVL": "the endpoints on this node of",
        "EXT": "what comes from outside for",
        "FW": "the source ranges of",
    }
    for world in worlds:
        for name in world.cluster.ports:
            digest = names.port_hash(name)
            for kind, what in kinds.items():
                if asked == f"KUBE-{kind}-{digest}":
                    return _subject(f"chain {asked}: {what} {name}", {name})
            if asked.startswith("KPX-") and f"-{digest}-" in asked:
                return _subject(f"chain {asked}: a group of endpoints of {name}", {name})
            for place in world.cluster.endpoints.get(name, ()):
                if asked == names.endpoint_chain(name, str(place)):
                    return _subject(f"chain {asked}: endpoint {place} of {name}", {name}, world.family)
    for world in worlds:
        for table, chains in world.simulator.tables.items():
            if asked in chains:
                return _Subject(f"chain {asked}: {len(chains[asked])} rules in table {table}, no single Service's")
    return None


def _list(ports: Iterable[ServicePortName]) -> str:
    every = sorted(map(str, ports))
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")


# ---- one service port in one family ----


def _port(world: World, service: api.Service, port: ServicePort) -> ServicePortReport:
    served = world.prepared.cluster.ports.get(port.name)
    ways = tuple(_ways(world, served)) if served else ()
    who = _senders(world, port)
    findings = [*causes.of_port(world, service, port), *deviations.of_rules(world, str(port.name))]
    findings += deviations.of_packets(world, ways, (*who, *_to_itself(world, port)))
    digest = names.port_hash(port.name)
    chains = [f"KUBE-{kind}-{digest}" for kind in names.KINDS]
    reports = [way_report(world.simulator, way, who) for way in ways]
    met = {out.destination for way in reports for use in way.uses for out in use.outcomes}
    return ServicePortReport(
        name=str(port.name),
        family=world.family,
        protocol=port.protocol,
        chains=[chain for chain in chains if chain in world.ruleset.tables["nat"].chains],
        affinity_seconds=port.affinity_seconds,
        affinity_scope=port.balancing.scope,
        balance=port.balancing.balance,
        local_weight=port.balancing.local_weight,
        source_ranges=tuple(dict.fromkeys(port.source_ranges)),
        ways=reports,
        endpoints=[_as_met(world, port, one, met) for one in _endpoints(world, port)],
        findings=findings,
    )


def _as_met(world: World, port: ServicePort, one: EndpointReport, met: Collection[str]) -> EndpointReport:
    """An endpoint as the rules have it that are there: where none of the packets gets to it, it takes no part."""
    by_source = port.balancing.balance == Balance.SOURCE_HASH  # these packets have few sources: others go elsewhere
    if world.actual is None or not one.takes_part or one.address in met or by_source or one.weight == 0:
        return one
    return one.model_copy(update={"takes_part": False, "why_not": "should take part; none of these packets gets there"})


def _ways(world: World, port: ServicePort) -> Iterator[Way]:
    settings = world.prepared.settings
    external = "Local" if port.external_local else "Cluster"
    for field, (protocol, address, number) in claims_of(port):
        policy = ("Local" if port.internal_local else "Cluster") if field == "spec.clusterIP" else external
        if address:
            yield Way(_KINDS[field], address, number, protocol, policy)
        elif settings.node_port_addresses != ():
            open_on = settings.node_port_addresses or (settings.node.address,)
            address = next((one for one in open_on if not ip_address(one).is_loopback), "")
            if address:
                yield Way(_KINDS[field], address, number, protocol, policy)


def _senders(world: World, port: ServicePort) -> tuple[Sender, ...]:
    settings = world.prepared.settings
    addresses = [one.address for one in world.endpoints(port.name)]
    ranges = tuple(dict.fromkeys(port.source_ranges)) if port.load_balancer_ips else ()
    return senders(world.family, settings.local_pods, settings.node.address, addresses, ranges)


def _to_itself(world: World, port: ServicePort) -> Iterator[Sender]:
    """Endpoints on this node, which may be sent to themselves and have to be masqueraded then."""
    local_pods = world.prepared.settings.local_pods
    interface = local_pods.removeprefix("-i ").replace("+", "0") if local_pods.startswith("-i ") else None
    for one in world.selection(port).reachable:
        if one.local:
            yield Sender(f"endpoint {one.address}", Origin.POD, one.address, interface)
            return


def _endpoints(world: World, port: ServicePort) -> Iterator[EndpointReport]:
    selection = world.selection(port)
    out = causes.not_used(world, port)
    sources = _sources(world, port)
    for one in world.endpoints(port.name):
        yield _endpoint(str(one), sources.get(str(one)), one in selection.reachable, out.get(one, ""), one.weight)
    known = {one.address for one in world.endpoints(port.name)}
    slices = world.slices_of((port.name.namespace, port.name.name))
    others = {one.addresses[0]: one for part in slices for one in part.endpoints if one.addresses[0] not in known}
    for address, why in causes.strangers(world, port).items():
        if address in others:
            yield _endpoint(address, others[address], False, why)


def _sources(world: World, port: ServicePort) -> Mapping[str, api.Endpoint]:
    """What the endpoints of a service port were read from, by address and port: as `merge_slices` chooses."""
    service = (port.name.namespace, port.name.name)
    found: dict[str, api.Endpoint] = {}
    for part in sorted(filter(world.is_of_family, world.slices_of(service)), key=lambda one: one.metadata.name):
        for number in (number for name, number in port_names(part, service) if name == port.name):
            for one in part.endpoints:
                place = host_port(one.addresses[0], number)
                if takes_over(one.conditions.terminating is True, place in found):
                    found[place] = one
    return found


def _endpoint(
    address: str, source: api.Endpoint | None, takes_part: bool, why_not: str, weight: int | None = None
) -> EndpointReport:
    return EndpointReport(
        address=address,
        pod=source.target_ref.name if source and source.target_ref else "",
        node=source.node_name or "" if source else "",
        takes_part=takes_part,
        why_not=why_not,
        weight=weight,
    )
