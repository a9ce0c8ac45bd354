"""One service port compiled: its own chains, and its entries in the chains that all share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kpx.compiler import names
from kpx.compiler.choice import Affinity, Arm, Choose, Direct, linear
from kpx.compiler.settings import Settings
from kpx.compiler.words import comment
from kpx.family import Family
from kpx.model.balance import AffinityScope
from kpx.model.endpoint import Endpoint, Endpoints
from kpx.model.policy import Selection, weights
from kpx.model.service import ServicePort, ServicePortName
from kpx.netfilter.counting import LOCALHOST, LOCALHOST_ACCEPTED, counted_by
from kpx.netfilter.ruleset import Rules, TableName


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule in a dispatch chain, and the one that counts for it, right before it, if there is such a one.

    Entries of a chain are told apart by (`address`, `protocol`, `port`); `address` is empty for a node port.
    """

    table: TableName
    chain: str
    address: str
    protocol: str
    port: int
    rule: str
    counting: str = ""

    @property
    def rules(self) -> Rules:
        """All of it, in order."""
        return (self.counting, self.rule) if self.counting else (self.rule,)


@dataclass(frozen=True, slots=True)
class Fragment:
    """What one service port adds to a ruleset: chains of the nat table, bottom-up, and dispatch entries."""

    name: ServicePortName
    chains: Mapping[str, Rules]
    entries: tuple[Entry, ...]


def compile_port(port: ServicePort, selection: Selection, settings: Settings, choose: Choose = linear) -> Fragment:
    """Compile one service port alone, with kube-proxy 1.36's rules; `choose` is how chains choose among endpoints."""
    compiler = _PortCompiler(port, selection, settings, choose)
    return Fragment(port.name, dict(compiler.chains()), tuple(compiler.entries()))


class _PortCompiler:
    """The rules of one service port.

    `internal` is the way in through the ClusterIP, `external` every other one; each follows its own policy.
    """

    def __init__(self, port: ServicePort, selection: Selection, settings: Settings, choose: Choose) -> None:
        self.port, self.selection, self.settings, self.choose = port, selection, settings, choose
        self.label = str(port.name)
        self.hash = names.port_hash(port.name)
        self.affinity = Affinity(port.affinity_seconds, settings.host_mask) if port.affinity_seconds else None
        self.cluster_chain = f"KUBE-SVC-{self.hash}"
        self.local_chain = f"KUBE-SVL-{self.hash}"
        self.external_chain = f"KUBE-EXT-{self.hash}"
        self.firewall_chain = f"KUBE-FW-{self.hash}"
        self.internal_policy_chain = self.local_chain if port.internal_local else self.cluster_chain
        self.external_policy_chain = self.local_chain if port.external_local else self.cluster_chain
        self.internal_open = selection.serves(port.internal_local)
        self.external_open = selection.serves(port.external_local)
        self.firewalled = bool(selection.anywhere and port.load_balancer_ips and port.source_ranges)

    # -- own chains ------------------------------------------------------------------------------------

    def chains(self) -> Iterator[tuple[str, Rules]]:
        """The chains by name, each after those it jumps to."""
        if not self.selection.anywhere:
            return
        targets = {one: self._target(one) for one in self.selection.reachable}
        for endpoint, target in targets.items():
            if isinstance(target, str):
                yield target, self._endpoint_rules(endpoint, target)
        if self.selection.cluster:
            yield from self._choice(self.cluster_chain, self.selection.cluster, targets)
        if self.selection.local:
            yield from self._choice(self.local_chain, self.selection.local, targets)
        if self.port.externally_accessible:
            yield self.external_chain, tuple(self._external_rules())
        if self.firewalled:
            yield self.firewall_chain, tuple(self._firewall_rules())

    def _endpoint_rules(self, endpoint: Endpoint, chain: str) -> Rules:
        note = f"{comment(self.label)} " if self.settings.comments else ""
        recent = self.affinity.notes(self._clients(endpoint) or chain) if self.affinity else ""
        protocol, bits = self.port.protocol, self.settings.family.host_bits
        return (
            f"-s {endpoint.address}/{bits} {note}-j {names.MARK_MASQ}",  # hairpin: a pod that reaches itself
            f"-p {protocol} {note}{recent}-m {protocol} -j DNAT --to-destination {endpoint}",
        )

    def _choice(
        self, chain: str, endpoints: Endpoints, targets: Mapping[Endpoint, str | Direct]
    ) -> Iterator[tuple[str, Rules]]:
        arms = [
            Arm(self._arrow(one), targets[one], weight, self._clients(one))
            for one, weight in zip(endpoints, weights(endpoints, self.port.balancing), strict=True)
        ]
        return self.choose(chain, tuple(self._masquerade_internal(chain)), arms, self.affinity)

    def _target(self, endpoint: Endpoint) -> str | Direct:
        place = str(endpoint)
        direct = self._is_direct(endpoint)
        return Direct(self.port.name, place) if direct else names.endpoint_chain(self.port.name, place)

    def _is_direct(self, endpoint: Endpoint) -> bool:
        """Whether the rule that chooses an endpoint translates.

        Not if that has to remember the client; nor if the endpoint's address and port can be those of the Service: what
        goes there anyway isn't a translation to conntrack, and so not found by the rule for packets to themselves.
        """
        if not self.settings.direct or self.affinity:
            return False
        port = self.port
        addresses = (port.cluster_ip, *port.external_ips, *port.load_balancer_ips)
        return endpoint.port != port.node_port and (endpoint.port != port.port or endpoint.address not in addresses)

    def _clients(self, endpoint: Endpoint) -> str:
        """The list of an endpoint's clients, if it isn't the one of its own chain: that of its pod, for all ports."""
        if self.port.balancing.scope is AffinityScope.PORT:
            return ""
        return names.pod_clients(self.port.name, endpoint.address)

    def _masquerade_internal(self, chain: str) -> Iterator[str]:
        if chain != self.internal_policy_chain:
            return
        match = self._destination(self.port.cluster_ip, self.port.port, "cluster IP")
        if self.settings.masquerade_all:
            yield f"{match} -j {names.MARK_MASQ}"
        elif self.settings.local_pods.startswith("-s"):
            yield f"! {self.settings.local_pods} {match} -j {names.MARK_MASQ}"
        elif self.settings.local_pods:
            head, _, tail = match.partition(" -p ")
            yield f"{head} ! {self.settings.local_pods} -p {tail} -j {names.MARK_MASQ}"

    def _arrow(self, endpoint: Endpoint) -> str:
        return f"{comment(f'{self.label} -> {endpoint}')} " if self.settings.comments else ""

    def _external_rules(self) -> Iterator[str]:
        about = f"{self.label} external destinations"
        if not self.port.external_local:
            yield f"{comment(f'masquerade traffic for {about}')} -j {names.MARK_MASQ}"
        else:
            from_node = "-m addrtype --src-type LOCAL"
            # Pods and the node itself are not bound by the Local policy: for them it is as if the packet had
            # gone out to a load balancer and come back in elsewhere.
            if self.settings.local_pods:
                yield (f"{self.settings.local_pods} {comment(f'pod traffic for {about}')} -j {self.cluster_chain}")
            yield f"{comment(f'masquerade LOCAL traffic for {about}')} {from_node} -j {names.MARK_MASQ}"
            yield f"{comment(f'route LOCAL traffic for {about}')} {from_node} -j {self.cluster_chain}"
        if self.external_open:
            yield f"-j {self.external_policy_chain}"

    def _firewall_rules(self) -> Iterator[str]:
        allowed = f"{comment(f'{self.label} loadbalancer IP')} -j {self.external_chain}"
        for cidr in self.port.source_ranges:
            yield f"-s {cidr} {allowed}"
        if any(self.settings.node.is_in(cidr) for cidr in self.port.source_ranges):
            # A load balancer's address is often also a local one: the node's own packets then bear it as source.
            for address in self.port.load_balancer_ips:
                yield f"-s {address}/{self.settings.family.host_bits} {allowed}"
        yield comment(f"other traffic to {self.label} will be dropped by {names.PROXY_FIREWALL}")

    # -- entries in the dispatch chains ----------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """The entries, for each way in."""
        yield self._internal_entry()
        for address in self.port.external_ips:
            yield from self._external_entries(address, "external IP", self.external_chain)
        target = self.firewall_chain if self.firewalled else self.external_chain
        for address in self.port.load_balancer_ips:
            yield from self._external_entries(address, "loadbalancer IP", target)
            if self.firewalled:
                what = f"traffic not accepted by {self.firewall_chain}"
                yield self._entry("filter", names.PROXY_FIREWALL, address, what, "DROP")
        if self.port.node_port:
            yield from self._node_port_entries()
        if self.port.health_check_node_port:
            yield self._health_check_entry()

    def _internal_entry(self) -> Entry:
        if self.internal_open:
            return self._entry("nat", names.SERVICES, self.port.cluster_ip, "cluster IP", self.internal_policy_chain)
        return self._entry("filter", names.SERVICES, self.port.cluster_ip, *self._refusal())

    def _external_entries(self, address: str, what: str, target: str) -> Iterator[Entry]:
        if self.selection.anywhere:
            yield self._entry("nat", names.SERVICES, address, what, target)
        if not self.external_open:
            yield self._entry("filter", names.EXTERNAL_SERVICES, address, *self._refusal())

    def _node_port_entries(self) -> Iterator[Entry]:
        protocol, number = self.port.protocol, self.port.node_port
        if self.selection.anywhere:
            match = f"-p {protocol} {comment(self.label)} -m {protocol} --dport {number} "
            arrow = f"-j {self.external_chain}"
            counting = f"{LOCALHOST}{match}{counted_by(LOCALHOST_ACCEPTED)}{arrow}" if self._counts_localhost else ""
            yield Entry("nat", names.NODEPORTS, "", protocol, number, f"{match}{arrow}", counting)
        if not self.external_open:
            what, target = self._refusal()
            rule = (
                f"-p {protocol} {comment(f'{self.label} {what}')} -m addrtype --dst-type LOCAL "
                f"-m {protocol} --dport {number} -j {target}"
            )
            yield Entry("filter", names.EXTERNAL_SERVICES, "", protocol, number, rule)

    @property
    def _counts_localhost(self) -> bool:
        settings = self.settings
        return settings.nfacct and settings.localhost_node_ports and settings.family is Family.IPV4

    def _health_check_entry(self) -> Entry:
        number = self.port.health_check_node_port
        what = comment(f"{self.label} health check node port")
        rule = f"-p tcp {what} -m tcp --dport {number} -j ACCEPT"
        return Entry("filter", names.NODEPORTS, "", "tcp", number, rule)

    def _refusal(self) -> tuple[str, str]:
        """Comment and target for traffic that finds no endpoint: rejected if there is none at all."""
        if self.selection.anywhere:
            return "has no local endpoints", "DROP"
        return "has no endpoints", self.settings.reject

    def _entry(self, table: TableName, chain: str, address: str, what: str, target: str) -> Entry:
        rule = f"{self._destination(address, self.port.port, what)} -j {target}"
        return Entry(table, chain, address, self.port.protocol, self.port.port, rule)

    def _destination(self, address: str, number: int, what: str) -> str:
        protocol = self.port.protocol
        return (
            f"-d {address}/{self.settings.family.host_bits} -p {protocol} "
            f"{comment(f'{self.label} {what}')} -m {protocol} --dport {number}"
        )
