"""The lab itself, on rules that a real kube-proxy wrote."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel import needs_kernel
from tests.lab import Backends, Failure, LabError, Node, Outcome, Protocol, connect, continuous, send_sctp_init

pytestmark = [pytest.mark.kernel, needs_kernel]

ROOT = Path(__file__).parents[2]
RULES = """*nat
:SHOP - [0:0]
-A PREROUTING -j SHOP
-A OUTPUT -j SHOP
-A SHOP -d {web} -p tcp --dport 80 -m statistic --mode random --probability 0.5 -j DNAT --to {one}:8080
-A SHOP -d {web} -p tcp -m tcp --dport 80 -j DNAT --to-destination {two}:8080
-A SHOP -d {web} -p udp -m udp --dport 53 -j DNAT --to-destination {one}:5353
-A SHOP -d {web} -p sctp -m sctp --dport 7 -j DNAT --to-destination {two}:7777
COMMIT
*filter
-A FORWARD -d {dead} -j REJECT
-A FORWARD -d {mute} -j DROP
COMMIT
"""
VIPS = {"ipv4": ("10.96.0.1", "10.96.0.2", "10.96.0.3"), "ipv6": ("fd00:96::1", "fd00:96::2", "fd00:96::3")}
FAMILIES = pytest.mark.parametrize("family", ["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        one = node.pod("one", "10.244.0.10", "fd00:244::10")
        two = node.pod("two", "10.244.1.10", "fd00:244:1::10", on="node-1")
        for family, (web, dead, mute) in VIPS.items():
            at = {"one": one.address(family), "two": two.address(family)}
            if family == "ipv6":
                at = {name: f"[{address}]" for name, address in at.items()}
            node.load(RULES.format(web=web, dead=dead, mute=mute, **at), family=family)
        with Backends(one, two, tcp=[8080], udp=[5353]):
            yield node


@FAMILIES
def test_connections_are_counted_by_the_backend_that_answers(node: Node, family: str) -> None:
    result = connect(node.client, VIPS[family][0], 80, count=300)
    assert result.answered
    assert result.ports == {8080: 300}
    assert result.sources == {node.client.address(family): 300}
    assert 90 < result.backends["one"] < 210
    assert result.backends.total() == 300


@FAMILIES
def test_pods_and_the_node_are_clients_too(node: Node, family: str) -> None:
    for host in (node.pods["two"], node.host):
        assert connect(host, node.pods["one"].address(family), 8080, count=5).backends == {"one": 5}


def test_a_client_may_choose_its_source(node: Node) -> None:
    result = connect(node.client, VIPS["ipv4"][0], 80, source=("192.0.2.9", 0), count=3)
    assert result.sources == {"192.0.2.9": 3}


@FAMILIES
def test_udp_gets_one_answer_per_datagram(node: Node, family: str) -> None:
    assert connect(node.client, VIPS[family][0], 53, protocol="udp", count=50).backends == {"one": 50}


@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_reject_is_a_refusal_with_icmp(node: Node, family: str, protocol: Protocol) -> None:
    result = connect(node.client, VIPS[family][1], 80, protocol=protocol, count=20)
    assert result.all(Outcome.REFUSED)
    assert result.icmp_unreachable == 20


def test_a_closed_port_is_a_refusal_without_icmp(node: Node) -> None:
    result = connect(node.client, node.pods["one"].ipv4, 9)
    assert result.all(Outcome.REFUSED)
    assert result.icmp_unreachable == 0


def test_a_dropped_packet_is_a_timeout(node: Node) -> None:
    assert connect(node.client, VIPS["ipv4"][2], 80, count=4, parallel=4, patience=0.2).all(Outcome.TIMED_OUT)


@FAMILIES
def test_sctp_init_arrives_translated_and_sound(node: Node, family: str) -> None:
    pods = [node.pods["one"], node.pods["two"]]
    arrival = send_sctp_init(node.client, pods, VIPS[family][0], 7, source_port=4000)
    assert arrival == ("two", node.client.address(family), 7777, True)
    assert send_sctp_init(node.client, pods, VIPS[family][2], 7, source_port=4001, patience=0.2) is None


def test_thousands_of_connections_take_seconds(node: Node) -> None:
    start = time.monotonic()
    assert connect(node.client, VIPS["ipv4"][0], 80, count=3000).answered
    print(f"\n3,000 connections in {time.monotonic() - start:.1f} s")


def test_continuous_traffic_notices_an_outage(node: Node) -> None:
    block = "*filter\n-I FORWARD 1 -d 10.244.0.10 -p tcp -m tcp --syn -j REJECT\nCOMMIT\n"
    with continuous(node.client, "10.244.0.10", 8080) as traffic:
        traffic.wait_for(20)
        assert traffic.failures == ()
        cut = time.monotonic()
        node.load(block)
        traffic.wait_for(20)
        node.load(block.replace("-I FORWARD 1", "-D FORWARD"))
        healed = time.monotonic()
        traffic.wait_for(20)
    failures: tuple[Failure, ...] = traffic.failures
    assert all(cut < failure.at for failure in failures)
    assert sum(failure.at > healed for failure in failures) <= 1  # that was under way
    assert len(failures) >= 18
    assert traffic.result.attempts[-1].outcome is Outcome.ANSWERED


def test_a_command_runs_inside_and_its_failure_is_told(node: Node) -> None:
    links = node.host.namespace.run(["ip", "-o", "link"]).stdout
    assert "veth-one" in links
    with pytest.raises(LabError, match=r"iptables-nft-restore .* status 2: .*nonsense"):
        node.load("*nat\n-A PREROUTING -j nonsense\nCOMMIT\n")


def test_both_backends_start_empty_and_can_be_flushed() -> None:
    with Node() as node:
        for backend in ("nft", "legacy"):
            assert "-A" not in node.rules(backend=backend)
            node.load("*nat\n:MINE - [0:0]\n-A PREROUTING -j MINE\nCOMMIT\n", backend=backend)
            assert "MINE" in node.rules(backend=backend)
        node.flush()
        assert not any("MINE" in node.rules(backend=backend) for backend in ("nft", "legacy"))


KILLED = """
import sys, time
from tests.lab import Backends, Node
with Node() as node, Backends(node.pod("one", "10.244.0.10", "fd00:244::10"), tcp=[80]) as backends:
    print(node.host.namespace.inode, backends.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_stays_however_the_process_ends(with_signal: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    inode, server = process.stdout.readline().split()
    assert inode in _namespaces_in_use()
    watch = os.pidfd_open(int(server))
    process.send_signal(with_signal)
    process.wait(60)
    assert select.select([watch], [], [], 60)[0], "the servers outlived their lab"
    os.close(watch)
    assert inode not in _namespaces_in_use()


def _namespaces_in_use() -> set[str]:
    """Inodes of network namespaces that some process is in or holds open."""
    links = [*Path("/proc").glob("[0-9]*/ns/net"), *Path("/proc").glob("[0-9]*/fd/*")]
    targets = set()
    for link in links:
        with suppress(OSError):
            targets.add(os.readlink(link))
    return {target[5:-1] for target in targets if target.startswith("net:[")}
