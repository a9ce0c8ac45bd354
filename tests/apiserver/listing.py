"""Lists: which objects, as of which resourceVersion, and the token for the next page."""

import base64
import json
from bisect import bisect_left
from dataclasses import dataclass

from . import refusals
from .options import Options
from .resources import Resource
from .store import ExpiredError, Store, Stored, View

_LATEST = -1


@dataclass(frozen=True, slots=True)
class Page:
    """Objects of one answer, all as of `version`."""

    entries: list[Stored]
    version: int
    continuation: str
    remaining: int | None

    @property
    def metadata(self) -> dict[str, object]:
        """What the list says of itself."""
        metadata: dict[str, object] = {"resourceVersion": str(self.version)}
        if self.continuation:
            metadata["continue"] = self.continuation
            if self.remaining is not None:
                metadata["remainingItemCount"] = self.remaining
        return metadata


def list_page(store: Store, resource: Resource, options: Options) -> Page:
    """The page that the options ask for. Raises RefusalError (400, 410, 504).

    Semantics as the API server's: without a version the newest state; "0" any state, and then `limit` is not
    looked at; a version with `Exact`, or with a limit and no match, that very state; else any not older one.
    """
    start = ""
    if options.continuation:
        version, start = _read_token(options.continuation)
        view = _pinned(store, resource, version, start) if version != _LATEST else store.view(resource)
    elif options.version and (options.match == "Exact" or (options.limit and not options.match)):
        view = _exact(store, resource, options.version)
    else:
        view = store.view(resource)
    limit = 0 if options.version == 0 else options.limit
    return _cut(view, options, start, limit)


def _cut(view: View, options: Options, start: str, limit: int) -> Page:
    first = bisect_left(view.entries, start, key=lambda stored: stored.key) if start else 0
    chosen: list[Stored] = []
    for index in range(first, len(view.entries)):
        stored = view.entries[index]
        if not stored.matches(options.wanted):
            continue
        if limit and len(chosen) == limit:
            narrowed = options.wanted.narrows or bool(options.wanted.namespace)
            remaining = None if narrowed else len(view.entries) - index
            return Page(chosen, view.version, _token(view.version, chosen[-1].key), remaining)
        chosen.append(stored)
    return Page(chosen, view.version, "", None)


def _exact(store: Store, resource: Resource, version: int) -> View:
    if version > store.version:
        raise refusals.too_large_version(version, store.version)
    try:
        return store.view_at(resource, version)
    except ExpiredError as problem:
        raise refusals.expired(str(problem)) from problem


def _pinned(store: Store, resource: Resource, version: int, start: str) -> View:
    """The state a first page was made of; an expired token comes back with one that goes on inconsistently."""
    try:
        return store.view_at(resource, version)
    except ExpiredError as problem:
        message = "The provided continue parameter is too old to display a consistent list result."
        raise refusals.expired(message, _token(_LATEST, start.rstrip("\0"))) from problem


def _token(version: int, last_key: str) -> str:
    content = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": f"{last_key}\0"})
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, str]:
    try:
        content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(content["rv"]), str(content["start"])
    except (ValueError, KeyError, TypeError) as problem:
        raise refusals.bad_request("continue key is not valid") from problem
