"""Broken clusters, each with the question that an operator would ask and the cause that the answer has to name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.manifests import Manifest, endpoint_slice, node, service

PODS = ("10.244.0.11", "10.244.1.12", "10.244.2.13")
CONFIG: Manifest = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "hostnameOverride": "node-0",
    "clusterCIDR": "10.244.0.0/16,fd00:244::/48",
}
DNS_LABEL = "kubernetes.io/service-name"


def web(**spec: Any) -> Manifest:
    """The Service that is asked about."""
    return service("web", "10.96.0.10", **({"selector": {"app": "web"}} | spec))


def slices(*addresses: str, **changes: Any) -> Manifest:
    """Its EndpointSlice."""
    return endpoint_slice("web", addresses or PODS) | changes


def endpoint(address: str, where: str = "node-1", **conditions: Any) -> Manifest:
    """An endpoint of it."""
    return {"addresses": [address], "nodeName": where, "conditions": {"ready": True} | conditions}


def gone(address: str) -> Manifest:
    return endpoint(address, ready=False, serving=False, terminating=True)


def labelled(labels: Manifest, one: Manifest, **metadata: Any) -> Manifest:
    return one | {"metadata": one["metadata"] | {"labels": labels} | metadata}


def load_balancer(ingress: Sequence[Manifest], **spec: Any) -> Manifest:
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]
    return web(type="LoadBalancer", ports=ports, **spec) | {"status": {"loadBalancer": {"ingress": list(ingress)}}}


NODE_PORT = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]


@dataclass(frozen=True)
class Broken:
    """One broken cluster. `rules` makes a dump of what should be there into what is there."""

    name: str
    objects: Sequence[Manifest]
    cause: str
    words: Sequence[str]
    asked: str = "shop/web"
    config: Manifest = field(default_factory=dict)
    rules: Callable[[str], str] | None = None


def without(part: str) -> Callable[[str], str]:
    """A dump that lacks the first line with this in it."""

    def change(save: str) -> str:
        lines = save.split("\n")
        lines.remove(next(line for line in lines if part in line))
        return "\n".join(lines)

    return change


def instead(old: str, new: str) -> Callable[[str], str]:
    """A dump with something else in one place."""

    def change(save: str) -> str:
        assert old in save
        return save.replace(old, new, 1)

    return change


SOUND = [node(), web(), slices()]

BROKEN = [
    # -- no endpoints --
    Broken("scaled to zero", [node(), web(), slices(endpoints=[])], "no-pods", ["app=web", "selects no pod"]),
    Broken("no slices at all", [node(), web()], "no-slices", ["app=web"]),
    Broken("neither selector nor slices", [node(), web(selector={})], "no-selector", ["no selector"]),
    Broken(
        "slices without endpoints", [node(), web(selector={}), slices(endpoints=[])], "empty-slices", ["no endpoints"]
    ),
    Broken(
        "slice with a typo in its label",
        [node(), web(), labelled({DNS_LABEL: "wbe"}, slices())],
        "wrong-label",
        ["shop/web-a", "wbe"],
    ),
    Broken(
        "slice in another namespace",
        [node(), web(), labelled({DNS_LABEL: "web"}, slices(), namespace="shop-test")],
        "wrong-namespace",
        ["shop-test"],
    ),
    # -- endpoints that can't be used --
    Broken(
        "probes fail",
        [node(), web(), slices(endpoints=[endpoint(one, ready=False) for one in PODS])],
        "none-ready",
        ["3 not ready", "rejected"],
    ),
    Broken(
        "everything terminates",
        [node(), web(), slices(endpoints=[gone(one) for one in PODS])],
        "none-ready",
        ["3 terminating"],
    ),
    Broken(
        "only draining pods are left",
        [node(), web(), slices(endpoints=[endpoint(PODS[0], ready=False, serving=True, terminating=True)])],
        "draining",
        ["terminate"],
    ),
    Broken(
        "targetPort that no container has",
        [node(), web(ports=[{"name": "http", "port": 80, "targetPort": "htpp"}]), slices(ports=[])],
        "target-port",
        ["'htpp'", "names no port"],
    ),
    Broken(
        "ports called differently",
        [node(), web(), slices(ports=[{"name": "web", "port": 8080}])],
        "port-name",
        ["'http'", "'web'"],
    ),
    Broken(
        "an unnamed port in the slice",
        [node(), web(), slices(ports=[{"name": "", "port": 8080}])],
        "port-name",
        ["'http'", "unnamed"],
    ),
    Broken(
        "UDP on one side only",
        [node(), web(), slices(ports=[{"name": "http", "port": 8080, "protocol": "UDP"}])],
        "wrong-protocol",
        ["UDP", "TCP"],
    ),
    Broken(
        "pods of the other family",
        [node(), web(), endpoint_slice("web", ["fd00:244::11"])],
        "wrong-family",
        ["IPv4", "IPv6"],
    ),
    # -- policies, places --
    Broken(
        "externalTrafficPolicy Local without a pod here",
        [node(), web(type="NodePort", ports=NODE_PORT, externalTrafficPolicy="Local"), slices()],
        "no-local-endpoint",
        ["externalTrafficPolicy", "node-0", "dropped"],
        asked="30080",
    ),
    Broken(
        "internalTrafficPolicy Local without a pod here",
        [node(), web(internalTrafficPolicy="Local"), slices()],
        "no-local-endpoint",
        ["internalTrafficPolicy", "cluster IP"],
        asked="10.96.0.10",
    ),
    Broken(
        "a node that nobody knows",
        [web(internalTrafficPolicy="Local"), slices()],
        "unknown-node",
        ["node-0", "node-1"],
    ),
    Broken(
        "hints for other zones only",
        [
            node(),
            web(),
            slices(endpoints=[endpoint(PODS[1]) | {"hints": {"forZones": [{"name": "zone-b"}]}}]),
        ],
        "hints-ignored",
        ["zone-a"],
    ),
    Broken(
        "node ports on no address",
        [node(), web(type="NodePort", ports=NODE_PORT), slices()],
        "node-port-closed",
        ["30080", "192.168.0.0/16"],
        config={"nodePortAddresses": ["192.168.0.0/16"]},
    ),
    # -- Services that nobody serves --
    Broken(
        "two Services with one VIP",
        [*SOUND, service("shop", "10.96.0.10"), endpoint_slice("shop", PODS)],
        "address-taken",
        ["10.96.0.10 port 80/tcp", "shop/shop"],
    ),
    Broken(
        "two Services with one node port",
        [
            node(),
            web(type="NodePort", ports=NODE_PORT),
            slices(),
            service("admin", "10.96.0.11", type="NodePort", ports=NODE_PORT),
        ],
        "node-port-taken",
        ["30080", "shop/admin"],
    ),
    Broken("headless", [node(), web(clusterIP="None"), slices()], "headless", ["clusterIP None"]),
    Broken(
        "ExternalName",
        [node(), service("web", "", type="ExternalName", externalName="example.org", ports=[])],
        "external-name",
        ["ExternalName"],
    ),
    Broken(
        "left to another proxy",
        [node(), labelled({"service.kubernetes.io/service-proxy-name": "mesh"}, web()), slices()],
        "other-proxy",
        ["mesh"],
    ),
    Broken(
        "a broken Service", [node(), web(ports=[{"port": "http"}]), slices()], "broken-object", ["spec.ports[0].port"]
    ),
    Broken(
        "a broken EndpointSlice",
        [node(), web(), slices(endpoints=[{"addresses": ["10.244.0.999"]}])],
        "broken-object",
        ["EndpointSlice shop/web-a", "10.244.0.999"],
    ),
    Broken("a load balancer without address", [node(), load_balancer([]), slices()], "no-load-balancer", ["ingress"]),
    Broken(
        "source ranges of the other family",
        [node(), load_balancer([{"ip": "203.0.113.9"}], loadBalancerSourceRanges=["2001:db8::/64"]), slices()],
        "ranges-of-other-family",
        ["IPv4", "everybody"],
    ),
    Broken(
        "a source range of everybody",
        [
            node(),
            load_balancer([{"ip": "203.0.113.9"}], loadBalancerSourceRanges=["10.0.0.0/8", "0.0.0.0/0"]),
            slices(),
        ],
        "ranges-of-everybody",
        ["0.0.0.0/0", "everybody", "10.0.0.0/8"],
    ),
    # -- rules that aren't what they should be --
    Broken(
        "an endpoint's rule is missing",
        SOUND,
        "rules-differ",
        ["missing", "10.244.1.12:8080"],
        rules=without("-> 10.244.1.12:8080"),
    ),
    Broken(
        "a stale endpoint",
        SOUND,
        "rules-differ",
        ["10.244.9.9:8080"],
        rules=instead("--to-destination 10.244.0.11:8080", "--to-destination 10.244.9.9:8080"),
    ),
    Broken(
        "the jump to KUBE-SERVICES is missing",
        SOUND,
        "rules-differ",
        ["PREROUTING", "KUBE-SERVICES"],
        rules=without("-A PREROUTING"),
    ),
    Broken(
        "a foreign rule drops what is forwarded",
        SOUND,
        "packets-differ",
        ["dropped by rule 1 of filter FORWARD", "-s 10.244.0.0/16 -j DROP"],
        rules=instead("*filter\n", "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -s 10.244.0.0/16 -j DROP\n"),
    ),
    Broken(
        "a policy drops what is forwarded",
        SOUND,
        "packets-differ",
        ["dropped by filter FORWARD (policy DROP)"],
        rules=instead("*filter\n", "*filter\n:FORWARD DROP [0:0]\n"),
    ),
    Broken(
        "nobody masquerades",
        SOUND,
        "packets-differ",
        ["they should be sent masqueraded"],
        rules=without("-j MASQUERADE"),
    ),
    Broken(
        "another translation comes first",
        SOUND,
        "packets-differ",
        ["sent to 10.9.9.9:80"],
        rules=instead(
            "*nat\n",
            "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.96.0.0/12 -j DNAT --to-destination 10.9.9.9\n",
        ),
    ),
]
