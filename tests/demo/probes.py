"""What the demo sends, what should come of it, and whether it did."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.lab import Node, Outcome, Protocol, Result, connect

PODS = {
    "shop-1": ("10.244.0.11", "fd00:244::11", "node-0"),
    "shop-2": ("10.244.1.12", "fd00:244:0:1::12", "node-1"),
    "shop-3": ("10.244.2.13", "fd00:244:0:2::13", "node-2"),
}
TCP_PORTS = (8080, 8081, 5353, 8443)
UDP_PORTS = (5353,)


@dataclass(frozen=True, slots=True)
class Expectation:
    """One sentence, and the test of a result that it stands for."""

    text: str
    holds: Callable[[Result], bool]


@dataclass(frozen=True, slots=True)
class Probe:
    """Connections to one Service on one way in.

    `sender` is a pod or `client`; `source` an address of its that isn't the one it would take.
    """

    service: str
    way_in: str
    address: str
    port: int
    expectation: Expectation
    count: int = 300
    protocol: Protocol = "tcp"
    sender: str = "client"
    source: str = ""
    parallel: int = 1

    def send(self, node: Node) -> Result:
        """Make the connections."""
        host = node.pods.get(self.sender, node.client)
        return connect(
            host,
            self.address,
            self.port,
            protocol=self.protocol,
            count=self.count,
            source=(self.source, 0),
            parallel=self.parallel,
        )


def evenly(*pods: str) -> Expectation:
    """All connections are answered, and every pod's share is within five standard deviations of an even one."""

    def holds(result: Result) -> bool:
        count, share = len(result.attempts), 1 / len(pods)
        tolerance = 5 * (count * share * (1 - share)) ** 0.5
        even = all(abs(result.backends[pod] - count * share) <= tolerance for pod in pods)
        return result.answered and set(result.backends) == set(pods) and even

    return Expectation(f"{len(pods)} pods evenly", holds)


ONE_POD = Expectation("one pod only", lambda result: result.answered and len(result.backends) == 1)
REFUSED = Expectation("refused", lambda result: result.all(Outcome.REFUSED) and result.icmp_unreachable > 0)
DROPPED = Expectation("dropped", lambda result: result.all(Outcome.TIMED_OUT))

_ALL, _DNS, _CHECKOUT = evenly("shop-1", "shop-2", "shop-3"), evenly("shop-1", "shop-2"), evenly("shop-2", "shop-3")
_STRANGER = "192.0.2.9"

PROBES = (
    Probe("front-end", "ClusterIP 10.96.0.10:80", "10.96.0.10", 80, _ALL, sender="shop-1"),
    Probe("front-end", "ClusterIP [fd00:96::10]:80", "fd00:96::10", 80, _ALL, sender="shop-1"),
    Probe("front-end", "NodePort 10.200.0.2:30080", "10.200.0.2", 30080, _ALL),
    Probe("front-end", "NodePort [fd00:200::2]:30080", "fd00:200::2", 30080, _ALL),
    Probe("cart", "ClusterIP 10.96.0.20:80", "10.96.0.20", 80, ONE_POD, sender="shop-2"),
    Probe("dns", "ClusterIP 10.96.0.53:53 UDP", "10.96.0.53", 53, _DNS, protocol="udp", sender="shop-3"),
    Probe("dns", "ClusterIP 10.96.0.53:53 TCP", "10.96.0.53", 53, _DNS, sender="shop-3"),
    Probe("checkout", "LoadBalancer 203.0.113.10:443", "203.0.113.10", 443, _CHECKOUT),
    Probe("checkout", f"  from {_STRANGER}", "203.0.113.10", 443, DROPPED, count=8, source=_STRANGER, parallel=8),
    Probe("search", "ClusterIP 10.96.0.40:80", "10.96.0.40", 80, REFUSED, sender="shop-1"),
)
