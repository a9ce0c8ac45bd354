"""YAML and JSON as Kubernetes reads them: data that JSON could hold, nothing else."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic_core import from_json

from kpx.api.problems import plain

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML without libyaml: the same, slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

_BLANK = re.compile(r"[ \t\r\n]*")
_SCALARS = ("null", "bool", "int", "float", "str", "map", "seq")
_MOST_KEYS = 10_000
_MOST_DEPTH = 1_000
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(_SafeLoader):
    """Safe loading without the types that JSON lacks: times stay text, `!!set` and the like are refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in _SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _SCALARS
    }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve `<<`, which nested aliases could multiply without end."""
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise yaml.MarkedYAMLError(problem="too many merged keys", problem_mark=node.start_mark)


class DocumentError(ValueError):
    """Text that isn't what it should be; the message says where, in one line."""


def decode(data: bytes) -> str:
    """UTF-8 text, less a byte order mark; raises `DocumentError`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None


def yaml_documents(data: bytes) -> Iterator[Any]:
    """The documents of a YAML stream, one by one; raises `DocumentError` at the first fault."""
    text = decode(data)
    _refuse_depth(text)
    try:
        yield from yaml.load_all(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DocumentError(f"is not YAML: {error.problem or error.context}{place}") from None
    except RecursionError:
        raise DocumentError("is nested too deeply") from None
    except Exception as error:  # with explicit tags (`!!bool x`) PyYAML's constructors raise whatever they like
        raise DocumentError(f"is not YAML: {plain(str(error))}") from None


def repeated_keys(data: bytes) -> list[str]:
    """The paths of the keys that a mapping of a document has more than once. For what `yaml_documents` has read."""
    found: list[str] = []
    for root in yaml.compose_all(decode(data), Loader=_Loader):
        waiting: list[tuple[str, yaml.Node]] = [("", root)] if root is not None else []
        while waiting:
            path, node = waiting.pop()
            if isinstance(node, yaml.MappingNode):
                keys = [str(key.value) for key, _ in node.value]
                below = [f"{path}.{key}".lstrip(".") for key in keys]
                found += [one for one, times in Counter(below).items() if times > 1]
                waiting += zip(below, (value for _, value in node.value), strict=True)
    return [plain(one) for one in found]


def _refuse_depth(text: str) -> None:
    """Raise where nesting could overflow the C stack, on which libyaml's binding composes nodes."""
    if len(text) <= _MOST_DEPTH:
        return
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _MOST_DEPTH:
                raise DocumentError("is nested too deeply")
    except yaml.YAMLError:
        return  # nothing is composed beyond this fault, and whoever composes will report it


def json_documents(data: bytes) -> Iterator[Any]:
    """The documents of one or several JSON texts in a row; raises `DocumentError` at the first fault."""
    try:
        document = from_json(data, allow_inf_nan=False)
    except ValueError:  # perhaps because another document follows, which only the slower decoder can tell
        yield from _json_texts(decode(data))
    else:
        del data  # a large dump is worth freeing before it is worked on
        yield document


def _json_texts(text: str) -> Iterator[Any]:
    decoder, place = json.JSONDecoder(parse_constant=_refuse), _blank(text, 0)
    try:
        while place < len(text):
            document, place = decoder.raw_decode(text, place)
            yield document
            place = _blank(text, place)
    except json.JSONDecodeError as error:
        message = f"is not JSON: {error.msg}, line {error.lineno}, column {error.colno}"
        raise DocumentError(message) from None
    except RecursionError:
        raise DocumentError("is nested too deeply") from None
    except ValueError as error:
        raise DocumentError(f"is not JSON: {plain(str(error))}") from None


def _blank(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    return match.end() if match else place


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
