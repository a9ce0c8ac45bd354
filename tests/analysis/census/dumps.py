"""The dumps: by name, who wrote them, and through which interface pods come."""

from dataclasses import dataclass

from tests.analysis.census import others
from tests.analysis.census.dump import Dump, Part, assembled
from tests.analysis.census.others import emptied, in_front, policy, without
from tests.analysis.census.proxies import kube_proxy

NODE = "192.0.2.10"


@dataclass(frozen=True)
class Census:
    """One dump.

    `cluster` is the kind of cluster; `pods` the interface of this node's pods; `healthy` says that Services are served
    as they should be; `plain` that the kernel of a plain machine takes it (no ipset, no unusual module).
    """

    name: str
    cluster: str
    parts: tuple[Part, ...]
    pods: str = "veth0"
    healthy: bool = True
    plain: bool = True

    @property
    def dump(self) -> Dump:
        """The rules."""
        return assembled(self.parts)

    @property
    def text(self) -> str:
        """The dump as iptables-save prints it."""
        return self.dump.text()


def _one(
    name: str, cluster: str, *parts: Part, pods: str = "veth0", healthy: bool = True, plain: bool = True
) -> Census:
    return Census(name, cluster, parts, pods, healthy, plain)


_BARE = ("1.6", "1.9", "1.14", "1.18", "1.22", "1.24", "1.28")
_FORWARD_DROP = policy("filter", "FORWARD", "DROP")
_FORWARD_ACCEPT = policy("filter", "FORWARD", "ACCEPT")
_WORDS = '-m comment --comment "kubernetes firewall for dropping marked packets"'
_LOST_MARK = in_front("filter", "KUBE-FIREWALL", f"{_WORDS} -j DROP")
_REPEATED = in_front("filter", "KUBE-FIREWALL", *["-s 198.51.100.66/32 -j DROP"] * 60)
_RETURN = in_front("nat", "KUBE-SERVICES", "-s 10.244.0.0/16 -j RETURN")
_ACCEPT = in_front("nat", "POSTROUTING", "-d 10.244.0.0/16 -j ACCEPT")
_NOTRACK = in_front("raw", "PREROUTING", "-p udp -j NOTRACK")
_MANGLE = in_front("mangle", "FORWARD", "-d 10.244.1.0/24 -j DROP")
_NO_OUTPUT = without("nat", "OUTPUT", "KUBE-SERVICES")

# ruff: noqa: E501  (a dump a line)

DUMPS: tuple[Census, ...] = (
    # kube-proxy and kubelet alone, by version
    *(_one(f"bare-{version}", "bare", kube_proxy(version)) for version in _BARE),
    # docker
    _one("docker-1.9", "docker", others.DOCKER, others.FLANNEL, kube_proxy("1.9"), pods="cni0"),
    _one("docker-1.18", "docker", kube_proxy("1.18"), others.DOCKER, others.FLANNEL, pods="cni0"),
    _one("docker-forward-drop", "docker", kube_proxy("1.28"), others.DOCKER, healthy=False),
    _one("docker-first", "docker", others.DOCKER, _FORWARD_ACCEPT, kube_proxy("1.24")),
    # flannel
    _one("flannel-1.28", "flannel", kube_proxy("1.28"), others.FLANNEL, pods="cni0"),
    _one("flannel-old", "flannel", kube_proxy("1.6"), others.OLD_FLANNEL, pods="cni0", healthy=False),
    _one("flannel-host-ports", "flannel", kube_proxy("1.22"), others.FLANNEL, others.HOST_PORTS, pods="cni0"),
    _one("flannel-forward-drop", "flannel", kube_proxy("1.24"), others.FLANNEL, _FORWARD_DROP, pods="cni0"),
    # k3s
    _one("k3s-1.24", "k3s", kube_proxy("1.24"), others.FLANNEL, others.KUBE_ROUTER, pods="cni0"),
    _one("k3s-1.36", "k3s", kube_proxy("1.36"), others.FLANNEL, others.KUBE_ROUTER, others.HOST_PORTS, pods="cni0"),
    # Calico
    _one("calico-1.18", "calico", kube_proxy("1.18"), others.CALICO, pods="cali12ab", plain=False),
    _one("calico-1.28", "calico", kube_proxy("1.28"), others.CALICO, pods="cali12ab", plain=False),
    _one("calico-node-local-dns", "calico", kube_proxy("1.36"), others.CALICO, others.NODE_LOCAL_DNS, pods="cali12ab", plain=False),
    _one("calico-no-nat-outgoing", "calico", kube_proxy("1.36"), others.CALICO, emptied("nat", "cali-nat-outgoing"), pods="cali12ab"),
    # Cilium beside kube-proxy
    _one("cilium-1.24", "cilium", kube_proxy("1.24"), others.CILIUM, pods="lxc12ab"),
    _one("cilium-1.28", "cilium", kube_proxy("1.28"), others.CILIUM, emptied("mangle", "CILIUM_PRE_mangle"), pods="lxc12ab"),
    # EKS
    _one("eks-1.18", "eks", kube_proxy("1.18"), others.AWS_VPC_CNI, pods="eni12ab"),
    _one("eks-1.28", "eks", kube_proxy("1.28"), others.AWS_VPC_CNI, pods="eni12ab"),
    _one("eks-node-local-dns", "eks", kube_proxy("1.36"), others.AWS_VPC_CNI, others.NODE_LOCAL_DNS, pods="eni12ab"),
    # OpenShift
    _one("openshift-1.9", "openshift", others.DOCKER, kube_proxy("1.9"), others.OPENSHIFT_SDN, pods="tun0"),
    _one("openshift-1.22", "openshift", kube_proxy("1.22"), others.OPENSHIFT_SDN, pods="tun0"),
    # firewalls
    _one("firewalld-in-front", "firewalld", others.FIREWALLD, kube_proxy("1.24")),
    _one("firewalld-behind", "firewalld", kube_proxy("1.28"), others.FIREWALLD),
    _one("ufw", "ufw", kube_proxy("1.28"), others.UFW),
    _one("ufw-in-front", "ufw", others.UFW, _FORWARD_DROP, kube_proxy("1.22"), healthy=False),
    # NodeLocal DNSCache, Istio
    _one("node-local-dns", "bare", kube_proxy("1.28"), others.NODE_LOCAL_DNS),
    _one("istio-cni", "istio", kube_proxy("1.28"), others.ISTIO),
    # IPVS
    _one("ipvs", "ipvs", others.IPVS_MODE, plain=False),
    _one("ipvs-leftovers", "ipvs", kube_proxy("1.28"), others.IPVS_LEFTOVERS),
    # mishaps
    _one("firewall-lost-mark", "bare", kube_proxy("1.24"), _LOST_MARK, healthy=False),
    _one("return-in-front", "bare", kube_proxy("1.36"), _RETURN, healthy=False),
    _one("postrouting-accept", "bare", kube_proxy("1.36"), _ACCEPT, healthy=False),
    _one("lost-jump", "bare", kube_proxy("1.36"), _NO_OUTPUT, healthy=False),
    _one("notrack-all", "bare", kube_proxy("1.36"), _NOTRACK, healthy=False),
    _one("mangle-drop", "bare", kube_proxy("1.36"), _MANGLE, healthy=False),
    _one("firewall-repeated", "bare", kube_proxy("1.28"), _REPEATED),
)  # fmt: skip
