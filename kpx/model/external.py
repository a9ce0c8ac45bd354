"""Which external IPs Services may have here: anybody who may write a Service asks for what he likes. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from kpx import api
from kpx.api.addresses import canonical_cidr
from kpx.errors import KpxError
from kpx.model.node import contains
from kpx.printable import excerpt


@dataclass(frozen=True, slots=True)
class ExternalRanges:
    """The ranges (canonical CIDRs) that `spec.externalIPs` may be of; none at all refuses every one."""

    cidrs: tuple[str, ...]

    def refused(self, service: api.Service) -> tuple[str, ...]:
        """The external IPs of a Service that are outside."""
        return tuple(one for one in service.spec.external_ips if not any(contains(cidr, one) for cidr in self.cidrs))


def parse_ranges(texts: Iterable[str]) -> ExternalRanges:
    """Ranges from lists with commas, of which a text that is empty has none. Raises KpxError for what is no CIDR."""
    cidrs: dict[str, None] = {}
    for text in (part.strip() for one in texts if one.strip() for part in one.split(",")):
        cidr = canonical_cidr(text)
        if cidr is not None:
            cidrs[cidr] = None
        else:
            raise KpxError(f"'{excerpt(text)}' is no CIDR such as 203.0.113.0/24 or 2001:db8::/64")
    return ExternalRanges(tuple(cidrs))


def without_external_ips(service: api.Service, refused: Iterable[str]) -> api.Service:
    """A Service that doesn't ask for these."""
    left = tuple(one for one in service.spec.external_ips if one not in frozenset(refused))
    return service.model_copy(update={"spec": service.spec.model_copy(update={"external_ips": left})})
