"""Packet counters in the kernel that rules refer to by name: `linux/netfilter/nfnetlink_acct.h`. The rim.

libnetfilter_acct is the kept library for them, but it is C, and no Python package binds it: two kinds of messages are
less than a binding.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Mapping

from kpx import logs
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.counting import NAMES
from kpx.netfilter.netlink import ACK, NETLINK_NETFILTER, NFGENMSG, REQUEST, Netlink, attribute, attributes, message
from kpx.netfilter.tools import Backend, Tools

log = logs.get_logger()

_NEW, _GET = 0x700, 0x701
_NAME, _PACKETS = 1, 2
_CREATE = 0x400
_HEADER = NFGENMSG.pack(0, 0, 0)
_COUNT = struct.Struct(">Q")

_LIBC = ctypes.CDLL(None)
_COMPAT_GET = 0xB00
_COMPAT_NAME, _COMPAT_REVISION, _COMPAT_TYPE = 1, 2, 3
_ADDRESS_FAMILY = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_GET_MATCH_REVISION = {Family.IPV4: (socket.IPPROTO_IP, 66), Family.IPV6: (socket.IPPROTO_IPV6, 68)}
"""IPT_SO_GET_REVISION_MATCH and IP6T_SO_GET_REVISION_MATCH, with the level of the socket option."""


def takes(tools: Tools) -> bool:
    """Whether rules of this backend and family may count: kernel and tool know nfacct. Nothing is changed by asking.

    kube-proxy 1.36 asks the kernel's nfacct alone, and fails with every sync where the match is missing.
    """
    try:
        return _has_counters() and _has_match(tools) and tools.knows_match("nfacct")
    except (OSError, KpxError):
        return False


def _has_counters() -> bool:
    """Whether the kernel answers questions after counters; it loads the module if it has one."""
    with Netlink(NETLINK_NETFILTER) as link:
        _packets(link, NAMES[0])
    return True


def _has_match(tools: Tools) -> bool:
    """Whether the kernel has xt_nfacct, asked as iptables asks; the kernel loads the module if it has one."""
    if tools.backend is Backend.NFT:
        body = NFGENMSG.pack(_ADDRESS_FAMILY[tools.family], 0, 0)
        body += attribute(_COMPAT_NAME, b"nfacct\0")
        body += attribute(_COMPAT_REVISION, struct.pack(">I", 0)) + attribute(_COMPAT_TYPE, struct.pack(">I", 0))
        with Netlink(NETLINK_NETFILTER) as link:
            return bool(list(link.ask(_COMPAT_GET, body)))
    level, option = _GET_MATCH_REVISION[tools.family]
    with socket.socket(_ADDRESS_FAMILY[tools.family], socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        # Python's own getsockopt hands nothing in: the kernel reads the name of the match from the same place.
        asked = ctypes.create_string_buffer(b"nfacct", 30)
        size = ctypes.c_uint32(len(asked))
        return bool(_LIBC.getsockopt(raw.fileno(), level, option, asked, ctypes.byref(size)) == 0)


def ensure() -> None:
    """Make kube-proxy's counters in this network namespace, as far as they aren't there. Raises KpxError."""
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            wanted = [message(_NEW, REQUEST | ACK | _CREATE, _HEADER + _name(name)) for name in NAMES]
            refused = [code for code in link.acknowledged(wanted) if code not in (0, errno.EBUSY)]
    except OSError as error:
        raise KpxError(f"can't make packet counters: {error.strerror}") from error
    if refused:
        raise KpxError(f"can't make packet counters: {os.strerror(refused[0])}")


def read() -> Mapping[str, int]:
    """How many packets kube-proxy's counters have counted in this network namespace; those that aren't there missing.

    Raises KpxError where the kernel has no nfacct.
    """
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            found = {name: _packets(link, name) for name in NAMES}
    except OSError as error:
        raise KpxError(f"can't read packet counters: {error.strerror}") from error
    return {name: count for name, count in found.items() if count is not None}


def _packets(link: Netlink, name: str) -> int | None:
    """What a counter has counted; None if there is none of this name."""
    try:
        answers = list(link.ask(_GET, _HEADER + _name(name)))
    except FileNotFoundError:
        return None
    count: int = _COUNT.unpack(attributes(answers[0], NFGENMSG.size)[_PACKETS])[0]
    return count


def _name(name: str) -> bytes:
    return attribute(_NAME, name.encode() + b"\0")


class Counters:
    """Whether rules of a backend and family count; makes the counters once it is asked to."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._takes: bool | None = None

    def ready(self, make: bool) -> bool:
        """Whether rules may refer to the counters; with `make` they are there afterwards, else they could be made."""
        if self._takes is None:
            self._takes = takes(self._tools)
        if self._takes and make:
            try:
                ensure()
            except KpxError as error:
                self._takes = False
                log.warning("no packet counters", family=self._tools.family, error=str(error))
        return self._takes
