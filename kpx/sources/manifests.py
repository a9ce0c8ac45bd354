"""Objects from manifests: files, directories, standard input; YAML or JSON, as `kubectl get -o` prints them."""

import gc
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from kpx.api import Object, parse_object
from kpx.api.documents import DocumentError, json_documents, yaml_documents
from kpx.api.parse import subject_of
from kpx.api.problems import plain, scalar
from kpx.errors import InputError, Problem
from kpx.sources.files import read_named, read_regular, read_stream

STDIN = "-"
"""The path that stands for standard input."""

API_VERSIONS = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Node": "v1"}
"""The API version of each kind that kpx reads."""

SUFFIXES = (".yaml", ".yml", ".json")
"""How the files that are read in a directory end."""

_BRACE = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{")
_LIST = re.compile(r"([A-Za-z][A-Za-z0-9]*)?List")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What manifests held: sound objects in order of reading, what was wrong, other objects counted by kind."""

    objects: tuple[Object, ...]
    problems: tuple[Problem, ...]
    skipped: Mapping[str, int]


def load(paths: Sequence[str], stdin: BinaryIO | None = None) -> Loaded:
    """Read every object under these paths: files, directories (all `*.yaml`, `*.yml`, `*.json` below), or `-`.

    Never raises for what it reads: whatever is wrong becomes a `Problem`, and the rest is still loaded. Of
    objects with the same kind, namespace and name the first stays.
    """
    intake = _Intake()
    with _without_garbage_collection():
        for path in paths:
            intake.add_path(path, stdin)
    return intake.loaded()


def load_found(file: str) -> Loaded:
    """Read every object of a file that was found in a directory: it must be a regular one. Never raises."""
    intake = _Intake()
    with _without_garbage_collection():
        intake.add_file(file, lambda: read_regular(file))
    return intake.loaded()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Loading makes many objects and no cycles: looking for some takes longer than everything else."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _files(path: str) -> tuple[str, ...]:
    """The file at `path`, or the manifests below it in order of their paths; hidden ones are left out.

    (A mounted ConfigMap keeps its files a second time in hidden directories.)
    """
    if not path:
        raise ValueError("a path must not be empty")
    if path == STDIN or not os.path.isdir(path):
        return (path,)
    below = (file for file in Path(path).rglob("*") if file.suffix in SUFFIXES and file.is_file())
    visible = (f for f in below if not any(part.startswith(".") for part in f.relative_to(path).parts))
    files = tuple(str(file) for file in sorted(visible))
    if not files:
        raise ValueError("has no *.yaml, *.yml or *.json in it")
    return files


def _read(file: str, stdin: BinaryIO | None) -> bytes:
    if file != STDIN:
        return read_named(file)
    if stdin is None:
        raise ValueError("can't be read: there is no standard input")
    return read_stream(stdin)


def _documents(file: str, data: bytes) -> Iterator[Any]:
    """Decode JSON where the name or the first character says so, else YAML."""
    if file.endswith(".json"):
        return json_documents(data)
    return _json_or_yaml(data) if _BRACE.match(data) else yaml_documents(data)


def _json_or_yaml(data: bytes) -> Iterator[Any]:
    """YAML may begin with a brace, too; it does if the first document isn't JSON."""
    documents = json_documents(data)
    try:
        first = [next(documents)]
    except DocumentError:
        yield from yaml_documents(data)
        return
    del data
    yield first.pop()
    yield from documents


@dataclass(slots=True)
class _Intake:
    """Collects what files hold."""

    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    origins: dict[tuple[str, str, str], str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def add_path(self, path: str, stdin: BinaryIO | None) -> None:
        """Take in everything at a path."""
        try:
            files = _files(path)
        except (OSError, ValueError) as error:
            self.complain(path or "''", error)
            return
        for file in files:
            named = file == path
            self.add_file(file, partial(_read, file, stdin) if named else partial(read_regular, file))

    def add_file(self, file: str, read: Callable[[], bytes]) -> None:
        """Take in everything in one file."""
        try:
            for document in _documents(file, read()):
                self.add_document(file, document)
        except (OSError, ValueError) as error:
            self.complain(file, error)

    def loaded(self) -> Loaded:
        """What has been taken in."""
        return Loaded(tuple(self.objects.values()), tuple(self.problems), dict(sorted(self.skipped.items())))

    def complain(self, file: str, error: OSError | ValueError) -> None:
        """Note why a file can't be used, or not all of it."""
        reason = error.strerror if isinstance(error, OSError) else None
        self.problems.append(Problem(plain(file), plain(reason or str(error))))

    def add_document(self, file: str, document: Any) -> None:
        """Take in an object or a list of objects. Lists are emptied on the way: they may be large."""
        if document is None:
            return
        kind = document.get("kind") if isinstance(document, dict) else None
        of_list = _LIST.fullmatch(kind) if isinstance(kind, str) else None
        items = document.get("items", ...) if of_list else ...
        if of_list is None or not isinstance(items, list | None):
            self.add_object(file, document, {})
            return
        # A typed list says once what its items are.
        inherited = {"kind": of_list[1], "apiVersion": document.get("apiVersion")} if of_list[1] else {}
        items = items or []
        items.reverse()
        while items:
            self.add_object(file, items.pop(), inherited)

    def add_object(self, file: str, data: Any, inherited: Mapping[str, Any]) -> None:
        """Take in one object; `inherited` is what its list says in its place."""
        if not isinstance(data, dict):
            self.problems.append(Problem(plain(file), "holds something that is not an object", value=scalar(data)))
            return
        kind = data.get("kind") or inherited.get("kind")
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            self.problems.append(Problem(plain(file), "holds an object without a kind", value=scalar(kind)))
        elif kind == "List":
            self.problems.append(Problem(plain(file), "holds a List inside a list, or one whose items are no list"))
        elif kind not in API_VERSIONS:
            self.skipped[kind] += 1
        elif (version := data.get("apiVersion") or inherited.get("apiVersion")) != API_VERSIONS[kind]:
            message = f"must be {API_VERSIONS[kind]}"
            self.problems.append(Problem(subject_of(kind, data), message, "apiVersion", scalar(version)))
        else:
            self.add_sound(file, kind, data)

    def add_sound(self, file: str, kind: str, data: dict[str, Any]) -> None:
        """Validate an object of a kind that kpx reads, and keep it if its like isn't there yet."""
        try:
            found = parse_object(kind, data)
        except InputError as error:
            self.problems.extend(error.problems)
            return
        key = (kind, "" if kind == "Node" else found.metadata.namespace, found.metadata.name)
        if key in self.objects:
            message = f"is defined in {plain(self.origins[key])} and again in {plain(file)}"
            self.problems.append(Problem(subject_of(kind, data), message))
            return
        self.objects[key] = found
        self.origins[key] = file
