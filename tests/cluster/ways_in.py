"""The ways in to Services, over real pods."""

from tests.cluster.cluster import Cluster
from tests.cluster.judge import TOOL, saved
from tests.cluster.layout import LOAD_BALANCER, LOCAL_LOAD_BALANCER, NODES
from tests.cluster.load import node_host, service_addresses
from tests.cluster.manifests import NODE_PORT, SHOP
from tests.cluster.plan import Claim, Group
from tests.cluster.waiting import demand, eventually
from tests.lab import Host, Outcome, Result, connect

MANY = 60


def _names(cluster: Cluster, app: str = "web") -> set[str]:
    return {pod["metadata"]["name"] for pod in cluster.pods(app)}


def _everywhere(cluster: Cluster) -> list[Host]:
    """A pod of each node, and the nodes themselves."""
    pods = {pod["spec"]["nodeName"]: pod for pod in cluster.pods("web")}
    return [*map(cluster.host, pods.values()), *(node_host(cluster, site.name) for site in NODES)]


def _balanced(result: Result, names: set[str], what: str) -> str:
    demand(result.answered, f"{what}: {dict(result.outcomes)}")
    demand(set(result.backends) == names, f"{what}: answered by {dict(result.backends)} of {sorted(names)}")
    return f"{what}: {len(result.attempts)} connections to all {len(names)} pods"


def cluster_ip(cluster: Cluster, family: int = 0) -> str:
    """From pods and nodes."""
    names, address = _names(cluster), service_addresses(cluster, "web")[family]
    told = [_balanced(connect(host, address, 80, count=MANY), names, host.on) for host in _everywhere(cluster)]
    return f"from a pod and the node itself, on both nodes: {MANY * len(told)} connections, each place reached all pods"


def pods_keep_their_address(cluster: Cluster) -> str:
    """Between pods nothing is masqueraded."""
    (solo,) = cluster.pods("solo")
    host = cluster.host(solo)
    result = connect(host, service_addresses(cluster, "web")[0], 80, count=20)
    demand(set(result.sources) == {host.ipv4}, dict(result.sources))
    return f"servers saw {host.ipv4}, the pod's own"


def node_port(cluster: Cluster, family: int = 0) -> str:
    """From outside, to both nodes."""
    told = []
    for site in NODES:
        result = connect(cluster.client, site.addresses[family], NODE_PORT, count=MANY)
        told.append(_balanced(result, _names(cluster), site.name))
    return "; ".join(told)


def load_balancer(cluster: Cluster, family: int = 0) -> str:
    """From outside and from a pod."""
    address = LOAD_BALANCER[family]
    (solo,) = cluster.pods("solo")
    outside = connect(cluster.client, address, 80, count=MANY)
    inside = connect(cluster.host(solo), address, 80, count=MANY)
    return "; ".join(
        _balanced(result, _names(cluster), place) for place, result in (("outside", outside), ("a pod", inside))
    )


def local_policy(cluster: Cluster) -> str:
    """The source address is kept where there is a pod; where there is none, nothing answers."""
    told = []
    port = cluster.api.get(f"/api/v1/namespaces/{SHOP}/services/solo-local")["spec"]["ports"][0]["nodePort"]
    for family in (0, 1):
        result = connect(cluster.client, LOCAL_LOAD_BALANCER[family], 80, count=20)
        demand(result.answered, dict(result.outcomes))
        own = cluster.client.address(f"ipv{4 + 2 * family}")
        demand(set(result.sources) == {own}, dict(result.sources))
        told.append(f"server saw {own}")
        at_b = connect(cluster.client, NODES[1].addresses[family], port, count=3)
        demand(at_b.all(Outcome.TIMED_OUT), f"node without a pod: {dict(at_b.outcomes)}")
    return f"{', '.join(told)}; node without a pod: dropped"


def health_port(cluster: Cluster) -> str:
    """What a load balancer asks."""
    port = cluster.api.get(f"/api/v1/namespaces/{SHOP}/services/solo-local")["spec"]["healthCheckNodePort"]
    told = []
    for site, wanted in zip(NODES, ("200", "503"), strict=True):
        words = [
            "curl",
            "-s",
            "-m",
            "10",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            f"http://{site.ipv4}:{port}/healthz",
        ]

        def right(words: list[str] = words, wanted: str = wanted) -> bool:
            found = cluster.client.namespace.run(words, check=False).stdout
            demand(found == wanted, found)
            return True

        eventually(f"{site.name} says {wanted}", right, seconds=60)
        told.append(f"{site.name}: {wanted}")
    return ", ".join(told)


def affinity(cluster: Cluster) -> str:
    """A client stays with its pod."""
    chosen = []
    for host in _everywhere(cluster)[:2]:
        for address in service_addresses(cluster, "sticky"):
            result = connect(host, address, 80, count=30)
            demand(result.answered and len(result.backends) == 1, f"{host.name}: {dict(result.backends)}")
            chosen += list(result.backends)
    return f"2 pods × 2 families × 30 connections: each time one pod ({len(set(chosen))} different ones in all)"


def hairpin(cluster: Cluster) -> str:
    """A pod reaches itself through its Service."""
    (solo,) = cluster.pods("solo")
    host = cluster.host(solo)
    results = [connect(host, address, 80, count=20) for address in service_addresses(cluster, "solo")]
    demand(all(set(result.backends) == {host.name} for result in results), [dict(one.outcomes) for one in results])
    sources = sorted({source for result in results for source in result.sources})
    demand(not {host.ipv4, host.ipv6} & set(sources), f"not masqueraded: {sources}")
    return f"40 connections answered by itself, masqueraded to {' and '.join(sources)}"


def left_alone(cluster: Cluster) -> str:
    """Nothing in any kernel speaks of them; others are spoken of there."""
    for node in cluster.nodes:
        for family in TOOL:
            text = saved(node.space.network, family)
            demand(f"{SHOP}/web" in text, "no rules of shop/web")
            found = [name for name in ("headless", "elsewhere") if f"{SHOP}/{name}" in text]
            demand(not found, f"{node.name} has rules of {found}")
    (headless,) = [one for one in cluster.api.objects() if one["metadata"]["name"] == "headless"]
    demand(headless["spec"]["clusterIP"] == "None", headless["spec"])
    return "no rule of either on any node"


def udp(cluster: Cluster) -> str:
    """Datagrams, in both families."""
    told = 0
    for host in _everywhere(cluster):
        for address in service_addresses(cluster, "web"):
            result = connect(host, address, 80, protocol="udp", count=MANY, patience=10)
            _balanced(result, _names(cluster), host.name)
            told += MANY
    return f"{told} datagrams from new ports, each with its answer, to all pods"


def empty(cluster: Cluster) -> str:
    """Refused at once, with ICMP."""
    told = 0
    for host in _everywhere(cluster)[:2]:
        for address in service_addresses(cluster, "empty"):
            result = connect(host, address, 80, count=3)
            demand(result.all(Outcome.REFUSED), f"{host.name}: {dict(result.outcomes)}")
            told += result.icmp_unreachable
    demand(told, "no ICMP message")
    return f"12 connections refused at once; {told} ICMP messages (the kernel limits how many)"


GROUP: Group[Cluster] = Group(
    "ways",
    "The ways in",
    (
        Claim("ClusterIP, IPv4", cluster_ip),
        Claim("ClusterIP, IPv6", lambda cluster: cluster_ip(cluster, 1)),
        Claim("pod to pod: source address", pods_keep_their_address),
        Claim("NodePort from outside, IPv4", node_port),
        Claim("NodePort from outside, IPv6", lambda cluster: node_port(cluster, 1)),
        Claim("LoadBalancer address, IPv4", load_balancer),
        Claim("LoadBalancer address, IPv6", lambda cluster: load_balancer(cluster, 1)),
        Claim("externalTrafficPolicy Local", local_policy),
        Claim("healthCheckNodePort", health_port),
        Claim("session affinity", affinity),
        Claim("hairpin", hairpin),
        Claim("headless and ExternalName", left_alone),
        Claim("UDP", udp),
        Claim("a Service without endpoints", empty),
    ),
)
