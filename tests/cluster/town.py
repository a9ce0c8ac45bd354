"""Random dual-stack Services and random changes to them: what is sent to the API server, decided by a seed alone."""

import datetime
import ipaddress
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.client import Object
from tests.cluster.manifests import named

NAMESPACE = "churn"
FAMILIES = ("IPv4", "IPv6")
PORT = 8080
_STATES = {
    "ready": (True, True, False),
    "serving-terminating": (False, True, True),
    "not-ready": (False, False, False),
    "gone": (False, False, True),
}
_SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
_SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `kind` says what it is for."""

    kind: str
    method: str
    path: str
    body: Object | None = None


@dataclass(slots=True)
class Town:
    """Services of all kinds, numbered; which live, and which address comes next."""

    seed: int
    nodes: tuple[str, ...]
    _random: random.Random = field(init=False)
    _living: list[int] = field(default_factory=list)
    _next: int = 0
    _pods: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @property
    def size(self) -> int:
        """How many Services there are."""
        return len(self._living)

    def create(self) -> Iterator[Request]:
        """One Service more, with a slice in each family."""
        number, self._next = self._next, self._next + 1
        self._living.append(number)
        yield Request("create", "POST", _SERVICES, self._service(number))
        for family in FAMILIES:
            yield Request("create", "POST", _SLICES, self._slice(number, family))

    def change(self) -> Iterator[Request]:
        """One random change: mostly endpoints, sometimes a Service comes, goes or is changed."""
        kind = self._random.choices(("endpoints", "delete", "create", "service"), (84, 6, 6, 4))[0]
        number = self._random.choice(self._living)
        match kind:
            case "create":
                yield from self.create()
            case "delete":
                self._living.remove(number)
                yield Request(kind, "DELETE", f"{_SERVICES}/s{number}")
                for family in FAMILIES:
                    yield Request(kind, "DELETE", f"{_SLICES}/s{number}-{family.lower()}")
            case "service":
                spec = {
                    "sessionAffinity": self._random.choice(("ClientIP", "None")),
                    "internalTrafficPolicy": self._random.choice(("Cluster", "Local")),
                }
                yield Request(kind, "PATCH", f"{_SERVICES}/s{number}", {"spec": spec})
            case _:
                family = self._random.choice(FAMILIES)
                body = {"metadata": _stamp(), "endpoints": self._endpoints(family, changed=True)}
                yield Request(kind, "PATCH", f"{_SLICES}/s{number}-{family.lower()}", body)

    def _service(self, number: int) -> Object:
        kinds: list[dict[str, Any]] = [
            {},
            {"type": "NodePort"},
            {"type": "NodePort", "externalTrafficPolicy": "Local"},
            {"internalTrafficPolicy": "Local"},
            {"sessionAffinity": "ClientIP"},
            {"externalIPs": [f"203.0.{number // 250 % 250}.{number % 250 + 1}", f"2001:db8:e::{number + 1:x}"]},
        ]
        chosen = self._random.choices(kinds, (68, 15, 5, 5, 5, 2))[0]
        ports = [{"name": "http", "port": 80, "targetPort": PORT}]
        spec = {"ports": ports, "ipFamilyPolicy": "RequireDualStack", "ipFamilies": list(FAMILIES), **chosen}
        return named("Service", f"s{number}", NAMESPACE, spec=spec)

    def _slice(self, number: int, family: str) -> Object:
        made = named(
            "EndpointSlice",
            f"s{number}-{family.lower()}",
            NAMESPACE,
            "discovery.k8s.io/v1",
            addressType=family,
            endpoints=self._endpoints(family),
            ports=[{"name": "http", "port": PORT, "protocol": "TCP"}],
        )
        made["metadata"] |= {"labels": {"kubernetes.io/service-name": f"s{number}"}, **_stamp()}
        return made

    def _endpoints(self, family: str, *, changed: bool = False) -> list[Object]:
        count = self._random.choice((0, 1, 1, 2, 2) if changed else (1, 2))
        return [self._endpoint(family, changed) for _ in range(count)]

    def _endpoint(self, family: str, changed: bool) -> Object:
        state = self._random.choices(tuple(_STATES), (92, 3, 4, 1))[0] if changed else "ready"
        ready, serving, terminating = _STATES[state]
        conditions = {"ready": ready, "serving": serving, "terminating": terminating}
        node = self._random.choice(self.nodes)
        return {"addresses": [self._address(family)], "conditions": conditions, "nodeName": node}

    def _address(self, family: str) -> str:
        self._pods += 1
        start = ipaddress.ip_address("10.248.0.1" if family == "IPv4" else "fd00:10:248::1")
        return str(start + self._pods)


def _stamp() -> Object:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": now}}
