"""The Kubernetes API's own grammar for the strings and numbers that may end up in a rule.

The patterns run in pydantic's Rust engine, where `^` and `$` stand for the very ends of the text: a trailing
newline does not match. Sources: apimachinery's `pkg/util/validation` and `pkg/apis/core/validation`.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAME = "[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"

LABEL_PATTERN = f"^{_LABEL}$"
OPTIONAL_LABEL_PATTERN = f"^(?:{_LABEL})?$"
SUBDOMAIN_PATTERN = rf"^{_LABEL}(?:\.{_LABEL})*$"
LABEL_KEY_PATTERN = rf"^(?:{_LABEL}(?:\.{_LABEL})*/)?{_NAME}$"
LABEL_VALUE_PATTERN = f"^(?:{_NAME})?$"
OPAQUE_PATTERN = "^(?:[A-Za-z0-9][-A-Za-z0-9_.:]*)?$"
TIMESTAMP_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[-+][0-9]{2}:[0-9]{2})$"
WORD_PATTERN = "^[A-Za-z][A-Za-z0-9]*$"
LINE_PATTERN = r"^[^\p{C}\p{Zl}\p{Zp}]*$"

# For `fullmatch` where Python has to look.
DNS_LABEL = re.compile(_LABEL)
SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

EXPLAINED = {
    LABEL_PATTERN: "must be a DNS label: lower-case letters, digits, inner '-'",
    OPTIONAL_LABEL_PATTERN: "must be empty or a DNS label: lower-case letters, digits, inner '-'",
    SUBDOMAIN_PATTERN: "must be a DNS name: labels of lower-case letters, digits, inner '-', joined by '.'",
    LABEL_KEY_PATTERN: "must be a label key: letters, digits, '-', '_', '.', maybe after a DNS name and '/'",
    LABEL_VALUE_PATTERN: "must be a label value: letters, digits, '-', '_', '.', alphanumeric at both ends",
    OPAQUE_PATTERN: "must hold letters, digits, '-', '_', '.' and ':' only, and begin with a letter or digit",
    TIMESTAMP_PATTERN: "must be an RFC 3339 time",
    WORD_PATTERN: "must be a word of letters and digits",
    LINE_PATTERN: "must be one line of printable text",
}
"""What to tell a user whose text does not match a pattern."""

DnsLabel = Annotated[str, StringConstraints(strict=True, max_length=63, pattern=LABEL_PATTERN)]
OptionalDnsLabel = Annotated[str, StringConstraints(strict=True, max_length=63, pattern=OPTIONAL_LABEL_PATTERN)]
DnsSubdomain = Annotated[str, StringConstraints(strict=True, max_length=253, pattern=SUBDOMAIN_PATTERN)]
LabelKey = Annotated[str, StringConstraints(strict=True, max_length=317, pattern=LABEL_KEY_PATTERN)]
LabelValue = Annotated[str, StringConstraints(strict=True, max_length=63, pattern=LABEL_VALUE_PATTERN)]
Opaque = Annotated[str, StringConstraints(strict=True, max_length=128, pattern=OPAQUE_PATTERN)]
ObjectName = Annotated[str, StringConstraints(strict=True, max_length=253, pattern=OPAQUE_PATTERN)]
Timestamp = Annotated[str, StringConstraints(strict=True, max_length=40, pattern=TIMESTAMP_PATTERN)]
Word = Annotated[str, StringConstraints(strict=True, max_length=63, pattern=WORD_PATTERN)]
Line = Annotated[str, StringConstraints(strict=True, max_length=4096, pattern=LINE_PATTERN)]
FreeText = Annotated[str, StringConstraints(strict=True)]

Protocol = Literal["TCP", "UDP", "SCTP"]
FamilyName = Literal["IPv4", "IPv6"]
Flag = Annotated[bool, Field(strict=True)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
PortOrZero = Annotated[int, Field(strict=True, ge=0, le=65535)]


@dataclass(frozen=True, slots=True)
class Unset:
    """Marks a field whose `null` (or, for a string, `""`) means `default`, as Go's decoder has it."""

    default: object

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Look at containers after their validation, in Rust as far as possible; at scalars before it."""
        default, inner = self.default, handler(source)
        if not (default is None or isinstance(default, str | int | float)):
            return core_schema.no_info_after_validator_function(
                lambda value: default if value is None else value, core_schema.nullable_schema(inner)
            )
        unset = (None, "") if default is None or isinstance(default, str) else (None,)
        if default is None:
            inner = core_schema.nullable_schema(inner)
        return core_schema.no_info_before_validator_function(lambda value: default if value in unset else value, inner)


@dataclass(frozen=True, slots=True)
class AtMost:
    """Refuses a list or a mapping of more items before it looks at any of them.

    pydantic's own `max_length` counts sound items only: what is wrong with the others would be noted for each, which
    takes far more memory than they do.
    """

    items: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Count first, in Rust."""
        inner = handler(source)
        counted = (
            core_schema.dict_schema(max_length=self.items)
            if inner["type"] == "dict"
            else core_schema.list_schema(max_length=self.items)
        )
        return core_schema.chain_schema([counted, inner])

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """That of the items, not that of the counting."""
        return handler(_without_counting(schema))


def _without_counting(schema: Any) -> Any:
    if schema["type"] == "chain":
        return schema["steps"][-1]
    return {**schema, "schema": _without_counting(schema["schema"])} if "schema" in schema else schema


_T = TypeVar("_T")
NOT_TOO_MANY = AtMost(20_000)
"""The API server takes 20,000 ports of an EndpointSlice, and no longer list of anything that is read here."""

Items = Annotated[tuple[_T, ...], NOT_TOO_MANY, Unset(())]
"""A list of the API: a tuple here, empty for `null`."""
Labels = Annotated[dict[LabelKey, LabelValue], NOT_TOO_MANY, Unset({})]

_ACRONYMS = {"ip": "IP", "ips": "IPs", "cidr": "CIDR", "cidrs": "CIDRs", "arp": "ARP", "dsr": "DSR"}


def api_spelling(name: str) -> str:
    """A field as the API spells it: `cluster_ips` -> `clusterIPs`."""
    first, *rest = name.split("_")
    return first + "".join(_ACRONYMS.get(word) or word.capitalize() for word in rest)


WIRE = ConfigDict(extra="ignore", alias_generator=api_spelling, validate_by_name=True, validate_by_alias=True)
"""How Kubernetes objects are read: unknown fields ignored. Python code may also use the Python names."""


class Part(BaseModel):
    """Base of what is read from Kubernetes objects; immutable."""

    model_config = ConfigDict(frozen=True, **WIRE)


@dataclass(frozen=True, slots=True)
class Fault:
    """A breach of a rule that spans several fields; `path` is relative to the value that was checked."""

    path: tuple[str | int, ...]
    message: str
    value: object = None


def raise_faults(faults: list[Fault]) -> None:
    """Raise all `faults` as one pydantic error, which `kpx.api.problems` takes apart again."""
    if faults:
        raise PydanticCustomError("faults", "fields contradict each other", {"faults": faults})


def _target_port(value: object) -> int | str | None:
    if value is None or value == "" or (type(value) is int and value == 0):
        return None
    number = type(value) is int and 1 <= value <= 65535
    name = isinstance(value, str) and len(value) <= 63 and DNS_LABEL.fullmatch(value)
    if not number and not name:
        raise PydanticCustomError("target_port", "must be a port number (1 to 65535) or a port's name")
    return value  # type: ignore[return-value]


TargetPort = Annotated[int | str | None, PlainValidator(_target_port)]
