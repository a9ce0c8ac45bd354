"""`python -m tests.bench.connect`: how long connect() takes through many Services, and through many endpoints.

A node and a pod in namespaces of their own, one veth pair between them; the node connects to an address of a Service,
and the pod answers for all endpoints. What is compared is measured in turns, a hundred connections each, so that
whatever else the machine does befalls all of them alike.
"""

import socket
import statistics
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import kpx
from kpx.compiler.compile import Layout, Target, compile_fragment, join, target_settings
from kpx.compiler.fragment import Fragment
from kpx.compiler.settings import Settings
from kpx.family import Family
from kpx.model.cluster import cluster_of
from kpx.model.policy import select
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.tools import Backend
from kpx.reconcile.phases import NFT_CHAINS, transactions
from kpx.reconcile.plan import make_plan
from tests.bench import clusters
from tests.kernel import PROGRAM
from tests.lab import Namespace

TURN = 100
_NODE, _POD = "10.255.0.1", "10.255.0.2"
_PODS = "10.128.0.0/9"
_NOWHERE = "10.96.200.200"
"""An address among those of Services that no Service has."""

_PORT = 8080
ONE_NAT_RULE = "*nat\n-A POSTROUTING -s 192.0.2.1/32 -j MASQUERADE\nCOMMIT\n"
"""As any node of a cluster has: with it the kernel begins to track connections, which costs more than many rules."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # leaves no TIME_WAIT behind, which would use up the ports


class Site:
    """A node with its pod, that holds `rules` of one backend (None: no rules at all), or those of a payload."""

    def __init__(self, stack: ExitStack, rules: Ruleset | None, backend: Backend, text: str = "") -> None:
        self._node, pod = (stack.enter_context(Namespace()) for _ in range(2))
        self._node.ip(
            "link set lo up",
            f"link add eth0 type veth peer name eth0 netns {pod.path}",
            f"address add {_NODE}/30 dev eth0",
            "link set eth0 up",
        )
        # The pod has every address; in the table main, so that its link to the node goes before.
        pod.ip(
            "link set lo up",
            f"address add {_POD}/30 dev eth0",
            "link set eth0 up",
            "route add local 10.0.0.0/8 dev lo table main",
        )
        self._node.ip(f"route add default via {_POD} dev eth0")
        self._node.sysctl(ipv4__ip_forward=1)
        with pod.entered():
            self._listener = stack.enter_context(socket.create_server(("", _PORT), backlog=4 * TURN))
        self._listener.setblocking(False)
        if rules is not None:
            edits = make_plan(rules, {}).edits
            text = payload(transactions(edits, NFT_CHAINS if backend is Backend.NFT else 0))
        if text:
            self._node.run([f"{PROGRAM[Family.IPV4]}-{backend}-restore", "--noflush"], stdin=text)

    def connect(self, address: str, port: int) -> Iterator[float]:
        """The microseconds that each connect() of one turn took."""
        where = (address, port)
        with self._node.entered():
            for _ in range(TURN):
                with socket.socket() as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    sock.settimeout(None)
                    start = time.perf_counter_ns()
                    sock.connect(where)
                    yield (time.perf_counter_ns() - start) / 1000
        for _ in range(TURN):
            self._listener.accept()[0].close()


@dataclass(frozen=True, slots=True)
class Way:
    """Where to connect to, from a site."""

    site: Site
    address: str
    port: int = 80


@dataclass(frozen=True, slots=True)
class Row:
    """Microseconds of connect(), and how many times those of `base` they are at p50 (in the same turns)."""

    what: str
    base: str
    at_most: float | None
    p50: float
    p99: float
    base_p50: float

    @property
    def ratio(self) -> float:
        """At p50."""
        return self.p50 / self.base_p50

    def cells(self) -> tuple[str, ...]:
        """What stands in a table."""
        limit = f"{self.at_most:g} ×" if self.at_most else ""
        shown = f"{self.p50:.1f} µs", f"{self.p99:.1f} µs", f"{self.base_p50:.1f} µs", f"{self.ratio:.2f} ×"
        return self.what, *shown, limit


@dataclass(frozen=True, slots=True)
class Comparison:
    """A way, and the one that it is compared with."""

    what: str
    base: str
    at_most: float | None
    way: Way
    other: Way


class Rules:
    """Rulesets of a generated cluster, whole and with single Services of it only."""

    def __init__(self, objects: Sequence[dict[str, Any]]) -> None:
        self._objects = [kpx.parse_object(one["kind"], one) for one in objects]
        self._config, _ = kpx.parse_config(clusters.CONFIG.encode())

    def of(self, layout: Layout, only: str = "") -> Ruleset:
        """The rules that the whole cluster has, or those among them that one Service has."""
        fragments = self._fragments(layout).items()
        return join([one for name, one in fragments if not only or name == only], self._settings(layout), layout)

    def _fragments(self, layout: Layout) -> Mapping[str, Fragment]:
        cluster, settings = cluster_of(self._objects, Family.IPV4, clusters.NODE), self._settings(layout)
        return {
            name.name: compile_fragment(
                port, select(cluster.endpoints.get(name, ()), port, settings.node), settings, layout
            )
            for name, port in cluster.ports.items()
        }

    def _settings(self, layout: Layout) -> Settings:
        large = cluster_of(self._objects, Family.IPV4, clusters.NODE).is_large
        target = Target(clusters.NODE, Family.IPV4, layout)
        return target_settings(self._config, target, None, comments=not large)


def many_services(stack: ExitStack, backend: Backend, services: int, endpoints: int) -> Iterator[Comparison]:
    """The first, the middle and the last of many Services, as kube-proxy lists them, and destinations that are none."""
    rules = Rules(list(clusters.objects(services, endpoints)))
    sites = {layout: Site(stack, rules.of(layout), backend) for layout in Layout}
    ordered = sorted(map(clusters.service, range(services)), key=_name)
    places = {"first": ordered[0], "middle": ordered[services // 2], "last": ordered[-1]}
    alone = {place: Site(stack, rules.of(Layout.TREE, _name(one)[1]), backend) for place, one in places.items()}
    bases = {
        "no rules": Site(stack, None, backend),
        "one NAT rule": Site(stack, None, backend, ONE_NAT_RULE),
        "no Services": Site(stack, Rules([]).of(Layout.TREE), backend),
    }
    for layout, site in sites.items():
        limit = 1.3 if layout.has_trees else None
        for place, one in places.items():
            address = one["spec"]["clusterIP"]
            what = f"{layout}: {place} of {services:,} Services"
            yield Comparison(what, "its rules only", limit, Way(site, address), Way(alone[place], address))
        for what, address in (("a pod", "10.128.0.1"), ("an unused ClusterIP", _NOWHERE)):
            way = Way(site, address, _PORT)
            for base, other in bases.items():
                bound = limit if base == "no rules" else None
                yield Comparison(f"{layout}: {what}", base, bound, way, Way(other, address, _PORT))


def _name(service: dict[str, Any]) -> tuple[str, str]:
    return service["metadata"]["namespace"], service["metadata"]["name"]


def many_endpoints(stack: ExitStack, backend: Backend, endpoints: int) -> Iterator[Comparison]:
    """One Service with many endpoints, against the same with one."""
    one, many = (Rules(list(clusters.objects(1, count))) for count in (1, endpoints))
    address = clusters.service(0)["spec"]["clusterIP"]
    alone = Way(Site(stack, one.of(Layout.TREE), backend), address)
    for layout in Layout:
        limit = 1.5 if layout.has_trees else None
        way = Way(Site(stack, many.of(layout), backend), address)
        yield Comparison(f"{layout}: a Service with {endpoints:,} endpoints", "with one", limit, way, alone)


def balancing(stack: ExitStack, backend: Backend, services: int, endpoints: int, many: int) -> Iterator[Comparison]:
    """What annotations cost: the same Service among many, and with many endpoints, against plain random choice."""
    for what, count, each in ((f"among {services:,} Services", services, endpoints), (f"{many:,} endpoints", 1, many)):
        objects = list(clusters.objects(count, each))
        place = next(at for at, one in enumerate(objects) if one["kind"] == "Service")
        address = objects[place]["spec"]["clusterIP"]
        plain = Way(Site(stack, Rules(objects).of(Layout.TREE), backend), address)
        for how, annotations in _BALANCING.items():
            service = objects[place] | {"metadata": objects[place]["metadata"] | {"annotations": annotations}}
            rules = Rules([*objects[:place], service, *objects[place + 1 :]])
            way = Way(Site(stack, rules.of(Layout.TREE), backend), address)
            yield Comparison(f"{how}, {what}", "random", 1.2, way, plain)


_BALANCING = {
    "round robin": {"kpx.dev/balance": "round-robin"},
    "source hash": {"kpx.dev/balance": "source-hash"},
    "weights (local ones count double)": {"kpx.dev/local-weight": "100"},
    "round robin with weights": {"kpx.dev/balance": "round-robin", "kpx.dev/local-weight": "100"},
}


def balancing_rows(backend: Backend, services: int = 10_000, many: int = 1000, turns: int = 60) -> list[Row]:
    """Measure what balancing by annotations costs on one backend."""
    with ExitStack() as stack:
        return _measured(list(balancing(stack, backend, services, 5, many)), turns)


def rows(backend: Backend, services: int = 10_000, endpoints: int = 5, many: int = 5000, turns: int = 60) -> list[Row]:
    """Measure everything on one backend."""
    with ExitStack() as stack:
        some = [*many_services(stack, backend, services, endpoints), *many_endpoints(stack, backend, many)]
        return _measured(some, turns)


def _measured(some: Sequence[Comparison], turns: int) -> list[Row]:
    """Measure all ways in turns."""
    found: dict[Way, list[float]] = {way: [] for one in some for way in (one.way, one.other)}
    for turn in range(-1, turns):
        for way, taken in found.items():
            times = list(way.site.connect(way.address, way.port))
            taken += times if turn >= 0 else []  # the first turn warms up
    return [_row(one, found) for one in some]


def _row(one: Comparison, found: Mapping[Way, Sequence[float]]) -> Row:
    taken, base = found[one.way], found[one.other]
    p99 = statistics.quantiles(taken, n=100)[-1]
    return Row(one.what, one.base, one.at_most, statistics.median(taken), p99, statistics.median(base))


def table(backend: Backend, found: Sequence[Row]) -> Table:
    """The rows as a table."""
    made = Table(title=f"connect(), {backend}")
    for column in ("to", "compared with"):
        made.add_column(column)
    for column in ("p50", "p99", "p50 there", "ratio", "at most"):
        made.add_column(column, justify="right")
    for row in found:
        what, *cells = row.cells()
        made.add_row(what, row.base, *cells)
    return made


@click.command()
@click.option("--services", default=10_000, show_default=True)
@click.option("--endpoints", default=5, show_default=True)
@click.option("--many", default=5000, show_default=True, help="Endpoints of the one Service that has many.")
@click.option("--turns", default=60, show_default=True, help=f"Turns of {TURN} connections for each row.")
@click.option("--backend", type=click.Choice([one.value for one in Backend]), multiple=True, help="[default: both]")
@click.option("--balance", is_flag=True, help="Measure what balancing by annotations costs.")
def main(services: int, endpoints: int, many: int, turns: int, backend: tuple[str, ...], balance: bool) -> None:
    """Measure connect() on a generated cluster."""
    for one in [Backend(name) for name in backend] or list(Backend):
        if balance:
            Console(width=120).print(table(one, balancing_rows(one, services, many, turns)))
            continue
        Console(width=120).print(table(one, rows(one, services, endpoints, many, turns)))


if __name__ == "__main__":
    main()
