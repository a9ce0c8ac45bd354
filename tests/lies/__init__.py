"""Tools that lie: programs under the names of iptables' own, which do what a test tells them while it runs.

with Liars(folder) as liars:
    agent.environment |= liars.environment
    liars.tell("iptables-nft-restore", "nothing")
    ...
    liars.be_honest()
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = [
    f"{program}-{backend}-{kind}"
    for program in ("iptables", "ip6tables")
    for backend in ("nft", "legacy")
    for kind in ("restore", "save")
]

BELIEVED = ("nothing", "unread", "half", "late", "elsewhere", "family", "drop")
"""Ways to write something else than what was asked for, and to end with status 0."""
REFUSALS = ("lock", "memory", "permission", "killed", "silent")
"""Ways to fail that are nobody's rules' fault."""


class Liars:
    """The programs, in a folder that comes first in PATH."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "liars"
        self._folder.mkdir()
        for name in PROGRAMS:
            real = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/usr/local/sbin")
            program = self._folder / name
            way, liar = self._folder / f"{name}.way", Path(__file__).parent / "liar.py"
            lies = f'exec {sys.executable} -E -S {liar} {way} {real} "$@"'
            program.write_text(f'#!/bin/sh\n[ -s {way} ] || exec {real} "$@"\n{lies}\n')
            program.chmod(0o755)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to meet them."""
        return {"PATH": f"{self._folder}:{os.environ['PATH']}"}

    def tell(self, program: str, way: str) -> None:
        """From now on this program, whose name may begin so, works in this way."""
        for name in PROGRAMS:
            if name.startswith(program) or name == program:
                (self._folder / f"{name}.way").write_text(way)

    def tell_all(self, kind: str, way: str) -> None:
        """All programs of a kind: `restore` or `save`."""
        for name in PROGRAMS:
            if name.endswith(f"-{kind}"):
                (self._folder / f"{name}.way").write_text(way)

    def be_honest(self) -> None:
        """All programs do what they are asked for."""
        for name in PROGRAMS:
            (self._folder / f"{name}.way").write_text("")
