"""Objects that the cluster is given: kube-proxy as kubeadm leaves it, and a small shop to be asked."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tests.cluster.images import KUBE_PROXY_IMAGE, KUBE_PROXY_PATH, POD_COMMAND, POD_IMAGE
from tests.cluster.layout import NODES, POD_CIDRS
from tests.cluster.pod import PORT

Object = dict[str, Any]
TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
SHOP = "shop"
NODE_PORT = 30080
STICKY_SECONDS = 600
CONFIG: Mapping[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "mode": "iptables",
    "clusterCIDR": ",".join(POD_CIDRS),
    # The table is the whole machine's: its size isn't a namespace's to set.
    "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    "metricsBindAddress": "0.0.0.0:10249",
}


def named(kind: str, name: str, namespace: str = "", version: str = "v1", **rest: Any) -> Object:
    """An object with metadata."""
    where = {"namespace": namespace} if namespace else {}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **where}, **rest}


def as_list(objects: Iterable[Mapping[str, Any]]) -> str:
    """Objects as one file for `kubectl apply`."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def kube_proxy(server: str) -> list[Object]:
    """kube-proxy's ConfigMap, ServiceAccount, rights and DaemonSet, as kubeadm makes them."""
    authority = {"certificate-authority": f"{TOKEN_FOLDER}/ca.crt", "server": server}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": authority}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "namespace": "default", "user": "default"}}],
        "current-context": "default",
        "users": [{"name": "default", "user": {"tokenFile": f"{TOKEN_FOLDER}/token"}}],
    }
    config = {**CONFIG, "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf"}}
    data = {"config.conf": json.dumps(config), "kubeconfig.conf": json.dumps(kubeconfig)}
    system, rbac = "kube-system", "rbac.authorization.k8s.io"
    binding = named("ClusterRoleBinding", "kube-proxy", version=f"{rbac}/v1")
    binding["roleRef"] = {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:node-proxier"}
    binding["subjects"] = [{"kind": "ServiceAccount", "name": "kube-proxy", "namespace": system}]
    return [
        named("ConfigMap", "kube-proxy", system, data=data),
        named("ServiceAccount", "kube-proxy", system),
        binding,
        _kube_proxy_daemon_set(system),
    ]


def _kube_proxy_daemon_set(namespace: str) -> Object:
    container = {
        "name": "kube-proxy",
        "image": KUBE_PROXY_IMAGE,
        "imagePullPolicy": "Never",
        "command": [
            KUBE_PROXY_PATH,
            "--config=/var/lib/kube-proxy/config.conf",
            "--hostname-override=$(NODE_NAME)",
        ],
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "securityContext": {"privileged": True},
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 10256, "host": "127.0.0.1"}, "periodSeconds": 2},
        "volumeMounts": [
            {"name": "kube-proxy", "mountPath": "/var/lib/kube-proxy"},
            {"name": "xtables-lock", "mountPath": "/run/xtables.lock"},
        ],
    }
    lock = {"path": "/run/xtables.lock", "type": "FileOrCreate"}
    pod = {
        "hostNetwork": True,
        "serviceAccountName": "kube-proxy",
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [
            {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
            {"name": "xtables-lock", "hostPath": lock},
        ],
    }
    return _workload("DaemonSet", "kube-proxy", namespace, pod)


def _workload(kind: str, name: str, namespace: str, pod: Mapping[str, Any], **spec: Any) -> Object:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod}
    return named(
        kind, name, namespace, "apps/v1", spec={"selector": {"matchLabels": labels}, "template": template, **spec}
    )


def _server_pod(**rest: Any) -> Object:
    container = {
        "name": "server",
        "image": POD_IMAGE,
        "imagePullPolicy": "Never",
        "command": POD_COMMAND,
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
    }
    return {"containers": [container], "enableServiceLinks": False, "terminationGracePeriodSeconds": 20, **rest}


def service(name: str, app: str = "web", *, udp: bool = False, **spec: Any) -> Object:
    """A dual-stack Service of the shop: TCP port 80, and UDP if asked for."""
    ports = [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}]
    ports += [{"name": "dns", "port": 80, "targetPort": PORT, "protocol": "UDP"}] if udp else []
    whole = {"selector": {"app": app}, "ports": ports, "ipFamilyPolicy": "RequireDualStack", **spec}
    return named("Service", name, SHOP, spec=whole)


def shop() -> list[Object]:
    """Pods and Services for every way in: `web` on both nodes, `solo` on the first one only."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    node_port = service("web-node", type="NodePort")
    node_port["spec"]["ports"][0]["nodePort"] = NODE_PORT
    sticky: Object = {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": STICKY_SECONDS}}}
    local: Object = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    external = {"type": "ExternalName", "externalName": "shop.example"}
    pinned = _server_pod(nodeSelector={"kubernetes.io/hostname": NODES[0].name})
    return [
        named("Namespace", SHOP),
        _workload("Deployment", "web", SHOP, _server_pod(topologySpreadConstraints=[spread]), replicas=4),
        _workload("Deployment", "solo", SHOP, pinned, replicas=1),
        service("web", udp=True),
        node_port,
        service("web-lb", type="LoadBalancer"),
        service("solo", "solo"),
        service("solo-local", "solo", **local),
        service("sticky", sessionAffinity="ClientIP", **sticky),
        service("headless", clusterIP="None"),
        service("empty", "nobody"),
        named("Service", "elsewhere", SHOP, spec=external),
    ]
