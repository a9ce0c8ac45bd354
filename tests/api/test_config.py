import json
from typing import Any

import pytest
import yaml

from kpx.api import KubeProxyConfiguration, parse_config
from kpx.api.durations import seconds
from kpx.errors import InputError, Problem
from tests.api.samples import CONFIG, Path, changed

HEADER = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}

KUBEADM = b"""
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/k.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null,
  tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s,
  tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"""


def parse(**fields: Any) -> KubeProxyConfiguration:
    return parse_config(json.dumps(HEADER | fields).encode())[0]


def problems(data: bytes) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        parse_config(data)
    return caught.value.problems


def test_defaults_are_kube_proxys() -> None:
    config = parse()
    assert config == KubeProxyConfiguration()
    assert (config.iptables.masquerade_bit, config.iptables.masquerade_all) == (14, False)
    assert config.iptables.localhost_node_ports is True
    assert (config.iptables.sync_period, config.iptables.min_sync_period) == (30.0, 1.0)
    assert (config.healthz_bind_address, config.metrics_bind_address) == ("0.0.0.0:10256", "127.0.0.1:10249")
    assert (config.mode, config.detect_local_mode, config.oom_score_adj) == ("iptables", "ClusterCIDR", -999)
    assert (config.conntrack.max_per_core, config.conntrack.min) == (32768, 131072)
    assert (config.conntrack.tcp_established_timeout, config.conntrack.tcp_close_wait_timeout) == (86400, 3600)
    assert (config.config_sync_period, config.client_connection.qps, config.client_connection.burst) == (900, 5, 10)
    assert (config.cluster_cidrs, config.node_port_addresses, config.bind_address) == ((), (), "0.0.0.0")


def test_the_file_of_kubeadm_holds_defaults_and_warns_of_nothing() -> None:
    config, warnings = parse_config(KUBEADM)
    assert warnings == ()
    assert config.cluster_cidrs == ("10.244.0.0/16",)
    assert config.iptables == KubeProxyConfiguration().iptables
    assert config.conntrack == KubeProxyConfiguration().conntrack
    assert "min_sync_period" not in config.iptables.model_fields_set


def test_every_field() -> None:
    config, warnings = parse_config(yaml.safe_dump(CONFIG).encode())
    assert config.cluster_cidrs == ("10.244.0.0/16", "fd00:244::/48")
    assert (config.iptables.masquerade_bit, config.iptables.sync_period) == (13, 45.0)
    assert config.iptables.min_sync_period == 2.0
    assert "min_sync_period" in config.iptables.model_fields_set
    assert (config.detect_local_mode, config.detect_local.bridge_interface) == ("BridgeInterface", "cni0")
    assert (config.conntrack.max_per_core, config.conntrack.tcp_established_timeout) == (0, 7200.0)
    assert (config.logging.flush_frequency, config.logging.vmodule[0].verbosity) == (5.0, 4)
    told = [warning.split(":")[0] for warning in warnings]
    assert told == [
        "featureGates",
        "enableProfiling",
        "showHiddenMetricsForVersion",
        "portRange",
        "windowsRunAsService",
        *(f"ipvs.{field}" for field in CONFIG["ipvs"]),
        *(f"nftables.{field}" for field in ("masqueradeBit", "masqueradeAll", "syncPeriod", "minSyncPeriod")),
        *(f"winkernel.{field}" for field in CONFIG["winkernel"]),
    ]


@pytest.mark.parametrize(
    ("fields", "healthz", "metrics"),
    [
        ({"bindAddress": "FD00::1"}, "[::]:10256", "[::1]:10249"),
        ({"healthzBindAddress": "10.0.0.1"}, "10.0.0.1:10256", "127.0.0.1:10249"),
        ({"metricsBindAddress": "::"}, "0.0.0.0:10256", "[::]:10249"),
        ({"metricsBindAddress": "[FD00::1]:80"}, "0.0.0.0:10256", "[fd00::1]:80"),
        ({"healthzBindAddress": "010.0.0.1:1"}, "10.0.0.1:1", "127.0.0.1:10249"),
    ],
)
def test_addresses_to_serve_on(fields: dict[str, Any], healthz: str, metrics: str) -> None:
    config = parse(**fields)
    assert (config.healthz_bind_address, config.metrics_bind_address) == (healthz, metrics)


def test_normal_forms() -> None:
    config = parse(hostnameOverride=" Node-1.Example ", clusterCIDR="10.244.1.1/16", nodePortAddresses=["FD00::1/64"])
    assert config.hostname_override == "node-1.example"
    assert config.cluster_cidrs == ("10.244.0.0/16",)
    assert config.node_port_addresses == ("fd00::/64",)
    assert parse(nodePortAddresses=["primary"]).node_port_addresses == ("primary",)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("kind",), "Kube", "must be 'KubeProxyConfiguration'"),
        (("apiVersion",), "v1", "must be 'kubeproxy.config.k8s.io/v1alpha1'"),
        (("mode",), "ipvs", "must be 'iptables'"),
        (("mode",), "IPTables", "must be 'iptables'"),
        (("other",), 1, "is not a field"),
        (("iptables", "other"), 1, "is not a field"),
        (("logging", "options", "text", "other"), 1, "is not a field"),
        (("cluster_cidr",), "10.0.0.0/8", "is not a field"),
        (("featureGates", "Some"), "true", "must be true or false"),
        (("hostnameOverride",), "node 1", "must be a DNS name"),
        (("hostnameOverride",), "node\n-j", "must be a DNS name"),
        (("bindAddress",), "localhost", "must be an IP address"),
        (("healthzBindAddress",), ":10256", "must be an IP address and a port"),
        (("healthzBindAddress",), "0.0.0.0:0", "must be an IP address and a port"),
        (("healthzBindAddress",), "0.0.0.0:65536", "must be an IP address and a port"),
        (("healthzBindAddress",), "0.0.0.0:80\n", "must be an IP address and a port"),
        (("metricsBindAddress",), "fe80::1%eth0", "must be an IP address and a port"),
        (("iptables", "masqueradeBit"), 32, "must be at most 31"),
        (("iptables", "masqueradeBit"), -1, "must be at least 0"),
        (("iptables", "masqueradeBit"), "14", "must be a whole number"),
        (("iptables", "masqueradeAll"), "yes", "must be true or false"),
        (("iptables", "syncPeriod"), "-1s", "must be at least 0"),
        (("iptables", "syncPeriod"), 30, "must be a duration"),
        (("iptables", "syncPeriod"), 1.5, "must be a duration"),
        (("iptables", "minSyncPeriod"), "-1s", "must be at least 0"),
        (("iptables", "minSyncPeriod"), "1", "must be a duration"),
        (("ipvs", "excludeCIDRs", 0), "x", "must be a CIDR"),
        (("detectLocalMode",), "Cluster", "must be 'ClusterCIDR', 'NodeCIDR', 'BridgeInterface' or"),
        (("detectLocal", "bridgeInterface"), "a" * 16, "must name an interface in at most 15"),
        (("detectLocal", "interfaceNamePrefix"), "a" * 15, "must name an interface in at most 14"),
        *((("detectLocal", "bridgeInterface"), name, "must name an interface") for name in ("a b", "a+", "!a", "-j")),
        *((("detectLocal", "bridgeInterface"), name, "must name an interface") for name in ("a/b", 'a"', "a\n", "..")),
        (("clusterCIDR",), "10.0.0.0", "must be a CIDR, or"),
        (("clusterCIDR",), "10.0.0.0/8,11.0.0.0/8", "must be a CIDR, or"),
        (("clusterCIDR",), "10.0.0.0/8,fd00::/8,fd01::/16", "must be a CIDR, or"),
        (("clusterCIDR",), "10.0.0.0/8,", "must be a CIDR, or"),
        (("nodePortAddresses", 0), "10.0.0.1", "must be a CIDR such as"),
        (("nodePortAddresses", 0), "", "must be a CIDR such as"),
        (("oomScoreAdj",), 1001, "must be at most 1000"),
        (("oomScoreAdj",), -1001, "must be at least -1000"),
        (("conntrack", "maxPerCore"), -1, "must be at least 0"),
        (("conntrack", "udpTimeout"), "-1s", "must be at least 0"),
        (("clientConnection", "burst"), -1, "must be at least 0"),
        (("clientConnection", "kubeconfig"), "a\nb", "must be one line"),
        (("logging", "vmodule", 0, "verbosity"), -1, "must be at least 0"),
        (("logging", "flushFrequency"), True, "must be a duration"),
    ],
)
def test_one_wrong_field(path: Path, value: object, message: str) -> None:
    (problem,) = problems(json.dumps(changed(CONFIG, path, value)).encode())
    assert problem.subject == "KubeProxyConfiguration"
    assert problem.path == "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)[1:]
    assert message in problem.message
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"iptables": {"minSyncPeriod": "31s"}}, "iptables.minSyncPeriod", "must be at most syncPeriod, 30 s"),
        ({"iptables": {"syncPeriod": "500ms"}}, "iptables.minSyncPeriod", "must be at most syncPeriod, 0.5 s"),
        ({"nodePortAddresses": ["primary", "10.0.0.0/8"]}, "nodePortAddresses", "must hold nothing else beside"),
        ({"detectLocalMode": "BridgeInterface"}, "detectLocal.bridgeInterface", "is required where detectLocalMode"),
        ({"detectLocalMode": "InterfaceNamePrefix"}, "detectLocal.interfaceNamePrefix", "is required where"),
    ],
)
def test_fields_that_contradict(fields: dict[str, Any], path: str, message: str) -> None:
    (problem,) = problems(json.dumps(HEADER | fields).encode())
    assert problem.path == path
    assert message in problem.message


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"a: [", b"\xff", b"- " * 100_000, b"a: 1\n---\nb: 1", b"null", b"x", b"!!bool x", b"\x00"]
)
def test_no_document(data: bytes) -> None:
    (problem,) = problems(data)
    assert problem.subject == "KubeProxyConfiguration"
    assert "\n" not in str(problem)


def test_version_and_kind_are_required() -> None:
    assert [problem.path for problem in problems(b"mode: iptables")] == ["apiVersion", "kind"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("0s", 0),
        ("1h2m3.5s", 3723.5),
        ("-1.5h", -5400),
        ("+5s", 5),
        (".5s", 0.5),
        ("1.s", 1),
        ("100ms", 0.1),
        ("1us1µs1μs", 3e-6),
        ("1ns", 1e-9),
    ],
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["", "1", "s", "1d", "1 s", "1s ", "1s\n", "--1s", ".s", "1e3s", "９s", "9" * 20 + "h"]
)
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)
