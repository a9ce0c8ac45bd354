"""What the doctor knows about a node: plain values, so that checks need no node."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kpx.family import Family
from kpx.netfilter.tools import Backend


@dataclass(frozen=True, slots=True)
class Slow:
    """An nft table whose chains were made in an order that the tools sort slowly (`kpx.netfilter.creation`)."""

    family: Family
    table: str
    chains: int
    comparisons: int


@dataclass(frozen=True, slots=True)
class Tables:
    """One backend: the version of its iptables, the families it has tools of, and what the tables of both hold.

    `version` is empty if iptables doesn't even say that. `unreadable` says why what the tables hold can't be told, if
    so: then the rest is as if they were empty. `hinted` if kubelet's hint chains are there, `rules` counts all rules,
    `proxy_chains` names the chains of a proxy in iptables mode that are in use, `old_chains` those of kube-proxy's
    other modes. `slow` tells which tables take the tools long to list.
    """

    version: str
    families: frozenset[Family] = frozenset(Family)
    unreadable: str = ""
    hinted: bool = False
    rules: int = 0
    proxy_chains: frozenset[str] = frozenset()
    old_chains: frozenset[str] = frozenset()
    slow: tuple[Slow, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """A rule tried in a throwaway network namespace: what it needs (`-m statistic`), and why it was refused, if so.

    `only_for` says who alone needs it, where that isn't everybody.
    """

    family: Family
    feature: str
    refusal: str = ""
    only_for: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """A running program."""

    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class Clients:
    """How many clients one list of `-m recent` remembers, and the Service port that it is for, where known."""

    name: str
    count: int
    service: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """A kernel setting that a configuration asks for, and what it is (None: not there)."""

    name: str
    wanted: str
    now: str | None
    otherwise: str


@dataclass(frozen=True, slots=True)
class Facts:
    """One node, seen from one network namespace.

    `backend` is the one that kpx would use. `trials` is None if none could be made, for the reason `no_trials`.
    `proxies` are kube-proxies and `agents` kpx agents in this network namespace. `nft_tables` are those of kube-proxy
    in nftables mode (`ip kube-proxy`), `sets` the ipsets of its IPVS mode. `ip_vs` counts virtual servers. `sysctls`
    has what the kernel says, by name, without those that aren't there. `lock_held`: somebody holds the lock of the
    legacy tools.
    """

    kernel: str
    tables: Mapping[Backend, Tables]
    backend: Backend | None
    trials: tuple[Trial, ...] | None = None
    no_trials: str = ""
    proxies: tuple[Process, ...] = ()
    agents: tuple[Process, ...] = ()
    nft_tables: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    ipvs_link: bool = False
    ip_vs: int = 0
    flows: int | None = None
    most_flows: int | None = None
    clients: tuple[Clients, ...] = ()
    most_clients: int | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()
    has_ipv6: bool = False
    lock_held: bool = False
