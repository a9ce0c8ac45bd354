"""Rules of every kind that kpx writes, tried on the kernel in a network namespace that lives only for that."""

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from kpx.compiler.compile import Layout
from kpx.compiler.hairpin import to_itself
from kpx.doctor.facts import Trial
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.refusal import RestoreError
from kpx.netfilter.tools import Backend, Tools, binary

_CLONE_NEWNET = 0x40000000
_ADDRESS = {Family.IPV4: "192.0.2.1:80", Family.IPV6: "[2001:db8::1]:80"}
_MASK = {Family.IPV4: "255.255.255.255", Family.IPV6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
_REJECT = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}


def features(family: Family) -> dict[str, tuple[str, str]]:
    """By what it is called: the table and the rule that shows whether the host can do it."""
    recent = f"--name KPX-TRIAL --mask {_MASK[family]} --rsource"
    return {
        "-m comment": ("filter", '-m comment --comment "kpx trial"'),
        "-m conntrack": ("filter", "-m conntrack --ctstate NEW"),
        "-m mark": ("filter", "-m mark --mark 0x4000/0x4000"),
        "-m addrtype": ("nat", "-m addrtype --dst-type LOCAL"),
        "-m tcp": ("filter", "-p tcp -m tcp --dport 80"),
        "-m udp": ("filter", "-p udp -m udp --dport 53"),
        "-m sctp": ("filter", "-p sctp -m sctp --dport 80"),
        "-m statistic": ("nat", "-m statistic --mode random --probability 0.5"),
        "-m recent --set": ("nat", f"-m recent --set {recent}"),
        "-m recent --rcheck --reap": ("nat", f"-m recent --rcheck --seconds 10800 --reap {recent}"),
        "-j MARK": ("nat", "-j MARK --set-xmark 0x4000/0x4000"),
        "-j DNAT": ("nat", f"-p tcp -m tcp -j DNAT --to-destination {_ADDRESS[family]}"),
        "-j MASQUERADE --random-fully": ("nat", "-j MASQUERADE --random-fully"),
        "-j REJECT": ("filter", f"-j REJECT --reject-with {_REJECT[family]}"),
        "-j DROP": ("filter", "-j DROP"),
        "-j ACCEPT": ("filter", "-j ACCEPT"),
        "-j RETURN": ("nat", "-j RETURN"),
    }


def options(family: Family) -> dict[str, tuple[str, str, str]]:
    """The same of what not everybody needs, and who does."""
    return {"-m bpf": ("nat", to_itself(family), f"`--layout {Layout.COMPACT}` and `kpx.dev/balance: source-hash`")}


def try_all(backend: Backend) -> tuple[Trial, ...]:
    """Try everything on one backend, for the families that it has tools of.

    Nothing of this network namespace is touched. Raises KpxError if there can be no other one.
    """
    with ThreadPoolExecutor(max_workers=1) as elsewhere:
        return elsewhere.submit(_try_all, backend).result()


def _try_all(backend: Backend) -> tuple[Trial, ...]:
    _leave_namespace()
    families = [family for family in Family if binary(backend, family, "-restore")]
    return tuple(trial for family in families for trial in _try_family(Tools(backend, family)))


def _leave_namespace() -> None:
    """Move this thread, and the processes that it starts, to a new network namespace, which ends with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise KpxError(f"no network namespace can be made ({os.strerror(ctypes.get_errno())}): it takes CAP_SYS_ADMIN")


def _try_family(tools: Tools) -> Iterator[Trial]:
    """All rules at once, and only if they are refused one by one."""
    rules = features(tools.family)
    together = not _refusal(tools, *rules.values())
    for feature, rule in rules.items():
        yield Trial(tools.family, feature, "" if together else _refusal(tools, rule))
    for feature, (table, rule_of_few, whom) in options(tools.family).items():
        yield Trial(tools.family, feature, _refusal(tools, (table, rule_of_few)), whom)


def _refusal(tools: Tools, *rules: tuple[str, str]) -> str:
    """What is said against these rules, in one line; empty if they are taken."""
    payload = "".join(f"*{table}\n:KPX-TRIAL - [0:0]\n-A KPX-TRIAL {rule}\nCOMMIT\n" for table, rule in rules)
    try:
        tools.restore(payload)
    except RestoreError as error:
        return next(iter(error.stderr.splitlines()), "without a word")
    except KpxError as error:
        return str(error)
    return ""
