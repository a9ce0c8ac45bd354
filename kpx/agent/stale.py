"""Deletes UDP flows that conntrack would go on sending to where nobody serves them any more."""

import asyncio
import time
from collections.abc import Iterator, Sequence

import structlog

from kpx import host
from kpx.agent.desired import Desired, Served
from kpx.agent.metrics import Metrics
from kpx.agent.store import ServiceKey
from kpx.agent.sync import Synced
from kpx.errors import KpxError
from kpx.model.endpoint import Endpoints
from kpx.model.service import ServicePort
from kpx.netfilter import conntrack

log = structlog.get_logger()


async def delete_stale_flows(desired: Desired, synced: Synced, metrics: Metrics) -> None:
    """Delete the stale flows of the Services that a sync concerned; after a full one, of all."""
    keys = desired.store.keys() if synced.full else synced.touched
    live = [(one.port, one.endpoints) for key in keys for one in _udp(desired, key)]
    gone = desired.take_gone()
    if live or any(port.protocol == "udp" for port in gone):
        try:
            await asyncio.to_thread(_delete, desired, live, gone, metrics)
        except KpxError as error:
            desired.keep_gone(gone)
            log.error("stale UDP flows not deleted", family=desired.target.family, error=str(error))


def _udp(desired: Desired, key: ServiceKey) -> Iterator[Served]:
    if any(port.protocol == "udp" for port in desired.ports(key)):
        yield from (one for one in desired.served(key) if one.port.protocol == "udp")


def _delete(
    desired: Desired,
    live: Sequence[tuple[ServicePort, Endpoints]],
    gone: Sequence[ServicePort],
    metrics: Metrics,
) -> None:
    family, start = desired.target.family, time.monotonic()
    open_on = desired.settings.node_port_addresses
    addresses = host.interface_addresses(family) if open_on is None else open_on
    flows = conntrack.stale(conntrack.list_udp(family), conntrack.frontends(live, gone, addresses))
    count = conntrack.delete(flows) if flows else 0
    metrics.conntrack_deleted(family, count, time.monotonic() - start)
    if count:
        log.info("stale UDP flows deleted", family=family, count=count)
