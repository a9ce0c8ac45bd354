"""What is wrong with a Service, in words, and what to do: each function looks for one kind of cause."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from kpx import api
from kpx.api.selection import PROXY_NAME_LABEL, is_headless, is_left_to_another
from kpx.explain.report import Finding
from kpx.explain.world import World
from kpx.family import Family
from kpx.model.balance import misread
from kpx.model.endpoint import SERVICE_NAME_LABEL, Endpoint, Endpoints, port_names
from kpx.model.node import ZONE_LABEL
from kpx.model.policy import Exclusion, Topology, exclusions, topology
from kpx.model.rights import EXTERNAL, Loss, Right, claims_of
from kpx.model.service import ServicePort, ServicePortName

# ---- a Service as a whole ----


def of_service(world: World, service: api.Service) -> Iterator[Finding]:
    """What concerns all ports of a Service."""
    yield from _not_proxied(service)
    yield from _misread(world, service)
    yield from _broken_objects(world, service.metadata.namespace, service.metadata.name)
    yield from _load_balancer(service)


def _not_proxied(service: api.Service) -> Iterator[Finding]:
    name, spec, labels = _name(service), service.spec, service.metadata.labels
    if spec.type == "ExternalName":
        yield Finding(
            code="external-name",
            what=f"{name} is of type ExternalName: a name in DNS, for which no node has rules.",
            advice="If it should have an address and endpoints, choose another type.",
        )
    elif is_headless(service):
        yield Finding(
            code="headless",
            what=f"{name} is headless (has clusterIP None): clients get the pods' addresses from DNS, no node has "
            "rules for it.",
            advice="If it should have an address of its own, create it anew without that.",
        )
    elif is_left_to_another(labels):
        yield Finding(
            code="other-proxy",
            what=f"{name} is left to the proxy {labels[PROXY_NAME_LABEL]!r} by its label {PROXY_NAME_LABEL}.",
            advice="Remove the label, or see that the other proxy runs.",
        )


def _misread(world: World, service: api.Service) -> Iterator[Finding]:
    slices = world.slices_of((service.metadata.namespace, service.metadata.name))
    objects: tuple[api.Object, ...] = (service, *slices)
    for problem in (problem for one in objects for problem in misread(one)):
        yield Finding(code="annotation", what=f"{problem}.", advice="Correct the annotation.")


def _broken_objects(world: World, namespace: str, name: str) -> Iterator[Finding]:
    for problem in world.broken:
        kind, _, subject = problem.subject.partition(" ")
        mine = subject == f"{namespace}/{name}" if kind == "Service" else subject.startswith(f"{namespace}/{name}-")
        if mine and kind in ("Service", "EndpointSlice"):
            yield Finding(
                code="broken-object",
                what=f"{problem}. The object is left out.",
                advice="Correct the field.",
            )


def broken_service(world: World, namespace: str, name: str) -> tuple[Finding, ...]:
    """What is wrong with a Service that couldn't be read at all."""
    return tuple(_broken_objects(world, namespace, name))


def _load_balancer(service: api.Service) -> Iterator[Finding]:
    if service.spec.type != "LoadBalancer":
        return
    ingress = service.status.load_balancer.ingress
    if not ingress:
        yield Finding(
            code="no-load-balancer",
            what=f"{_name(service)} is of type LoadBalancer, but nobody has given it an address "
            "(status.loadBalancer.ingress is empty).",
            advice="See what the load balancer's controller (cloud-controller-manager, MetalLB, …) says about it: "
            f"kubectl describe service -n {service.metadata.namespace} {service.metadata.name}",
        )
    elif all(one.ip_mode == "Proxy" or not one.ip for one in ingress):
        yield Finding(
            code="load-balancer-proxies",
            what="The load balancer's addresses have no rules here: it is known by a host name, or has ipMode Proxy. "
            "What it passes on comes in by the node port.",
            advice="",
        )


def _name(service: api.Service) -> str:
    return f"{service.metadata.namespace}/{service.metadata.name}"


# ---- one port of it ----


def of_port(world: World, service: api.Service, port: ServicePort) -> Iterator[Finding]:
    """What concerns one port in one family."""
    yield from _taken(world, port)
    endpoints = world.endpoints(port.name)
    if endpoints:
        yield from _none_usable(world, port, endpoints)
        yield from _none_local(world, port, endpoints)
        yield from _hints(world, port, endpoints)
    else:
        yield from _no_endpoints(world, service, port)
    yield from _node_port(world, port)
    yield from _source_ranges(world, service, port)
    yield from _undone_ranges(port)
    yield from _own_addresses(world, port)


def _taken(world: World, port: ServicePort) -> Iterator[Finding]:
    """Addresses with ports, or node ports, that several claim: one has them, the others go without."""
    mine, claimed = (port.name.namespace, port.name.name), set(claims_of(port))
    for loss in world.claims.losses(mine):
        if (loss.field, loss.claim) in claimed:
            yield _taken_by_another(loss, "/".join(mine))
    had = {claim for _, claim in claimed}
    for loser in sorted(world.claims.losers()):
        won = (one for one in world.claims.losses(loser) if one.winner == mine and one.lost in had)
        if first := next(won, None):
            yield _taken_by_another(first, "/".join(loser))


def _taken_by_another(loss: Loss, loser: str) -> Finding:
    what, winner = loss.what[0].upper() + loss.what[1:], "/".join(loss.winner)
    advice = f"Give one of them another {'address or port' if loss.claim[1] else 'node port'}."
    match loss.right:
        case Right.HELD:
            why = (
                f"{what} is where the API server listens, an endpoint of {winner}. {loser} asks for it in {loss.field}"
            )
            advice = f"Take it out of {loser}."
        case Right.YIELDING:
            why = f"{what} is a node port of {winner} on this node. {loser} asks for it in {loss.field}"
            advice = f"Give {loser} another address or port."
        case Right.GIVEN if loss.field == EXTERNAL:
            why = f"{what} was given to {winner}, as its status says. {loser} asks for it in {loss.field}"
            advice = f"Take it out of {loser}, or have the controller of load balancers give it another address."
        case _:
            why = f"{what} is claimed by {winner} and by {loser}. The former has it"
    return Finding(
        code="address-taken" if loss.claim[1] else "node-port-taken",
        what=f"{why}; {loser} goes without{' until that is settled' if loss.right is not Right.HELD else ''}.",
        advice=advice,
    )


def state(endpoint: Endpoint, what: Exclusion, zone: str = "") -> str:
    """Why an endpoint is left out, in words."""
    match what:
        case Exclusion.NOT_READY | Exclusion.NOT_DRAINING if endpoint.terminating:
            if what is Exclusion.NOT_READY and endpoint.serving:
                return "terminating: used only while no endpoint is ready"
            return "terminating" if endpoint.serving else "terminating, and not serving any more"
        case Exclusion.NOT_READY:
            return "not ready"
        case Exclusion.NOT_DRAINING:
            return "not ready, and others still serve while they terminate"
        case Exclusion.NO_WEIGHT:
            return "its slice has weight 0: no new connections"
        case Exclusion.OTHER_ZONE:
            return f"for zone {', '.join(sorted(endpoint.zone_hints))} by its hints; this node is in {zone}"
        case Exclusion.OTHER_NODE:
            return f"for node {', '.join(sorted(endpoint.node_hints))} by its hints"
        case Exclusion.NOT_LOCAL:
            return "on another node"


def _none_usable(world: World, port: ServicePort, endpoints: Endpoints) -> Iterator[Finding]:
    if world.selection(port).anywhere:
        if not any(one.ready for one in endpoints):
            yield Finding(
                code="draining",
                what="No endpoint is ready. Those that still serve while they terminate get the traffic, until they "
                "are gone.",
                advice="See why no new pod becomes ready.",
            )
        return
    why = exclusions(endpoints, world.prepared.settings.node).cluster
    counts = Counter(state(one, why.get(one, Exclusion.NOT_READY)) for one in endpoints)
    said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    yield Finding(
        code="none-ready",
        what=f"None of its {len(endpoints)} endpoints can be used ({said}): connections are rejected.",
        advice=f"Look at the pods' readiness probes: kubectl get pods -n {port.name.namespace} -o wide",
    )


def _none_local(world: World, port: ServicePort, endpoints: Endpoints) -> Iterator[Finding]:
    selection = world.selection(port)
    if not (port.uses_local_endpoints and selection.anywhere) or selection.local:
        return
    external = port.external_local and port.externally_accessible
    fields = ["externalTrafficPolicy"] * external + ["internalTrafficPolicy"] * port.internal_local
    who = " and ".join(["from outside"] * external + ["to the cluster IP"] * port.internal_local)
    yield Finding(
        code="no-local-endpoint",
        what=f"{' and '.join(fields)} {'are' if len(fields) > 1 else 'is'} Local, and no usable endpoint runs on "
        f"{world.node_name}: connections {who} are dropped on this node.",
        advice="Run a pod on this node, send clients to nodes that have one (a load balancer does so by the health "
        "check node port), or set the policy to Cluster.",
    )
    if world.node is None:
        names = sorted({e.node_name for s in world.slices() for e in s.endpoints if e.node_name})
        yield Finding(
            code="unknown-node",
            what=f"No object tells of a node {world.node_name}. The endpoints run on: {', '.join(names[:5]) or '?'}"
            + (", …" if len(names) > 5 else ""),
            advice="Is it the right name? --node or hostnameOverride sets it.",
        )


def _hints(world: World, port: ServicePort, endpoints: Endpoints) -> Iterator[Finding]:
    node = world.prepared.settings.node
    ready = [one for one in endpoints if one.ready]
    if topology(endpoints, node) is not Topology.ANYWHERE or not any(one.zone_hints for one in ready):
        return
    if not node.zone:
        why = f"{world.node_name} has no label {ZONE_LABEL}"
    elif not all(one.zone_hints for one in ready):
        why = "not every ready endpoint has one"
    else:
        why = f"none is for {node.zone}, this node's zone"
    yield Finding(
        code="hints-ignored",
        what=f"The endpoints' zone hints are ignored, since {why}: traffic goes to all zones.",
        advice="" if node.zone else "Label the node, or give its Node object along.",
    )


def _no_endpoints(world: World, service: api.Service, port: ServicePort) -> Iterator[Finding]:
    mine = (port.name.namespace, port.name.name)
    slices = world.slices_of(mine)
    of_family = [one for one in slices if world.is_of_family(one)]
    filled = [one for one in of_family if one.endpoints]
    if not slices:
        yield _no_slices(world, service)
    elif not of_family:
        yield Finding(
            code="wrong-family",
            what=f"It has an {_FAMILY[world.family]} address, but no {_FAMILY[world.family]} endpoints: all its "
            f"EndpointSlices are {', '.join(sorted({one.address_type for one in slices}))}.",
            advice="Do the pods have addresses of both families? Otherwise ask for one family only (ipFamilies).",
        )
    elif not filled:
        yield _no_pods(service)
    else:
        yield _no_port(service, port, filled)


_FAMILY = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}


def _no_slices(world: World, service: api.Service) -> Finding:
    namespace, name = service.metadata.namespace, service.metadata.name
    if elsewhere := [s for s in world.slices() if s.metadata.labels.get(SERVICE_NAME_LABEL) == name]:
        others = ", ".join(sorted({one.metadata.namespace for one in elsewhere}))
        return Finding(
            code="wrong-namespace",
            what=f"It has no EndpointSlices in its namespace {namespace}, but there are some for a Service {name} in "
            f"{others}.",
            advice="A Service only finds endpoints in its own namespace.",
        )
    near = [s for s in world.slices() if s.metadata.namespace == namespace and s.metadata.name.startswith(f"{name}-")]
    stray = [s for s in near if s.metadata.labels.get(SERVICE_NAME_LABEL) not in {_n(o) for o in world.services()}]
    if stray:
        label = stray[0].metadata.labels.get(SERVICE_NAME_LABEL)
        bears = f"bears {SERVICE_NAME_LABEL}: {label}" if label else f"lacks the label {SERVICE_NAME_LABEL}"
        return Finding(
            code="wrong-label",
            what=f"No EndpointSlice belongs to it. EndpointSlice {namespace}/{stray[0].metadata.name} {bears}.",
            advice=f"Set the label to {name}.",
        )
    if service.spec.selector:
        return Finding(
            code="no-slices",
            what=f"No EndpointSlice belongs to it: its selector {_selector(service)} has never selected a pod, or the "
            "EndpointSlices were not given along.",
            advice=f"kubectl get endpointslices,pods -n {namespace}; is kube-controller-manager running?",
        )
    return Finding(
        code="no-selector",
        what="It has no selector, so nobody makes EndpointSlices for it, and there are none.",
        advice=f"Write EndpointSlices labelled {SERVICE_NAME_LABEL}: {name}, or give it a selector.",
    )


def _n(service: api.Service) -> str:
    return service.metadata.name


def _no_pods(service: api.Service) -> Finding:
    if not service.spec.selector:
        return Finding(
            code="empty-slices",
            what="It has no selector, and its EndpointSlices hold no endpoints: connections are rejected.",
            advice="Whoever writes its EndpointSlices has to put endpoints into them.",
        )
    return Finding(
        code="no-pods",
        what=f"Its selector {_selector(service)} selects no pod: connections are rejected.",
        advice=f"Compare with the pods' labels (kubectl get pods -n {service.metadata.namespace} --show-labels); or "
        "is the workload scaled to zero?",
    )


def _selector(service: api.Service) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(service.spec.selector.items()))


def _no_port(service: api.Service, port: ServicePort, slices: Iterable[api.EndpointSlice]) -> Finding:
    """There are endpoints, but none on this port."""
    name = port.name
    (spec,) = (one for one in service.spec.ports if (one.name, one.protocol.lower()) == (name.port, name.protocol))
    served = {one for part in slices for one, _ in port_names(part, (name.namespace, name.name))}
    count = sum(len(one.endpoints) for one in slices)
    if any(one.port == name.port for one in served):
        others = ", ".join(sorted({one.protocol.upper() for one in served if one.port == name.port}))
        return Finding(
            code="wrong-protocol",
            what=f"The {count} endpoints serve this port by {others}, the Service asks for {name.protocol.upper()}.",
            advice="Make the protocol the same on both sides.",
        )
    if isinstance(spec.target_port, str) and service.spec.selector:
        return Finding(
            code="target-port",
            what=f"The targetPort {spec.target_port!r} of its port {_port(name)} names no port of the pods: "
            f"{count} endpoints exist, none serves it.",
            advice=f"Name a container port {spec.target_port!r} (with protocol {name.protocol.upper()}), or use a "
            "number.",
        )
    offered = ", ".join(sorted({_port(one) for one in served})) or "none"
    return Finding(
        code="port-name",
        what=f"The EndpointSlices have no port called {_port(name)}; theirs: {offered}. Ports are matched by name.",
        advice="Give the port of the EndpointSlices the name that it has in the Service.",
    )


def _port(name: ServicePortName) -> str:
    return repr(name.port) if name.port else "'' (unnamed)"


def _node_port(world: World, port: ServicePort) -> Iterator[Finding]:
    if port.node_port and world.prepared.settings.node_port_addresses == ():
        ranges = ", ".join(world.config.node_port_addresses)
        yield Finding(
            code="node-port-closed",
            what=f"Node port {port.node_port} is open on none of this node's addresses: nodePortAddresses is {ranges}.",
            advice="Put a range into nodePortAddresses in which this node has an address.",
        )
    elif port.node_port and world.node is None and not world.config.node_port_addresses:
        yield Finding(
            code="unknown-host",
            what=f"What becomes of packets to node port {port.node_port} isn't told: there is no object of the node "
            f"{world.node_name}, so its addresses aren't known.",
            advice="Give its Node object along, and its name by --node.",
        )


def _source_ranges(world: World, service: api.Service, port: ServicePort) -> Iterator[Finding]:
    ranges = service.spec.load_balancer_source_ranges
    if not ranges or not port.load_balancer_ips or port.source_ranges:
        return
    everybody = next((cidr for cidr in ranges if cidr.endswith("/0") and Family.of(cidr) is world.family), None)
    if everybody is not None:
        others = [cidr for cidr in ranges if Family.of(cidr) is world.family and cidr != everybody]
        beside = f" The ranges beside it mean nothing: {', '.join(dict.fromkeys(others))}." if others else ""
        yield Finding(
            code="ranges-of-everybody",
            what=f"loadBalancerSourceRanges holds {everybody}: for this family everybody may use the load balancer's "
            f"addresses.{beside}",
            advice="Take it out if the others are to restrict, or leave the field empty.",
        )
    else:
        yield Finding(
            code="ranges-of-other-family",
            what=f"loadBalancerSourceRanges names no {_FAMILY[world.family]} range: for this family everybody may use "
            "the load balancer's addresses.",
            advice="Add a range of this family.",
        )


def _undone_ranges(port: ServicePort) -> Iterator[Finding]:
    """External IPs come first: of one that is a load balancer's address, too, the source ranges bind nobody."""
    twice = sorted(set(port.external_ips) & set(port.load_balancer_ips))
    if twice and port.source_ranges:
        yield Finding(
            code="ranges-undone",
            what=f"spec.externalIPs holds {', '.join(twice)}, which the load balancer has, too: that opens it to "
            "everybody, and loadBalancerSourceRanges binds nobody there (as with kube-proxy: kubernetes/kubernetes "
            "#114815).",
            advice=f"Take {', '.join(twice)} out of spec.externalIPs.",
        )


def _own_addresses(world: World, port: ServicePort) -> Iterator[Finding]:
    """Addresses of nodes that a Service asks for, or was given: its ports there are the Service's, and no program's."""
    whose = {one.address: node.metadata.name for node in world.nodes() for one in node.status.addresses}
    whose |= dict.fromkeys(world.prepared.settings.node.addresses, world.node_name)
    for field, addresses in (
        ("spec.externalIPs", port.external_ips),
        ("status.loadBalancer.ingress", port.load_balancer_ips),
    ):
        for address in (one for one in dict.fromkeys(addresses) if one in whose):
            is_asked = field == "spec.externalIPs"
            yield Finding(
                code="own-address",
                what=f"{field} holds {address}, an address of the node {whose[address]} itself: whoever connects to "
                f"port {port.port} of that node gets to this Service, and not to what listens there.",
                advice=f"If that isn't meant, take it out of {field}; a node port opens a port of every node."
                if is_asked
                else "So do load balancers that run on the nodes (k3s' servicelb, for instance).",
                wrong=is_asked,
            )


def not_used(world: World, port: ServicePort) -> Mapping[Endpoint, str]:
    """Why endpoints get no traffic, or not all of it; those that aren't named take part in everything."""
    endpoints, node = world.endpoints(port.name), world.prepared.settings.node
    why = exclusions(endpoints, node)
    found: dict[Endpoint, str] = {}
    for one in endpoints:
        parts = []
        if port.uses_cluster_endpoints and one in why.cluster:
            parts.append(state(one, why.cluster[one], node.zone))
        if port.uses_local_endpoints and one in why.local and why.local[one] is Exclusion.NOT_LOCAL:
            traffic = _local_traffic(port)
            parts.append(f"on another node, under the Local policy{f' for {traffic}' if traffic else ''}")
        elif port.uses_local_endpoints and one in why.local and not parts:
            parts.append(state(one, why.local[one], node.zone))
        if parts:
            found[one] = "; ".join(parts)
    return found


def _local_traffic(port: ServicePort) -> str:
    """The traffic that is bound by the Local policy, where there is other traffic too."""
    if not port.uses_cluster_endpoints:
        return ""
    return "clients of the cluster IP" if port.internal_local and not port.external_local else "clients from outside"


def strangers(world: World, port: ServicePort) -> Mapping[str, str]:
    """The addresses in a Service's EndpointSlices that are no endpoints of this port in this family, and why."""
    found: dict[str, str] = {}
    service = (port.name.namespace, port.name.name)
    slices = world.slices_of(service)
    other = Family.IPV6 if world.family is Family.IPV4 else Family.IPV4
    both = any(_has_address(one, other) for one in world.services() if _name(one) == "/".join(service))
    for part in slices:
        served = [one for one, _ in port_names(part, service)]
        if not world.is_of_family(part):
            why = "" if both else f"{part.address_type}, but the Service has no such address"
        elif port.name in served:
            why = ""
        else:
            why = f"has no {port.protocol} port called {_port(port.name)}"
        if why:
            found |= dict.fromkeys((one.addresses[0] for one in part.endpoints), why)
    return found


def _has_address(service: api.Service, family: Family) -> bool:
    return any(one != "None" and Family.of(one) is family for one in service.spec.cluster_ips)
