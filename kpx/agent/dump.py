"""What the agent has in its head, written down for whoever asks by SIGUSR1."""

import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import structlog

from kpx.agent.store import Store
from kpx.agent.sync import FamilySync

log = structlog.get_logger()


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
        path = Path(tempfile.gettempdir()) / f"kpx-dump-{int(time.time() * 1000)}.json"
        path.write_text(json.dumps(record, indent=1))
    except OSError as error:  # also where no folder can be written to
        log.error("dump failed", path=error.filename, error=error.strerror)
    else:
        log.info("dump written", path=str(path))
