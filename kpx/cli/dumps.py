"""Dumps that commands are given: files, or standard input."""

import sys
from dataclasses import dataclass
from pathlib import Path

from kpx import logs
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.pasted import Pasted, read_dump
from kpx.netfilter.save import Saved, SaveError

log = logs.get_logger()

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Dump:
    """What a dump holds, a family each, and where it is from in words."""

    origin: str
    saves: tuple[Pasted, ...]

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of its rules; of rules without any address IPv4."""
        return tuple(one.family or Family.IPV4 for one in self.saves)

    def of(self, family: Family) -> Pasted:
        """The rules of a family. Raises KpxError if there are only those of the other."""
        for one in self.saves:
            if one.family in (family, None):
                return one
        raise KpxError(f"{self.origin}: holds rules of {self.saves[0].family}, not of {family}")

    def whole(self, family: Family) -> Saved:
        """The tables of a family, for a command that needs all of them. Raises KpxError if any may be missing."""
        one = self.of(family)
        if one.unread:
            why = ", and ".join(one.unread.values())
            raise KpxError(f"{self.origin}: {why}: what isn't there can't be compared; give all of iptables-save")
        for note in one.notes:
            log.warning(f"{self.origin}: {note}")
        return one.saved


def load_dump(name: str) -> Dump:
    """Read a file, or standard input (`-`). Raises KpxError that names it, and the line where one is to blame."""
    origin = "standard input" if name == STDIN else name
    try:
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        found = Dump(origin, read_dump(data))
    except OSError as error:
        raise KpxError(f"{origin}: {error.strerror}") from error
    except (SaveError, ValueError) as error:
        raise KpxError(f"{origin}: {error}") from error
    for repair in dict.fromkeys(repair for one in found.saves for repair in one.repairs):
        log.info(f"{origin}: {repair}: read without")
    return found
