"""The exposition is read back with the parser that ships with the client library, as Prometheus would."""

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kpx.agent.metrics import Metrics
from kpx.family import Family
from kpx.version import __version__

V4, V6 = Family.IPV4, Family.IPV6
FAMILY, TABLE = {"ip_family"}, {"table", "ip_family"}

KUBE_PROXY = {
    "kubeproxy_sync_proxy_rules_duration_seconds": ("histogram", FAMILY),
    "kubeproxy_sync_full_proxy_rules_duration_seconds": ("histogram", FAMILY),
    "kubeproxy_sync_partial_proxy_rules_duration_seconds": ("histogram", FAMILY),
    "kubeproxy_network_programming_duration_seconds": ("histogram", FAMILY),
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending": ("gauge", set()),
    "kubeproxy_sync_proxy_rules_endpoint_changes_total": ("counter", set()),
    "kubeproxy_sync_proxy_rules_service_changes_pending": ("gauge", set()),
    "kubeproxy_sync_proxy_rules_service_changes_total": ("counter", set()),
    "kubeproxy_sync_proxy_rules_iptables_total": ("gauge", TABLE),
    "kubeproxy_sync_proxy_rules_iptables_last": ("gauge", TABLE),
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total": ("counter", FAMILY),
    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total": ("counter", FAMILY),
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds": ("gauge", FAMILY),
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": ("gauge", FAMILY),
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total": ("gauge", {"traffic_policy", "ip_family"}),
    "kubeproxy_conntrack_reconciler_deleted_entries_total": ("counter", FAMILY),
    "kubeproxy_conntrack_reconciler_sync_duration_seconds": ("histogram", FAMILY),
    "kubeproxy_proxy_healthz_total": ("counter", {"code"}),
    "kubeproxy_proxy_livez_total": ("counter", {"code"}),
}
KPX = {
    "kpx_repairs_total": ("counter", {"ip_family", "what"}),
    "kpx_skipped_objects": ("gauge", {"kind"}),
    "kpx_cache_objects": ("gauge", {"kind"}),
    "kpx_watch_restarts_total": ("counter", {"kind", "reason"}),
    "kpx_service_ports": ("gauge", FAMILY),
    "kpx_restores_total": ("counter", FAMILY),
    "kpx_unconfirmed_total": ("counter", FAMILY),
    "kpx_undone_repairs_total": ("counter", {*FAMILY, "process"}),
    "kpx_last_verified_timestamp_seconds": ("gauge", FAMILY),
    "kpx_restore_lines_total": ("counter", FAMILY),
    "kpx_service_connections_total": ("counter", {"namespace", "service", "port"}),
    "kpx_endpoint_connections_total": ("counter", {"namespace", "service", "port", "endpoint"}),
    "kpx_connections_read_seconds": ("summary", set()),
    "kpx_build_info": ("gauge", {"version", "python"}),
}
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "python_info"}


def eventful() -> Metrics:
    """Metrics of an agent to which everything happened once."""
    metrics = Metrics()
    metrics.sync_queued(V4, 1000.5)
    metrics.synced(V4, 0.003, True, 120, 2, {"nat": 90, "filter": 10}, {"nat": 40}, 1001.5)
    metrics.synced(V4, 0.3, False, 30, 1, {"nat": 95, "filter": 10}, {"nat": 5, "filter": 1}, 1002.5)
    metrics.sync_failed(V4, full=True)
    metrics.sync_failed(V6, full=False)
    metrics.unconfirmed(V4)
    metrics.undone(V6, "kube-proxy", 3)
    metrics.verified(V4, 1003.5)
    metrics.programmed(V6, 0.4)
    metrics.repaired(V4, "rules", 3)
    metrics.repaired(V4, "jumps")
    for kind, count in {"Service": 5, "EndpointSlice": 10, "Node": 1}.items():
        for _ in range(count):
            metrics.changed(kind)
    metrics.changes_pending({"Service": 2, "EndpointSlice": 0}.__getitem__)
    metrics.skipped("Service", 1)
    metrics.cached("EndpointSlice", 1000)
    metrics.watch_restarted("Service", "expired")
    metrics.no_local_endpoints("external", V4, 4)
    metrics.conntrack_deleted(V4, 6, 0.01)
    metrics.conntrack_deleted(V4, 2)
    metrics.service_ports(V6, 17)
    metrics.connections(("shop", "web", "http"), 3)
    metrics.connections(("shop", "web", "http", "10.244.0.11:8080"), 3)
    metrics.connections_read(0.2)
    metrics.probed("healthz", ok=True)
    metrics.probed("healthz", ok=False)
    metrics.probed("livez", ok=True)
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    """By name, a counter's as `# TYPE` has it."""
    parsed = text_string_to_metric_families(metrics.exposition().decode())
    return {one.name + ("_total" if one.type == "counter" else ""): one for one in parsed}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found = [
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_names_types_and_labels() -> None:
    found = families(eventful())
    for name, (kind, labels) in (KUBE_PROXY | KPX).items():
        assert found[name].type == kind, name
        assert {frozenset(one.labels.keys() - {"le"}) for one in found[name].samples} == {frozenset(labels)}, name
    assert found.keys() >= PROCESS
    ours = {name for name in found if name.startswith(("kubeproxy_", "kpx_"))}
    assert ours == KUBE_PROXY.keys() | KPX.keys()
    assert all(one.documentation for one in found.values())


def bounds(family: Metric) -> list[str]:
    return [one.labels["le"] for one in family.samples if one.name.endswith("_bucket")]


def test_buckets_are_kube_proxys() -> None:
    found = families(eventful())
    sync = [*(str(ms / 1000) for ms in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)), "1.024", "2.048", "4.096", "8.192"]
    sync += ["16.384", "+Inf"]
    assert bounds(found["kubeproxy_sync_full_proxy_rules_duration_seconds"]) == sync
    assert bounds(found["kubeproxy_sync_proxy_rules_duration_seconds"]) == sync
    assert bounds(found["kubeproxy_conntrack_reconciler_sync_duration_seconds"]) == sync
    programming = bounds(found["kubeproxy_network_programming_duration_seconds"])
    assert len(programming) == 1 + 2 + 59 + 12 + 7 + 1
    assert programming[:5] == ["0", "0.25", "0.5", "1", "2"]
    assert programming[60:65] == ["58", "59", "60", "65", "70"]
    assert programming[-9:] == ["115", "120", "150", "180", "210", "240", "270", "300", "+Inf"]


def test_syncs() -> None:
    metrics = eventful()
    for kind, count in {"sync": 2, "sync_full": 1, "sync_partial": 1}.items():
        assert value(metrics, f"kubeproxy_{kind}_proxy_rules_duration_seconds_count", ip_family="IPv4") == count
    assert value(metrics, "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", ip_family="IPv4") == 1000.5
    assert value(metrics, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family="IPv4") == 1002.5
    assert value(metrics, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family="IPv6") is None
    assert value(metrics, "kubeproxy_sync_proxy_rules_iptables_total", ip_family="IPv4", table="nat") == 95
    assert value(metrics, "kubeproxy_sync_proxy_rules_iptables_last", ip_family="IPv4", table="nat") == 5
    assert value(metrics, "kubeproxy_sync_proxy_rules_iptables_last", ip_family="IPv4", table="filter") == 1
    assert value(metrics, "kpx_restore_lines_total", ip_family="IPv4") == 150
    assert value(metrics, "kpx_restores_total", ip_family="IPv4") == 3


def test_a_table_without_rules_has_none() -> None:
    metrics = Metrics()
    metrics.synced(V4, 0.1, True, 5, 1, {"nat": 4}, {"nat": 3}, 1.0)
    assert value(metrics, "kubeproxy_sync_proxy_rules_iptables_last", ip_family="IPv4", table="filter") == 0
    assert value(metrics, "kubeproxy_sync_proxy_rules_iptables_total", ip_family="IPv4", table="filter") == 0


def test_failures() -> None:
    metrics = eventful()
    name = "kubeproxy_sync_proxy_rules_iptables_{}restore_failures_total"
    assert [value(metrics, name.format(""), ip_family=one) for one in ("IPv4", "IPv6")] == [1, 1]
    assert [value(metrics, name.format("partial_"), ip_family=one) for one in ("IPv4", "IPv6")] == [0, 1]


def test_counters_by_family_exist_before_they_count() -> None:
    fresh = Metrics()
    for family in ("IPv4", "IPv6"):
        assert value(fresh, "kubeproxy_sync_proxy_rules_iptables_restore_failures_total", ip_family=family) == 0
        assert value(fresh, "kpx_restores_total", ip_family=family) == 0


def test_everything_else_that_happens() -> None:
    metrics = eventful()
    assert value(metrics, "kubeproxy_network_programming_duration_seconds_bucket", ip_family="IPv6", le="0.25") == 0
    assert value(metrics, "kubeproxy_network_programming_duration_seconds_bucket", ip_family="IPv6", le="0.5") == 1
    assert value(metrics, "kubeproxy_sync_proxy_rules_service_changes_pending") == 2
    assert value(metrics, "kubeproxy_sync_proxy_rules_service_changes_total") == 5
    assert value(metrics, "kubeproxy_sync_proxy_rules_endpoint_changes_pending") == 0
    assert value(metrics, "kubeproxy_sync_proxy_rules_endpoint_changes_total") == 10
    local = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    assert value(metrics, local, traffic_policy="external", ip_family="IPv4") == 4
    assert value(metrics, "kubeproxy_conntrack_reconciler_deleted_entries_total", ip_family="IPv4") == 8
    assert value(metrics, "kubeproxy_conntrack_reconciler_sync_duration_seconds_count", ip_family="IPv4") == 1
    assert value(metrics, "kubeproxy_proxy_healthz_total", code="200") == 1
    assert value(metrics, "kubeproxy_proxy_healthz_total", code="503") == 1
    assert value(metrics, "kubeproxy_proxy_livez_total", code="200") == 1
    assert value(metrics, "kpx_repairs_total", ip_family="IPv4", what="rules") == 3
    assert value(metrics, "kpx_repairs_total", ip_family="IPv4", what="jumps") == 1
    assert value(metrics, "kpx_unconfirmed_total", ip_family="IPv4") == 1
    assert value(metrics, "kpx_unconfirmed_total", ip_family="IPv6") == 0
    assert value(metrics, "kpx_undone_repairs_total", ip_family="IPv6", process="kube-proxy") == 3
    assert value(metrics, "kpx_last_verified_timestamp_seconds", ip_family="IPv4") == 1003.5
    assert value(metrics, "kpx_skipped_objects", kind="Service") == 1
    assert value(metrics, "kpx_cache_objects", kind="EndpointSlice") == 1000
    assert value(metrics, "kpx_watch_restarts_total", kind="Service", reason="expired") == 1
    assert value(metrics, "kpx_service_ports", ip_family="IPv6") == 17
    (build,) = families(metrics)["kpx_build_info"].samples
    assert (build.value, build.labels["version"]) == (1, __version__)


def test_two_agents_in_one_process_count_apart() -> None:
    assert value(Metrics(), "kpx_repairs_total", ip_family="IPv4", what="rules") is None
