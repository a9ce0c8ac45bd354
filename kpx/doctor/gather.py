"""The rim: facts from this host's kernel, processes and tools. Changes nothing."""

import fcntl
import os
import platform
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from kpx import host
from kpx.api import KubeProxyConfiguration
from kpx.doctor.facts import Clients, Facts, Process, Setting, Slow, Tables, Trial
from kpx.doctor.trials import try_all
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter import creation, nft
from kpx.netfilter.backend import Evidence, available, decide
from kpx.netfilter.names import KUBELET_HINTS, ours
from kpx.netfilter.netlink import NETLINK_NETFILTER, NFGENMSG, Netlink, attribute, attributes
from kpx.netfilter.reading import BUILT_IN, read_tables
from kpx.netfilter.save import Saved
from kpx.netfilter.tools import Backend, Tools, binary, legacy_tables, plain_backend

_PROC = Path("/proc")
_GETTABLE = 10 << 8 | 1
_TABLE_NAME = 1
_LIST_SETS = 6 << 8 | 7
_SET_PROTOCOL, _SET_NAME, _SET_FLAGS = 1, 2, 6 | 0x4000
_NAMES_ONLY = struct.pack(">I", 1 << 1)
"""`linux/netfilter/ipset/ip_set.h`; numbers are in network byte order, which bit 14 of their type says."""
_NFT_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
)
_OLD_PREFIXES = ("KUBE-PORTALS-", "KUBE-IPVS-")
_OLD_CHAINS = {
    "KUBE-NODEPORT-CONTAINER",
    "KUBE-NODEPORT-HOST",
    "KUBE-NODEPORT-NON-LOCAL",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
}
"""Chains of kube-proxy's userspace and IPVS modes, but for names that iptables mode uses, too."""
_KUBELET_S = {"KUBE-FIREWALL", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"}
"""Chains of a proxy that kubelet makes, too, up to 1.27."""
_REMEMBERED = re.compile(r'--comment "([^"]*)".* -m recent --set --name (\S+)')


def gather(backend: str, config: KubeProxyConfiguration | None) -> Facts:
    """Look at the host from this network namespace.

    `backend` is `auto` or the one to assume. With `config`, the kernel settings that it asks for are looked at, too.
    Raises KpxError without the rights of root.
    """
    looks = {one: _look(one) for one in available()}
    tables = {one: found for one, (found, _) in looks.items()}
    chosen = _choose(backend, tables)
    locked = _is_locked(Path(os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")))
    trials, no_trials = _try(chosen, locked)
    services = _remembered(looks[chosen][1]) if chosen else {}
    running = tuple(_neighbours())
    return Facts(
        kernel=platform.release(),
        tables=tables,
        backend=chosen,
        trials=trials,
        no_trials=no_trials,
        proxies=tuple(one for one in running if one.name == "kube-proxy"),
        agents=tuple(one for one in running if one.name == "kpx"),
        nft_tables=_nft_tables(),
        sets=_sets(),
        ipvs_link="kube-ipvs0" in (name for _, name in socket.if_nameindex()),
        ip_vs=_virtual_servers(),
        flows=_number(_PROC / "sys/net/netfilter/nf_conntrack_count"),
        most_flows=_number(_PROC / "sys/net/netfilter/nf_conntrack_max"),
        clients=tuple(_clients(services)),
        most_clients=_number(Path("/sys/module/xt_recent/parameters/ip_list_tot")),
        sysctls={name: text for name in _SYSCTLS if (text := _text(_sysctl(name))) is not None},
        settings=tuple(_unmet(config)) if config else (),
        has_ipv6=any(not one.startswith(("fe80:", "::1")) for one in host.interface_addresses(Family.IPV6)),
        lock_held=locked,
    )


def _choose(backend: str, tables: dict[Backend, Tables]) -> Backend | None:
    if backend != "auto":
        chosen = Backend(backend)
        if chosen not in tables:
            raise KpxError(f"no iptables of the backend {chosen} is installed")
        return chosen
    evidence = {one: Evidence(found.hinted, found.rules) for one, found in tables.items()}
    return decide(evidence, plain_backend()) if evidence else None


def _try(backend: Backend | None, locked: bool) -> tuple[tuple[Trial, ...] | None, str]:
    """Trials, or None and the reason why there are none."""
    if backend is None:
        return None, "no iptables"
    if backend is Backend.LEGACY and locked:
        return None, "somebody holds the lock of the legacy tools"
    try:
        return try_all(backend), ""
    except KpxError as error:
        return None, str(error)


def _look(backend: Backend) -> tuple[Tables, tuple[Saved, ...]]:
    """What there is to say of a backend, and what its tables hold of both families, if that can be read."""
    version, unreadable = "", ""
    saves: tuple[Saved, ...] = ()
    slow: tuple[Slow, ...] = ()
    try:
        version = Tools(backend, Family.IPV4).version()
        saves = _saves(backend)
        slow = tuple(_slow()) if backend is Backend.NFT else ()
    except KpxError as error:
        if "ermission denied" in str(error) or "not permitted" in str(error):
            raise  # then nothing else that is asked tells the truth, either
        unreadable = str(error)
    return _tables(backend, saves, version, unreadable, slow), saves


def _slow() -> Iterator[Slow]:
    for family in Family:
        for table, names in nft.chains(family).items():
            if table in BUILT_IN and creation.is_dear(names):
                yield Slow(family, table, len(names), creation.comparisons(names))


def _saves(backend: Backend) -> tuple[Saved, ...]:
    """What the tables of both families hold. Legacy tables that aren't there are left alone: a look makes them."""
    found = []
    for family in Family:
        if not binary(backend, family, "-save") or (backend is Backend.LEGACY and not legacy_tables(family)):
            continue
        found.append(read_tables(Tools(backend, family), tuple(BUILT_IN)))
    return tuple(found)


def _tables(
    backend: Backend, saves: tuple[Saved, ...], version: str, unreadable: str, slow: tuple[Slow, ...]
) -> Tables:
    chains = {name: chain for save in saves for table in save.values() for name, chain in table.chains.items()}
    return Tables(
        version=version,
        families=frozenset(family for family in Family if binary(backend, family, "-restore")),
        unreadable=unreadable,
        hinted=any(hint in save["mangle"].chains for save in saves if "mangle" in save for hint in KUBELET_HINTS),
        rules=sum(len(chain.rules) for save in saves for table in save.values() for chain in table.chains.values()),
        proxy_chains=frozenset(name for name in chains if ours(name) and name not in _KUBELET_S),
        old_chains=frozenset(name for name in chains if name.startswith(_OLD_PREFIXES) or name in _OLD_CHAINS),
        slow=slow,
    )


def _remembered(saves: tuple[Saved, ...]) -> dict[str, str]:
    """By the name of a list of clients: the Service port that the rule with the list says it is for."""
    rules = (
        rule
        for save in saves
        if "nat" in save
        for name, chain in save["nat"].chains.items()
        if name.startswith("KUBE-SEP-")
        for rule in chain.rules
    )
    return {found[2]: found[1] for found in map(_REMEMBERED.search, rules) if found}


def _clients(services: dict[str, str]) -> Iterator[Clients]:
    folders = (_PROC / "net/xt_recent", _PROC / "net/ipt_recent")
    for file in sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir()):
        if (text := _text(file)) is not None:
            yield Clients(file.name, len(text.splitlines()) if text else 0, services.get(file.name, ""))


def _neighbours() -> Iterator[Process]:
    """Service proxies in this network namespace: kube-proxies and kpx agents."""
    here = os.readlink("/proc/thread-self/ns/net")
    for folder in _PROC.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if os.readlink(folder / "ns/net") != here or int(folder.name) == os.getpid():
                continue
        except OSError:  # it has ended meanwhile
            continue
        names = [Path(word.decode(errors="replace")).name for word in words[:4]]
        if "kube-proxy" in names[:1]:
            yield Process(int(folder.name), "kube-proxy")
        elif "kpx" in names and "run" in names:
            yield Process(int(folder.name), "kpx")


def _nft_tables() -> tuple[str, ...]:
    """The tables of kube-proxy in nftables mode; none on a kernel without nftables."""
    found = []
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            for body in link.dump(_GETTABLE, NFGENMSG.pack(0, 0, 0)):
                name = attributes(body, NFGENMSG.size).get(_TABLE_NAME, b"").rstrip(b"\0")
                if name == b"kube-proxy":
                    found.append(f"{_NFT_FAMILIES.get(body[0], body[0])} kube-proxy")
    except OSError:
        return ()
    return tuple(sorted(set(found)))


def _sets() -> tuple[str, ...]:
    """The ipsets of kube-proxy's IPVS mode. Not asked for where the module isn't loaded, since that would load it."""
    if not Path("/sys/module/ip_set").exists():
        return ()
    body = NFGENMSG.pack(0, 0, 0) + attribute(_SET_PROTOCOL, b"\x06") + attribute(_SET_FLAGS, _NAMES_ONLY)
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            found = [attributes(one, NFGENMSG.size)[_SET_NAME] for one in link.dump(_LIST_SETS, body)]
    except OSError:
        return ()
    names = {name.rstrip(b"\0").decode() for name in found}
    return tuple(sorted(name for name in names if name.startswith("KUBE-")))


def _virtual_servers() -> int:
    """How many virtual servers IPVS has: a line each, after three of heading (`ip_vs_ctl.c`)."""
    lines = (_text(_PROC / "net/ip_vs") or "").splitlines()
    return sum(line.startswith(("TCP ", "UDP ", "SCTP ")) for line in lines)


def _unmet(config: KubeProxyConfiguration) -> Iterator[Setting]:
    """The settings that a proxy with this configuration would have to change; its own OOM score isn't the host's."""
    for setting in host.settings(config, os.cpu_count() or 1):
        now = _number(setting.path)
        met = now == setting.value or (setting.at_least and now is not None and now > setting.value)
        if not met and not setting.path.name.startswith("oom_"):
            shown = None if now is None else str(now)
            yield Setting(setting.name, str(setting.value), shown, setting.otherwise)


def _is_locked(lock: Path) -> bool:
    """Whether somebody holds the lock of the legacy tools right now."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _sysctl(name: str) -> Path:
    return _PROC / "sys" / name.replace(".", "/")


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.lstrip("-").isdigit() else None
