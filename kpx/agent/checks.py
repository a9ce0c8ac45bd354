"""The health checks of Services with external policy Local. Pure."""

from collections.abc import Iterable

from kpx.agent.desired import Desired
from kpx.agent.servers import ServiceHealth
from kpx.agent.store import ServiceKey


def update_checks(checks: dict[ServiceKey, ServiceHealth], desired: Desired, touched: Iterable[ServiceKey]) -> bool:
    """Work out anew the health checks of one family's `touched` Services; whether `checks` changed by that."""
    changed = False
    for key in touched:
        check = service_health(desired, key)
        changed = changed or checks.get(key) != check
        if check is not None:
            checks[key] = check
        else:
            checks.pop(key, None)
    return changed


def service_health(desired: Desired, key: ServiceKey) -> ServiceHealth | None:
    """The health check that one Service asks for: how many of this node's pods are ready, each counted once."""
    number = next((port.health_check_node_port for port in desired.ports(key) if port.health_check_node_port), 0)
    if not number:
        return None
    ready = {end.address for one in desired.served(key) for end in one.endpoints if end.local and end.ready}
    return ServiceHealth(number, len(ready))
