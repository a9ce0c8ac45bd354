"""From facts to findings: what is well, what may hurt, what stops kpx from doing its work, and what to do."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Annotated

from pydantic import Field

from kpx.doctor.facts import Facts, Tables, Trial
from kpx.family import Family
from kpx.netfilter.tools import Backend
from kpx.shape import SHAPE

_FILLING, _FULL = 0.75, 0.95
_OLDEST_SOUND_NFT = (1, 8, 3)
_NAMES = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    __pydantic_config__ = SHAPE

    level: Level
    check: Annotated[str, Field(description="what was looked at: a word for programs")]
    message: str
    advice: Annotated[str, Field(description="what to do, empty if there is nothing to do")] = ""


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Every check's findings, in the order of `CHECKS`."""
    return tuple(finding for check in CHECKS for finding in check(facts))


def _versions(facts: Facts) -> Iterator[Finding]:
    yield Finding(Level.OK, "kernel", f"Linux {facts.kernel}")
    for backend, tables in facts.tables.items():
        numbers = tuple(int(part) for part in tables.version.split(".") if part.isdigit())
        if backend is Backend.NFT and tables.version and numbers < _OLDEST_SOUND_NFT:
            text = f"{tables.version} ({backend}): before 1.8.3 the nft variant has bugs that break a proxy's rules"
            yield Finding(Level.WARN, "iptables", text, "install a newer iptables, or use the image of charts/image")
        elif tables.version:
            yield Finding(Level.OK, "iptables", f"{tables.version} ({backend})")
        if backend is facts.backend and Family.IPV6 not in tables.families:
            text = f"no ip6tables ({backend}): Services get no IPv6 rules on this node"
            yield Finding(Level.WARN, "iptables", text, "install all of iptables, or use the image of charts/image")


def _backend(facts: Facts) -> Iterator[Finding]:
    if facts.backend is None:
        yield Finding(Level.FAIL, "backend", "no iptables is installed", "install the package iptables")
        return
    yield Finding(Level.OK, "backend", f"{facts.backend}: {_reason(facts.backend, facts.tables)}")
    for other, tables in facts.tables.items():
        if tables.unreadable:
            text = f"what {other} holds can't be told: {tables.unreadable}"
            yield Finding(Level.FAIL, "backend", text, _UNREADABLE)
        if other is facts.backend:
            continue
        if tables.hinted and not facts.tables[facts.backend].hinted:
            text = f"kubelet uses {other}, by its hint"
            yield Finding(Level.WARN, "backend", text, f"let kpx use {other}, too: --backend auto")
        if not tables.rules:
            continue
        if tables.proxy_chains:
            text = f"{other} holds rules of a Service proxy too: every packet passes both sets"
            yield Finding(Level.FAIL, "backend", text, f"kpx cleanup --backend {other}")
        else:
            text = f"{other} holds {tables.rules} rules of other programs, which act beside those of {facts.backend}"
            yield Finding(Level.WARN, "backend", text, f"let these programs use {facts.backend}, too")


_UNREADABLE = (
    "`nft list ruleset` shows what is in a table of iptables; or, if the other backend is the host's, name it: "
    "--backend, and the chart's value `backend`"
)


def _reason(chosen: Backend, tables: Mapping[Backend, Tables]) -> str:
    """Why this backend."""
    others = [found for backend, found in tables.items() if backend is not chosen]
    if tables[chosen].hinted:
        return "kubelet's hint"
    if not others:
        return "no other is installed"
    most = max(found.rules for found in others)
    if tables[chosen].rules > most:
        return "no hint of kubelet's; it holds most rules"
    if tables[chosen].rules < most or any(found.hinted for found in others):
        return "as told"
    return "no hint of kubelet's, nor does one hold more rules; plain `iptables` is of this backend, or it is as told"


def _trials(facts: Facts) -> Iterator[Finding]:
    if facts.backend is None:
        return
    if facts.trials is None:
        advice = _AGAIN if facts.lock_held else _WITH_RIGHTS
        yield Finding(Level.WARN, "rules", f"no rule was tried: {facts.no_trials}", advice)
        return
    for family, trials in groupby(facts.trials, lambda trial: trial.family):
        every = tuple(trials)
        tried = [trial for trial in every if not trial.only_for]
        refused = [trial for trial in tried if trial.refusal]
        for trial in refused:
            text = f"{facts.backend} {_NAMES[family]}: {trial.feature} is refused: {trial.refusal}"
            yield Finding(Level.FAIL, "rules", text, "load the kernel's module for it, or install all of iptables")
        if not refused:
            text = f"{facts.backend} {_NAMES[family]}: all {len(tried)} kinds of rules were taken by the kernel"
            yield Finding(Level.OK, "rules", text)
        yield from (_of_few(facts.backend, trial) for trial in every if trial.only_for)


def _of_few(backend: Backend, trial: Trial) -> Finding:
    """Whether there is what not everybody needs."""
    place = f"{backend} {_NAMES[trial.family]}"
    if not trial.refusal:
        return Finding(Level.OK, "layouts", f"{place}: {trial.feature} is taken: {trial.only_for} can be used")
    text = f"{place}: {trial.feature} is refused, so that {trial.only_for} can't be used: {trial.refusal}"
    return Finding(Level.WARN, "layouts", text, "load the kernel's module xt_bpf, or do without")


_AGAIN = "try again when it is free"
_WITH_RIGHTS = (
    "run it as root of the host, or: "
    "kubectl debug node/NODE -it --profile=sysadmin --image=IMAGE -- /opt/kpx/bin/kpx doctor"
)


def _proxies(facts: Facts) -> Iterator[Finding]:
    for proxy in facts.proxies:
        text = f"kube-proxy is running (process {proxy.pid})"
        if facts.agents:
            yield Finding(Level.FAIL, "kube-proxy", f"{text} beside kpx: they undo each other's work", _TAKE_AWAY)
        else:
            yield Finding(Level.WARN, "kube-proxy", f"{text}: it has to go before kpx starts", _TAKE_AWAY)
    if not facts.proxies:
        yield Finding(Level.OK, "kube-proxy", "none to be seen from here in this network namespace")


_TAKE_AWAY = "take its DaemonSet off this node: see `From kube-proxy to kpx` in the README"


def _leftovers(facts: Facts) -> Iterator[Finding]:
    found = False
    for backend, tables in facts.tables.items():
        if tables.old_chains:
            found = True
            names = ", ".join(sorted(tables.old_chains))
            text = f"chains of another mode of kube-proxy ({backend}): {names}"
            advice = "kube-proxy --cleanup, or delete them and the jumps to them with iptables"
            yield Finding(Level.FAIL, "leftovers", text, advice)
    if facts.ipvs_link or facts.ip_vs:
        found = True
        link = "the link kube-ipvs0 makes every ClusterIP an address of this node" if facts.ipvs_link else ""
        servers = f"{facts.ip_vs} IPVS virtual servers" if facts.ip_vs else ""
        advice = "ipvsadm --clear; ip link delete kube-ipvs0"
        yield Finding(Level.FAIL, "leftovers", f"IPVS mode: {' and '.join(filter(None, (link, servers)))}", advice)
    for table in facts.nft_tables:
        found = True
        text = f"nftables mode: the table {table} translates Services, too"
        yield Finding(Level.FAIL, "leftovers", text, f"nft delete table {table}")
    if facts.sets:
        found = True
        text = f"IPVS mode: ipsets that no other mode needs: {', '.join(facts.sets)}"
        yield Finding(Level.WARN, "leftovers", text, "ipset destroy NAME, after the rules that use it are gone")
    if not found:
        yield Finding(Level.OK, "leftovers", "nothing of userspace, IPVS or nftables mode")


def _order(facts: Facts) -> Iterator[Finding]:
    """Whether the tools take long to list a table: they sort its chains, and worst what is in order already."""
    if Backend.NFT not in facts.tables:
        return
    found = facts.tables[Backend.NFT].slow
    for one in found:
        text = (
            f"nft {_NAMES[one.family]}: the {one.chains:,} chains of table {one.table} were made nearly in the order "
            f"of their names, as by iptables-restore of a saved file: iptables-nft-save and iptables -L compare "
            f"{one.comparisons:,} names to list them, which takes minutes (kpx reads them without)"
        )
        yield Finding(Level.WARN, "order", text, _ANEW)
    if not found:
        yield Finding(Level.OK, "order", "nft: no table has its chains in an order that is slow to list")


_ANEW = (
    "leave KUBE- and KPX- chains out of what is saved and restored at boot (as iptables-persistent does); "
    "then have them made anew: kpx cleanup, and start kpx again (no Service answers until it has), or reboot"
)


def _conntrack(facts: Facts) -> Iterator[Finding]:
    if facts.flows is None or not facts.most_flows:
        yield Finding(Level.OK, "conntrack", "not in use yet")
        return
    share = facts.flows / facts.most_flows
    text = f"{facts.flows} of {facts.most_flows} entries, {share:.0%}"
    advice = "raise conntrack.maxPerCore or conntrack.min in the configuration"
    if share >= _FULL:
        yield Finding(Level.FAIL, "conntrack", f"{text}: new connections are dropped", advice)
    elif share >= _FILLING:
        yield Finding(Level.WARN, "conntrack", text, advice)
    else:
        yield Finding(Level.OK, "conntrack", text)


def _affinity(facts: Facts) -> Iterator[Finding]:
    if not facts.clients or not facts.most_clients:
        yield Finding(Level.OK, "affinity", "no list of clients in the kernel")
        return
    full = [one for one in facts.clients if one.count >= facts.most_clients]
    for one in full:
        whose = f"{one.service} ({one.name})" if one.service else one.name
        text = f"{whose} remembers {one.count} clients and can't remember more: further ones lose their affinity"
        advice = (
            "echo options xt_recent ip_list_tot=10000 > /etc/modprobe.d/xt_recent.conf, and reboot; "
            "or annotate the Service with kpx.dev/balance: source-hash, which needs no list"
        )
        yield Finding(Level.WARN, "affinity", text, advice)
    if not full:
        most = max(one.count for one in facts.clients)
        yield Finding(
            Level.OK, "affinity", f"at most {most} of {facts.most_clients} clients remembered for an endpoint"
        )


def _sysctls(facts: Facts) -> Iterator[Finding]:
    bad = list(_bad_sysctls(facts))
    yield from bad
    if not bad:
        yield Finding(Level.OK, "sysctl", "forwarding and bridges are set up")


def _bad_sysctls(facts: Facts) -> Iterator[Finding]:
    forward, forward6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"
    if facts.sysctls.get(forward) == "0":
        text = f"{forward} is 0: this node forwards no packet, so endpoints elsewhere are out of reach"
        yield Finding(Level.FAIL, "sysctl", text, f"sysctl -w {forward}=1, and in /etc/sysctl.d")
    if facts.has_ipv6 and facts.sysctls.get(forward6) == "0":
        text = f"{forward6} is 0, and this node has IPv6 addresses: IPv6 endpoints elsewhere are out of reach"
        yield Finding(Level.WARN, "sysctl", text, f"sysctl -w {forward6}=1, and in /etc/sysctl.d")
    for name in ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"):
        if facts.sysctls.get(name) == "0":
            text = f"{name} is 0: if pods share a Linux bridge, they can't reach each other through a Service"
            yield Finding(Level.WARN, "sysctl", text, f"sysctl -w {name}=1, and in /etc/sysctl.d")
    for setting in facts.settings:
        text = f"{setting.name} is {setting.now or 'missing'}, and the configuration asks for {setting.wanted}"
        advice = "kpx run --init-only sets it, which the chart does with hostSettings.enabled"
        yield Finding(Level.WARN, "sysctl", f"{text}: {setting.otherwise}", advice)


def _lock(facts: Facts) -> Iterator[Finding]:
    if facts.backend is Backend.LEGACY:
        if facts.lock_held:
            text = "somebody holds /run/xtables.lock: changes wait until it is let go"
            yield Finding(Level.WARN, "lock", text, "look who it is: fuser -v /run/xtables.lock")
        else:
            yield Finding(Level.OK, "lock", "free")


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _versions,
    _backend,
    _trials,
    _proxies,
    _leftovers,
    _order,
    _conntrack,
    _affinity,
    _sysctls,
    _lock,
)
