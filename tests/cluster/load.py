"""Connections that go on while something happens to the cluster."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.cluster.cluster import Cluster
from tests.cluster.manifests import NODE_PORT, SHOP
from tests.cluster.waiting import demand
from tests.lab import Host, Outcome, Traffic, continuous


@dataclass(frozen=True, slots=True)
class Load:
    """Clients by what they connect from and to."""

    clients: dict[str, Traffic]

    def some_more(self, count: int = 50) -> None:
        """Wait until every client has had so many connections more."""
        for traffic in self.clients.values():
            traffic.wait_for(count, timeout=120)

    def told(self) -> str:
        """How many connections there were and how many failed. Raises NotSeenError if any did."""
        outcomes = {name: traffic.result.outcomes for name, traffic in self.clients.items()}
        total = sum(counter.total() for counter in outcomes.values())
        failed = {name: _failures(counter) for name, counter in outcomes.items() if _failures(counter)}
        demand(not failed, f"of {total:,} connections failed: {failed}")
        return f"{total:,} connections, none failed"


def _failures(outcomes: Counter[Outcome]) -> dict[str, int]:
    return {str(outcome): count for outcome, count in outcomes.items() if outcome is not Outcome.ANSWERED}


@contextmanager
def under_load(cluster: Cluster) -> Iterator[Load]:
    """Connect all the time: from outside to both nodes' node ports, from a pod and a node to a ClusterIP."""
    addresses = service_addresses(cluster, "web")
    first, second = cluster.nodes
    (solo,) = cluster.pods("solo")
    places: list[tuple[str, Host, str, int]] = [
        (f"outside → {first.name}", cluster.client, first.site.ipv4, NODE_PORT),
        (f"outside → {second.name}, IPv6", cluster.client, second.site.ipv6, NODE_PORT),
        ("pod → ClusterIP", cluster.host(solo), addresses[0], 80),
        (f"{second.name} → ClusterIP, IPv6", node_host(cluster, second.name), addresses[1], 80),
    ]
    with ExitStack() as stack:
        load = Load({name: stack.enter_context(continuous(host, to, port)) for name, host, to, port in places})
        load.some_more()
        yield load


def service_addresses(cluster: Cluster, name: str) -> list[str]:
    """The shop's Service's cluster IPs, IPv4 first."""
    spec = cluster.api.get(f"/api/v1/namespaces/{SHOP}/services/{name}")["spec"]
    found: list[str] = sorted(spec["clusterIPs"], key=lambda one: ":" in one)
    return found


def node_host(cluster: Cluster, name: str) -> Host:
    """A node as a place to connect from."""
    node = cluster.node(name)
    return Host(name, node.space.network, *node.site.addresses, on=name)
