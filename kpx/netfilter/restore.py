"""Payloads for `iptables-restore --noflush`."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kpx.netfilter.ruleset import TableName
from kpx.netfilter.text import RuleError, split

_NAME = re.compile(r"[^\s\0\"!-][^\s\0\"]*")


@dataclass(frozen=True, slots=True)
class Transaction:
    """One `*table … COMMIT` section: the kernel takes all of it or nothing.

    `declare` names chains to create, or to empty where they exist. `lines` are whole commands, in order:
    `-A CHAIN rule`, `-I CHAIN n rule`, `-D CHAIN n`, `-D CHAIN rule`, `-X CHAIN`.
    """

    table: TableName
    declare: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


def payload(transactions: Iterable[Transaction]) -> str:
    """The transactions as text for one `iptables-restore --noflush`.

    Raises ValueError for a line or a name that would change the payload's structure: inputs are validated
    where they come in, so that is a bug, and this is the last door before a process that runs as root.
    """
    return "".join(line + "\n" for transaction in transactions for line in _section(transaction))


def _section(transaction: Transaction) -> Iterator[str]:
    yield f"*{transaction.table}"
    for chain in transaction.declare:
        if not _NAME.fullmatch(chain):
            raise ValueError(f"not a chain name: {chain!r}")
        yield f":{chain} - [0:0]"
    for line in transaction.lines:
        if line[:1] != "-" or "\n" in line or "\0" in line or not _closed(line):
            raise ValueError(f"not one command: {line!r}")
        yield line
    yield "COMMIT"


def _closed(line: str) -> bool:
    """Whether all quotes are closed: the tools drop what follows an open one, without an error."""
    if line.count('"') % 2 == 0 and "\\" not in line:
        return True
    try:
        split(line)
    except RuleError:
        return False
    return True
