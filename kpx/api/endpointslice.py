"""EndpointSlice (discovery.k8s.io/v1).

There are far more endpoints than anything else in a cluster, so the parts of an endpoint are dataclasses with
slots: they take a fraction of a model's memory.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, FailFast, Field, StringConstraints, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from kpx.api.addresses import NOT_SPECIAL, canonical, is_special, is_usual_ipv4
from kpx.api.grammar import (
    DNS_LABEL,
    NOT_TOO_MANY,
    SUBDOMAIN,
    WIRE,
    DnsSubdomain,
    Fault,
    Flag,
    Items,
    LabelValue,
    ObjectName,
    OptionalDnsLabel,
    Part,
    PortOrZero,
    Protocol,
    Unset,
    Word,
    raise_faults,
)
from kpx.api.meta import ObjectMeta
from kpx.family import Family

AddressType = Literal["IPv4", "IPv6", "FQDN"]

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""The label that names the Service to which a slice belongs."""


def _host(text: str) -> str:
    """An address in canonical text, or a host name; which of them is wanted only the slice knows."""
    host = canonical(text)
    if host is None and len(text) <= 253 and SUBDOMAIN.fullmatch(text):
        host = text
    if host is None:
        raise PydanticCustomError("address", "must be an IP address")
    return host


def _open_port(number: int | None) -> int | None:
    return number or None


Host = Annotated[str, StringConstraints(strict=True), AfterValidator(_host)]


@dataclass(config=WIRE, frozen=True, slots=True)
class Conditions:
    """An endpoint's state; None where the slice doesn't say."""

    ready: Flag | None = None
    serving: Flag | None = None
    terminating: Flag | None = None


@dataclass(config=WIRE, frozen=True, slots=True)
class ZoneHint:
    """A zone that should use an endpoint."""

    name: LabelValue


@dataclass(config=WIRE, frozen=True, slots=True)
class NodeHint:
    """A node that should use an endpoint."""

    name: DnsSubdomain


@dataclass(config=WIRE, frozen=True, slots=True)
class Hints:
    """Who should use an endpoint."""

    for_zones: Items[ZoneHint] = ()
    for_nodes: Items[NodeHint] = ()


@dataclass(config=WIRE, frozen=True, slots=True)
class TargetRef:
    """The object behind an endpoint, usually a Pod."""

    kind: Annotated[Word, Unset(None)] | None = None
    name: Annotated[ObjectName, Unset("")] = ""


@dataclass(config=WIRE, frozen=True, slots=True)
class Endpoint:
    """One endpoint; its addresses are interchangeable."""

    addresses: Annotated[tuple[Host, ...], Field(min_length=1), NOT_TOO_MANY]
    conditions: Annotated[Conditions, Unset(Conditions())] = Conditions()
    node_name: Annotated[DnsSubdomain, Unset(None)] | None = None
    zone: Annotated[LabelValue, Unset(None)] | None = None
    hints: Hints | None = None
    target_ref: TargetRef | None = None


class EndpointPort(Part):
    """A port of every endpoint of a slice; `port` None leads nowhere, as does 0, which becomes None."""

    name: Annotated[OptionalDnsLabel, Unset("")] = ""
    protocol: Annotated[Protocol, Unset("TCP")] = "TCP"
    port: Annotated[PortOrZero | None, AfterValidator(_open_port)] = None


class EndpointSlice(Part):
    """An EndpointSlice; its addresses are all of the family that `address_type` says.

    Of unsound endpoints, of which there may be thousands, the first is told.
    """

    metadata: ObjectMeta
    address_type: AddressType
    endpoints: Annotated[tuple[Endpoint, ...], FailFast(), NOT_TOO_MANY, Unset(())] = ()
    ports: Items[EndpointPort] = ()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        raise_faults([*_label_faults(self), *_address_faults(self)])
        return self


def _label_faults(endpoint_slice: EndpointSlice) -> Iterator[Fault]:
    service = endpoint_slice.metadata.labels.get(SERVICE_NAME_LABEL)
    if service and not DNS_LABEL.fullmatch(service):
        yield Fault(("metadata", "labels", SERVICE_NAME_LABEL), "must be the name of a Service", service)


def _address_faults(endpoint_slice: EndpointSlice) -> Iterator[Fault]:
    wanted = endpoint_slice.address_type
    for i, endpoint in enumerate(endpoint_slice.endpoints):
        for j, address in enumerate(endpoint.addresses):
            if wanted == "IPv4" and is_usual_ipv4(address):
                continue
            if message := _misfit(address, wanted):
                yield Fault(("endpoints", i, "addresses", j), message, address)


def _misfit(address: str, wanted: AddressType) -> str | None:
    """What is wrong with a host (see `Host`) in a slice of this address type."""
    if wanted == "FQDN":
        return None
    actual = canonical(address) and Family.of(address)
    if actual != wanted.lower():
        return f"must be an {wanted} address"
    return NOT_SPECIAL if is_special(address) else None
