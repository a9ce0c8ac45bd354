"""Every "no" an API server says: a Status object (meta/v1) with its HTTP code."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RefusalError(Exception):
    """A request is refused; `status` is the body, or the object of an ERROR event."""

    code: int
    reason: str
    message: str
    details: Mapping[str, Any] | None = None
    continuation: str = ""

    @property
    def status(self) -> bytes:
        metadata = {"continue": self.continuation} if self.continuation else {}
        body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": metadata}
        body |= {"status": "Failure", "message": self.message, "reason": self.reason}
        if self.details:
            body["details"] = self.details
        return json.dumps(body | {"code": self.code}, separators=(",", ":")).encode()

    @property
    def retry_after(self) -> int:
        """Seconds for a Retry-After header; 0 for none."""
        return int((self.details or {}).get("retryAfterSeconds", 0))


def unauthorized() -> RefusalError:
    return RefusalError(401, "Unauthorized", "Unauthorized")


def forbidden(user: str, verb: str, group: str, plural: str, namespace: str, name: str) -> RefusalError:
    subject = f"{plural}{'.' + group if group else ''}{f' {json.dumps(name)}' if name else ''}"
    scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = f'{subject} is forbidden: User "{user}" cannot {verb} resource "{plural}" in API group "{group}" {scope}'
    return RefusalError(403, "Forbidden", message, _about(group, plural, name))


def no_such_path() -> RefusalError:
    return RefusalError(404, "NotFound", "the server could not find the requested resource", {})


def not_found(group: str, plural: str, name: str) -> RefusalError:
    subject = f'{plural}{"." + group if group else ""} "{name}"'
    return RefusalError(404, "NotFound", f"{subject} not found", _about(group, plural, name))


def method_not_allowed() -> RefusalError:
    message = "the server does not allow this method on the requested resource"
    return RefusalError(405, "MethodNotAllowed", message, {})


def not_acceptable() -> RefusalError:
    message = "only the following media types are accepted: application/json"
    return RefusalError(406, "NotAcceptable", message, {})


def bad_request(message: str) -> RefusalError:
    return RefusalError(400, "BadRequest", message)


def invalid_options(code: int, causes: Sequence[tuple[str, str]]) -> RefusalError:
    """`causes` are (field, what is forbidden about it)."""
    message = ", ".join(f"{field}: Forbidden: {text}" for field, text in causes)
    details = {
        "group": "meta.k8s.io",
        "kind": "ListOptions",
        "causes": [
            {"reason": "FieldValueForbidden", "message": f"Forbidden: {text}", "field": field} for field, text in causes
        ],
    }
    return RefusalError(code, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {message}', details)


def expired(message: str, continuation: str = "") -> RefusalError:
    return RefusalError(410, "Expired", message, None, continuation)


def too_many_requests(seconds: int) -> RefusalError:
    message = "Too many requests, please try again later."
    return RefusalError(429, "TooManyRequests", message, {"retryAfterSeconds": seconds})


def internal_error() -> RefusalError:
    message = "Internal error occurred: injected"
    return RefusalError(500, "InternalError", message, {"causes": [{"message": "injected"}]})


def unavailable() -> RefusalError:
    message = "the server is currently unable to handle the request"
    return RefusalError(503, "ServiceUnavailable", message, {})


def timed_out() -> RefusalError:
    message = "Timeout: request did not complete within the allotted timeout"
    return RefusalError(504, "Timeout", message, {})


def too_large_version(asked: int, current: int) -> RefusalError:
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return RefusalError(504, "Timeout", message, {"causes": [cause], "retryAfterSeconds": 1})


def _about(group: str, plural: str, name: str) -> dict[str, str]:
    about = {"name": name, "group": group, "kind": plural}
    return {key: value for key, value in about.items() if value}
