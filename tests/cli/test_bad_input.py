"""Bad input to the commands: one clear message, status 2, and nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import needs_kernel
from tests.manifests import Manifest, endpoint_slice, node, service, write


def kpx(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "kpx", *arguments], input=stdin, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def broken(**spec: Any) -> Manifest:
    return service("broken", "10.96.9.9", **spec)


BAD_OBJECTS: dict[str, tuple[list[Manifest], tuple[str, ...]]] = {
    "wrong type": ([broken(ports=[{"port": "eighty"}])], ("Service shop/broken", "spec.ports[0].port", "eighty")),
    "missing field": ([broken(ports=[{"name": "http"}])], ("Service shop/broken", "spec.ports[0].port")),
    "no address": (
        [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "broken", "namespace": "shop"},
          "spec": {"ports": [{"port": 80}]}}],
        ("Service shop/broken", "spec.clusterIP"),
    ),
    "no node port": ([broken(type="NodePort")], ("Service shop/broken", "spec.ports[0].nodePort")),
    "not an address": ([service("broken", "10.96.9.999")], ("Service shop/broken", "spec.clusterIP", "10.96.9.999")),
    "newline in a name": (
        [broken(ports=[{"name": "a\n-A INPUT -j ACCEPT", "port": 80}])], ("Service shop/broken", "spec.ports[0].name"),
    ),
    "wrong family": (
        [endpoint_slice("web", ["10.244.0.1"]) | {"addressType": "IPv6"}],
        ("EndpointSlice shop/web-a", "endpoints[0].addresses[0]", "10.244.0.1"),
    ),
    "duplicate": ([service("web", "10.96.0.7")], ("Service shop/web", "objects")),
    "same VIP and port": (
        [service("zweb", "10.96.0.1")], ("Service shop/zweb", "10.96.0.1 port 80/tcp", "Service shop/web"),
    ),
}  # fmt: skip


def node_port(name: str, number: int) -> Manifest:
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    return service(name, f"10.96.8.{number}", type="NodePort", ports=ports)


BAD_OBJECTS["same node port"] = (
    [node_port("np-a", 1), node_port("np-b", 2)],
    ("Service shop/np-b", "node port 30080/tcp", "Service shop/np-a"),
)


@pytest.mark.parametrize("name", BAD_OBJECTS)
def test_a_broken_object_is_named_and_the_sound_ones_compile(name: str, tmp_path: Path) -> None:
    objects, expected = BAD_OBJECTS[name]
    sound = [node(), service("web", "10.96.0.1"), endpoint_slice("web", ["10.244.0.1"])]
    if objects[0]["kind"] == "EndpointSlice":
        sound = sound[:2]
    path = write(tmp_path / "objects.json", [*sound, *objects])
    stopped = kpx("render", "-f", str(path), "--node", "node-0")
    assert (stopped.returncode, stopped.stdout) == (2, "")
    for word in expected:
        assert word in stopped.stderr
    assert len(stopped.stderr.strip().splitlines()) == 1
    going = kpx("render", "-f", str(path), "--node", "node-0", "--keep-going")
    assert going.returncode == 2
    assert going.stderr == stopped.stderr
    clean = kpx(
        "render", "-f", str(write(tmp_path / "sound.json", survivors(name, sound, objects))), "--node", "node-0"
    )
    assert clean.returncode == 0
    assert going.stdout == clean.stdout


def survivors(name: str, sound: list[Manifest], objects: list[Manifest]) -> list[Manifest]:
    """What --keep-going compiles: everything but the object to blame."""
    return [*sound, *objects[:-1]] if name == "same node port" else sound


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"kind: Service\n  bad: [indent\n", ["line 2"]),
        (b"\xff\xfe\x00", ["bad.yaml"]),
        (b"[1, 2]", ["bad.yaml"]),
        (b"just words", ["bad.yaml"]),
        (b"kind: Service\nmetadata: {name: a}\n", ["Service default/a", "apiVersion"]),
        (b"apiVersion: v1\nkind: Service\nmetadata: 5\n", ["Service", "metadata"]),
    ],
)
def test_unreadable_files_are_named(content: bytes, words: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(content)
    write(tmp_path / "good.json", [service("web", "10.96.0.1"), endpoint_slice("web", ["10.244.0.1"])])
    stopped = kpx("render", "-f", str(tmp_path))
    assert (stopped.returncode, stopped.stdout) == (2, "")
    for word in words:
        assert word in stopped.stderr
    going = kpx("render", "-f", str(tmp_path), "--keep-going")
    assert going.returncode == 2
    assert "10.244.0.1:8080" in going.stdout


def test_a_missing_path_is_named() -> None:
    done = kpx("render", "-f", "/nowhere/at/all.yaml")
    assert done.returncode == 2
    assert "/nowhere/at/all.yaml" in done.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"mode": "ipvs"}, ["mode", "ipvs"]),
        ({"iptables": {"masqueradeBits": 3}}, ["iptables.masqueradeBits"]),
        ({"iptables": {"masqueradeBit": 32}}, ["iptables.masqueradeBit", "32"]),
        ({"clusterCIDR": "10.0.0.0/33"}, ["clusterCIDR", "10.0.0.0/33"]),
        (
            {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": 'br0" -j ACCEPT'}},
            ["bridgeInterface"],
        ),
    ],
)
def test_a_wrong_configuration_is_told_by_path(config: Manifest, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    head = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    path.write_text(json.dumps(head | config))
    done = kpx("render", "-f", str(write(tmp_path / "o.json", [])), "--config", str(path))
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr


def test_fields_without_meaning_here_are_warned_about_once(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    head = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    path.write_text(json.dumps(head | {"ipvs": {"scheduler": "rr"}, "mode": "iptables"}))
    done = kpx("render", "-f", str(write(tmp_path / "o.json", [])), "--config", str(path))
    assert done.returncode == 0
    assert done.stderr.count("ipvs") == 1


def test_other_kinds_are_counted_in_one_line(tmp_path: Path) -> None:
    other = [{"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}} for kind in ("Pod", "Pod", "Secret")]
    done = kpx("render", "-f", str(write(tmp_path / "o.json", other)))
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "2 Pod" in line and "1 Secret" in line] != []
    assert len(done.stderr.splitlines()) == 1


def test_manifests_come_from_standard_input_and_go_to_a_folder(tmp_path: Path) -> None:
    objects = [service("web", "10.96.0.1"), endpoint_slice("web", ["10.244.0.1"])]
    data = write(tmp_path / "o.json", objects).read_bytes()
    out = tmp_path / "rules"
    done = kpx("render", "-f", "-", "-o", str(out), stdin=data)
    assert (done.returncode, done.stdout) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["ipv4.rules", "ipv6.rules"]
    assert (out / "ipv4.rules").read_text() == kpx("render", "-f", "-", stdin=data).stdout
    both = kpx("render", "-f", "-", "--family", "dual", stdin=data)
    assert (both.returncode, both.stdout) == (2, "")
    assert "--output" in both.stderr
    as_json = json.loads(kpx("render", "-f", "-", "--format", "json", stdin=data).stdout)
    assert "KUBE-SERVICES" in as_json["tables"]["nat"]["chains"]


@pytest.mark.parametrize("command", ["render", "apply", "diff", "cleanup"])
def test_help_ends_with_an_example(command: str) -> None:
    done = kpx(command, "--help")
    assert done.returncode == 0
    assert f"kpx {command}" in done.stdout[done.stdout.index("Example:") :]


@pytest.mark.kernel
@needs_kernel
def test_no_backend_is_an_environment_error(tmp_path: Path) -> None:
    """Without iptables apply says which package to install."""
    path = write(tmp_path / "o.json", [])
    hidden = 'mount -t tmpfs none /usr/sbin && exec "$@"'
    done = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", hidden, "sh", sys.executable, "-m", "kpx", "apply", "-f", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "install the package iptables" in done.stderr


SHOP = ("-f", str(Path(__file__).parents[1] / "demo" / "shop"))


@pytest.mark.parametrize(
    ("redirected", "statuses", "said"),
    [
        (">/dev/full", {2}, "standard output: No space left"),
        (">&-", {0}, ""),
        ("<&-", {0}, ""),
        ("2>&-", {0}, ""),
        ("| true", {0}, ""),
    ],
)
@pytest.mark.parametrize("command", [("render",), ("explain", "shop/front-end")], ids=lambda words: words[0])
def test_streams_that_are_full_or_closed(
    command: tuple[str, ...], redirected: str, statuses: set[int], said: str
) -> None:
    script = f'"$@" {redirected}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "kpx", *command, *SHOP],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in statuses
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("--html",), ("--format", "mermaid"), ("--json",)], ids="".join)
def test_a_terminal_that_knows_ascii_only(words: tuple[str, ...], tmp_path: Path) -> None:
    narrow = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
        "COLUMNS": "40",
    }
    command = [sys.executable, "-m", "kpx", "graph", *SHOP, *words]
    for more in ((), ("-o", str(tmp_path / "drawn"))):
        done = subprocess.run([*command, *more], capture_output=True, env=os.environ | narrow, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert (tmp_path / "drawn").read_text("utf-8")


def test_a_line_longer_than_any_rule(tmp_path: Path) -> None:
    dump = tmp_path / "long.save"
    dump.write_text(f'*nat\n-A A -m comment --comment "{"x " * 1_000_000}\nCOMMIT\n')
    done = kpx("verify", "--rules", str(dump))
    assert (done.returncode, done.stdout) == (2, "")
    assert "line 2: longer than any rule" in done.stderr
