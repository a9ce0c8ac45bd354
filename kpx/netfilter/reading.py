"""Reads rules so that other programs' commits can't interrupt it for ever.

`iptables-nft-save` reads every table, looks whether nf_tables' generation is still the one it began at, and starts
over if it isn't: at 60,000 chains, beside a program that commits once a second, it never ends. But a section of
`iptables-nft-restore --noflush` may hold `-S CHAIN` lines, and for these the tool reads only the chains named, and
only these anew if somebody commits within that time. Measured at 61,438 chains and 172,000 rules (1.8.9): sections of
100 names take 4 ms each, all of them 2.3 s, while iptables-nft-save takes 2.0 s; with 30 or 250 names the whole takes
as long (the tool keeps the names of a section in a sorted list: with 4,000, longer). Nothing is changed, the
generation stays.

Chains that were made in the order of their names cost iptables-nft-save the square of their number
(`kpx.netfilter.creation`), and pieces nothing more. CPU time at 61,439 chains, of the tool and of kpx:

    made in the order of     iptables-nft-save     in pieces
    hashes, as kpx does      1.7 + 0.2 s           2.2 + 0.3 s
    their names              23 s                  2.3 + 0.4 s
    names, backwards         84 s                  2.2 + 0.4 s

The legacy tools take a snapshot, so nothing interrupts them.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter import creation, nft
from kpx.netfilter.legacy_blob import legacy_entries
from kpx.netfilter.listing import Listing, as_save
from kpx.netfilter.ruleset import TABLES
from kpx.netfilter.save import Saved, SavedChain, SavedTable, scan_save
from kpx.netfilter.tools import Backend, Tools

BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
"""The chains that a table has for iptables even where the kernel doesn't know them yet."""
_SECTION = 100
"""Chains that are read at a time: what a commit of others makes the tool read again."""
_PROCESS = 5_000
"""Chains that one process is asked for: bounds what is in memory twice."""
_PATIENCE = 10.0
"""Seconds that iptables-nft-save may take before it prints."""
_TRIES = 5
_ALL_BUILT_IN = frozenset(name for names in BUILT_IN.values() for name in names)
_NAME = re.compile(r"[^\s\"'\\!-][^\s\"'\\]{0,27}")


def read_chains(tools: Tools, table: str, names: Collection[str], niceness: int = 0) -> Mapping[str, SavedChain | None]:
    """The given chains of a table as iptables-save prints them, without counters; None for those that aren't there.

    A built-in chain of a table that exists is always there. On the nft backend each chain is read in one piece, as
    some commit left it, at some time between call and return, but not all at the same time. `niceness` as in
    `Tools.save`. Raises KpxError, also for a chain that holds rules of nft which iptables can't read.
    """
    if tools.backend is Backend.NFT:
        here = _here(tools.family, table, names) if table in nft.table_names(tools.family) else frozenset()
        saved = _read_pieces(tools, table, [name for name in names if name in here], niceness)
    else:
        saved = scan_save(tools.save(table, niceness=niceness))
    chains = saved[table].chains if table in saved else {}
    return {name: chains.get(name) for name in names}


def read_tables(tools: Tools, tables: Collection[str] = TABLES, niceness: int = 0) -> Saved:
    """The given tables of one family, those that exist, with all chains; `niceness` as in `Tools.save`.

    On the nft backend iptables-save is used until somebody commits while it reads (or it takes too long), and not at
    all where chains were made in an order that makes it slow (`kpx.netfilter.creation`). Then chains are read in
    pieces, as in `read_chains`: each is as some commit left it between call and return, but two chains may be of
    different times. Chains that are made or deleted meanwhile may be there or not. So what is read beside
    commits to these very tables isn't a snapshot; beside commits to other tables it is one. Chains whose names no
    restore payload can hold (over 28 characters, quotes: only nft makes them) are left out.

    What iptables-save prints is believed only as far as the kernel has as many entries (legacy), or the same chains
    (nft, where they are read in pieces otherwise).

    Raises KpxError.
    """
    if tools.backend is Backend.LEGACY:
        return {name: table for one in tables for name, table in _legacy_table(tools, one, niceness).items()}
    saved = _saved(tools, tables, niceness)
    if saved is not None:
        return saved
    found: dict[str, SavedTable] = {}
    for table in tables:
        if table in nft.table_names(tools.family):
            names = (*BUILT_IN.get(table, ()), *sorted(nft.chain_names(tools.family, table)))
            found.update(_read_pieces(tools, table, names, niceness))
    return found


def _saved(tools: Tools, tables: Collection[str], niceness: int) -> Saved | None:
    """Tables of nft as iptables-nft-save prints them; None where that would take long, is disturbed or isn't true."""
    start, here = nft.generation(), nft.chains(tools.family)
    if any(creation.is_dear(here.get(table, ())) for table in BUILT_IN):
        return None
    text = tools.save_unless(_disturbed(start), niceness)
    if text is None or not _is_complete(text):
        return None
    saved = {name: table for name, table in scan_save(text).items() if name in tables}
    if nft.generation() != start:
        here = nft.chains(tools.family)
    whole = all(_is_whole(table, here.get(table, ()), saved.get(table)) for table in tables)
    return saved if whole else None


def unreadable(tools: Tools) -> Mapping[str, str]:
    """The tables that the kernel has and that iptables can't print, though it ends with status 0; with why."""
    if tools.backend is Backend.LEGACY:
        return {}
    foreign = nft.tables_not_of_iptables(tools.family)
    return {
        table: f"iptables can't print table {table} (`nft list ruleset` can)" for table in BUILT_IN if table in foreign
    }


def _is_complete(text: str) -> bool:
    """Whether a save ends as saves do, and was not cut off."""
    end = text.rstrip("\n")
    while end.startswith("#", last := end.rfind("\n") + 1):
        end = end[:last].rstrip("\n")
    return end[last:] in ("", "COMMIT")


def _is_whole(name: str, chains: Collection[str], table: SavedTable | None) -> bool:
    """Whether these are all chains that the kernel has in this table."""
    here = frozenset(one for one in chains if _NAME.fullmatch(one))
    printed = frozenset(table.chains) if table else frozenset[str]()
    built_in = frozenset(BUILT_IN.get(name, ()))
    return here - built_in == frozenset(one for one in printed if _NAME.fullmatch(one)) - built_in


def _legacy_table(tools: Tools, name: str, niceness: int) -> Saved:
    """One legacy table, if it exists, read again where somebody seems to have changed it meanwhile."""
    for _ in range(_TRIES):
        saved = scan_save(tools.save(name, niceness=niceness))
        held = legacy_entries(tools.family, name)
        if held == (_entries(saved[name]) if name in saved else None):
            return saved
    raise KpxError(f"{tools.program}-save -t {name} doesn't print what the kernel holds")


def _entries(table: SavedTable) -> int:
    """How many entries the kernel has for a table: a policy for each built-in chain, head and end for others."""
    own = sum(1 for one in table.chains if one not in _ALL_BUILT_IN)
    rules = sum(len(table.chains[one].rules) for one in table.chains)
    return rules + 2 * own + (len(table.chains) - own) + 1


def _disturbed(start: int) -> Callable[[], bool]:
    """Tells whether a reading of this generation that begins now has to begin again by now, or takes too long."""
    until = time.monotonic() + _PATIENCE
    return lambda: nft.generation() != start or time.monotonic() > until


def _read_pieces(tools: Tools, table: str, names: Collection[str], niceness: int) -> Saved:
    """One table that exists, with those of the chains that are still there."""
    left = [name for name in dict.fromkeys(names) if _NAME.fullmatch(name)]
    listed = (
        one for at in range(0, len(left), _PROCESS) for one in _list(tools, table, left[at : at + _PROCESS], niceness)
    )
    return scan_save(as_save(table, listed))


def counted_rules(tools: Tools, table: str, names: Collection[str], niceness: int = 0) -> Iterator[str]:
    """The rules of chains of an nft table, with `-c PACKETS BYTES` before the target; chains that have gone have none.

    Reads as `read_chains` does, and what is read is passed on piece by piece. Raises KpxError.
    """
    left = [name for name in dict.fromkeys(names) if _NAME.fullmatch(name)]
    for at in range(0, len(left), _PROCESS):
        for one in _list(tools, table, left[at : at + _PROCESS], niceness, " -v"):
            yield from one.rules.split("\n")


def _list(tools: Tools, table: str, names: Sequence[str], niceness: int, option: str = "") -> Iterator[Listing]:
    """Read chains that were there a moment ago. The tool stops at the first that isn't there any more."""
    left, failed = list(names), False
    while left:
        printed, why = tools.list_chains("".join(_sections(table, left, option)), niceness)
        listing = Listing.of(printed)
        read = len(listing.names)
        if list(listing.names) != left[:read] or (not why and read < len(left)):
            raise KpxError(f"iptables-restore lists other chains of table {table} than it was asked for")
        here = _here(tools.family, table, left[read:]) if why else frozenset()
        # Where it stopped for another reason than that a chain has gone, the last one printed may be in pieces.
        if not why or (read < len(left) and left[read] not in here):
            yield listing
            left, failed = [name for name in left[read:] if name in here], False
        elif not failed:
            failed = True  # the chain came back, or it is something else: once more
        else:
            raise KpxError(f"table {table} can't be read: {why}")


def _here(family: Family, table: str, names: Collection[str]) -> frozenset[str]:
    return nft.present(family, table, names).union(BUILT_IN.get(table, ()))


def _sections(table: str, names: Sequence[str], option: str) -> Iterator[str]:
    for at in range(0, len(names), _SECTION):
        lines = "".join(f"-S {name}{option}\n" for name in names[at : at + _SECTION])
        yield f"*{table}\n{lines}COMMIT\n"
