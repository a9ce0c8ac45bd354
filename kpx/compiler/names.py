"""Chain names, made as kube-proxy makes them, so that both find each other's chains."""

from base64 import b32encode
from hashlib import sha256

from kpx.model.service import ServicePortName

# The fixed chains. `filter` and `nat` both have a KUBE-SERVICES and a KUBE-NODEPORTS.
SERVICES = "KUBE-SERVICES"
NODEPORTS = "KUBE-NODEPORTS"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
FORWARD = "KUBE-FORWARD"
FIREWALL = "KUBE-FIREWALL"
MARK_MASQ = "KUBE-MARK-MASQ"
POSTROUTING = "KUBE-POSTROUTING"

KINDS = ("SVC", "SVL", "EXT", "FW")
"""The kinds of chains that a service port has, as in KUBE-SVC-<hash>."""


def port_hash(name: ServicePortName) -> str:
    """The 16 characters that tell service ports apart: base32(sha256("namespace/name:port" + protocol))."""
    return _hash(f"{name}{name.protocol}")


def endpoint_chain(name: ServicePortName, endpoint: str) -> str:
    """The KUBE-SEP chain of `endpoint` (`address:port`) behind a service port."""
    return "KUBE-SEP-" + _hash(f"{name}{name.protocol}{endpoint}")


def pod_clients(name: ServicePortName, address: str) -> str:
    """The list (`-m recent`) of the clients of one pod behind all ports of a Service."""
    return "KPX-POD-" + _hash(f"{name.namespace}/{name.name} {address}")


def _hash(text: str) -> str:
    # Ten bytes are exactly sixteen base32 characters: no need to encode the whole digest.
    return b32encode(sha256(text.encode()).digest()[:10]).decode()
