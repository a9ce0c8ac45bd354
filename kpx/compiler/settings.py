"""What the rules depend on besides Services and endpoints."""

from dataclasses import dataclass

from kpx.api import KubeProxyConfiguration
from kpx.family import Family
from kpx.model.node import NodeView, contains

_ANYWHERE = frozenset({"0.0.0.0/0", "::/0"})


@dataclass(frozen=True, slots=True)
class Settings:
    """One family's settings, in the words of rules.

    `local_pods` is the match for packets from this node's pods (`-s CIDR` or `-i NAME`; a leading `! ` negates
    it), empty if they can't be told apart. `node_port_addresses` are the addresses on which node ports are
    open; None means on every local one. `comments` is off in large clusters, where kube-proxy drops the
    comments of endpoint rules. `nfacct` says that rules count packets for kube-proxy's metrics. `direct` says that the
    rule which chooses an endpoint translates, wherever the endpoint needs no chain for anything else.
    """

    family: Family
    node: NodeView
    masquerade_mark: str = "0x4000"
    masquerade_all: bool = False
    local_pods: str = ""
    localhost_node_ports: bool = True
    node_port_addresses: tuple[str, ...] | None = None
    comments: bool = True
    nfacct: bool = False
    direct: bool = False

    @property
    def node_port_places(self) -> tuple[str, ...]:
        """The addresses of the node, as far as they are known, on which node ports are open."""
        return self.node.addresses if self.node_port_addresses is None else self.node_port_addresses

    @property
    def host_mask(self) -> str:
        """The mask that `-m recent` prints for single addresses."""
        return "255.255.255.255" if self.family is Family.IPV4 else ":".join(["ffff"] * 8)

    @property
    def reject(self) -> str:
        """The REJECT target as `iptables-save` prints it."""
        kind = "icmp" if self.family is Family.IPV4 else "icmp6"
        return f"REJECT --reject-with {kind}-port-unreachable"


def settings_for(
    config: KubeProxyConfiguration, node: NodeView, comments: bool = True, nfacct: bool = False, direct: bool = False
) -> Settings:
    """The settings that `config` means for `node`'s family."""
    ranges = _node_port_ranges(config, node)
    localhost = _localhost_node_ports(config, ranges)
    return Settings(
        family=node.family,
        node=node,
        masquerade_mark=hex(1 << config.iptables.masquerade_bit),
        masquerade_all=config.iptables.masquerade_all,
        local_pods=_local_pods(config, node),
        localhost_node_ports=localhost,
        node_port_addresses=_node_port_addresses(ranges, node, localhost),
        comments=comments,
        nfacct=nfacct,
        direct=direct,
    )


def _local_pods(config: KubeProxyConfiguration, node: NodeView) -> str:
    match config.detect_local_mode or "ClusterCIDR":
        case "BridgeInterface":
            return f"-i {config.detect_local.bridge_interface}"
        case "InterfaceNamePrefix":
            return f"-i {config.detect_local.interface_name_prefix}+"
        case "NodeCIDR":
            return f"-s {node.pod_cidr}" if node.pod_cidr else ""
        case _:
            cidrs = [cidr for cidr in config.cluster_cidrs if Family.of(cidr) is node.family]
            return f"-s {cidrs[0]}" if cidrs else ""


def _node_port_ranges(config: KubeProxyConfiguration, node: NodeView) -> tuple[str, ...]:
    """The ranges of nodePortAddresses that concern this family; empty if every address is meant.

    Ranges of the other family only count as none at all.
    """
    if config.node_port_addresses == ("primary",):
        return (f"{node.address}/{node.family.host_bits}",)
    ranges = tuple(cidr for cidr in config.node_port_addresses if Family.of(cidr) is node.family)
    return () if not _ANYWHERE.isdisjoint(ranges) else ranges


def _localhost_node_ports(config: KubeProxyConfiguration, ranges: tuple[str, ...]) -> bool:
    """Whether node ports work on 127.0.0.0/8: if asked for, and not shut out by nodePortAddresses."""
    return config.iptables.localhost_node_ports and (
        not ranges or any(contains(cidr, "127.0.0.0") or cidr.startswith("127.") for cidr in ranges)
    )


def _node_port_addresses(ranges: tuple[str, ...], node: NodeView, localhost: bool) -> tuple[str, ...] | None:
    """The node's addresses within `ranges`, but loopback only where node ports work on it: never for IPv6."""
    if not ranges:
        return None
    loopback = localhost and node.family is Family.IPV4
    return tuple(
        address
        for address in sorted(node.addresses)
        if any(contains(cidr, address) for cidr in ranges) and (loopback or not _is_loopback(address))
    )


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")
