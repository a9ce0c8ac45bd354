"""Object metadata, as far as it decides something."""

from typing import Annotated

from pydantic import Field

from kpx.api.grammar import NOT_TOO_MANY, DnsLabel, DnsSubdomain, FreeText, Labels, Opaque, Part, Timestamp, Unset


class ObjectMeta(Part):
    """Metadata of an object; times are RFC 3339 text."""

    name: DnsSubdomain
    namespace: Annotated[DnsLabel, Unset("default")] = "default"
    labels: Labels = Field(default_factory=dict)
    annotations: Annotated[dict[FreeText, FreeText], NOT_TOO_MANY, Unset({})] = Field(default_factory=dict)
    uid: Annotated[Opaque, Unset("")] = ""
    resource_version: Annotated[Opaque, Unset(None)] | None = None
    creation_timestamp: Annotated[Timestamp, Unset(None)] | None = None
    deletion_timestamp: Annotated[Timestamp, Unset(None)] | None = None
