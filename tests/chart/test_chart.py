"""The chart, rendered by Helm's engine, held against Kubernetes' schemas and against what kpx needs."""

import json
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart

from kpx.api import parse_config
from kpx.compiler.compile import Layout
from kpx.version import __version__
from tests.agent.test_metrics import KPX, KUBE_PROXY
from tests.apiserver import Rule
from tests.chart import generate
from tests.chart.helm import CHART, HelmError, Manifest, Release, findings, release

SETUPS = generate.setups()
VERSIONS = ("1.27", "1.31", "1.36")
"""Kubernetes versions to check against: the oldest that the chart allows to the newest that kpx follows."""
every_setup = pytest.mark.parametrize("setup", SETUPS)
EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example/kpx", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "mine"}],
    "apiServer": {"host": "fd00::1"},
    "affinity": {"nodeAffinity": {}},
    "serviceAccount": {"name": "other", "annotations": {"a": "b"}},
    "podAnnotations": {"c": "d"},
    "podLabels": {"e": "f"},
    "podMonitor": {"enabled": True, "labels": {"g": "h"}, "interval": "1m"},
    "serviceMonitor": {"enabled": True, "labels": {"i": "j"}, "interval": "30s"},
    "dashboard": {"enabled": True},
}


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["apiVersion"], chart["appVersion"]) == ("v2", __version__)


@every_setup
def test_helm_has_nothing_to_say_against_it(setup: str) -> None:
    assert findings(SETUPS[setup]) == []


@every_setup
def test_a_setup_gives_the_same_as_before(setup: str) -> None:
    """If the difference is meant: `make golden`, and read it before you commit it."""
    assert release(SETUPS[setup]).text == (generate.GOLDEN / f"{setup}.yaml").read_text()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [*SETUPS.values(), EVERYTHING], ids=[*SETUPS, "everything"])
def test_kubernetes_knows_every_field(values: dict[str, Any], version: str) -> None:
    checked = [one for one in release(values).manifests if one["apiVersion"] != "monitoring.coreos.com/v1"]
    assert len(checked) >= 4
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_every_port_names_its_protocol() -> None:
    """It is half of the key by which a server-side apply tells ports apart; not every API server fills it in first."""
    made = release(EVERYTHING)
    ports = [*made.one("Service")["spec"]["ports"], *made.container["ports"]]
    assert [port["protocol"] for port in ports] == ["TCP"] * 3


def test_the_schemas_would_notice_a_misspelt_field() -> None:
    wrong = release().one("DaemonSet")
    wrong["spec"]["template"]["spec"]["hostNetworking"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostNetworking"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


# What the pod may do.


@every_setup
def test_the_agent_has_two_capabilities_and_nothing_it_could_write_to(setup: str) -> None:
    made = release(SETUPS[setup])
    security = made.container["securityContext"]
    added = ["NET_ADMIN"] if SETUPS[setup].get("backend") == "nft" else ["NET_ADMIN", "NET_RAW"]
    assert security.pop("capabilities") == {"drop": ["ALL"], "add": added}
    assert security == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
    }
    assert made.pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert made.pod["hostNetwork"]
    assert not {"hostPID", "hostIPC"} & made.pod.keys()
    (host,) = (volume for volume in made.pod["volumes"] if "hostPath" in volume)
    assert host["hostPath"] == {"path": "/run/xtables.lock", "type": "FileOrCreate"}


def test_a_privileged_container_is_there_only_to_set_the_host_up() -> None:
    (container,) = release().pod["initContainers"]
    assert container["args"][:2] == ["run", "--init-only"]
    assert container["securityContext"]["privileged"]
    assert "initContainers" not in release({"hostSettings": {"enabled": False}}).pod


def test_it_runs_everywhere_first_and_longest() -> None:
    made = release()
    assert made.pod["tolerations"] == [{"operator": "Exists"}]
    assert made.pod["priorityClassName"] == "system-node-critical"
    assert made.one("DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": "10%"}
    assert parse_config(made.one("ConfigMap")["data"]["config.conf"].encode())[0].oom_score_adj == -997


def cluster_rules(made: Manifest) -> tuple[Rule, ...]:
    """A ClusterRole's rules as the test API server takes them."""
    return tuple(
        Rule(tuple(rule["verbs"]), group, tuple(rule["resources"]))
        for rule in made["rules"]
        for group in rule["apiGroups"]
    )


def test_the_role_names_every_right() -> None:
    """`test_pod.py` shows that these are enough, and that each is needed."""
    rules = cluster_rules(release().one("ClusterRole"))
    assert {(rule.group, one, verb) for rule in rules for one in rule.resources for verb in rule.verbs} == {
        (group, plural, verb)
        for group, plural in (("", "services"), ("", "nodes"), ("discovery.k8s.io", "endpointslices"))
        for verb in ("list", "watch")
    }


def test_without_rbac_and_account_nothing_of_the_kind_is_made() -> None:
    made = release({"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "theirs"}})
    assert {one["kind"] for one in made.manifests} == {"ConfigMap", "DaemonSet"}
    assert made.pod["serviceAccountName"] == "theirs"


# Configuration and ports.


@every_setup
def test_kpx_reads_the_configuration_without_a_warning(setup: str) -> None:
    for manifest in release(SETUPS[setup]).manifests:
        if manifest["kind"] == "ConfigMap" and "config.conf" in manifest["data"]:
            assert parse_config(manifest["data"]["config.conf"].encode())[1] == ()


def test_no_fields_are_as_good_as_null() -> None:
    assert release({"config": None}).text == release().text


def test_a_user_s_fields_win_and_large_numbers_stay_numbers() -> None:
    made = release({"config": {"oomScoreAdj": -900, "conntrack": {"min": 2_000_000}}})
    config, warnings = parse_config(made.one("ConfigMap")["data"]["config.conf"].encode())
    assert (config.oom_score_adj, config.conntrack.min, warnings) == (-900, 2_000_000, ())


def test_probes_follow_the_port() -> None:
    made = release({"ports": {"healthz": 11256, "metrics": 11249}, "podMonitor": {"enabled": True}})
    config, _ = parse_config(made.one("ConfigMap")["data"]["config.conf"].encode())
    assert (config.healthz_bind_address, config.metrics_bind_address) == ("0.0.0.0:11256", "0.0.0.0:11249")
    assert {port["name"]: port["hostPort"] for port in made.container["ports"]} == {"healthz": 11256, "metrics": 11249}
    assert made.container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "healthz"}
    assert made.container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "healthz"}


def test_metrics_stay_at_home_unless_somebody_scrapes() -> None:
    config, _ = parse_config(release().one("ConfigMap")["data"]["config.conf"].encode())
    assert config.metrics_bind_address == "127.0.0.1:10249"


def test_another_configuration_starts_new_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = release(values).one("DaemonSet")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["checksum/config"]
        return found

    assert checksum({}) == checksum({"backend": "nft"})
    assert checksum({}) != checksum({"config": {"clusterCIDR": "10.0.0.0/8"}})


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"tolerance": []}, "tolerance"),
        ({"image": {"tagg": "1"}}, "tagg"),
        ({"apiServer": {"host": "https://10.0.0.1:6443"}}, "/apiServer/host"),
        ({"apiServer": {"port": 0}}, "/apiServer/port"),
        ({"backend": "ipvs"}, "/backend"),
        ({"config": {"clusterCidr": "10.0.0.0/8"}}, "clusterCidr"),
        ({"config": {"mode": "ipvs"}}, "/config/mode"),
        ({"config": {"conntrack": {"min": "many"}}}, "/config/conntrack/min"),
        ({"updateStrategy": {"type": "Recreate"}}, "/updateStrategy/type"),
        ({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}, "/updateStrategy"),
        ({"podMonitor": {"interval": "soon"}}, "/podMonitor/interval"),
        ({"connectionMetrics": {"per": "pods"}}, "/connectionMetrics/per"),
        ({"connectionMetrics": {"every": 0}}, "/connectionMetrics/every"),
        ({"config": {"healthzBindAddress": "0.0.0.0:1"}}, "config.healthzBindAddress is 0.0.0.0:1"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HelmError, match=re.escape(complaint)):
        release(values)


def test_no_value_takes_what_it_is_not() -> None:
    """A list of lists is nothing that any value may be."""
    wrong = [[7]]
    leaves = paths(yaml.safe_load(generate.VALUES.read_text()), json.loads(generate.SCHEMA.read_text()))
    assert {"ports.healthz", "tolerations", "connectionMetrics.per", "updateStrategy.type"} <= leaves
    with Chart.load(CHART) as chart:
        for path in leaves:
            values: Any = wrong
            for key in reversed(path.split(".")):
                values = {key: values}
            with pytest.raises(HelmError, match=re.escape("/" + path.replace(".", "/"))):
                chart.validate_schema(values)


def test_who_names_no_api_server_is_told() -> None:
    assert "WARNING: apiServer.host" in release().notes
    for values in (SETUPS["kubeadm"], SETUPS["large-cluster"]):
        assert "WARNING" not in release(values).notes


def test_ranges_for_external_ips() -> None:
    """Null is as kube-proxy, and an empty list is something else."""

    def args(values: dict[str, Any]) -> list[str]:
        return [one for one in release(values).container["args"] if one.startswith("--external-ip-ranges")]

    assert args({}) == args({"externalIPRanges": None}) == []
    assert args({"externalIPRanges": []}) == ["--external-ip-ranges="]
    ranges = ["203.0.113.0/24", "2001:db8::/64"]
    assert args({"externalIPRanges": ranges}) == ["--external-ip-ranges=203.0.113.0/24,2001:db8::/64"]
    with pytest.raises(HelmError, match="externalIPRanges"):
        release({"externalIPRanges": ["203.0.113.7"]})


@pytest.mark.parametrize("layout", Layout)
def test_every_layout_can_be_chosen(layout: Layout) -> None:
    assert f"--layout={layout}" in release({"layout": layout.value}).container["args"]


def test_a_layout_that_there_is_none_of() -> None:
    assert not any(one.startswith("--layout") for one in release().container["args"])
    with pytest.raises(HelmError, match="layout"):
        release({"layout": "flat"})


def test_further_arguments_come_last() -> None:
    assert release({"extraArgs": ["--layout", "tree"]}).container["args"][-2:] == ["--layout", "tree"]


# Watching it.


def test_monitors_find_the_pods() -> None:
    made = release(EVERYTHING)
    labels = made.one("DaemonSet")["spec"]["template"]["metadata"]["labels"]
    (endpoint,) = made.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert made.one("PodMonitor")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert endpoint["port"] in {port["name"] for port in made.container["ports"]}
    service, monitor = made.one("Service"), made.one("ServiceMonitor")
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["clusterIP"] == "None"  # or it would get rules, for nobody
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_labels_of_a_metric_are_not_those_of_its_pod() -> None:
    """Else Prometheus calls the namespace of a Service that is counted `exported_namespace`."""
    made = release(EVERYTHING)
    endpoints = made.one("PodMonitor")["spec"]["podMetricsEndpoints"] + made.one("ServiceMonitor")["spec"]["endpoints"]
    assert [one["honorLabels"] for one in endpoints] == [True, True]


def test_the_dashboard_asks_for_labels_that_there_are() -> None:
    """`test_pod.py` asks a running agent for the names."""
    of_monitors = {"job", "node"}
    metrics = {name: labels | of_monitors for name, (_, labels) in (KUBE_PROXY | KPX).items()}
    queries = dashboard_queries(release(EVERYTHING))
    assert len(queries) > 20
    for query in queries:
        for name, matchers in re.findall(r"\b(kpx_\w+|kubeproxy_\w+)\{(.*?)\}", query):
            labels = metrics[name.removesuffix("_bucket")] | ({"le"} if name.endswith("_bucket") else set())
            asked = set(re.findall(r"(\w+)[=!]", matchers))
            asked |= set(re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", query))))
            assert asked <= labels, query


def dashboard_queries(made: Release) -> list[str]:
    """What the dashboard asks Prometheus."""
    board = json.loads(made.one("ConfigMap", "kpx-dashboard")["data"]["kpx.json"])
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return asked + [one["query"]["query"] for one in board["templating"]["list"] if isinstance(one["query"], dict)]


# Documentation.


def paths(values: Any, schema: dict[str, Any], above: str = "") -> set[str]:
    """Every value that the schema or values.yaml knows: maps that users fill count as one."""
    known = schema.get("properties", {})
    if not known or above == "config":
        return {above}
    assert not schema.get("additionalProperties", True), f"{above} may hold anything"
    found = set()
    for key in {*known, *values} - {"global"}:
        found |= paths((values or {}).get(key), known[key], f"{above}.{key}".lstrip("."))
    return found


def test_every_value_is_documented_and_checked() -> None:
    schema = json.loads(generate.SCHEMA.read_text())
    values = yaml.safe_load(generate.VALUES.read_text())
    told = {path for path, _ in generate.documented()}
    whole = {"updateStrategy", "resources", "affinity"}  # told about as a whole, their parts being Kubernetes' own
    for path in paths(values, schema):
        assert path in told or path.partition(".")[0] in whole, f"{path} isn't documented in values.yaml"
    for path in told:
        generate.value_at(path)


def test_what_is_made_from_others_is_up_to_date() -> None:
    """`make golden` brings it up to date."""
    assert generate.README.read_text() == generate.readme()
    assert generate.SCHEMA.read_text() == generate.schema()
