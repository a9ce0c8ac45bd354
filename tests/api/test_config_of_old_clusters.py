"""Configurations as clusters ship them: fields long gone, keys twice, a ConfigMap around it."""

import json

import pytest
import yaml

from kpx.api import parse_config
from kpx.errors import InputError

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
SHIPPED = (
    HEAD
    + """clusterCIDR: 10.244.0.0/16
clientConnection: {kubeconfig: /etc/kubeconfig, cps: 5}
conntrack: {max: 0, maxPerCore: 32768, min: 131072}
mode: iptables
resourceContainer: /kube-proxy
udpIdleTimeout: 250ms
udpTimeoutMilliseconds: 250ms
"""
)


def config_map(**data: str) -> bytes:
    return yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data}).encode()


def test_fields_that_are_gone_are_warned_of_one_by_one() -> None:
    config, warnings = parse_config(SHIPPED.encode())
    assert config.cluster_cidr == "10.244.0.0/16"
    assert config.conntrack.min == 131072
    gone = ["clientConnection.cps", "conntrack.max", "resourceContainer", "udpIdleTimeout", "udpTimeoutMilliseconds"]
    assert [warning.partition(":")[0] for warning in warnings] == gone
    assert all("does nothing" in warning for warning in warnings)


def test_of_a_key_that_comes_twice_the_last_one_counts() -> None:
    config, warnings = parse_config(f"{HEAD}iptables: {{masqueradeBit: 3, masqueradeBit: 4}}\n".encode())
    assert config.iptables.masquerade_bit == 4
    assert warnings == ("iptables.masqueradeBit: stands there twice; the last one counts",)
    head = '{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"'
    twice = head + ', "mode": "", "mode": "iptables"}'
    assert parse_config(twice.encode())[1] == ("mode: stands there twice; the last one counts",)


@pytest.mark.parametrize(
    ("text", "path", "near"),
    [
        ("clusterCidr: 10.0.0.0/8\n", "clusterCIDR", "did you mean clusterCIDR?"),
        ("iptables: {masqueradeAl: true}\n", "iptables.masqueradeAl", "did you mean masqueradeAll?"),
        ("iptables: {max: 1}\n", "iptables.max", ""),
        ("conntrack: {resourceContainer: x}\n", "conntrack.resourceContainer", ""),
    ],
)
def test_a_field_that_never_was_one_is_an_error_with_its_path(text: str, path: str, near: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_config((HEAD + text).encode())
    assert "is not a field that exists here" in str(refused.value)
    assert path.lower() in str(refused.value).lower()
    assert near in str(refused.value)


@pytest.mark.parametrize("key", ["config.conf", "config", "kube-proxy.yaml"])
def test_a_config_map_is_taken_apart(key: str) -> None:
    kubeconfig = "apiVersion: v1\nkind: Config\nclusters: []\n"
    whole = config_map(**{key: SHIPPED, "kubeconfig.conf": kubeconfig, "note": "not: [yaml"})
    assert parse_config(whole) == parse_config(SHIPPED.encode())
    assert parse_config(json.dumps(yaml.safe_load(whole)).encode()) == parse_config(SHIPPED.encode())


def test_a_config_map_of_several_configurations_says_which_there_are() -> None:
    with pytest.raises(InputError, match=r"ConfigMap: data: holds several .*\(a.conf, b.conf\): give one of them"):
        parse_config(config_map(**{"b.conf": SHIPPED, "a.conf": HEAD}))
    with pytest.raises(InputError, match="ConfigMap: data: holds no KubeProxyConfiguration"):
        parse_config(config_map(other="x"))
    with pytest.raises(InputError, match="ConfigMap: data: holds no KubeProxyConfiguration"):
        parse_config(b"kind: ConfigMap\ndata: 7\n")
