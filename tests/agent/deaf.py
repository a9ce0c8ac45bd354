"""`kpx` whose watch over the kernel hears nothing: every notification is lost, and nobody says so.

`python -m tests.agent.deaf run ...`. What is written is still confirmed.
"""

import asyncio

from kpx.cli import main
from kpx.netfilter.legacy_monitor import LegacyMonitor
from kpx.netfilter.monitor import NftMonitor


async def run(self: object, sink: object) -> None:
    """Tell nothing, until cancelled."""
    await asyncio.Event().wait()


if __name__ == "__main__":
    NftMonitor.run = run  # type: ignore[method-assign]
    LegacyMonitor.run = run  # type: ignore[method-assign]
    main()
