"""Which tables and chains iptables-nft has, straight from nf_tables: no process, no rules.

The tools read everything, look whether the ruleset's generation is still the one they began at, and start over if
it isn't. These questions are answered while others commit.
"""

import errno
import struct
from collections.abc import Collection, Iterator, Mapping

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.netlink import ACK, NETLINK_NETFILTER, NFGENMSG, REQUEST, Netlink, attribute, attributes, message
from kpx.netfilter.nftables import FAMILIES, GETGEN, SUBSYSTEM

_GETTABLE, _GETCHAIN = 1, 4
_TABLE, _CHAIN, _GENERATION = 1, 3, 1
_CHAIN_HOOK, _CHAIN_TYPE, _HOOK_NUMBER, _HOOK_PRIORITY = 4, 7, 1, 2
_NUMBER = {family: number for number, family in FAMILIES.items()}
_WORD = struct.Struct(">I")
_SIGNED = struct.Struct(">i")
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 150}
_DNAT_PRIORITY, _SNAT_PRIORITY = -100, 100
_MISSING = 2
"""ENOENT: no such chain, or no such table."""
_AT_ONCE = 64
"""Questions sent before their answers are read: both fit into the smallest buffers."""
_FEW = 2_000
"""Up to so many chains are asked for by name; a list of all 60,000 takes as long."""


def generation() -> int:
    """The ruleset's generation, of this network namespace: every commit of anybody moves it. Raises KpxError."""
    (answer,) = _ask(GETGEN, Family.IPV4)
    return int(_WORD.unpack(answer[_GENERATION])[0])


def table_names(family: Family) -> frozenset[str]:
    """The family's tables, whoever made them. Raises KpxError."""
    return frozenset(_text(one[_TABLE]) for one in _dump(_GETTABLE, family))


def chain_names(family: Family, table: str) -> tuple[str, ...]:
    """All chains of a table, as `chains` has them; none without the table. Raises KpxError."""
    return chains(family).get(table, ())


def chains(family: Family) -> Mapping[str, tuple[str, ...]]:
    """The chains of each table that has any, in the order of their creation. 0.2 s for 60,000. Raises KpxError.

    A chain that is there all the time is listed. One that is made or deleted meanwhile may be listed or not: if others
    commit, the kernel is asked up to three times, and what it said each time counts.
    """
    found: dict[bytes, dict[bytes, None]] = {}
    for one in _dump(_GETCHAIN, family):
        found.setdefault(one[_TABLE], {})[one[_CHAIN]] = None
    return {_text(table): tuple(map(_text, names)) for table, names in found.items()}


def tables_not_of_iptables(family: Family) -> frozenset[str]:
    """Tables with a base chain that iptables wouldn't have made: by name, hook, priority or type.

    iptables-nft (`nft_is_chain_compatible`) prints none of their rules, with status 0. Raises KpxError.
    """
    return frozenset(
        _text(one[_TABLE]) for one in _dump(_GETCHAIN, family) if _CHAIN_HOOK in one and not _is_of_iptables(one)
    )


def _is_of_iptables(chain: Mapping[int, bytes]) -> bool:
    table, name, kind = _text(chain[_TABLE]), _text(chain[_CHAIN]), _text(chain[_CHAIN_TYPE])
    place = attributes(chain[_CHAIN_HOOK], 0)
    hook, priority = _WORD.unpack(place[_HOOK_NUMBER])[0], _SIGNED.unpack(place[_HOOK_PRIORITY])[0]
    if name not in _HOOKS or hook != _HOOKS.index(name):
        return False
    if table == "nat":
        return kind == "nat" and priority == (_DNAT_PRIORITY if name in ("PREROUTING", "OUTPUT") else _SNAT_PRIORITY)
    return priority == _PRIORITIES.get(table) and kind == (
        "route" if (table, name) == ("mangle", "OUTPUT") else "filter"
    )


def present(family: Family, table: str, names: Collection[str]) -> frozenset[str]:
    """Which of these chains are there, now. Raises KpxError."""
    if len(names) > _FEW:
        return frozenset(chain_names(family, table)).intersection(names)
    return frozenset(name for name, errno in _errors(family, table, tuple(names)) if errno != _MISSING)


def _errors(family: Family, table: str, names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    head = NFGENMSG.pack(_NUMBER[family], 0, 0) + attribute(_TABLE, f"{table}\0".encode())
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            for at in range(0, len(names), _AT_ONCE):
                some = names[at : at + _AT_ONCE]
                bodies = (head + attribute(_CHAIN, name.encode(errors="surrogateescape") + b"\0") for name in some)
                asked = [message(SUBSYSTEM | _GETCHAIN, REQUEST | ACK, body) for body in bodies]
                yield from zip(some, link.acknowledged(asked), strict=True)
    except OSError as error:
        raise _refused(" for chains", error) from error


def _ask(kind: int, family: Family) -> list[dict[int, bytes]]:
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            bodies = list(link.ask(SUBSYSTEM | kind, NFGENMSG.pack(_NUMBER[family], 0, 0)))
    except OSError as error:
        raise _refused("", error) from error
    return [attributes(body, NFGENMSG.size) for body in bodies]


def _dump(kind: int, family: Family) -> Iterator[dict[int, bytes]]:
    bodies: list[bytes] = []
    try:
        with Netlink(NETLINK_NETFILTER) as link:
            # Taken in at once: the longer a list takes, the likelier somebody commits meanwhile.
            for body in link.dump(SUBSYSTEM | kind, NFGENMSG.pack(_NUMBER[family], 0, 0)):
                bodies.append(body)  # noqa: PERF402
    except OSError as error:
        if error.errno != errno.EINTR:  # others commit all the time: what was there all the time has been listed
            raise _refused(" for a list", error) from error
    return (attributes(body, NFGENMSG.size) for body in bodies)


def _refused(what: str, error: OSError) -> KpxError:
    why = f"{error.strerror} (you must be root)" if error.errno == errno.EPERM else error.strerror
    return KpxError(f"can't ask nf_tables{what}: {why}")


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")
