"""Label and field selectors: which objects a request is about.

Grammar: "Labels and Selectors" and "Field Selectors" of the Kubernetes documentation.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Predicate = Callable[[Mapping[str, str]], bool]

_KEY = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_EQUALS = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})")
_IN = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_ORDER = re.compile(rf"({_KEY})\s*([<>])\s*(-?\d+)")
_COMMA = re.compile(r",(?![^()]*\))")


class SelectorError(ValueError):
    """A selector that can't be read, or names a field that can't be selected by."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Everything that narrows a request: a namespace (empty: all), labels, fields."""

    namespace: str
    labels: tuple[Predicate, ...]
    fields: tuple[Predicate, ...]

    @property
    def narrows(self) -> bool:
        """Whether labels or fields are looked at."""
        return bool(self.labels or self.fields)

    def matches(self, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str]) -> bool:
        return (
            (not self.namespace or self.namespace == namespace)
            and all(wanted(labels) for wanted in self.labels)
            and all(wanted(fields) for wanted in self.fields)
        )


def selection(namespace: str, label_text: str, field_text: str, selectable: tuple[str, ...]) -> Selection:
    """Read both selectors of a request. Raises SelectorError."""
    labels = tuple(_label(part.strip()) for part in _COMMA.split(label_text)) if label_text.strip() else ()
    fields = tuple(_compare(*_field(part, selectable)) for part in field_text.split(",") if part)
    return Selection(namespace, labels, fields)


def _label(text: str) -> Predicate:
    if found := _EXISTS.fullmatch(text):
        return _exists(found[2], wanted=not found[1])
    if found := _EQUALS.fullmatch(text):
        return _compare(found[1], found[2], found[3])
    if found := _IN.fullmatch(text):
        return _among(found[1], found[2] == "in", frozenset(value.strip() for value in found[3].split(",")))
    if found := _ORDER.fullmatch(text):
        return _ordered(found[1], found[2], int(found[3]))
    raise SelectorError(f"unable to parse requirement: {text!r}")


def _field(text: str, selectable: tuple[str, ...]) -> tuple[str, str, str]:
    path, operator, value = (*re.split(r"(!=|==|=)", text, maxsplit=1), "", "")[:3]
    if not operator:
        raise SelectorError(f"invalid selector: {text!r}; can't understand {text!r}")
    if path not in ("metadata.name", "metadata.namespace", *selectable):
        raise SelectorError(f"field label not supported: {path}")
    return path, operator, value


def _exists(key: str, wanted: bool) -> Predicate:
    return lambda words: (key in words) is wanted


def _compare(key: str, operator: str, value: str) -> Predicate:
    if operator == "!=":
        return lambda words: words.get(key) != value
    return lambda words: words.get(key) == value


def _among(key: str, inside: bool, values: frozenset[str]) -> Predicate:
    if inside:
        return lambda words: words.get(key) in values
    return lambda words: words.get(key) not in values


def _ordered(key: str, operator: str, bound: int) -> Predicate:
    def holds(words: Mapping[str, str]) -> bool:
        value = words.get(key, "")
        if not re.fullmatch(r"-?\d+", value):
            return False
        return int(value) > bound if operator == ">" else int(value) < bound

    return holds
