"""The host around the rules: kernel settings that a proxy sets, and what the host tells about itself.

The settings are kube-proxy 1.36's (`pkg/proxy/conntrack/sysctls.go`, `pkg/proxy/iptables/proxier.go`). It
doesn't touch `bridge-nf-call-iptables`: up to 1.28 it only logged a line about it, since then not even that.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop

from kpx import logs
from kpx.api import KubeProxyConfiguration
from kpx.compiler.settings import settings_for
from kpx.errors import KpxError
from kpx.family import Family
from kpx.model.node import NodeView
from kpx.netfilter.netlink import NETLINK_ROUTE, Netlink, attributes
from kpx.netfilter.tools import Backend

log = logs.get_logger()

_SYS = Path("/proc/sys")
_HASHSIZE = Path("/sys/module/nf_conntrack/parameters/hashsize")
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_CAP_NET_ADMIN, _CAP_NET_RAW = 12, 13
_MOST_ENTRIES = 1 << 20
"""kube-proxy's bound for what maxPerCore gives, whatever conntrack.min says."""

_RTM_GETADDR = 22
_IFADDRMSG = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_ADDRESS_FAMILY = {Family.IPV4: AF_INET, Family.IPV6: AF_INET6}


def tcp_be_liberal() -> bool:
    """Whether conntrack accepts TCP segments outside of the window; false if the host doesn't say."""
    try:
        return (_SYS / "net/netfilter/nf_conntrack_tcp_be_liberal").read_text().strip() != "0"
    except OSError:
        return False


def interface_addresses(family: Family) -> tuple[str, ...]:
    """The addresses of this network namespace's interfaces, canonical and sorted; loopback and link-local ones too.

    Raises KpxError if the kernel doesn't tell.
    """
    kind = _ADDRESS_FAMILY[family]
    found = set()
    try:
        with Netlink(NETLINK_ROUTE) as link:
            for body in link.dump(_RTM_GETADDR, _IFADDRMSG.pack(kind, 0, 0, 0, 0)):
                one = attributes(body, _IFADDRMSG.size)
                # A point-to-point interface has the other end in IFA_ADDRESS, and its own in IFA_LOCAL.
                if body[0] == kind:
                    found.add(inet_ntop(kind, one.get(_IFA_LOCAL) or one[_IFA_ADDRESS]))
    except OSError as error:
        raise KpxError(f"can't list this host's addresses: {error.strerror}") from error
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that the kernel should hold: where, how much, and what follows if it holds another.

    With `at_least`, a larger number is as good.
    """

    path: Path
    value: int
    otherwise: str
    at_least: bool = False

    @property
    def name(self) -> str:
        """As operators call it: `net.ipv4.ip_forward` for a sysctl, else the path."""
        return ".".join(self.path.relative_to(_SYS).parts) if self.path.is_relative_to(_SYS) else str(self.path)


def process_name(pid: int, name: str) -> str:
    """A process by its name, and by that of the one that started it, if both can still be seen.

    `pid` is the one in the initial pid namespace: elsewhere it is nobody's, or, by its name, another one's.
    """
    try:
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        parent = Path(f"/proc/{int(status['PPid'])}/comm").read_text().strip()
    except (OSError, KeyError, ValueError):
        return name
    return f"{name} of {parent}" if comm == name else name


def shortcomings(backend: Backend) -> tuple[str, ...]:
    """What this process lacks for writing rules, a warning for each. Never raises."""
    return tuple(_shortcomings(backend))


def _shortcomings(backend: Backend) -> Iterator[str]:
    if not _is_capable(_CAP_NET_ADMIN):
        yield "CAP_NET_ADMIN is missing: the kernel takes no rules from this process, and shows none"
    if backend is Backend.LEGACY:
        if not _is_capable(_CAP_NET_RAW):
            yield "CAP_NET_RAW is missing: iptables-legacy reaches its tables through a raw socket"
        lock = Path(os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock"))
        if not lock.exists() and not os.access(lock.parent, os.W_OK):
            yield f"{lock} is missing and can't be made: iptables-legacy writes nothing without its lock"


def _is_capable(capability: int) -> bool:
    """Whether this process has a capability, as capabilities(7) numbers them; true if the kernel doesn't say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return True
    (effective,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(effective >> capability & 1)


def setup(config: KubeProxyConfiguration) -> None:
    """Make the kernel hold the settings of `config`: a line of log for each that is set, a warning if it won't take it.

    What holds already isn't written, so that a host prepared by somebody with more rights gives no warning.
    Never raises.
    """
    for setting in settings(config, os.cpu_count() or 1):
        _ensure(setting)


def settings(config: KubeProxyConfiguration, cpus: int) -> Iterator[Setting]:
    """What `config` asks for, on a host of so many CPUs. Timeouts of 0 leave the kernel's own."""
    # The node's address isn't known yet; whatever "primary" stands for, it isn't loopback.
    if settings_for(config, NodeView("", Family.IPV4, address="0.0.0.0")).localhost_node_ports:
        yield Setting(_SYS / "net/ipv4/conf/all/route_localnet", 1, "node ports don't answer on 127.0.0.0/8")
    conntrack = config.conntrack
    entries = conntrack_entries(conntrack.max_per_core, conntrack.min, cpus)
    if entries:
        # Other network namespaces than the root one can read this number only.
        full = "new connections are refused at another number of entries than configured"
        yield Setting(_conntrack("max"), entries, full)
        yield Setting(_HASHSIZE, entries // 4, "a table near its limit is slow to search", at_least=True)
    for name, seconds in (
        ("tcp_timeout_established", conntrack.tcp_established_timeout),
        ("tcp_timeout_close_wait", conntrack.tcp_close_wait_timeout),
        ("udp_timeout", conntrack.udp_timeout),
        ("udp_timeout_stream", conntrack.udp_stream_timeout),
    ):
        if seconds > 0:
            yield Setting(_conntrack(name), int(seconds), "connections are forgotten sooner or later than configured")
    if conntrack.tcp_be_liberal:
        yield Setting(_conntrack("tcp_be_liberal"), 1, "TCP segments outside of the window are dropped as invalid")
    yield Setting(_OOM_SCORE, config.oom_score_adj, "short of memory, the kernel may pick this process to kill")


def conntrack_entries(per_core: int, least: int, cpus: int) -> int:
    """How many entries conntrack should hold; 0 leaves the kernel's own number."""
    scaled = per_core * cpus
    if scaled > _MOST_ENTRIES:
        return _MOST_ENTRIES
    return max(scaled, least) if per_core else 0


def _conntrack(name: str) -> Path:
    return _SYS / f"net/netfilter/nf_conntrack_{name}"


def _ensure(setting: Setting) -> None:
    """Make one setting hold, and say so."""
    now = "unknown"
    try:
        now = setting.path.read_text().strip()
        if int(now) == setting.value or (setting.at_least and int(now) > setting.value):
            return
        setting.path.write_text(str(setting.value))
    except OSError as error:
        log.warning(_warning(setting, now, error.strerror or str(error)))
    except ValueError:
        log.warning(_warning(setting, now, "not a number"))
    else:
        log.info("kernel setting changed", setting=setting.name, old=int(now), new=setting.value)


def _warning(setting: Setting, now: str, reason: str) -> str:
    wanted = f"at least {setting.value}" if setting.at_least else str(setting.value)
    return f"{setting.name} should be {wanted}, but is {now} and can't be changed ({reason}): {setting.otherwise}"
