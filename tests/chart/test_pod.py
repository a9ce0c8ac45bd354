"""The pod that the chart makes, run from its specification against the test API server."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.agent.harness import save, wait_until_converged
from tests.apiserver import ApiServer, Promises
from tests.chart.helm import Release, release
from tests.chart.pod import THIS_HOST, TOKEN_FOLDER, Image, PodAgent
from tests.chart.test_chart import dashboard_queries
from tests.kernel import BACKENDS, needs_kernel
from tests.lab import Namespace
from tests.manifests import endpoint_slice

pytestmark = [pytest.mark.kernel, needs_kernel]

CONFIG: dict[str, Any] = {
    "clusterCIDR": "10.244.0.0/16,fd00:10:244::/64",
    "conntrack": {"maxPerCore": 0},  # the table is the whole machine's
    "iptables": {"minSyncPeriod": "100ms"},
    "logging": {"format": "json"},
    "oomScoreAdj": 0,  # kubelet isn't here to set the score
}
CAPABILITIES = {12: "NET_ADMIN", 13: "NET_RAW"}

# What kubeadm 1.36 puts into the ConfigMap kube-proxy, with the zeros that it writes; the server's address is ours.
KUBEADM_CONFIG = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/64
configSyncPeriod: 0s
conntrack:
  maxPerCore: 0
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""
KUBEADM_KUBECONFIG = f"""\
apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: {TOKEN_FOLDER}/ca.crt
    server: SERVER
  name: default
contexts:
- context:
    cluster: default
    namespace: default
    user: default
  name: default
current-context: default
users:
- name: default
  user:
    tokenFile: {TOKEN_FOLDER}/token
"""


def chart(server: ApiServer, **values: Any) -> Release:
    """The chart with the server's address."""
    return release({"apiServer": {"host": "127.0.0.1", "port": server.port}, "config": CONFIG, **values})


def capabilities(agent: PodAgent) -> set[str]:
    """What a process may ever do."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines())
    assert status["NoNewPrivs"] == "1"
    assert status["CapEff"] == status["CapPrm"] == status["CapBnd"]
    mask = int(status["CapEff"], 16)
    return {CAPABILITIES.get(bit, str(bit)) for bit in range(64) if mask >> bit & 1}


def wait_until_probes_pass(agent: PodAgent, made: Release) -> None:
    """Ask what kubelet would ask, where it would."""
    ports = {port["name"]: port["containerPort"] for port in made.container["ports"]}
    for probe in ("livenessProbe", "readinessProbe"):
        question = made.container[probe]["httpGet"]
        for _ in agent.patiently(10, f"{probe} passed"):
            if agent.get(question["path"], ports[question["port"]])[0] == 200:
                break


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_does_its_work_with_what_the_chart_grants(
    namespace: Namespace, server: ApiServer, tmp_path: Path, backend: Backend
) -> None:
    check_work(namespace, server, tmp_path, backend, THIS_HOST)


def check_work(namespace: Namespace, server: ApiServer, folder: Path, backend: Backend, image: Image) -> None:
    """Start the pod; it has to write rules, pass its probes, follow a change and end, having no more than it may."""
    made = chart(server, backend=str(backend))
    with PodAgent(namespace, folder, server, made, backend=backend, image=image) as agent:
        wait_until_converged(agent, server)
        assert capabilities(agent) == set(made.container["securityContext"]["capabilities"]["add"])
        with pytest.raises(OSError, match="Read-only file system"):
            Path(f"/proc/{agent.pid}/root/new-file").touch()
        wait_until_probes_pass(agent, made)
        server.put(endpoint_slice("web", ["10.244.0.10", "10.244.0.11"]))
        wait_until_converged(agent, server)
        assert agent.stop() < 8
    assert "10.244.0.11" in save(namespace, backend, Family.IPV4)


def test_the_role_is_enough_and_all_of_it_is_used(namespace: Namespace, server: ApiServer, tmp_path: Path) -> None:
    used: set[str] = set()
    for watch_list in (True, False):  # older API servers have lists only
        server.promises = Promises(watch_list=watch_list, rules=server.promises.rules)
        folder = tmp_path / str(watch_list)
        folder.mkdir()
        with PodAgent(namespace, folder, server, chart(server)) as agent:
            wait_until_converged(agent, server)
            server.wait_for(lambda server: len(server.open_watches) == 3)
            assert agent.stop() < 8
        used |= server.stats.requests.keys()
    granted = {f"{verb} {plural}" for rule in server.promises.rules for verb in rule.verbs for plural in rule.resources}
    assert used == granted
    assert 403 not in server.stats.answers


def test_without_its_address_the_api_server_is_out_of_reach(
    namespace: Namespace, server: ApiServer, tmp_path: Path
) -> None:
    """What a node that has just booted is like: nobody has written the rules of the ClusterIP."""
    with PodAgent(namespace, tmp_path, server, release({"config": CONFIG})) as agent:
        for _ in agent.patiently(10, "an attempt that failed"):
            if agent.log_text().count("10.96.0.1") and agent.total("kpx_watch_restarts_total") >= 3:
                break
    assert server.stats.requests == {}
    assert "KUBE-" not in save(namespace, Backend.NFT, Family.IPV4)


def test_kubeadm_s_own_configmap_has_all_it_needs_and_the_dashboard_finds_its_metrics(
    namespace: Namespace, server: ApiServer, tmp_path: Path
) -> None:
    made = release({"kubeProxyConfigMap": "kube-proxy", "backend": "nft"})
    kubeconfig = KUBEADM_KUBECONFIG.replace("SERVER", server.url)
    files = {"config.conf": KUBEADM_CONFIG, "kubeconfig.conf": kubeconfig}
    with PodAgent(namespace, tmp_path, server, made, files=files) as agent:
        wait_until_converged(agent, server)
        wait_until_probes_pass(agent, made)
        exported = set(re.findall(r"^# TYPE (\S+)", agent.get("/metrics")[1], re.MULTILINE))
        assert agent.stop() < 8
    queries = " ".join(dashboard_queries(release({"dashboard": {"enabled": True}})))
    asked = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:kpx|kubeproxy|process)_\w+", queries)}
    assert len(asked) > 15
    assert asked <= exported


def test_the_init_container_sets_what_the_agent_can_t(namespace: Namespace, server: ApiServer, tmp_path: Path) -> None:
    namespace.sysctl(ipv4__conf__all__route_localnet=0)
    with PodAgent(namespace, tmp_path, server, chart(server)) as agent:
        agent.wait_for_log("caches complete")
        (told,) = [entry["event"] for entry in agent.log() if "route_localnet" in entry["event"]]
        assert "Read-only file system" in told
        agent.stop()
        agent.run_init_container()
        with namespace.entered():
            assert Path("/proc/sys/net/ipv4/conf/all/route_localnet").read_text() == "1\n"
        agent.start()
        agent.wait_for_log("caches complete")
        assert [entry for entry in agent.log() if entry["level"] != "info"] == []
        assert not os.listdir(tmp_path / "tmp")
