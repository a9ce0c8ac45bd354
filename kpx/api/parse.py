"""From JSON or already decoded data to validated objects."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from kpx.api.config import KIND, KubeProxyConfiguration, idle_fields
from kpx.api.documents import DocumentError, yaml_documents
from kpx.api.endpointslice import EndpointSlice
from kpx.api.node import Node
from kpx.api.problems import plain, problems, scalar, spell
from kpx.api.service import Service
from kpx.errors import InputError, Problem

Object = Service | EndpointSlice | Node
"""What kpx reads from a cluster."""

MODELS: dict[str, type[Service] | type[EndpointSlice] | type[Node]] = {
    "Service": Service,
    "EndpointSlice": EndpointSlice,
    "Node": Node,
}
"""The model of each kind."""

_MOST_PROBLEMS = 1_000
_SAFE = re.compile(r"[-A-Za-z0-9_.]{1,253}")


def parse_object(kind: str, data: bytes | Mapping[str, Any]) -> Object:
    """Validate one object of this kind, given as JSON or decoded.

    Raises `InputError` with a `Problem` for everything that is wrong with it. Relations between fields are
    judged where the fields themselves are right.
    """
    model = MODELS.get(kind)
    if model is None:
        raise InputError([Problem(repr(kind)[:80], f"is not a kind that kpx reads: {', '.join(MODELS)}")])
    try:
        if isinstance(data, bytes):
            return model.model_validate_json(data, by_alias=True, by_name=False)
        return model.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InputError(_all_problems(kind, data, error)) from None


def parse_config(data: bytes) -> tuple[KubeProxyConfiguration, tuple[str, ...]]:
    """Read a KubeProxyConfiguration, YAML or JSON; the second value warns of each field set without effect.

    Raises `InputError` with a `Problem` for everything that is wrong with it.
    """
    try:
        documents = [document for document in yaml_documents(data) if document is not None]
    except DocumentError as error:
        raise InputError([Problem(KIND, str(error))]) from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise InputError([Problem(KIND, "must be one document, a mapping")])
    missing = [field for field in ("apiVersion", "kind") if field not in documents[0]]
    found = [Problem(KIND, "is required", field) for field in missing]
    try:
        config = KubeProxyConfiguration.model_validate(documents[0], by_alias=True, by_name=False)
    except ValidationError as error:
        found.extend(problems(KIND, error))
    if found:
        raise InputError(found)
    return config, tuple(f"{field}: has no effect in iptables mode on Linux" for field in idle_fields(config))


def _all_problems(kind: str, data: bytes | Mapping[str, Any], error: ValidationError) -> tuple[Problem, ...]:
    if isinstance(data, bytes):
        try:
            data = from_json(data)
        except ValueError as unreadable:
            return (Problem(kind, f"is not JSON: {plain(str(unreadable))}"),)
    subject = subject_of(kind, data)
    if error.error_count() > _MOST_PROBLEMS:  # to describe a fault takes far more memory than to have it
        return (Problem(subject, f"has {error.error_count()} problems, too many to tell"),)
    found = problems(subject, error)
    return found + tuple(problem for problem in _hidden(kind, data, subject, error) if problem not in found)


def _hidden(kind: str, data: object, subject: str, error: ValidationError) -> tuple[Problem, ...]:
    """Breaches of relations between fields that pydantic has not looked for.

    It does so only where every field of an object is sound. So look again without the unsound ones, and drop
    what is then said of these.
    """
    depth = 2 if kind == "Service" else 1  # relations are those of Service.spec, and of EndpointSlice
    broken = {details["loc"][:depth] for details in error.errors()}
    if broken & {(), ("spec",), ("spec", "type"), ("addressType",)}:
        return ()
    try:
        MODELS[kind].model_validate(_without(data, broken), by_alias=True, by_name=False)
    except ValidationError as second:
        known = tuple(spell(place) for place in broken)
        found = problems(subject, second)
        return tuple(p for p in found if not any(p.path.startswith(k) or k.startswith(p.path) for k in known))
    return ()


def _without(data: object, places: Collection[tuple[str | int, ...]]) -> object:
    """`data` less the fields at these paths."""
    if not isinstance(data, Mapping):
        return data
    inner = {place[0]: [rest[1:] for rest in places if rest[:1] == place[:1]] for place in places}
    return {
        field: _without(value, [place for place in inner.get(field, ()) if place])
        for field, value in data.items()
        if () not in inner.get(field, ())
    }


def subject_of(kind: str, data: object) -> str:
    """How operators name this object, as far as it has a name: `Service shop/web`, `Node node-0`."""
    metadata = data.get("metadata") if isinstance(data, Mapping) else None
    name = _shown(metadata.get("name")) if isinstance(metadata, Mapping) else "(unnamed)"
    if kind == "Node" or not isinstance(metadata, Mapping):
        return f"{kind} {name}"
    return f"{kind} {_shown(metadata.get('namespace') or 'default')}/{name}"


def _shown(name: object) -> str:
    if isinstance(name, str) and _SAFE.fullmatch(name):
        return name
    return "(unnamed)" if scalar(name) is None else plain(repr(name)[:80])
