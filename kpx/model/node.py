"""This node, as the rules see it."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from kpx import api
from kpx.family import Family

ZONE_LABEL = "topology.kubernetes.io/zone"

_LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}


@dataclass(frozen=True, slots=True)
class NodeView:
    """What the rules of one family depend on of this node.

    `address` is the primary address of the family (loopback if none is known), `addresses` all of them with
    loopback, `pod_cidr` the node's own pod range or empty, `tcp_be_liberal` whether the host's conntrack
    accepts out-of-window TCP segments (`nf_conntrack_tcp_be_liberal`).
    """

    name: str
    family: Family
    zone: str = ""
    address: str = ""
    addresses: tuple[str, ...] = ()
    pod_cidr: str = ""
    tcp_be_liberal: bool = False

    def is_in(self, cidr: str) -> bool:
        """Whether the primary address lies in `cidr`."""
        return contains(cidr, self.address)


def node_view(
    name: str, family: Family, node: api.Node | None, bind_address: str = "", tcp_be_liberal: bool = False
) -> NodeView:
    """The view of the node called `name`, from its Node object if there is one.

    The primary address is `bind_address` if that names one of this family, else the first InternalIP, else
    the first ExternalIP, else loopback.
    """
    addresses = _addresses(node, family) if node else ()
    bound = bind_address if bind_address and not ip_address(bind_address).is_unspecified else ""
    primary = bound if bound and Family.of(bound) is family else ""
    return NodeView(
        name=name,
        family=family,
        zone=node.metadata.labels.get(ZONE_LABEL, "") if node else "",
        address=primary or (addresses[0] if addresses else _LOOPBACK[family]),
        addresses=(*addresses, _LOOPBACK[family]),
        pod_cidr=_first_of_family(_pod_cidrs(node), family) if node else "",
        tcp_be_liberal=tcp_be_liberal,
    )


def contains(cidr: str, address: str) -> bool:
    """Whether `address` lies in `cidr`; false if they differ in family."""
    return Family.of(cidr) is Family.of(address) and ip_address(address) in ip_network(cidr)


def _addresses(node: api.Node, family: Family) -> tuple[str, ...]:
    order = ("InternalIP", "ExternalIP")
    found = [
        entry.address
        for wanted in order
        for entry in node.status.addresses
        if entry.type == wanted and Family.of(entry.address) is family
    ]
    return tuple(dict.fromkeys(found))


def _pod_cidrs(node: api.Node) -> Iterable[str]:
    return node.spec.pod_cidrs or ((node.spec.pod_cidr,) if node.spec.pod_cidr else ())


def _first_of_family(cidrs: Iterable[str], family: Family) -> str:
    return next((cidr for cidr in cidrs if Family.of(cidr) is family), "")
