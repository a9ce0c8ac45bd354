"""How a Service wants its connections balanced: what its annotations, and its slices', say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

from kpx import api
from kpx.errors import Problem

DEFAULT_WEIGHT = 100
_MOST = 10_000

RECENT_CLIENTS = 100
"""How many clients a list of xt_recent remembers, unless the module's parameter `ip_list_tot` says otherwise."""

T = TypeVar("T")


class Balance(StrEnum):
    """How new connections choose among endpoints."""

    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    SOURCE_HASH = "source-hash"


class AffinityScope(StrEnum):
    """What a client sticks to: an endpoint of one port, or a pod for all ports of the Service."""

    PORT = "port"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Balancing:
    """What a Service's annotations ask for. `local_weight` is by how many percent endpoints on this node count more."""

    balance: Balance = Balance.RANDOM
    local_weight: int = 0
    scope: AffinityScope = AffinityScope.PORT


PLAIN = Balancing()
"""What a Service without annotations gets: kube-proxy's way."""


@dataclass(frozen=True, slots=True)
class _Annotation(Generic[T]):
    """An annotation that may be missing. `read` gives None for a text that means nothing."""

    name: str
    default: T
    read: Callable[[str], T | None]
    expected: str

    def of(self, annotations: Mapping[str, str]) -> T:
        """What it says; the default where it says nothing, or nothing that makes sense."""
        value = self.read(annotations[self.name]) if self.name in annotations else None
        return self.default if value is None else value

    def problem(self, subject: str, annotations: Mapping[str, str]) -> Problem | None:
        """What is wrong with it, if anything."""
        if self.name not in annotations or self.read(annotations[self.name]) is not None:
            return None
        message = f"must be {self.expected}; as if it said {self.default}"
        return Problem(subject, message, f"metadata.annotations['{self.name}']", annotations[self.name])


E = TypeVar("E", bound=StrEnum)


def _member(kind: type[E], text: str) -> E | None:
    return kind(text) if text in set(kind) else None


def _number(text: str) -> int | None:
    return (
        int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(_MOST)) and int(text) <= _MOST else None
    )


_A_NUMBER = f"a whole number from 0 to {_MOST}"
_BALANCE = _Annotation("kpx.dev/balance", PLAIN.balance, partial(_member, Balance), " or ".join(Balance))
_LOCAL_WEIGHT = _Annotation("kpx.dev/local-weight", PLAIN.local_weight, _number, _A_NUMBER)
_SCOPE = _Annotation("kpx.dev/affinity-scope", PLAIN.scope, partial(_member, AffinityScope), " or ".join(AffinityScope))
_WEIGHT = _Annotation("kpx.dev/weight", DEFAULT_WEIGHT, _number, _A_NUMBER)


def balancing(service: api.Service) -> Balancing:
    """What the annotations of a Service ask for."""
    annotations = service.metadata.annotations
    found = Balancing(_BALANCE.of(annotations), _LOCAL_WEIGHT.of(annotations), _SCOPE.of(annotations))
    return PLAIN if found == PLAIN else found  # nearly every Service: one value for all


def weight_of(endpoint_slice: api.EndpointSlice) -> int:
    """How much each endpoint of a slice counts: 100 if it doesn't say."""
    return _WEIGHT.of(endpoint_slice.metadata.annotations)


def misread(one: api.Object) -> tuple[Problem, ...]:
    """Balancing annotations that mean nothing. Traffic doesn't stop for a typo: the default is used."""
    if isinstance(one, api.Node):
        return ()
    known = (_WEIGHT,) if isinstance(one, api.EndpointSlice) else (_BALANCE, _LOCAL_WEIGHT, _SCOPE)
    subject = f"{type(one).__name__} {one.metadata.namespace}/{one.metadata.name}"
    return tuple(filter(None, (annotation.problem(subject, one.metadata.annotations) for annotation in known)))
