"""From JSON or already decoded data to validated objects."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from kpx.api.config import GONE, KIND, KubeProxyConfiguration, Section, idle_fields
from kpx.api.documents import DocumentError, repeated_keys, yaml_documents
from kpx.api.endpointslice import EndpointSlice
from kpx.api.node import Node
from kpx.api.problems import NO_FIELD, plain, problems, scalar, spell
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

    A ConfigMap that holds one is taken apart. Fields that v1alpha1 has no more (`GONE`), and keys that come twice, of
    which the last counts, are warned of, as by kube-proxy 1.36, which decodes again leniently where strict decoding
    fails. Raises `InputError` with a `Problem` for everything that is wrong; a field that never was one is an error.
    """
    document, text = _configuration(data)
    given, gone = _without_gone(document)
    missing = [field for field in ("apiVersion", "kind") if field not in given]
    found = [Problem(KIND, "is required", field) for field in missing]
    try:
        config = KubeProxyConfiguration.model_validate(given, by_alias=True, by_name=False)
    except ValidationError as error:
        found.extend(_with_nearest(one) for one in problems(KIND, error))
    if found:
        raise InputError(found)
    warnings = [
        *(f"{path}: stands there twice; the last one counts" for path in repeated_keys(text)),
        *(f"{path}: is a field that v1alpha1 has no more: it does nothing" for path in gone),
        *(f"{field}: has no effect in iptables mode on Linux" for field in idle_fields(config)),
    ]
    return config, tuple(warnings)


def _configuration(data: bytes) -> tuple[dict[Any, Any], bytes]:
    """The document that holds the configuration, and the text that it was read from."""
    document = _only_document(data)
    if document.get("kind") != "ConfigMap":
        return document, data
    texts = document.get("data")
    held = {key: text.encode() for key, text in texts.items() if _is_config(text)} if isinstance(texts, dict) else {}
    if not held:
        raise InputError([Problem("ConfigMap", f"holds no {KIND}", "data")])
    if len(held) > 1:
        keys = ", ".join(sorted(plain(str(key)) for key in held))
        raise InputError([Problem("ConfigMap", f"holds several of kind {KIND} ({keys}): give one of them", "data")])
    (text,) = held.values()
    return _only_document(text), text


def _is_config(text: object) -> bool:
    try:
        return isinstance(text, str) and _only_document(text.encode()).get("kind") == KIND
    except InputError:
        return False


def _only_document(data: bytes) -> dict[Any, Any]:
    try:
        documents = [document for document in yaml_documents(data) if document is not None]
    except DocumentError as error:
        raise InputError([Problem(KIND, str(error))]) from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise InputError([Problem(KIND, "must be one document, a mapping")])
    return documents[0]


def _without_gone(document: dict[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    """The document without the fields that are gone, and the paths of those that it had."""
    left, found = dict(document), []
    for path in sorted(GONE):
        *above, field = path
        section = left.get(above[0]) if above else left
        if isinstance(section, dict) and field in section:
            found.append(spell(path))
            rest = {key: value for key, value in section.items() if key != field}
            left = left | {above[0]: rest} if above else rest
    return left, found


_MODELS: tuple[type[Section], ...] = (KubeProxyConfiguration, *Section.__subclasses__())
_FIELDS = frozenset(field.alias or name for model in _MODELS for name, field in model.model_fields.items())


def _with_nearest(problem: Problem) -> Problem:
    """With the name of a field that is spelled nearly so, where there is no such field."""
    if problem.message != NO_FIELD:
        return problem
    near = get_close_matches(problem.path.rpartition(".")[2], sorted(_FIELDS), 1)
    return replace(problem, message=f"{problem.message}; did you mean {near[0]}?") if near else problem


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
