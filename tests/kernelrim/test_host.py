"""Kernel settings: which ones, and what a host says that refuses them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kpx import KubeProxyConfiguration, parse_config
from kpx.family import Family
from kpx.host import conntrack_entries, interface_addresses, settings
from tests.kernel import needs_kernel

CONFIG = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
TUNED = (
    "oomScoreAdj: 100\nconntrack: {maxPerCore: 0, tcpEstablishedTimeout: 2h, tcpCloseWaitTimeout: 61s, "
    "tcpBeLiberal: true, udpTimeout: 31s, udpStreamTimeout: 121s}\n"
)
ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet"
LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"


def configured(text: str) -> KubeProxyConfiguration:
    return parse_config((CONFIG + text).encode())[0]


def wanted(text: str, cpus: int = 8) -> dict[str, int]:
    return {one.name: one.value for one in settings(configured(text), cpus)}


def test_the_defaults_are_kube_proxys() -> None:
    assert wanted("") == {
        ROUTE_LOCALNET: 1,
        "net.netfilter.nf_conntrack_max": 262144,
        "/sys/module/nf_conntrack/parameters/hashsize": 65536,
        "net.netfilter.nf_conntrack_tcp_timeout_established": 86400,
        "net.netfilter.nf_conntrack_tcp_timeout_close_wait": 3600,
        "/proc/self/oom_score_adj": -999,
    }


def test_everything_that_can_be_configured() -> None:
    assert wanted(TUNED) == {
        ROUTE_LOCALNET: 1,
        "net.netfilter.nf_conntrack_tcp_timeout_established": 7200,
        "net.netfilter.nf_conntrack_tcp_timeout_close_wait": 61,
        "net.netfilter.nf_conntrack_udp_timeout": 31,
        "net.netfilter.nf_conntrack_udp_timeout_stream": 121,
        LIBERAL: 1,
        "/proc/self/oom_score_adj": 100,
    }


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("iptables: {localhostNodePorts: false}\n", False),
        ("nodePortAddresses: [primary]\n", False),
        ("nodePortAddresses: [192.0.2.0/24]\n", False),
        ("nodePortAddresses: [192.0.2.0/24, 127.0.0.0/8]\n", True),
        ("nodePortAddresses: [0.0.0.0/0]\n", True),
        ("nodePortAddresses: ['2001:db8::/32']\n", True),  # says nothing about IPv4
    ],
)
def test_route_localnet_goes_with_node_ports_on_loopback(text: str, asked: bool) -> None:
    assert (ROUTE_LOCALNET in wanted(text)) == asked


@pytest.mark.parametrize(
    ("per_core", "least", "cpus", "entries"),
    [
        (32768, 131072, 2, 131072),
        (32768, 131072, 8, 262144),
        (32768, 131072, 64, 1048576),
        (0, 131072, 8, 0),  # leave it
        (1, 0, 4, 4),
        (32768, 2_000_000, 64, 1048576),  # the bound stands above the least number
        (32768, 2_000_000, 8, 2_000_000),
    ],
)
def test_the_number_of_entries(per_core: int, least: int, cpus: int, entries: int) -> None:
    assert conntrack_entries(per_core, least, cpus) == entries


SETUP = """
import sys
from kpx import host, logs, parse_config
logs.configure(json=True)
host.setup(parse_config(sys.argv[1].encode())[0])
"""


def told(text: str, wrapper: Sequence[str] = ()) -> list[dict[str, object]]:
    """What a process logs that sets up this network namespace; it has its own OOM score."""
    command = [*wrapper, sys.executable, "-c", SETUP, CONFIG + text]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    return [json.loads(line) for line in lines]


def setup(text: str, wrapper: Sequence[str] = ()) -> list[str]:
    """The warnings among that."""
    return [str(one["event"]) for one in told(text, wrapper) if one["level"] == "warning"]


def value(name: str) -> str:
    return Path("/proc/sys", *name.split(".")).read_text().strip()


@pytest.mark.kernel
@needs_kernel
@pytest.mark.usefixtures("own_network")
class TestThisHost:
    """In a network namespace of its own."""

    def test_what_is_set_is_logged_with_what_it_was(self) -> None:
        names = [name for name in wanted(TUNED) if name.startswith("net.")]
        before = {name: int(value(name)) for name in names}
        assert (before[ROUTE_LOCALNET], before[LIBERAL]) == (0, 0)
        lines = [one for one in told(TUNED) if one["level"] != "warning"]
        assert {one["event"] for one in lines} == {"kernel setting changed"}
        changed = {one["setting"]: (one["old"], one["new"]) for one in lines if str(one["setting"]) in before}
        assert changed == {
            name: (before[name], number) for name, number in wanted(TUNED).items() if before.get(name, number) != number
        }
        for name in names:
            assert value(name) == str(wanted(TUNED)[name]), name
        assert {one["setting"] for one in told(TUNED)} <= {"/proc/self/oom_score_adj"}  # which is another process' own

    def test_a_limit_of_the_whole_host_is_not_ours_to_set(self) -> None:
        now = value("net.netfilter.nf_conntrack_max")
        (warning,) = setup("oomScoreAdj: 0\nconntrack: {maxPerCore: 1, min: 77777}\n")
        assert warning == (
            f"net.netfilter.nf_conntrack_max should be 77777, but is {now} and can't be changed (Permission denied): "
            "new connections are refused at another number of entries than configured"
        )
        assert value("net.netfilter.nf_conntrack_max") == now

    def test_a_read_only_host_is_warned_about_but_what_holds_is_not(self) -> None:
        read_only = ["unshare", "-m", "sh", "-c", 'mount -o bind,ro /proc/sys /proc/sys && exec "$@"', "sh"]
        route, *others = setup(TUNED, read_only)
        assert route == (
            f"{ROUTE_LOCALNET} should be 1, but is 0 and can't be changed (Read-only file system): "
            "node ports don't answer on 127.0.0.0/8"
        )
        assert [other.split()[0] for other in others] == [name for name in wanted(TUNED) if "nf_conntrack" in name]
        assert setup(TUNED) == []
        assert setup(TUNED, read_only) == []

    def test_without_the_capability_for_a_lower_oom_score_there_is_a_warning(self) -> None:
        dropped = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"]
        (warning,) = setup("oomScoreAdj: -999\nconntrack: {maxPerCore: 0}\n", dropped)
        assert warning.startswith("/proc/self/oom_score_adj should be -999, but is 0 and can't be changed (Permission")

    def test_a_setting_that_the_host_lacks_is_named(self) -> None:
        hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc/sys/net/netfilter && exec "$@"', "sh"]
        warnings = setup("oomScoreAdj: 0\nconntrack: {maxPerCore: 0, tcpBeLiberal: true}\n", hidden)
        assert warnings[-1] == (
            f"{LIBERAL} should be 1, but is unknown and can't be changed (No such file or directory): "
            "TCP segments outside of the window are dropped as invalid"
        )

    def test_addresses_are_those_of_this_network_namespace(self) -> None:
        assert interface_addresses(Family.IPV4) == ("127.0.0.1",)
        assert interface_addresses(Family.IPV6) == ("::1",)
        for words in (
            "link add kpxnl-a type veth peer name kpxnl-b",
            "address add 192.0.2.1/24 dev kpxnl-a",
            "address add 192.0.2.2/24 dev kpxnl-a",
            "address add 198.51.100.1 peer 198.51.100.2 dev kpxnl-b",
            "address add 2001:db8:0::1/64 dev kpxnl-a nodad",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        assert interface_addresses(Family.IPV4) == ("127.0.0.1", "192.0.2.1", "192.0.2.2", "198.51.100.1")
        assert interface_addresses(Family.IPV6) == ("2001:db8::1", "::1")
