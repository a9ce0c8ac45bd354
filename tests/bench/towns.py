"""Clusters to measure on, and what changes in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kpx.compiler.names import port_hash
from kpx.model.service import ServicePortName
from tests.bench import clusters

_PER_SLICE = 100


@dataclass(frozen=True, slots=True)
class Joined:
    """A slice with one endpoint more, which it is, and the chain whose rules change with it in every layout."""

    piece: dict[str, Any]
    endpoint: str
    chain: str


@dataclass(frozen=True, slots=True)
class Town:
    """`services` Services of `endpoints` endpoints each; written `10kx5`."""

    services: int
    endpoints: int

    @classmethod
    def of(cls, text: str) -> "Town":
        """Read `10kx5`, `10k` (five endpoints each) or `1x5000`. Raises ValueError."""
        services, _, endpoints = text.partition("x")
        count = int(services[:-1]) * 1000 if services.endswith("k") else int(services)
        return cls(count, int(endpoints or 5))

    def __str__(self) -> str:
        return f"{self.services:,} x {self.endpoints:,}"

    def objects(self) -> Iterator[dict[str, Any]]:
        """Services and their EndpointSlices, of at most a hundred endpoints each."""
        for number in range(self.services):
            yield clusters.service(number)
            yield from self._slices(number)

    def _slices(self, number: int) -> Iterator[dict[str, Any]]:
        whole = clusters.endpoint_slice(number, self.endpoints)
        every = whole["endpoints"]
        for at in range(0, max(1, self.endpoints), _PER_SLICE):
            name = f"{whole['metadata']['name']}{at // _PER_SLICE or ''}"
            yield {
                **whole,
                "metadata": {**whole["metadata"], "name": name},
                "endpoints": every[at : at + _PER_SLICE],
            }

    def joined(self, number: int) -> "Joined":
        """The slice of some Service with one endpoint more, another one for each number."""
        which = number * 7 % self.services
        piece = next(self._slices(which))
        address = f"10.{200 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        piece["endpoints"] = [*piece["endpoints"], {**piece["endpoints"][0], "addresses": [address]}]
        name = ServicePortName(piece["metadata"]["namespace"], f"svc-{which:05}", "http", "tcp")
        return Joined(piece, f"{address}:8080", f"KUBE-SVC-{port_hash(name)}")
