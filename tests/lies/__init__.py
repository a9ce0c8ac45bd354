"""Tools that lie: they stand in for iptables-restore and iptables-save and do something else than they say.

    liars = Liars(folder)
    agent.environment |= liars.environment
    with agent:
        liars.tell("half of the lines", family=Family.IPV4)      # each restore from now on
        ...
        liars.be_honest()

They may be told anything at any time, while others use them. What they don't lie about the real tools do, in the same
process.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.kernel import PROGRAM
from tests.lies import liar

SILENT = (
    "nothing",
    "nothing, but reads",
    "half of the sections",
    "half of the lines",
    "one rule less",
    "late",
    "another table",
    "another family",
    "another namespace",
    "garbage",
    "error text, status 0",
)
"""What a restore does instead, and ends with status 0."""
LOUD = ("lock held", "killed", "killed halfway", "no memory", "no memory for a rule", "denied")
"""How a restore fails for reasons that have nothing to do with what it was sent."""
HONEST_CHILD = "as a child"
"""No lie: the real tool runs as a child of the stand-in."""
HANG = "hang"
HANG_ON_A_WRITE = "hang, but reads"
"""Hang with what is to be written read; restores that only list chains go on."""
SAVES = ("empty", "half", "three quarters", "another family")
"""What a save, or a listing of chains, prints instead, and ends with status 0.

Of a save, half is mostly cut off where a table's chains are declared, three quarters where their rules are."""


class Liars:
    """A folder of stand-ins for both backends' and families' tools; `environment` puts it first in the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "liars"
        self.folder.mkdir()
        self.environment = {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        names = [
            f"{program}-{backend}-{kind}"
            for program in PROGRAM.values()
            for backend in Backend
            for kind in ("restore", "save")
        ]
        self._real = {name: str(shutil.which(name)) for name in names}
        self._epoch = 0
        self.be_honest()
        for name in names:
            script = self.folder / name
            script.write_text(f"#!{sys.executable} -IS\n{Path(liar.__file__).read_text()}")
            script.chmod(0o755)

    def tell(
        self,
        restore: str = "",
        *,
        save: str = "",
        listing: str = "",
        family: Family | None = None,
        skip: int = 0,
        count: int | None = None,
    ) -> None:
        """From now on lie so: of a family or of both, after `skip` honest calls, `count` times or until told else.

        Only calls that could be lied at are counted. A restore that only lists chains meets `listing`; the lies for
        restores that don't read what they are sent, too.
        """
        self._epoch += 1
        control: Mapping[str, Any] = {
            "real": self._real,
            "lies": {"restore": restore, "save": save, "listing": listing},
            "only": PROGRAM[family] if family else "",
            "skip": skip,
            "count": count,
            "epoch": self._epoch,
        }
        fresh = self.folder / "control.new"
        fresh.write_text(json.dumps(control))
        fresh.replace(self.folder / "control.json")

    def be_honest(self) -> None:
        """Lie no more. What was to be done late still will be."""
        self.tell()

    @property
    def calls(self) -> int:
        """How often there was cause for a lie since the last `tell`, with those when it wasn't its turn."""
        calls = self.folder / f"calls-{self._epoch}"
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    def wait_for_late_ones(self, timeout: float = 120.0) -> None:
        """Wait until what was to be done late is done."""
        start = time.monotonic()
        while any(self.folder.glob("late-*")):
            assert time.monotonic() - start < timeout, "somebody is late for ever"
            time.sleep(0.05)
