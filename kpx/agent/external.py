"""Takes external IPs that aren't allowed here from Services that the source tells of."""

from kpx import api, logs
from kpx.model.external import ExternalRanges, without_external_ips
from kpx.sources.events import Event, Gone, Put

log = logs.get_logger()


class ExternalIPs:
    """What `kpx run --external-ip-ranges` does; without it nothing is refused. What is, is told once per Service."""

    def __init__(self, ranges: ExternalRanges | None) -> None:
        self._ranges = ranges
        self._told: dict[tuple[str, str], tuple[str, ...]] = {}

    def permit(self, event: Event) -> Event:
        """The event without what isn't allowed. The Service keeps everything else."""
        if self._ranges is None:
            return event
        match event:
            case Put(object=api.Service() as service):
                key = (service.metadata.namespace, service.metadata.name)
                refused = self._ranges.refused(service)
                self._tell(key, refused)
                return Put(without_external_ips(service, refused)) if refused else event
            case Gone(kind="Service"):
                self._told.pop((event.namespace, event.name), None)
        return event

    def _tell(self, key: tuple[str, str], refused: tuple[str, ...]) -> None:
        if refused and self._told.get(key) != refused:
            log.warning(
                "external IPs refused: outside --external-ip-ranges",
                service="/".join(key),
                field="spec.externalIPs",
                addresses=list(refused),
            )
        if refused:
            self._told[key] = refused
        else:
            self._told.pop(key, None)
