"""`kpx top`: every connection counts once, wherever the rules choose, in both backends."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from kpx.analysis.traffic import Reading, Traffic, traffic
from kpx.netfilter.counters import Counted, by_place, parse_counters
from kpx.netfilter.tools import Backend, Tools
from tests import lab, manifests
from tests.kernel import needs_kernel
from tests.lab.kpx import ROOT, dry_kpx, kpx

PODS = ("10.244.0.10", "10.244.0.11", "10.244.1.10")
PORTS = range(8000, 8008)
WEB, DNS, V6 = ("10.96.9.1", 80), ("10.96.9.2", 53), ("fd00:96::1", 80)
PATIENCE = 60.0
# Who runs the tests may have told the size of another terminal.
TERMINAL = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")} | {
    "TERM": "xterm-256color"
}
ESCAPE = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


# ---- the kernel's counters ----


def objects() -> Iterator[dict[str, Any]]:
    """A Service with so many endpoints that the layout groups them, one for UDP, one for IPv6."""
    yield manifests.node()
    yield manifests.service("web", WEB[0])
    for port in PORTS:
        one = manifests.endpoint_slice("web", PODS)
        one["metadata"]["name"], one["ports"] = f"web-{port}", [{"name": "http", "port": port}]
        yield one
    yield manifests.service("dns", DNS[0], ports=[{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 8000}])
    udp = manifests.endpoint_slice("dns", PODS[:1])
    yield udp | {"ports": [{"name": "dns", "port": 8000, "protocol": "UDP"}]}
    yield manifests.service("six", V6[0], ipFamilies=["IPv6"])
    yield manifests.endpoint_slice("six", ["fd00:244::10"]) | {"ports": [{"name": "http", "port": 8000}]}


@pytest.fixture(params=get_args(lab.Backend))
def backend(request: pytest.FixtureRequest) -> lab.Backend:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=["tree", "compact"])
def layout(request: pytest.FixtureRequest) -> str:
    """The layout decides where it is counted: in the endpoint's chain, or where it is chosen."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def node(backend: lab.Backend, layout: str, tmp_path: Path) -> Iterator[lab.Node]:
    path = manifests.write(tmp_path / "shop.json", objects())
    with lab.Node() as one:
        pods = [one.pod(f"pod-{number}", ipv4, f"fd00:244::{10 + number}") for number, ipv4 in enumerate(PODS)]
        with lab.Backends(*pods, tcp=PORTS, udp=[8000]):
            options = ("--node", "node-0", "--family", "dual", "--backend", backend, "--layout", layout)
            kpx(one, "apply", "-f", path, *options)
            yield one


def once(node: lab.Node, backend: str, *more: str) -> Traffic:
    done = kpx(node, "top", "--once", "--json", "--interval", "0.1", "--backend", backend, *more)
    return Traffic.model_validate_json(done.stdout)


def services(found: Traffic) -> dict[str, int]:
    return {one.service: one.connections for one in found.services}


@pytest.mark.kernel
@needs_kernel
def test_every_connection_is_counted_once(node: lab.Node, backend: lab.Backend) -> None:
    assert set(services(once(node, backend)).values()) == {0}
    answers = lab.connect(node.client, *WEB, count=200)
    for port in range(20_000, 20_030):  # from a port that was used before it would be the same flow still
        lab.connect(node.pods["pod-1"], *DNS, protocol="udp", source=("", port))
    lab.connect(node.host, *WEB, count=5)
    lab.connect(node.client, *V6, count=11)
    assert answers.answered
    found = once(node, backend)
    assert services(found) == {"shop/web:http": 205, "shop/dns:dns": 30, "shop/six:http": 11}
    web = next(one for one in found.services if one.service == "shop/web:http")
    assert len(web.endpoints) == len(PODS) * len(PORTS)
    assert sum(one.connections for one in web.endpoints) == 205
    by_port = {port: sum(e.connections for e in web.endpoints if e.endpoint.endswith(f":{port}")) for port in PORTS}
    assert all(by_port[port] >= count for port, count in answers.ports.items())


@pytest.mark.kernel
@needs_kernel
def test_live_rates_add_up_to_what_was_sent(node: lab.Node, backend: lab.Backend) -> None:
    command = [sys.executable, "-m", "kpx", "top", "--json", "--interval", "0.3", "--backend", backend]
    with node.host.namespace.entered():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        seen = [Traffic.model_validate_json(process.stdout.readline())]
        lab.connect(node.client, *WEB, count=150)
        end = time.monotonic() + PATIENCE
        while round(sum(counted(one) for one in seen)) < 150 and time.monotonic() < end:
            seen.append(Traffic.model_validate_json(process.stdout.readline()))
        # What is counted in a chain that is written anew begins at 0, and that is no negative rate.
        node.load(f"*nat\n:{chain(node, backend)} - [0:0]\nCOMMIT\n", backend=backend)
        seen.append(Traffic.model_validate_json(process.stdout.readline()))
    finally:
        process.kill()
        process.wait(PATIENCE)
    assert round(sum(counted(one) for one in seen)) == 150
    assert all(one.rate is None or one.rate >= 0 for found in seen for one in found.services)


def counted(found: Traffic) -> float:
    return (found.rate or 0) * (found.seconds or 0)


def chain(node: lab.Node, backend: lab.Backend) -> str:
    saved = node.rules(backend=backend)
    return next(line.split()[1] for line in saved.splitlines() if "-j DNAT" in line and line.endswith(":8003"))


@pytest.mark.kernel
@needs_kernel
def test_a_dump_with_counters_tells_totals(node: lab.Node, backend: lab.Backend, tmp_path: Path) -> None:
    lab.connect(node.client, *WEB, count=7)
    tool = node.tool("save", "ipv4", backend)
    (tmp_path / "counted.save").write_text(node.host.namespace.run([tool, "-c"]).stdout)
    (tmp_path / "plain.save").write_text(node.host.namespace.run([tool]).stdout)
    found = dry_kpx("top", "--rules", tmp_path / "counted.save")
    assert "2 service ports, 7 connections\n" in found.stdout
    assert "shop/web:http  tcp" in found.stdout
    bare = dry_kpx("top", "--rules", tmp_path / "plain.save")
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "no counters" in bare.stderr


@pytest.mark.kernel
@needs_kernel
def test_the_table_fits_a_terminal_and_can_be_filtered(node: lab.Node, backend: lab.Backend) -> None:
    lab.connect(node.client, *WEB, count=3)
    arguments = ("--once", "--interval", "0.1", "--backend", backend, "--endpoints", "--filter", "shop/w*")
    lines = kpx(node, "top", *arguments).stdout.splitlines()
    assert lines[0].startswith("1 service port, 3 connections, 0.0 new per second")
    assert len(lines) == 3 + 1 + len(PODS) * len(PORTS)
    assert max(map(len, lines)) <= 80


# ---- without a kernel ----


def reading(at: float, **counts: int) -> Reading:
    counted = (Counted(name, "tcp", f"10.0.0.{n}:80", count) for n, (name, count) in enumerate(counts.items()))
    return Reading(at, by_place(counted), {"a": "shop/web:http", "b": "shop/web:http", "c": "shop/cart"})


def test_a_counter_that_begins_anew_counts_from_zero() -> None:
    found = traffic(reading(1.0, a=100, b=7, c=1), reading(3.0, a=110, b=3, c=1))
    assert [(one.service, one.connections, one.rate) for one in found.services] == [
        ("shop/web:http", 113, (10 + 3) / 2), ("shop/cart", 1, 0.0),
    ]  # fmt: skip


def test_chains_may_come_and_go() -> None:
    found = traffic(reading(1.0, a=100, c=5), reading(2.0, b=4, c=5))
    assert {one.service: (one.connections, one.rate) for one in found.services} == {
        "shop/web:http": (4, 4.0), "shop/cart": (5, 0.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sort", "order"),
    [("rate", ["c", "a", "b"]), ("total", ["a", "c", "b"]), ("name", ["a", "b", "c"])],
)
def test_rows_are_sorted_as_asked(sort: str, order: list[str]) -> None:
    def named(at: float, **counts: int) -> Reading:
        found = reading(at, **counts)
        return Reading(at, found.counters, {name: name for name in counts})

    found = traffic(named(0, a=90, b=1, c=2), named(1, a=95, b=1, c=22), sort)
    assert [one.service for one in found.services] == order
    assert [one.service for one in traffic(None, named(1, a=1, b=2), "name", "b").services] == ["b"]


def test_only_endpoint_chains_are_read() -> None:
    text = (
        b"*nat\n:KUBE-SEP-A - [0:0]\n"
        b"[9:540] -A KUBE-SEP-A -s 10.0.0.1/32 -j KUBE-MARK-MASQ\n"
        b'[4:240] -A KUBE-SEP-A -p tcp -m comment --comment "a \\"b\\"" -m tcp -j DNAT --to-destination [fd00::1]:80\n'
        b"[0:0] -A KUBE-SEP-B -p udp -m udp -j DNAT --to-destination 10.0.0.1:53\n"
        b"[5:5] -A OTHER -p tcp -j DNAT --to-destination 10.0.0.9:1\n"
        b"-A KUBE-SEP-C -p tcp -m tcp -j DNAT --to-destination 10.0.0.2:80\nCOMMIT\n"
    )
    assert list(parse_counters(text.split(b"\n"))) == [
        Counted("KUBE-SEP-A", "tcp", "[fd00::1]:80", 4), Counted("KUBE-SEP-B", "udp", "10.0.0.1:53", 0),
    ]  # fmt: skip
    assert [one.chain for one in parse_counters(text.split(b"\n"), idle=False)] == ["KUBE-SEP-A"]


def test_rules_that_choose_an_endpoint_count_for_it_all_together() -> None:
    """In turns an endpoint has several rules, and it may be chosen in the chains of two policies."""
    turn, to = b"-p tcp -m statistic --mode nth --every %d --packet 0 ", b"-j DNAT --to-destination 10.0.0.%d:80\n"
    text = (
        b"*nat\n[4:240] -A KUBE-SVC-A " + turn % 3 + to % 1,
        b"[2:120] -A KUBE-SVC-A " + turn % 2 + to % 1,
        b"[7:420] -A KUBE-SVC-A -p tcp " + to % 2,
        b"[1:60] -A KUBE-SVL-A -p tcp " + to % 1,
        b"[3:180] -A KPX-SVC-A-f -p tcp -m comment --comment x " + to % 3,
    )
    counters = by_place(parse_counters(b"".join(text).split(b"\n")))
    assert {place: one.connections for place, one in counters.items()} == {
        ("KUBE-SVC-A", "10.0.0.1:80"): 6,
        ("KUBE-SVC-A", "10.0.0.2:80"): 7,
        ("KUBE-SVL-A", "10.0.0.1:80"): 1,
        ("KPX-SVC-A-f", "10.0.0.3:80"): 3,
    }
    owners = dict.fromkeys(("KUBE-SVC-A", "KUBE-SVL-A", "KPX-SVC-A-f"), "shop/web")
    (service,) = traffic(None, Reading(0.0, counters, owners), "name").services
    assert [(one.endpoint, one.connections) for one in service.endpoints] == [
        ("10.0.0.1:80", 7), ("10.0.0.2:80", 7), ("10.0.0.3:80", 3),
    ]  # fmt: skip


def test_the_schema_is_the_shape_of_the_json(tmp_path: Path) -> None:
    schema = json.loads(dry_kpx("top", "--schema").stdout)
    (tmp_path / "a.save").write_text(
        "*nat\n[4:240] -A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n"
    )
    found = json.loads(dry_kpx("top", "--json", "--rules", tmp_path / "a.save").stdout)
    assert set(found) == set(schema["properties"])
    assert found["services"][0]["service"] == "KUBE-SEP-A"
    assert found["services"][0]["endpoints"] == [{"endpoint": "10.0.0.1:80", "connections": 4, "rate": None}]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"*nat\nnonsense\n", b"*nat\n[1:1] -A KUBE-SEP- -j DNAT\n"])
def test_no_dump_makes_it_fall_over(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.save").write_bytes(content)
    done = dry_kpx("top", "--rules", tmp_path / "a.save")
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr


def test_tools_that_hang_or_fail_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kpx.errors import KpxError
    from kpx.family import Family

    script = tmp_path / "iptables-nft-save"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for body, timeout, words in (("echo no >&2; exit 3", 60, "no"), ("exec sleep 600", 0.3, "no answer after 0.3 s")):
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        with pytest.raises(KpxError, match=words):
            list(Tools(Backend.NFT, Family.IPV4, timeout=timeout).save_lines("nat"))


# ---- a terminal ----


def until(terminal: int, process: subprocess.Popen[bytes], seen: bytes, wanted: bytes) -> bytes:
    """Read until the terminal was sent `wanted`, or nothing more comes."""
    end = time.monotonic() + PATIENCE
    while wanted not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65_536)
            except OSError:  # the program has closed its end
                break
        elif process.poll() is not None:
            break
    return seen


@pytest.mark.kernel
@needs_kernel
def test_a_small_terminal_is_not_scrolled_and_left_as_it_was(node: lab.Node, backend: lab.Backend) -> None:
    rows, columns = 10, 40
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command = [sys.executable, "-m", "kpx", "top", "--interval", "0.2", "--endpoints", "--backend", backend]
    with node.host.namespace.entered():
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=inner, stdout=inner, stderr=inner, start_new_session=True, env=TERMINAL
        )
    os.close(inner)
    try:
        seen = until(terminal, process, b"", b"more lines")
        process.send_signal(signal.SIGINT)
        seen = until(terminal, process, seen, b"\x1b[?1049l")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PATIENCE)
        os.close(terminal)
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == seen.count(b"\x1b[?25h") == 1
    first = seen.decode().partition(" more lines")[0].rpartition("\x1b[H")[2]
    lines = [line.rstrip() for line in ESCAPE.sub("", first).splitlines()]
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    assert [line.split()[-3:] for line in lines if line.startswith("shop/web")] == [["tcp", "0.0", "0"]]
