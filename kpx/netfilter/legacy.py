"""The legacy tables read in-process, through libiptc: no process, no text.

Only chains, their counters and the jumps from built-in chains: these cost microseconds each, while it takes
python-iptables minutes to translate the rules of a large table.
"""

import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.ruleset import TABLES, TableName
from kpx.netfilter.tools import Backend, legacy_tables

_ALONE: Final = threading.Lock()
"""python-iptables keeps one handle a table; a `refresh` or `close` frees it under the hands of other threads."""


@dataclass(frozen=True, slots=True)
class ChainCounters:
    """What met a built-in chain's policy; a chain that somebody made has none, and counts nothing itself."""

    policy: str | None
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule of a built-in chain: its target (chain, verdict or extension; None without one) and counters."""

    target: str | None
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TableSurvey:
    """One table: every chain by name, and the rules of the built-in ones in order."""

    chains: Mapping[str, ChainCounters]
    jumps: Mapping[str, tuple[Jump, ...]]


def survey(family: Family, backend: Backend = Backend.LEGACY) -> Mapping[TableName, TableSurvey]:
    """The filter and nat tables of this process's network namespace, read anew; those that exist.

    Raises KpxError for the nft backend, whose hosts must never get a legacy table, and without libiptc.
    """
    if backend is not Backend.LEGACY:
        raise KpxError("libiptc reads only the legacy tables, and this host uses nft")
    # libiptc creates a table that it is asked for, so it is only asked for those that are there.
    present = legacy_tables(family)
    return {name: _survey(family, name) for name in TABLES if name in present}


def _survey(family: Family, name: TableName) -> TableSurvey:
    iptc = _iptc()
    kind = iptc.Table if family is Family.IPV4 else iptc.Table6
    # Tables are cached by python-iptables: refresh() takes a new snapshot, close() frees it. With autocommit,
    # each question about a policy would write back and read the whole table.
    try:
        with _ALONE, closing(kind(name, autocommit=False)) as table:
            table.refresh()
            return _read(table)
    except iptc.IPTCError as error:
        raise KpxError(f"libiptc can't read the legacy table {name}: {error}") from error


def _read(table: Any) -> TableSurvey:
    names = [chain.name for chain in table.chains]
    chains = dict.fromkeys(names, ChainCounters(None, 0, 0))
    jumps = {}
    for name in names:
        if table.builtin_chain(name):
            policy, (packets, size) = table.get_policy(name)
            chains[name] = ChainCounters(policy.name, packets, size)
            jumps[name] = _jumps(table, name)
    return TableSurvey(chains, jumps)


def _jumps(table: Any, chain: str) -> tuple[Jump, ...]:
    """The rules of one chain. Targets are read without loading any extension."""
    found = []
    entry = table.first_rule(chain)
    while entry:
        target = table.get_target(entry)
        counters = entry.counters
        found.append(Jump(target.decode() if target else None, counters.pcnt, counters.bcnt))
        entry = table.next_rule(entry)
    return tuple(found)


def _iptc() -> ModuleType:
    """python-iptables, imported late: the import itself asks the kernel for the legacy modules."""
    try:
        import iptc
    except Exception as error:  # it fails in many ways where a library is missing
        raise KpxError(f"python-iptables can't be used here: {error}") from error
    module: ModuleType = iptc
    return module
