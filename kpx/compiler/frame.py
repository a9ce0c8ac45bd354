"""The rules that stand whatever the Services are: jumps, masquerading, forwarding, the localhost guard."""

from kpx.compiler import names
from kpx.compiler.hairpin import to_itself
from kpx.compiler.settings import Settings
from kpx.compiler.words import comment
from kpx.family import Family
from kpx.netfilter.counting import INVALID_DROPPED, counted_by
from kpx.netfilter.ruleset import Rules, TableName

_NEW = "-m conntrack --ctstate NEW "

_LOAD_BALANCER_FIREWALL = f"{_NEW}{comment('kubernetes load balancer firewall')} -j {names.PROXY_FIREWALL}"
_EXTERNAL_SERVICES = f"{_NEW}{comment('kubernetes externally-visible service portals')} -j {names.EXTERNAL_SERVICES}"
_FILTER_SERVICES = f"{_NEW}{comment('kubernetes service portals')} -j {names.SERVICES}"
_NAT_SERVICES = f"{comment('kubernetes service portals')} -j {names.SERVICES}"

JUMPS: dict[TableName, dict[str, Rules]] = {
    "filter": {
        "INPUT": (
            f"-j {names.FIREWALL}",
            _LOAD_BALANCER_FIREWALL,
            f"{comment('kubernetes health check service ports')} -j {names.NODEPORTS}",
            _EXTERNAL_SERVICES,
        ),
        "FORWARD": (
            _LOAD_BALANCER_FIREWALL,
            f"{comment('kubernetes forwarding rules')} -j {names.FORWARD}",
            _FILTER_SERVICES,
            _EXTERNAL_SERVICES,
        ),
        "OUTPUT": (f"-j {names.FIREWALL}", _LOAD_BALANCER_FIREWALL, _FILTER_SERVICES),
    },
    "nat": {
        "PREROUTING": (_NAT_SERVICES,),
        "OUTPUT": (_NAT_SERVICES,),
        "POSTROUTING": (f"{comment('kubernetes postrouting rules')} -j {names.POSTROUTING}",),
    },
}
"""The rules of the built-in chains, in the order in which kube-proxy leaves them."""


def filter_chains(settings: Settings) -> dict[str, Rules]:
    """The fixed chains of the filter table."""
    return {names.FIREWALL: _firewall(settings), names.FORWARD: _forward(settings)}


def nat_chains(settings: Settings) -> dict[str, Rules]:
    """The fixed chains of the nat table."""
    mark = settings.masquerade_mark
    # Marked like all others, so that what follows, and the mark that a packet leaves with, is the same for them.
    hairpin = (f"{to_itself(settings.family)} -j {names.MARK_MASQ}",) if settings.direct else ()
    return {
        names.MARK_MASQ: (f"-j MARK --set-xmark {mark}/{mark}",),
        names.POSTROUTING: (
            *hairpin,
            f"-m mark ! --mark {mark}/{mark} -j RETURN",
            f"-j MARK --set-xmark {mark}/0x0",  # so that a packet that passes twice isn't masqueraded twice
            f"{comment('kubernetes service traffic requiring SNAT')} -j MASQUERADE --random-fully",
        ),
    }


def node_port_jumps(settings: Settings) -> Rules:
    """The last rules of nat KUBE-SERVICES: whatever else is for this node may be for a node port."""
    note = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    if settings.node_port_addresses is not None:
        bits = settings.family.host_bits
        return tuple(f"-d {address}/{bits} {note} -j {names.NODEPORTS}" for address in settings.node_port_addresses)
    if settings.family is Family.IPV6:
        guard = "! -d ::1/128 "
    else:
        guard = "" if settings.localhost_node_ports else "! -d 127.0.0.0/8 "
    return (f"{guard}{note} -m addrtype --dst-type LOCAL -j {names.NODEPORTS}",)


def _firewall(settings: Settings) -> Rules:
    # route_localnet, which node ports on localhost need, would let neighbours reach the node's localhost
    # (kubernetes/kubernetes #90259). kubelet keeps the same rule.
    if settings.family is Family.IPV6 or not settings.localhost_node_ports:
        return ()
    note = comment("block incoming localnet connections")
    state = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"
    return (f"! -s 127.0.0.0/8 -d 127.0.0.0/8 {note} {state} -j DROP",)


def _forward(settings: Settings) -> Rules:
    mark = settings.masquerade_mark
    rules: Rules = (
        f"{comment('kubernetes forwarding rules')} -m mark --mark {mark}/{mark} -j ACCEPT",
        f"{comment('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )
    if settings.direct:  # what is marked only behind this is let through like what is marked before
        rules += (f"{to_itself(settings.family)} -j ACCEPT",)
    if settings.node.tcp_be_liberal:
        return rules
    # Packets that conntrack can't place would leave with untranslated addresses (kubernetes/kubernetes #74839).
    counted = counted_by(INVALID_DROPPED) if settings.nfacct else ""
    return (f"-m conntrack --ctstate INVALID {counted}-j DROP", *rules)
