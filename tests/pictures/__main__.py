"""Make the pictures anew: as root, with a browser."""

import sys
import tempfile
from pathlib import Path

from tests.graph.browser import browser, missing
from tests.pictures import FOLDER, shots, terminal
from tests.pictures.texts import COMMANDS, DRAWN


def main() -> int:
    """Write every picture; says which."""
    if reason := missing():
        print(f"no pictures of the page: {reason}", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        _write(name, terminal.svg(command.typed, command.shown()).encode())
    for name, draw in DRAWN.items():
        _write(name, draw().encode())
    with tempfile.TemporaryDirectory() as room, browser(Path(room)) as chrome:
        path = shots.page(Path(room))
        for scheme in ("light", "dark"):
            _write(f"page-{scheme}.png", shots.shot(chrome, path, scheme))
    return 0


def _write(name: str, picture: bytes) -> None:
    (FOLDER / name).write_bytes(picture)
    print(f"{FOLDER.name}/{name}: {len(picture):,} bytes")


if __name__ == "__main__":
    sys.exit(main())
