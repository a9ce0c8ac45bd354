"""What rules tell of a Service where nothing else is known: read from comments, destinations and DNAT targets."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address

from kpx.analysis.notation import parse_place, parse_port
from kpx.analysis.packet import Origin, is_address
from kpx.analysis.simulate import Simulator
from kpx.errors import KpxError
from kpx.explain.report import EndpointReport, Explanation, Finding, ServicePortReport
from kpx.explain.served import Served, places_in, services
from kpx.explain.stopped import of_stops
from kpx.explain.ways import Sender, Way, senders, way_report
from kpx.model.balance import Balance
from kpx.netfilter.names import ours
from kpx.netfilter.owners import chain_owners, is_own_chain
from kpx.netfilter.rule import target_of
from kpx.printable import excerpt

_PODS = re.compile(r"(?:-d \S+ )?! (-[si] \S+) (?:-d|-p) ")
_SECONDS = re.compile(r"--rcheck --seconds ([0-9]{1,10})")
_RANGE = re.compile(r"-s (\S+) ")
_SIGNS = {Balance.ROUND_ROBIN: "--mode nth", Balance.SOURCE_HASH: "-m bpf"}
"""What tells from the rules of a chain how they balance."""


def explain_rules(asked: str, simulators: Sequence[Simulator], rules: str) -> Explanation:
    """What the rules tell of a Service, an address, a node port, an endpoint or a chain. Raises KpxError."""
    ports: list[ServicePortReport] = []
    findings: dict[Finding, None] = {}
    about = ""
    for simulator in simulators:
        every = services(simulator)
        words, some = _matching(asked, every, simulator)
        about = about or words
        ports += [_report(simulator, one, _pod(one, every.values())) for one in some]
        if words:
            findings |= dict.fromkeys(_jumps(simulator))
    if not about:
        unread = "; ".join(dict.fromkeys(why for one in simulators for why in one.unread.values()))
        raise KpxError(f"these rules tell nothing of {excerpt(asked)}{f' ({unread})' if unread else ''}")
    return Explanation(asked=asked, about=about, rules=rules, node="", findings=list(findings), ports=ports)


def trials(simulator: Simulator, most: int) -> Iterator[tuple[Way, Sender]]:
    """Ways to Services that have endpoints, each with everybody who may use it; of so many service ports at most."""
    every = services(simulator).values()
    served = [one for one in every if one.endpoints]
    for one in served[:most]:
        who = _senders(simulator, one, *_sources(one), _pod(one, every))
        for (address, port), kind in one.ways.items():
            if address:
                yield from ((Way(kind, address, port, one.protocol), sender) for sender in who)


# ---- what is meant ----


def _matching(
    asked: str, every: Mapping[tuple[str, str], Served], simulator: Simulator
) -> tuple[str, Sequence[Served]]:
    """What was asked about, in words, and the service ports concerned; no words if there is nothing."""
    if any(asked in chains for chains in simulator.tables.values()):
        return _chain(asked, every, simulator)
    if "/" in asked:
        some = [one for one in every.values() if asked in (one.name, one.name.partition(":")[0])]
        return (f"Service {asked}" if some else ""), some
    if (port := parse_port(asked)) is not None:
        some = [one for one in every.values() if ("", port) in one.ways]
        return (f"node port {port} of {_names(some)}" if some else ""), some
    try:
        address, number = parse_place(asked)
    except KpxError:
        raise KpxError(f"'{excerpt(asked)}' is no namespace/name, address, node port or chain") from None
    some = [one for one in every.values() if any(a == address and number in (None, p) for a, p in one.ways)]
    if some:
        return f"{asked}: an address of {_names(some)}", some
    places = [one for one in every.values() if any(_is_at(to, address, number) for to in one.endpoints)]
    return (f"{asked}: an endpoint of {_names(places)}" if places else ""), places


def _is_at(place: str, address: str, port: int | None) -> bool:
    try:
        found, number = parse_place(place)
    except KpxError:
        return False
    return found == address and port in (None, number)


def _chain(asked: str, every: Mapping[tuple[str, str], Served], simulator: Simulator) -> tuple[str, Sequence[Served]]:
    some = [one for one in every.values() if asked in one.chains]
    tables = [table for table, chains in simulator.tables.items() if asked in chains]
    if not some:
        owner = next((chain_owners(simulator.tables[table]).get(asked) for table in tables), None)
        counts = {table: len(simulator.tables[table][asked]) for table in tables}
        sizes = ", ".join(f"{n} rule{'' if n == 1 else 's'} in table {table}" for table, n in counts.items())
        if not is_own_chain(asked) and not owner:
            return f"chain {asked}: {sizes}; it isn't one Service's alone (`kpx graph` shows where it stands)", ()
        return f"chain {asked}{f' of {owner}' if owner else ''}: {sizes}; no Service's packets are led there", ()
    places = sorted(set(places_in(some[0].chains[asked])))
    what = f": endpoint{'s' if len(places) > 1 else ''} {', '.join(places)}" if places else ""
    return f"chain {asked} of {_names(some)}{excerpt(what) if len(places) > 1 else what}", some


def _names(some: Iterable[Served]) -> str:
    every = sorted({one.name for one in some})
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")


# ---- telling ----


def _report(simulator: Simulator, one: Served, pod: str) -> ServicePortReport:
    """All that is told of a service port; `pod` is the address of one that isn't among its endpoints."""
    rules = [rule for chain in one.chains.values() for rule in chain]
    pods, ranges = _sources(one)
    seconds = max((int(match[1]) for rule in rules if (match := _SECONDS.search(rule))), default=0)
    who = _senders(simulator, one, pods, ranges, pod)
    open_on = _node_port_address(simulator)
    ways = [
        Way(kind, address or open_on or "", port, one.protocol)
        for (address, port), kind in one.ways.items()
        if address or open_on is not None
    ]
    places = one.endpoints or None
    told = [way for way in ways if way.address]
    reports = [way_report(simulator, way, who, places) for way in told]
    balance = next((mode for mode, sign in _SIGNS.items() if any(sign in rule for rule in rules)), "random")
    met = {out.destination for way in reports for use in way.uses for out in use.outcomes}
    if balance == Balance.SOURCE_HASH:  # these packets have few sources: others go elsewhere
        met |= one.endpoints
    return ServicePortReport(
        name=one.name,
        family=simulator.family,
        protocol=one.protocol,
        chains=sorted(name for name in one.chains if "-SEP-" not in name),
        affinity_seconds=seconds,
        affinity_scope="service" if any("--name KPX-POD-" in rule for rule in rules) else "port",
        balance=balance,
        local_weight=0,
        source_ranges=ranges,
        ways=reports,
        endpoints=[
            EndpointReport(
                address=place,
                pod="",
                node="",
                takes_part=place in met,
                why_not="" if place in met else "none of these packets gets there",
                weight=None,
            )
            for place in sorted(one.endpoints)
        ],
        findings=[*_findings(one, ways, simulator), *_stopped(simulator, one, told, (*who, *_itself(one, pods)))],
    )


def _stopped(simulator: Simulator, one: Served, ways: Sequence[Way], who: Sequence[Sender]) -> Iterator[Finding]:
    """What keeps packets from endpoints; that nothing leads to any is no fault where there are none."""
    without = bool(one.refusals) and not one.endpoints
    found = of_stops(simulator, ways, who, one.endpoints or None)
    yield from (finding for finding in found if not (without and finding.code == "not-led"))


def _sources(one: Served) -> tuple[str, Sequence[str]]:
    """What tells pods, as a rule asks for them, and the source ranges of a load balancer."""
    rules = [rule for chain in one.chains.values() for rule in chain]
    ranges = [m[1] for name, some in one.chains.items() if "-FW-" in name for rule in some if (m := _RANGE.match(rule))]
    return next((match[1] for rule in (*rules, *one.marks) if (match := _PODS.match(rule))), ""), ranges


_OPEN = re.compile(r"(?:-d (\S+)/(?:32|128) )?.*-j KUBE-NODEPORTS$")


def _node_port_address(simulator: Simulator) -> str | None:
    """An address on which node ports are open; empty if the node's aren't known, None if they are open on none."""
    rules = simulator.tables.get("nat", {}).get("KUBE-SERVICES", ())
    jumps = [found[1] or "" for rule in rules if (found := _OPEN.match(rule))]
    if not jumps:
        return None
    if "" in jumps:
        return _own(simulator)
    return next((one for one in jumps if not ip_address(one).is_loopback), None)


def _own(simulator: Simulator) -> str:
    """An address of the host, if one is known."""
    return next(iter(simulator.host.addresses(simulator.family)), "")


def _senders(simulator: Simulator, one: Served, pods: str, ranges: Sequence[str], pod: str) -> tuple[Sender, ...]:
    found = senders(simulator.family, pods, _own(simulator), _addresses(one), ranges)
    # Where no rule tells pods by their addresses, another Service's endpoint is one.
    own = simulator.host.addresses(simulator.family)
    return found if pods or not pod or pod in own else (Sender("pods", Origin.POD, pod), *found)


def _itself(one: Served, pods: str) -> Iterator[Sender]:
    """An endpoint, which may be sent to itself and has to be masqueraded then."""
    interface = pods.removeprefix("-i ").replace("+", "0") if pods.startswith("-i ") else None
    for address in _addresses(one)[:1]:
        yield Sender(f"endpoint {address} itself", Origin.POD, address, interface)


def _addresses(one: Served) -> Sequence[str]:
    """The addresses of its endpoints; broken rules may translate to what is none."""
    found = dict.fromkeys(place.rpartition(":")[0].strip("[]") for place in sorted(one.endpoints))
    return [address for address in found if is_address(address)]


def _pod(one: Served, every: Iterable[Served]) -> str:
    """The address of a pod that is no endpoint of a Service: one of the cluster's DNS, if there is one; empty if none.

    The API server's endpoints are nodes.
    """
    others = [other for other in every if other.name.partition(":")[0] not in ("default/kubernetes", one.name)]
    others.sort(key=lambda other: "dns" not in other.name)
    taken = set(_addresses(one))
    return next((address for other in others for address in _addresses(other) if address not in taken), "")


def _findings(one: Served, ways: Sequence[Way], simulator: Simulator) -> Iterator[Finding]:
    if one.refusals and not one.endpoints:
        yield Finding(
            code="none-ready",
            what=f"No endpoint is in use. The rules refuse its packets: {'; '.join(sorted(set(one.refusals)))}.",
            advice="With manifests (-f) it can be told why.",
        )
    elif refused := [text for text in one.refusals if "no local endpoints" in text]:
        yield Finding(
            code="no-local-endpoint",
            what=f"No endpoint runs on this node, and the policy is Local: {'; '.join(sorted(set(refused)))}.",
            advice="Run a pod on this node, send clients to nodes that have one, or set the policy to Cluster.",
        )
    if any(not way.address for way in ways):
        yield Finding(
            code="unknown-host",
            what="The node's addresses aren't known: endpoints are taken to be elsewhere, and what becomes of packets "
            "to its node port isn't told.",
            advice="Give the node's addresses by --node-address.",
        )
    jumps = any(_OPEN.match(rule) for rule in simulator.tables.get("nat", {}).get("KUBE-SERVICES", ()))
    if _node_port_address(simulator) is None and any(not address for address, _ in one.ways) and one.endpoints:
        yield Finding(
            code="node-port-closed",
            what="Its node port is open on no address but loopback's: no rule of KUBE-SERVICES leads to KUBE-NODEPORTS "
            "from elsewhere. Either nodePortAddresses names no other address of this node, or that rule was lost.",
            advice="Put a range into nodePortAddresses in which this node has an address; then have the proxy write "
            "its rules (`kpx apply`).",
            wrong=not jumps,
        )
    own = set(simulator.host.addresses(simulator.family))
    for way in ways:
        if way.address in own and way.kind in ("external IP", "load balancer IP"):
            yield Finding(
                code="own-address",
                what=f"The {way.kind} {way.address} is an address of this node itself: whoever connects to its port "
                f"{way.port} gets to this Service, and not to what listens there.",
                advice="If that isn't meant, take it out of the Service; a node port opens a port of every node."
                if way.kind == "external IP"
                else "So do load balancers that run on the nodes (k3s' servicelb, for instance).",
                wrong=way.kind == "external IP",
            )
    missing = {target for rules in one.chains.values() for rule in rules if (target := target_of(rule))}
    gone = sorted(t for t in missing if ours(t) and t not in simulator.tables.get("nat", {}))
    if gone:
        yield Finding(
            code="missing-chain",
            what=f"Its rules lead to chains that aren't there: {', '.join(gone)}.",
            advice="Somebody has removed them; the proxy has to write its rules again.",
        )


def _jumps(simulator: Simulator) -> Iterator[Finding]:
    """The built-in chains that should lead to Services and don't."""
    nat = simulator.tables.get("nat", {})
    for hook in ("PREROUTING", "OUTPUT") if "nat" not in simulator.unread else ():
        if not any(target_of(rule) == "KUBE-SERVICES" for rule in nat.get(hook, ())):
            yield Finding(
                code="not-connected",
                what=f"nat {hook} has no rule that leads to KUBE-SERVICES: no Service is reachable "
                f"{'from the node itself' if hook == 'OUTPUT' else 'from pods and from outside'}.",
                advice="The proxy has to write its rules again.",
            )
