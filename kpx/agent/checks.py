"""The health checks of Services with external policy Local. Pure."""

from collections.abc import Iterable

from kpx.agent.desired import Compiled, Desired
from kpx.agent.servers import ServiceHealth
from kpx.agent.store import ServiceKey


def update_checks(
    checks: dict[ServiceKey, ServiceHealth], desired: Desired, touched: Iterable[ServiceKey]
) -> dict[ServiceKey, ServiceHealth]:
    """The health checks of one family, those of `touched` Services worked out anew."""
    found = dict(checks)
    for key in touched:
        found.pop(key, None)
        check = service_health(desired.of_service(key))
        if check is not None:
            found[key] = check
    return found


def service_health(compiled: Iterable[Compiled]) -> ServiceHealth | None:
    """The health check that one Service asks for: how many of this node's pods are ready, each counted once."""
    ports = tuple(compiled)
    number = next((one.port.health_check_node_port for one in ports if one.port.health_check_node_port), 0)
    ready = {end.address for one in ports for end in one.endpoints if end.local and end.ready}
    return ServiceHealth(number, len(ready)) if number else None
