"""What the agent counts and measures, for Prometheus.

What kube-proxy has goes under kube-proxy 1.36's names, labels and buckets (`pkg/proxy/metrics/metrics.go`), so that
its dashboards and alerts keep their meaning; what is new begins with `kpx_`.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    Summary,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.samples import Sample

from kpx.agent.health import API_FAMILY
from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter import nfacct
from kpx.netfilter.counting import INVALID_DROPPED, LOCALHOST_ACCEPTED
from kpx.netfilter.ruleset import TABLES, TableName
from kpx.version import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of `Metrics.exposition`."""

TrafficPolicy = Literal["internal", "external"]

_SYNC_BUCKETS = tuple(0.001 * 2**i for i in range(15))
_PROGRAMMING_BUCKETS = (0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))


class Metrics:
    """All metrics of one agent, told what happened in the words of whoever does it.

    `now` and other times are in seconds since the epoch, durations in seconds.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._theirs = _KubeProxy(self._registry)
        self._ours = _Kpx(self._registry)
        self._connections = _Connections()
        self._registry.register(self._connections)
        self._registry.register(_PacketCounters())
        self.expositions = 0

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, version 0.0.4."""
        self.expositions += 1
        return generate_latest(_AsGoPrints(self._registry))

    def sync_queued(self, family: Family, now: float) -> None:
        """A sync was asked for."""
        self._theirs.last_queued.labels(API_FAMILY[family]).set(now)

    def synced(
        self,
        family: Family,
        seconds: float,
        full: bool,
        lines: int,
        restores: int,
        rules: Mapping[TableName, int],
        written: Mapping[TableName, int],
        now: float,
    ) -> None:
        """A sync went through, in `restores` runs of iptables-restore with `lines` lines of input in all.

        `rules` says how many rules each table holds of ours now, `written` how many of them this sync sent.
        """
        name = API_FAMILY[family]
        self._theirs.sync_seconds.labels(name).observe(seconds)
        (self._theirs.full_sync_seconds if full else self._theirs.partial_sync_seconds).labels(name).observe(seconds)
        self._theirs.last_synced.labels(name).set(now)
        for table in TABLES:
            self._theirs.rules.labels(table, name).set(rules.get(table, 0))
            self._theirs.rules_written.labels(table, name).set(written.get(table, 0))
        self._ours.restore_lines.labels(name).inc(lines)
        self._ours.restores.labels(name).inc(restores)

    def sync_failed(self, family: Family, full: bool) -> None:
        """A sync failed, a full one or one of what had changed."""
        self._theirs.restore_failures.labels(API_FAMILY[family]).inc()
        if not full:
            self._theirs.partial_restore_failures.labels(API_FAMILY[family]).inc()

    def unconfirmed(self, family: Family) -> None:
        """A tool ended as if all were well, but the kernel doesn't hold what the tool was sent."""
        self._ours.unconfirmed.labels(API_FAMILY[family]).inc()

    def verified(self, family: Family, now: float) -> None:
        """The whole kernel state was seen to be as desired."""
        self._ours.verified.labels(API_FAMILY[family]).set(now)

    def undone(self, family: Family, process: str, count: int) -> None:
        """So many chains were damaged again and again by a process of this name."""
        self._ours.undone.labels(API_FAMILY[family], process).inc(count)

    def programmed(self, family: Family, seconds: float) -> None:
        """A change of endpoints reached the kernel `seconds` after it came about in the cluster."""
        self._theirs.programming_seconds.labels(API_FAMILY[family]).observe(seconds)

    def changed(self, kind: str) -> None:
        """A Service or an EndpointSlice changed; other kinds don't count."""
        if kind in self._theirs.changes:
            self._theirs.changes[kind].inc()

    def changes_pending(self, waiting: Callable[[str], int]) -> None:
        """From now on, ask for the number of changes of a kind that wait for a sync when somebody wants to know."""
        for kind, gauge in self._theirs.changes_pending.items():
            gauge.set_function(partial(waiting, kind))

    def no_local_endpoints(self, policy: TrafficPolicy, family: Family, count: int) -> None:
        """So many Services have the Local policy and no endpoint on this node for it."""
        self._theirs.no_local_endpoints.labels(policy, API_FAMILY[family]).set(count)

    def conntrack_deleted(self, family: Family, count: int, seconds: float | None = None) -> None:
        """So many stale flows were deleted; it took `seconds`, if told."""
        self._theirs.conntrack_deleted.labels(API_FAMILY[family]).inc(count)
        if seconds is not None:
            self._theirs.conntrack_seconds.labels(API_FAMILY[family]).observe(seconds)

    def probed(self, probe: Literal["healthz", "livez"], ok: bool) -> None:
        """A probe of the proxy's health was answered."""
        self._theirs.probes[probe].labels("200" if ok else "503").inc()

    def repaired(self, family: Family, what: str, count: int = 1) -> None:
        """So many things that others had done to our rules were put right."""
        self._ours.repairs.labels(API_FAMILY[family], what).inc(count)

    def skipped(self, kind: str, count: int) -> None:
        """So many objects of a kind can't be used at present."""
        self._ours.skipped.labels(kind).set(count)

    def cached(self, kind: str, count: int) -> None:
        """So many objects of a kind are known."""
        self._ours.cached.labels(kind).set(count)

    def watch_restarted(self, kind: str, reason: str) -> None:
        """A watch ended and was begun anew; `reason` is one of few words, not an error's text."""
        self._ours.watch_restarts.labels(kind, reason).inc()

    def service_ports(self, family: Family, count: int) -> None:
        """So many service ports have rules."""
        self._ours.service_ports.labels(API_FAMILY[family]).set(count)

    def connections(self, labels: tuple[str, ...], new: int) -> None:
        """So many new connections to a service port: its namespace, Service and port; or to an endpoint of it."""
        self._connections.add(labels, new)

    def connections_read(self, seconds: float) -> None:
        """It took so long to read the counters of all rules."""
        self._ours.connections_read.observe(seconds)

    def forget_connections(self, is_gone: Callable[[tuple[str, ...]], bool]) -> None:
        """Drop the counts of what is no longer there."""
        self._connections.forget(is_gone)


class _KubeProxy:
    """The metrics that kube-proxy has in iptables mode."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry, namespace="kubeproxy")
        gauge = partial(Gauge, registry=registry, namespace="kubeproxy")
        histogram = partial(Histogram, registry=registry, namespace="kubeproxy", labelnames=["ip_family"])
        sync = partial(histogram, buckets=_SYNC_BUCKETS)
        family, per_table = ["ip_family"], ["table", "ip_family"]

        self.sync_seconds = sync("sync_proxy_rules_duration_seconds", "Duration of a sync")
        self.full_sync_seconds = sync("sync_full_proxy_rules_duration_seconds", "Duration of a sync of everything")
        self.partial_sync_seconds = sync("sync_partial_proxy_rules_duration_seconds", "Duration of a sync of changes")
        self.programming_seconds = histogram(
            "network_programming_duration_seconds",
            "From a change in the cluster to the kernel",
            buckets=_PROGRAMMING_BUCKETS,
        )
        self.last_queued = gauge("sync_proxy_rules_last_queued_timestamp_seconds", "When a sync was asked for", family)
        self.last_synced = gauge("sync_proxy_rules_last_timestamp_seconds", "When a sync succeeded last", family)
        words = {"Service": "service", "EndpointSlice": "endpoint"}
        self.changes = {
            kind: counter(f"sync_proxy_rules_{word}_changes", f"{kind} changes seen") for kind, word in words.items()
        }
        self.changes_pending = {
            kind: gauge(f"sync_proxy_rules_{word}_changes_pending", f"{kind} changes that wait for a sync")
            for kind, word in words.items()
        }
        self.rules = gauge("sync_proxy_rules_iptables_total", "Rules that are the proxy's", per_table)
        self.rules_written = gauge("sync_proxy_rules_iptables_last", "Rules written by the last sync", per_table)
        self.restore_failures = counter("sync_proxy_rules_iptables_restore_failures", "Syncs that failed", family)
        self.partial_restore_failures = counter(
            "sync_proxy_rules_iptables_partial_restore_failures", "Syncs of changes that failed", family
        )
        self.no_local_endpoints = gauge(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with policy Local that have no endpoint here",
            ["traffic_policy", "ip_family"],
        )
        self.conntrack_deleted = counter("conntrack_reconciler_deleted_entries", "Stale flows deleted", family)
        self.conntrack_seconds = sync("conntrack_reconciler_sync_duration_seconds", "Duration of a search for them")
        self.probes = {
            "healthz": counter("proxy_healthz", "Answers to /healthz by HTTP status", ["code"]),
            "livez": counter("proxy_livez", "Answers to /livez by HTTP status", ["code"]),
        }
        _start_at_zero(self.restore_failures, self.partial_restore_failures, self.conntrack_deleted)


class _Kpx:
    """The metrics that only kpx has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry, namespace="kpx")
        gauge = partial(Gauge, registry=registry, namespace="kpx")
        family = ["ip_family"]

        self.repairs = counter("repairs", "Things put right that others had done to the rules", [*family, "what"])
        self.unconfirmed = counter("unconfirmed", "Writes that a tool called done and the kernel did not hold", family)
        self.verified = gauge("last_verified_timestamp_seconds", "When all rules were last seen to be right", family)
        self.undone = counter("undone_repairs", "Repairs that another process undid", [*family, "process"])
        self.skipped = gauge("skipped_objects", "Objects that can't be used", ["kind"])
        self.cached = gauge("cache_objects", "Objects known", ["kind"])
        self.watch_restarts = counter("watch_restarts", "Watches begun anew", ["kind", "reason"])
        self.service_ports = gauge("service_ports", "Service ports with rules", family)
        self.restores = counter("restores", "Runs of iptables-restore", family)
        self.restore_lines = counter("restore_lines", "Lines sent to iptables-restore", family)
        self.connections_read = Summary(
            "connections_read_seconds", "Time to read the connections", registry=registry, namespace="kpx"
        )
        Info("kpx_build", "Version of kpx and of Python", registry=registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        _start_at_zero(self.restores, self.restore_lines, self.unconfirmed)


class _Connections:
    """Counts by labels, of service ports and of endpoints. There may be 10,000: so they are plain numbers.

    A count shows as 0 once before it shows what it is, so that `increase()` sees the first connections, too.
    """

    _LABELS = ("namespace", "service", "port", "endpoint")
    _NAMES: Mapping[int, tuple[str, str]] = {
        3: ("kpx_service_connections", "New connections to a Service, from this node or through it"),
        4: ("kpx_endpoint_connections", "New connections to an endpoint of a Service, from this node or through it"),
    }

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}
        self._shown: set[tuple[str, ...]] = set()

    def add(self, labels: tuple[str, ...], new: int) -> None:
        self._counts[labels] = self._counts.get(labels, 0) + new

    def forget(self, is_gone: Callable[[tuple[str, ...]], bool]) -> None:
        for labels in [one for one in self._counts if is_gone(one)]:
            del self._counts[labels]
            self._shown.discard(labels)

    def collect(self) -> Iterator[Metric]:
        families = {
            size: CounterMetricFamily(name, text, labels=self._LABELS[:size])
            for size, (name, text) in self._NAMES.items()
        }
        for labels, count in self._counts.items():
            families[len(labels)].add_metric(labels, count if labels in self._shown else 0)
        self._shown |= self._counts.keys()
        yield from families.values()


class _PacketCounters:
    """What kube-proxy counts by nfacct: without labels, and missing where the kernel has no such counter.

    The counters are the network namespace's, and both families count in the same.
    """

    _METRICS: Mapping[str, tuple[str, str]] = {
        INVALID_DROPPED: (
            "kubeproxy_iptables_ct_state_invalid_dropped_packets",
            "Packets that conntrack couldn't place, and rules dropped",
        ),
        LOCALHOST_ACCEPTED: (
            "kubeproxy_iptables_localhost_nodeports_accepted_packets",
            "Packets to node ports on loopback addresses that rules accepted",
        ),
    }

    def collect(self) -> Iterator[Metric]:
        counted: Mapping[str, int] = {}
        with suppress(KpxError):
            counted = nfacct.read()
        for name, (metric, text) in self._METRICS.items():
            if name in counted:
                yield CounterMetricFamily(metric, text, value=counted[name])


def _start_at_zero(*counters: Counter) -> None:
    """Let counters by family exist before they count: `increase()` doesn't see a series' first value."""
    for counter in counters:
        for family in API_FAMILY.values():
            counter.labels(family)


@dataclass(frozen=True, slots=True)
class _AsGoPrints:
    """A registry's metrics as kube-proxy's library prints them: `le="1"`, not `le="1.0"`, and no creation times."""

    registry: CollectorRegistry

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        for metric in self.registry.collect():
            metric.samples = [_with_short_bound(one) for one in metric.samples if not one.name.endswith("_created")]
            yield metric


def _with_short_bound(sample: Sample) -> Sample:
    bound = sample.labels.get("le", "")
    short = bound.removesuffix(".0")
    return sample if short == bound else sample._replace(labels={**sample.labels, "le": short})
