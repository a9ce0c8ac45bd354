"""The query parameters of lists and watches (meta/v1 ListOptions), read and checked.

Rules: `ValidateListOptions` of k8s.io/apimachinery, and "Semantics for get and list / for watch" of the
Kubernetes API concepts page.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from . import refusals
from .resources import Resource
from .selection import Selection, SelectorError, selection


@dataclass(frozen=True, slots=True)
class Options:
    """ListOptions. `version` is None for an unset resourceVersion, else a number; 0 is "any"."""

    wanted: Selection
    version: int | None
    match: str
    limit: int
    continuation: str
    bookmarks: bool
    timeout: int | None
    initial_events: bool | None


def is_watch(query: Mapping[str, str]) -> bool:
    return _flag(query, "watch") is True


def read_options(resource: Resource, namespace: str, query: Mapping[str, str]) -> Options:
    """Read a query. Raises RefusalError (400)."""
    fields = query.get("fieldSelector", "")
    try:
        wanted = selection(namespace, query.get("labelSelector", ""), fields, resource.selectable)
    except SelectorError as problem:
        raise refusals.bad_request(str(problem)) from problem
    timeout = _number(query, "timeoutSeconds")
    return Options(
        wanted=wanted,
        version=_number(query, "resourceVersion"),
        match=query.get("resourceVersionMatch", ""),
        limit=_number(query, "limit") or 0,
        continuation=query.get("continue", ""),
        bookmarks=_flag(query, "allowWatchBookmarks") is True,
        timeout=timeout or None,
        initial_events=_flag(query, "sendInitialEvents"),
    )


def check_list(options: Options) -> None:
    """Raises RefusalError for combinations that a list must not have."""
    causes = []
    if options.match and options.version is None:
        causes.append(("resourceVersionMatch", "forbidden unless resourceVersion is provided"))
    if options.match and options.continuation:
        causes.append(("resourceVersionMatch", "forbidden when continue is provided"))
    if options.match not in ("", "Exact", "NotOlderThan"):
        causes.append(("resourceVersionMatch", f"unsupported value {options.match}"))
    if options.match == "Exact" and options.version == 0:
        causes.append(("resourceVersionMatch", '"exact" is forbidden for resourceVersion "0"'))
    if options.initial_events is not None:
        causes.append(("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    if causes:
        raise refusals.invalid_options(422, causes)
    if options.continuation and options.version:
        raise refusals.bad_request("specifying resource version is not allowed when using continue")


def check_watch(options: Options, watch_list: bool, code: int) -> None:
    """Raises RefusalError for combinations that a watch must not have, or a server without WatchList."""
    causes = []
    if options.initial_events is not None:
        if options.match != "NotOlderThan":
            causes.append(("resourceVersionMatch", "sendInitialEvents requires NotOlderThan here"))
        if not watch_list:
            text = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            causes.append(("sendInitialEvents", text))
    elif options.match:
        causes.append(("resourceVersionMatch", "forbidden for watch unless sendInitialEvents is provided"))
    if options.match and options.continuation:
        causes.append(("resourceVersionMatch", "forbidden when continue is provided"))
    if causes:
        raise refusals.invalid_options(code, causes)


def _flag(query: Mapping[str, str], name: str) -> bool | None:
    """Present and not "0" or "false" is true, as the API machinery converts it."""
    value = query.get(name)
    return None if value is None else value.lower() not in ("0", "false")


def _number(query: Mapping[str, str], name: str) -> int | None:
    value = query.get(name, "")
    if not value:
        return None
    if not value.isdecimal():
        raise refusals.bad_request(f"{name}: Invalid value: {value!r}")
    return int(value)
