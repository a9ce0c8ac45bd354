"""pydantic's errors as `Problem`s: the object's own spelling of the path, and a message for its author."""

import re
from collections.abc import Iterator, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kpx.api.grammar import EXPLAINED
from kpx.errors import Problem

_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")

NO_FIELD = "is not a field that exists here"

_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": NO_FIELD,
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dataclass_type": "must be a mapping",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} item",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be {expected}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
}


def problems(subject: str, error: ValidationError) -> tuple[Problem, ...]:
    """Everything that `error` holds against the object called `subject`."""
    found: list[Problem] = []
    everything = error.errors(include_url=False)
    for details in everything:
        # pydantic also calls a list too short whose only item it refused.
        if details["type"] != "too_short" or not any(_inside(other, details) for other in everything):
            found.extend(_problems(subject, details))
    return tuple(found)


def _inside(inner: ErrorDetails, outer: ErrorDetails) -> bool:
    depth = len(outer["loc"])
    return len(inner["loc"]) > depth and inner["loc"][:depth] == outer["loc"]


def _problems(subject: str, details: ErrorDetails) -> Iterator[Problem]:
    location = details["loc"]
    if details["type"] == "faults":
        for fault in details["ctx"]["faults"]:
            yield Problem(subject, fault.message, spell((*location, *fault.path)), scalar(fault.value))
        return
    value = None if details["type"] == "missing" else scalar(details["input"])
    yield Problem(subject, _message(details), spell(location), value)


def _message(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return EXPLAINED[context["pattern"]]
    if kind in _MESSAGES:
        return _MESSAGES[kind].format_map(context)
    return plain(details["msg"])


def spell(location: Sequence[str | int]) -> str:
    """A place in an object as its author would write it: `spec.ports[0].port`, `metadata.labels['a/b']`.

    >>> spell(("spec", "ports", 0, "port"))
    'spec.ports[0].port'
    """
    path = ""
    for step in location:
        if step == "[key]":  # pydantic's mark for a fault of the key itself
            continue
        if isinstance(step, str) and _FIELD.fullmatch(step):
            path += f".{step}" if path else step
        else:
            path += f"[{_cut(repr(step))}]"
    return path


def scalar(value: object) -> object:
    """`value` if it can be printed; None for containers, which may be huge or hold themselves, and huge numbers."""
    if isinstance(value, int) and value.bit_length() > 256:
        return None
    return value if isinstance(value, str | int | float | bytes) else None


def plain(text: str) -> str:
    """`text` in one line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
