"""Hypothesis strategies for small clusters of valid objects, as an API server would store them."""

from typing import Any

from hypothesis import strategies as st

Manifest = dict[str, Any]

NODES = ("node-0", "node-1", "node-2")
ZONES = ("zone-a", "zone-b")

conditions = st.sampled_from(
    [
        {"ready": True},
        {},
        {"ready": False},
        {"ready": False, "serving": True, "terminating": True},
        {"ready": False, "serving": False, "terminating": True},
    ]
)
hints = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "forZones": st.lists(st.sampled_from(ZONES), min_size=1, max_size=2, unique=True).map(
            lambda names: [{"name": one} for one in names]
        ),
        "forNodes": st.lists(st.sampled_from(NODES), min_size=1, max_size=2, unique=True).map(
            lambda names: [{"name": one} for one in names]
        ),
    },
)


balancing: st.SearchStrategy[dict[str, str]] = st.just({}) | st.fixed_dictionaries(
    {},
    optional={
        "kpx.dev/balance": st.sampled_from(["random", "round-robin", "source-hash", "robin"]),
        "kpx.dev/local-weight": st.sampled_from(["0", "50", "200", "much"]),
        "kpx.dev/affinity-scope": st.sampled_from(["port", "service"]),
    },
)
weight: st.SearchStrategy[dict[str, str]] = st.just({}) | st.sampled_from(["0", "5", "95", "100", "-1"]).map(
    lambda text: {"kpx.dev/weight": text}
)


@st.composite
def endpoints(draw: st.DrawFn, ipv6: bool) -> Manifest:
    number = draw(st.integers(1, 9))
    chosen = draw(hints)
    return {
        "addresses": [f"fd00:244::{number}" if ipv6 else f"10.244.0.{number}"],
        "conditions": draw(conditions),
        "nodeName": draw(st.sampled_from(NODES)),
        **({"hints": chosen} if chosen is not None else {}),
    }


@st.composite
def services(draw: st.DrawFn, number: int, annotated: bool) -> list[Manifest]:
    """One Service with its slices; addresses and node ports follow from its number, so that none collide."""
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    protocols = draw(st.lists(st.sampled_from(["TCP", "UDP", "SCTP"]), min_size=1, max_size=2))
    ports = [
        {"name": f"p{n}", "protocol": protocol, "port": 80 + n, "targetPort": 8080 + n}
        | ({"nodePort": 30000 + number * 4 + n} if kind != "ClusterIP" else {})
        for n, protocol in enumerate(protocols)
    ]
    dual = draw(st.booleans())
    spec: Manifest = {
        "type": kind,
        "clusterIP": f"10.96.0.{number + 1}",
        "clusterIPs": [f"10.96.0.{number + 1}", *([f"fd00:10::{number + 1:x}"] if dual else [])],
        "ports": ports,
        "internalTrafficPolicy": draw(st.sampled_from(["Cluster", "Local"])),
        "sessionAffinity": draw(st.sampled_from(["None", "ClientIP"])),
    }
    if draw(st.booleans()):
        spec["externalIPs"] = [f"192.0.2.{number + 1}", f"2001:db8::{number + 1:x}"]
    if kind != "ClusterIP" or "externalIPs" in spec:
        spec["externalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
    status: Manifest = {"loadBalancer": {}}
    if kind == "LoadBalancer":
        status["loadBalancer"]["ingress"] = [{"ip": f"203.0.113.{number + 1}", "ipMode": "VIP"}]
        spec["loadBalancerSourceRanges"] = draw(st.sampled_from([[], ["192.0.2.0/24"], ["0.0.0.0/0", "10.0.0.0/8"]]))
    metadata = {
        "name": f"svc-{number}",
        "namespace": f"ns-{number % 2}",
        "annotations": draw(balancing) if annotated else {},
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}
    return [
        service,
        *(draw(slices(number, ports, ipv6, annotated)) for ipv6 in (False, False, True) if draw(st.booleans())),
    ]


@st.composite
def slices(draw: st.DrawFn, number: int, ports: list[Manifest], ipv6: bool, annotated: bool) -> Manifest:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"svc-{number}-{draw(st.uuids())}",
            "namespace": f"ns-{number % 2}",
            "labels": {"kubernetes.io/service-name": f"svc-{number}"},
            "annotations": draw(weight) if annotated else {},
        },
        "addressType": "IPv6" if ipv6 else "IPv4",
        "ports": [{"name": one["name"], "protocol": one["protocol"], "port": one["targetPort"]} for one in ports],
        "endpoints": draw(st.lists(endpoints(ipv6), max_size=6)),
    }


@st.composite
def clusters(draw: st.DrawFn, annotated: bool = True) -> list[Manifest]:
    """Up to five Services with their slices, and perhaps this node's object, in any order.

    They may be `annotated` for other balancing than kube-proxy's.
    """
    found = [one for number in range(draw(st.integers(0, 5))) for one in draw(services(number, annotated))]
    if draw(st.booleans()):
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "node-0", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.200.0.2"}]},
            }
        )
    return draw(st.permutations(found))


configs = st.fixed_dictionaries(
    {
        "apiVersion": st.just("kubeproxy.config.k8s.io/v1alpha1"),
        "kind": st.just("KubeProxyConfiguration"),
        "hostnameOverride": st.just("node-0"),
    },
    optional={
        "clusterCIDR": st.sampled_from(["10.244.0.0/16", "10.244.0.0/16,fd00:244::/48"]),
        "nodePortAddresses": st.sampled_from([["primary"], ["10.200.0.0/16"], ["0.0.0.0/0"], ["127.0.0.0/8"]]),
        "iptables": st.fixed_dictionaries(
            {}, optional={"masqueradeAll": st.booleans(), "localhostNodePorts": st.booleans()}
        ),
    },
)
