"""Whose chain is it? Names of the chains that a Service proxy owns."""

MARK_MASQ, MARK_DROP = "KUBE-MARK-MASQ", "KUBE-MARK-DROP"
"""Where rules send packets to be marked: for masquerading, and, by kube-proxy before 1.26, for a drop by kubelet."""

OWN = frozenset(
    {
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        MARK_MASQ,
        "KUBE-FORWARD",
        "KUBE-PROXY-FIREWALL",
        "KUBE-FIREWALL",
    }
)
TREE = "KPX-"
"""How the names of those chains begin that only layouts with trees have."""

ENDPOINT = "KUBE-SEP-"
"""How the names of chains begin that one endpoint of a service port has for itself, if it has one."""

CHOICES = ("KUBE-SVC-", "KUBE-SVL-", "KPX-SVC-", "KPX-SVL-")
"""How the names of chains begin that choose an endpoint of a service port, or a group of them."""

PER_PORT = (
    *("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", ENDPOINT),
    "KUBE-XLB-",
    *("KPX-SVC-", "KPX-SVL-", "KPX-AFC-", "KPX-AFL-"),
)
"""How the names of chains begin that belong to one service port alone.

KUBE-XLB-* is what kube-proxy before 1.24 has in place of KUBE-EXT-* and KUBE-SVL-* where the policy is Local.
"""

_PREFIXES = (*PER_PORT, TREE)

SHARED = frozenset({"KUBE-FIREWALL"})

KUBELET_HINTS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
"""Chains that kubelet leaves in the mangle table of the backend that the host uses."""


def ours(chain: str) -> bool:
    """Whether a chain of this name is the proxy's: kube-proxy's names, which kpx uses too, or kpx's own.

    The canaries, KUBE-IPTABLES-HINT and the KUBE-PORTALS-* of the userspace proxy are not ours.
    """
    return chain.startswith(_PREFIXES) or chain in OWN


_POLICY = (
    *("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-", "cali-", "CILIUM_", "WEAVE-NPC", "ANTREA-"),
    *("AZURE-NPM", "KUBE-NETWORK-POLICIES", "OPENSHIFT-", "OVN-KUBE-"),
)
"""How the names of chains begin by which network plugins carry out NetworkPolicies."""


def is_policy(chain: str) -> bool:
    """Whether a chain of this name is one of those by which network plugins carry out NetworkPolicies."""
    return chain.startswith(_POLICY)


def shared(chain: str) -> bool:
    """Whether kubelet writes this chain too: we fill it where we have rules for it, but leave it where kubelet is."""
    return chain in SHARED
