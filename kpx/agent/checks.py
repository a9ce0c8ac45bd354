"""The health checks of Services with external policy Local. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kpx.agent.desired import Desired
from kpx.agent.servers import ServiceHealth
from kpx.agent.store import ServiceKey


@dataclass(frozen=True, slots=True)
class Changed:
    """Checks that tell something new at the same port as before, and whether any port has come, gone or changed."""

    counts: Mapping[ServiceKey, ServiceHealth]
    ports: bool


def update_checks(checks: dict[ServiceKey, ServiceHealth], desired: Desired, touched: Iterable[ServiceKey]) -> Changed:
    """Work out anew the health checks of one family's `touched` Services; how `checks` changed by that."""
    counts: dict[ServiceKey, ServiceHealth] = {}
    ports = False
    for key in touched:
        before, now = checks.pop(key, None), service_health(desired, key)
        if now is not None:
            checks[key] = now
        if before is not None and now is not None and before.port == now.port:
            if before != now:
                counts[key] = now
        else:
            ports = ports or before is not now
    return Changed(counts, ports)


def service_health(desired: Desired, key: ServiceKey) -> ServiceHealth | None:
    """The health check that one Service asks for: how many of this node's pods are ready, each counted once."""
    number = next((port.health_check_node_port for port in desired.ports(key) if port.health_check_node_port), 0)
    if not number:
        return None
    ready = {end.address for one in desired.served(key) for end in one.endpoints if end.local and end.ready}
    return ServiceHealth(number, len(ready))
