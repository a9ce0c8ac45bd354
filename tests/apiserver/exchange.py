"""One request and its answer: authentication, authorisation, then a read, a list or a watch."""

import asyncio

from . import refusals
from .access import ANONYMOUS, allowed
from .faults import BODY, REQUEST
from .listing import Page, list_page
from .options import Options, check_list, check_watch, is_watch, read_options
from .refusals import RefusalError
from .resources import Resource, Target, locate
from .sabotage import compact, forever
from .speech import JSON, negotiate
from .state import OpenWatch, State
from .watching import Watch, error_line
from .wire import Channel, Request, gzipped

_GZIP_FROM = 128 * 1024
_CHUNKED_FROM = 2048
_VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"}
_HEALTH = ("/healthz", "/livez", "/readyz")
_REQUEST_REFUSALS = {
    "internal": refusals.internal_error,
    "unavailable": refusals.unavailable,
    "timeout": refusals.timed_out,
}

_PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


class Exchange:
    """Answers one request on a connection. Ends by ConnectionAbortedError where a fault ends the connection."""

    def __init__(self, state: State, connection: Channel, request: Request) -> None:
        self._state = state
        self._connection = connection
        self._request = request
        state.arrivals += 1
        self._arrival = state.arrivals
        self._fault = ""
        accept = "application/json" if state.promises.prefers_json else request.headers.get("accept", "*/*")
        self._accepted = negotiate(accept, state.promises.protobuf)
        self._speech = self._accepted or JSON

    async def run(self) -> None:
        try:
            await self._answer()
        except RefusalError as refusal:
            extra = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else {}
            if refusal.code == 429:  # said before anything knows of objects
                await self._send_whole(429, f"{refusal.message}\n".encode(), extra | _PLAIN)
            else:
                await self._send_body(refusal.code, self._speech.status(refusal), self._speech.media_type, extra)
        finally:
            self._connection.rate = None

    async def _answer(self) -> None:
        request, state = self._request, self._state
        target = locate(request.path)
        verb = target.verb(request.method, is_watch(request.query)) if target else ""
        state.request_counts[f"{verb} {target.plural}" if target else request.path] += 1
        user = state.credentials.user(request.headers.get("authorization", ""), self._connection.certified)
        if user is None:
            raise refusals.unauthorized()
        if target is None:
            await self._answer_plain_path()
            return
        await self._request_fault(verb, target)
        self._authorize(user, verb, target)
        if target.resource is None:
            raise refusals.no_such_path()
        if verb not in ("get", "list", "watch") or request.method != "GET":
            raise refusals.method_not_allowed()
        if self._accepted is None:
            raise refusals.not_acceptable()
        await self._read(verb, target, target.resource)

    async def _answer_plain_path(self) -> None:
        if self._request.path == "/version":
            await self._send_body(200, compact(_VERSION), JSON.media_type)
        elif self._request.path in _HEALTH:
            await self._send_whole(200, b"ok", _PLAIN)
        else:
            raise refusals.no_such_path()

    async def _request_fault(self, verb: str, target: Target) -> None:
        """Refuse, reset or fall silent now; what strikes later (hold, a watch's gone) is remembered."""
        dice = self._state.dice
        self._fault = dice.strike(REQUEST, verb, target.plural)
        match self._fault:
            case "throttle":
                raise refusals.too_many_requests(dice.faults.retry_after)
            case "gone" if verb != "watch":
                raise refusals.expired("The resourceVersion for the provided list is too old.")
            case "reset":
                self._connection.abort(reset=True)
                raise ConnectionAbortedError
            case "mute":
                await forever()
            case "internal" | "unavailable" | "timeout":
                raise _REQUEST_REFUSALS[self._fault]()

    def _authorize(self, user: str, verb: str, target: Target) -> None:
        name = target.name or _asked_name(self._request.query.get("fieldSelector", ""))
        group, plural = target.group, target.plural
        if user == ANONYMOUS or not allowed(self._state.promises.rules, verb, group, plural, name):
            raise refusals.forbidden(user, verb, group, plural, target.namespace, target.name)

    async def _read(self, verb: str, target: Target, resource: Resource) -> None:
        options = read_options(resource, target.namespace, self._request.query)
        if verb == "watch":
            await self._watch(resource, options)
            return
        if options.match != "Exact" and not await self._state.fresh(options.version or 0):
            raise refusals.too_large_version(options.version or 0, self._state.store.version)
        if verb == "list":
            await self._list(resource, options)
        else:
            await self._get(resource, target)

    async def _get(self, resource: Resource, target: Target) -> None:
        stored = self._state.store.find(resource, target.namespace, target.name)
        if stored is None:
            raise refusals.not_found(target.group, target.plural, target.name)
        await self._send_objects("get", resource, self._speech.one(stored))

    async def _list(self, resource: Resource, options: Options) -> None:
        check_list(options)
        page = list_page(self._state.store, resource, options)
        await self._send_objects("list", resource, page)

    async def _watch(self, resource: Resource, options: Options) -> None:
        promises = self._state.promises
        check_watch(options, promises.watch_list, promises.watch_list_refusal)
        since = self._request.query.get("resourceVersion", "")
        opened = OpenWatch(resource, options.wanted.namespace, since, self._arrival, self._connection)
        watch = Watch(self._state, opened, options, self._speech)
        try:
            if self._fault == "gone":
                raise refusals.expired("too old resource version: injected")
            await watch.begin()
        except RefusalError as refusal:
            await self._refuse_watch(resource, refusal, options.timeout)
            return
        await self._hold("watch", resource)
        await self._begin_chunked(200, {"Content-Type": self._speech.stream_type})
        await watch.run()
        await self._connection.end()

    async def _refuse_watch(self, resource: Resource, refusal: RefusalError, timeout: int | None) -> None:
        """The watch cache says no inside of a 200 answer, which ends when its time is over; others do so at once."""
        if self._state.promises.gone_as_status:
            raise refusal
        await self._begin_chunked(200, {"Content-Type": self._speech.stream_type})
        await self._connection.chunk(error_line(self._speech, resource, refusal))
        if timeout:
            await asyncio.sleep(timeout)
        await self._connection.end()

    async def _send_objects(self, verb: str, resource: Resource, content: Page | bytes) -> None:
        """Send a list or an object; or what a fault makes of that."""
        await self._hold(verb, resource)
        dice = self._state.dice
        fault = dice.strike(BODY, verb, resource.plural)
        if isinstance(content, Page):
            padding = 0, 0
            if fault == "oversize" and content.entries:
                padding = dice.random.randrange(len(content.entries)), dice.faults.oversize_bytes
            body = self._speech.page(resource, content.metadata, content.entries, padding)
        else:
            body = content
        if fault == "truncate":
            body = body[: len(body) // 2]
        if fault == "drip":
            self._connection.rate = dice.faults.drip_rate
        await self._send_body(200, body, self._speech.media_type, cut=fault == "cut")
        self._state.note_answer(verb, resource, self._arrival)

    async def _hold(self, verb: str, resource: Resource) -> None:
        if self._fault == "hold":
            await self._state.overtaken(verb, resource, self._arrival)

    async def _send_body(
        self, code: int, body: bytes, media_type: str, extra: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        """Send a body: gzipped if it is large and that is wished, chunked unless it is small."""
        headers = {"Content-Type": media_type, **(extra or {})}
        if len(body) > _GZIP_FROM:
            headers["Vary"] = "Accept-Encoding"
            if "gzip" in self._request.headers.get("accept-encoding", ""):
                headers["Content-Encoding"] = "gzip"
                body = await asyncio.to_thread(gzipped, body)
        if cut:
            await self._send_half(code, body, headers)
        elif len(body) < _CHUNKED_FROM:
            await self._send_whole(code, body, headers)
        else:
            await self._begin_chunked(code, headers)
            await self._connection.chunk(body)
            await self._connection.end()

    async def _send_whole(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self._state.answer_counts[code] += 1
        await self._connection.whole(code, headers, body)

    async def _begin_chunked(self, code: int, headers: dict[str, str]) -> None:
        self._state.answer_counts[code] += 1
        await self._connection.begin(code, headers)

    async def _send_half(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        await self._begin_chunked(code, headers)
        await self._connection.half(body)
        await asyncio.sleep(0.02)  # so that the client has read what came before
        self._connection.abort(reset=False)
        raise ConnectionAbortedError


def _asked_name(field_selector: str) -> str:
    """The name that a request is narrowed to, for rules with names."""
    for term in field_selector.split(","):
        path, _, name = term.replace("==", "=").partition("=")
        if path == "metadata.name":
            return name
    return ""
