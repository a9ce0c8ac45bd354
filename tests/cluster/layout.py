"""Who has which address: the plan of the cluster, before anything of it exists.

    client 172.31.0.100 ─┐
    twins .21, .22 ──────┤
    control plane .10 ───┼── one bridge, in a namespace of its own
    node-a .11 ──────────┤      └ pods 10.244.1.0/24
    node-b .12 ──────────┘      └ pods 10.244.2.0/24

IPv6 likewise, with the same numbers: fd00:31::11, fd00:10:244:1::/64.
"""

from dataclasses import dataclass

POD_CIDRS = ("10.244.0.0/16", "fd00:10:244::/48")
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
API_ADDRESS_AS_SERVICE = "10.96.0.1"
API_PORT = 6443
LOAD_BALANCER = ("198.51.100.10", "2001:db8:51::10")
LOCAL_LOAD_BALANCER = ("198.51.100.11", "2001:db8:51::11")
LOAD_BALANCERS = ("198.51.100.0/24", "2001:db8:51::/64")


@dataclass(frozen=True, slots=True)
class Site:
    """A place on the bridge. `pods` are its pods' ranges, IPv4 and IPv6, where it has pods."""

    name: str
    number: int
    pods: tuple[str, ...] = ()

    @property
    def ipv4(self) -> str:
        return f"172.31.0.{self.number}"

    @property
    def ipv6(self) -> str:
        return f"fd00:31::{self.number}"

    @property
    def addresses(self) -> tuple[str, str]:
        return self.ipv4, self.ipv6


def _node(name: str, number: int) -> Site:
    pods = number - 10
    return Site(name, number, (f"10.244.{pods}.0/24", f"fd00:10:244:{pods}::/64"))


CONTROL = Site("control-plane", 10)
NODES = (_node("node-a", 11), _node("node-b", 12))
KUBE_PROXY_TWIN, KPX_TWIN = Site("kube-proxy", 21), Site("kpx", 22)
"""Two proxies without a kubelet, for the same node `node-a`, each in a namespace of its own."""
CLIENT = Site("client", 100)
SITES = (CONTROL, *NODES, KUBE_PROXY_TWIN, KPX_TWIN, CLIENT)


def routes(site: Site) -> list[str]:
    """What `ip` has to be told, for a site to reach all pods, and from outside the load balancers' addresses."""
    found = [
        f"route add {pods} via {via}"
        for node in NODES
        if node is not site
        for pods, via in zip(node.pods, node.addresses, strict=True)
    ]
    if site is not CLIENT and site is not CONTROL:
        # What a node has no link for goes outside: so addresses of Services route somewhere.
        found += [f"route add default via {via}" for via in CLIENT.addresses]
    if site is CLIENT:
        found += [f"route add {net} via {via}" for net, via in zip(LOAD_BALANCERS, NODES[0].addresses, strict=True)]
    return found
