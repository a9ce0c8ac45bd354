"""What wrote rules, and what else is at work beside them: told by chains, and by the shape of kube-proxy's own rules.

Versions are those in which kube-proxy began to write what is looked for; distributions may have taken over changes
earlier, so a range is a little wide at its ends.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from pydantic import Field

from kpx.netfilter.names import MARK_MASQ, TREE
from kpx.netfilter.ruleset import Rules
from kpx.shape import Part

Tables = Mapping[str, Mapping[str, Rules]]

_SAMPLE = 50
"""Chains of Services that are looked at: all of one proxy have one shape."""


@dataclass(frozen=True, slots=True)
class Setting:
    """`proxy` wrote the rules for Services, empty if there are none; `others` are the programs at work beside it.

    `pods` are names of interfaces by which only this node's pods come in, as rules write them (`cali+`).
    `local_dns` are the addresses on which NodeLocal DNSCache answers on the node itself, past nat.
    """

    proxy: str
    others: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    local_dns: tuple[str, ...] = ()

    def __str__(self) -> str:
        wrote = (
            f"written by {self.proxy}" if self.proxy else "no Service proxy of iptables mode wrote any of these rules"
        )
        beside = f"; beside it: {', '.join(self.others)}" if self.others else ""
        came = f"; pods come in by {' and '.join(_plain(one) for one in self.pods)}" if self.pods else ""
        dns = f"; DNS is answered on the node at {', '.join(self.local_dns)}" if self.local_dns else ""
        return f"{wrote}{beside}{came}{dns}"


class About(Part):
    """What one has to know of rules before any answer."""

    setting: str = Field(description="what wrote the rules and what else is at work; empty for those of manifests")
    unread: tuple[str, ...] = Field(description="tables whose rules nobody could read, with why")
    notes: tuple[str, ...] = Field(description="what else was said of them")


NOTHING_KNOWN = About(setting="", unread=(), notes=())


def _plain(interface: str) -> str:
    """A name of interfaces for people."""
    return f"{interface[:-1]}*" if interface.endswith("+") else interface


def setting_of(tables: Tables) -> Setting:
    """Look at rules by table and chain, and say what they are."""
    ipvs = _is_ipvs(tables)
    found = [one for one in _OTHERS if one.is_here(tables) and not (ipvs and one.name == _OF_IPVS)]
    pods = dict.fromkeys(name for one in found for name in one.pods)
    dns = dict.fromkeys(_local_dns(tables))
    return Setting(_proxy(tables), tuple(one.name for one in found), tuple(pods), tuple(dns))


# ---- the proxy ----


def _proxy(tables: Tables) -> str:
    nat = tables.get("nat", {})
    names = {name for chains in tables.values() for name in chains}
    if any(name.startswith(TREE) for name in names):
        return "kpx"
    if _translates_at_once(nat):
        return "kpx in the layout compact"
    if _is_ipvs(tables):
        return "kube-proxy in IPVS mode"
    if any(name.startswith("KUBE-PORTALS-") for name in names) and "KUBE-SERVICES" not in names:
        return "kube-proxy in userspace mode, before 1.2 its only one"
    if "KUBE-SERVICES" not in names:
        return ""
    since = next(words for words, holds in _AGES if holds(tables, nat))
    if since == _AGES[0][0] and "KUBE-PROXY-CANARY" not in names:
        return f"kube-proxy {since}, or kpx in the layout classic"
    return f"kube-proxy {since}"


def _is_ipvs(tables: Tables) -> bool:
    return any("--match-set KUBE-CLUSTER-IP" in rule for rule in tables.get("nat", {}).get("KUBE-SERVICES", ()))


def _translates_at_once(nat: Mapping[str, Rules]) -> bool:
    chains = islice((rules for name, rules in nat.items() if name.startswith(("KUBE-SVC-", "KUBE-SVL-"))), _SAMPLE)
    return any(" -j DNAT " in rule for rules in chains for rule in rules)


def _has(table: str, chain: str) -> Callable[[Tables, Mapping[str, Rules]], bool]:
    return lambda tables, nat: chain in tables.get(table, {})


def _has_outer_chains(tables: Tables, nat: Mapping[str, Rules]) -> bool:
    return any(name.startswith(("KUBE-EXT-", "KUBE-SVL-")) for name in nat)


def _marks_in_its_chain(tables: Tables, nat: Mapping[str, Rules]) -> bool:
    chains = islice((rules for name, rules in nat.items() if name.startswith("KUBE-SVC-")), _SAMPLE)
    return any(rule.endswith(f"-j {MARK_MASQ}") for rules in chains for rule in rules)


def _returns_unmarked(tables: Tables, nat: Mapping[str, Rules]) -> bool:
    return any(rule.endswith("-j RETURN") for rule in nat.get("KUBE-POSTROUTING", ()))


def _drops_invalid(tables: Tables, nat: Mapping[str, Rules]) -> bool:
    return any("--ctstate INVALID" in rule for rule in tables.get("filter", {}).get("KUBE-FORWARD", ()))


_AGES: tuple[tuple[str, Callable[[Tables, Mapping[str, Rules]], bool]], ...] = (
    ("1.26 to 1.36", _has("filter", "KUBE-PROXY-FIREWALL")),
    ("1.24 or 1.25", _has_outer_chains),
    ("1.22 or 1.23", _marks_in_its_chain),
    ("1.18 to 1.21", _returns_unmarked),
    ("1.14 to 1.17", _drops_invalid),
    ("1.9 to 1.13", _has("filter", "KUBE-FORWARD")),
    ("1.8 or older", lambda tables, nat: True),
)
"""Versions in iptables mode, the newest first, each with what tells it from older ones."""


# ---- others ----


@dataclass(frozen=True, slots=True)
class _Other:
    """A program, and how its chains are called or what its rules say. `pods` are its interfaces for pods."""

    name: str
    chains: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()

    def is_here(self, tables: Tables) -> bool:
        """Whether rules of it are among these."""
        if any(name.startswith(self.chains) for chains in tables.values() for name in chains if self.chains):
            return True
        return any(word in rule for rule in _in_front(tables) for word in self.words)


_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def _in_front(tables: Tables) -> Iterator[str]:
    """The rules of built-in chains."""
    return (rule for chains in tables.values() for name in _BUILT_IN for rule in chains.get(name, ()))


_OF_IPVS = "what the IPVS mode of kube-proxy left"
_OTHERS = (
    _Other("Calico", ("cali-",), pods=("cali+",)),
    _Other("Cilium", ("CILIUM_",), pods=("lxc+",)),
    _Other("AWS VPC CNI", ("AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"), ('"AWS, ',), ("eni+",)),
    _Other("OpenShift SDN", ("OPENSHIFT-",), pods=("tun0",)),
    _Other("kube-router's network policies (as in k3s)", ("KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-")),
    _Other("flannel", ("FLANNEL-",), ("flanneld ",)),
    _Other("Weave Net", ("WEAVE",), pods=("weave",)),
    _Other("Antrea", ("ANTREA-",)),
    _Other("kindnet", ("KIND-MASQ-AGENT",)),
    _Other("ip-masq-agent", ("IP-MASQ", "IP-MASQ-AGENT")),
    _Other("host ports of CNI", ("CNI-HOSTPORT-", "KUBE-HOSTPORTS")),
    _Other("docker", ("DOCKER",)),
    _Other("podman", ("NETAVARK",)),
    _Other("libvirt", ("LIBVIRT_",)),
    _Other("firewalld", ("PREROUTING_ZONES", "INPUT_ZONES", "FORWARD_ZONES", "FORWARD_IN_ZONES", "IN_public")),
    _Other("ufw", ("ufw-", "ufw6-")),
    _Other("fail2ban", ("f2b-",)),
    _Other("Tailscale", ("ts-",)),
    _Other("Istio", ("ISTIO_",)),
    _Other("NodeLocal DNSCache", words=("NodeLocal DNS Cache",)),
    _Other("what the userspace mode of old kube-proxies left", ("KUBE-PORTALS-",)),
    _Other(_OF_IPVS, ("KUBE-LOAD-BALANCER", "KUBE-NODE-PORT", "KUBE-IPVS-")),
)


_DESTINATION = re.compile(r"(?:^| )-d ([0-9a-fA-F.:]+)(?:/\d+)? ")


def _local_dns(tables: Tables) -> Iterable[str]:
    """The addresses whose packets NodeLocal DNSCache keeps from conntrack."""
    for rule in tables.get("raw", {}).get("PREROUTING", ()):
        if "--dport 53 " in rule and ("NOTRACK" in rule or "--notrack" in rule) and (to := _DESTINATION.search(rule)):
            yield to[1]
