"""Valid objects with every field set, and ways to change one field."""

import copy
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]

SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "web",
        "namespace": "shop",
        "labels": {"app": "web"},
        "annotations": {"note": "free text\nof any 'kind'"},
        "uid": "5adc73de-9e58-446b-9e7c-1a14b315b7aa",
        "resourceVersion": "17",
        "creationTimestamp": "2024-05-01T10:00:00Z",
        "deletionTimestamp": "2024-05-02T10:00:00.5+02:00",
    },
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.96.1.10",
        "clusterIPs": ["10.96.1.10", "fd00:10:96::a"],
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": 30080},
            {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353, "nodePort": 30053},
        ],
        "externalIPs": ["192.0.2.1"],
        "selector": {"app": "web"},
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1800}},
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000,
        "ipFamilies": ["IPv4", "IPv6"],
        "allocateLoadBalancerNodePorts": True,
        "trafficDistribution": "PreferClose",
    },
    "status": {
        "loadBalancer": {
            "ingress": [{"ip": "203.0.113.10", "ipMode": "VIP"}, {"hostname": "lb.example.com", "ipMode": "Proxy"}]
        }
    },
}

SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-a", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "endpoints": [
        {
            "addresses": ["10.244.1.10", "10.244.1.11"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": "node-1",
            "zone": "zone-a",
            "hints": {"forZones": [{"name": "zone-a"}], "forNodes": [{"name": "node-1"}]},
            "targetRef": {"kind": "Pod", "name": "web-abc"},
        }
    ],
    "ports": [{"name": "http", "protocol": "TCP", "port": 8080, "appProtocol": "http"}],
}

NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-0", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
    "spec": {
        "podCIDR": "10.244.0.0/24",
        "podCIDRs": ["10.244.0.0/24", "fd00:244::/64"],
        "taints": [{"key": "example.com/a", "value": "b", "effect": "NoSchedule"}],
    },
    "status": {"addresses": [{"type": "InternalIP", "address": "10.200.0.2"}]},
}

CONFIG: dict[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "featureGates": {"Some": True},
    "clientConnection": {
        "kubeconfig": "/etc/kubeconfig",
        "acceptContentTypes": "application/json",
        "contentType": "application/json",
        "qps": 7.5,
        "burst": 20,
    },
    "logging": {
        "format": "text",
        "flushFrequency": 5000000000,
        "verbosity": 2,
        "vmodule": [{"filePattern": "proxier", "verbosity": 4}],
        "options": {
            "text": {"splitStream": True, "infoBufferSize": "1Ki"},
            "json": {"splitStream": False, "infoBufferSize": 0},
        },
    },
    "hostnameOverride": "node-0",
    "bindAddress": "10.0.0.1",
    "healthzBindAddress": "0.0.0.0:10256",
    "metricsBindAddress": "127.0.0.1:10249",
    "bindAddressHardFail": True,
    "enableProfiling": True,
    "showHiddenMetricsForVersion": "1.35",
    "mode": "iptables",
    "iptables": {
        "masqueradeBit": 13,
        "masqueradeAll": True,
        "localhostNodePorts": False,
        "syncPeriod": "45s",
        "minSyncPeriod": "2s",
    },
    "ipvs": {
        "syncPeriod": "1s",
        "minSyncPeriod": "1s",
        "scheduler": "rr",
        "excludeCIDRs": ["10.0.0.0/8"],
        "strictARP": True,
        "tcpTimeout": "1s",
        "tcpFinTimeout": "1s",
        "udpTimeout": "1s",
    },
    "nftables": {"masqueradeBit": 1, "masqueradeAll": True, "syncPeriod": "1s", "minSyncPeriod": "1s"},
    "winkernel": {
        "networkName": "net",
        "sourceVip": "10.0.0.9",
        "enableDSR": True,
        "rootHnsEndpointName": "hns",
        "forwardHealthCheckVip": True,
    },
    "detectLocalMode": "BridgeInterface",
    "detectLocal": {"bridgeInterface": "cni0", "interfaceNamePrefix": "veth"},
    "clusterCIDR": "10.244.0.0/16,fd00:244::/48",
    "nodePortAddresses": ["10.200.0.0/24"],
    "oomScoreAdj": -500,
    "conntrack": {
        "maxPerCore": 0,
        "min": 1,
        "tcpEstablishedTimeout": "2h",
        "tcpCloseWaitTimeout": "30m",
        "tcpBeLiberal": True,
        "udpTimeout": "30s",
        "udpStreamTimeout": "3m",
    },
    "configSyncPeriod": "10m",
    "portRange": "1-2",
    "windowsRunAsService": True,
}


def changed(sample: dict[str, Any], path: Path, value: object) -> dict[str, Any]:
    """A copy of `sample` with `value` at `path`."""
    result = copy.deepcopy(sample)
    parent: Any = result
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    return result


def without(sample: dict[str, Any], path: Path) -> dict[str, Any]:
    """A copy of `sample` that lacks what is at `path`."""
    result = copy.deepcopy(sample)
    parent: Any = result
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]
    return result


def paths(value: object, prefix: Path = ()) -> Iterator[Path]:
    """Every place in `value`, containers included."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*prefix, step)
        yield from paths(inner, (*prefix, step))


def leaves(value: object) -> Iterator[str]:
    """Every string in `value`, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(key)
            yield from leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
