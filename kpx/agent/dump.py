"""What the agent has in its head, written down for whoever asks by SIGUSR1."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kpx import logs
from kpx.agent.store import Store
from kpx.agent.sync import FamilySync

log = logs.get_logger()

PREFIX, KEPT = "kpx-dump-", 5
"""How the names of dumps begin, and how many are kept."""


def write_dump(store: Store, syncs: Iterable[FamilySync]) -> None:
    """Write caches and each family's last payload to a new file in the folder for temporary files."""
    record = {
        "node": store.node_name,
        "objects": store.counts(),
        "services": ["/".join(key) for key in sorted(store.keys())],
        "families": {
            sync.family: {
                "service_ports": {
                    f"{one.port.name}/{one.port.protocol}": [str(end) for end in one.selection.reachable]
                    for key in sorted(sync.desired.services())
                    for one in sync.desired.served(key)
                },
                "conflicts": ["/".join(key) for key in sorted(sync.desired.losers())],
                "last_payload": sync.kernel.last_payload,
            }
            for sync in syncs
        },
    }
    try:
        path = _write(json.dumps(record, indent=1))
        _forget_old(path.parent)
    except OSError as error:  # also where no folder can be written to
        log.error("dump failed", path=error.filename, error=error.strerror)
    else:
        log.info("dump written", path=str(path))


def _write(text: str) -> Path:
    """To a file that only its owner may read, under a name that nobody can foresee, in a folder that all may write."""
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, suffix=".json")
    try:
        with open(descriptor, "w") as file:
            file.write(text)
    except OSError:  # no room: half a dump helps nobody
        os.unlink(name)
        raise
    return Path(name)


def _forget_old(folder: Path) -> None:
    """Delete all but the last few; what others have put there under such names is not ours to delete."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith(PREFIX) and entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            if status.st_uid == os.geteuid():
                found.append((status.st_mtime_ns, entry.path))
    for _, path in sorted(found)[:-KEPT]:
        os.unlink(path)
