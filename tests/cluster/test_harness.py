"""The harness with stand-in programs: what it asks for, what it starts, and that nothing of it is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster import cgroups, standins
from tests.cluster.binaries import PROGRAMS, MissingError, find
from tests.cluster.layout import NODES
from tests.cluster.node import KERNEL_SETTINGS, Node
from tests.cluster.pki import Pki
from tests.cluster.space import Process, Space, children
from tests.kernel import needs_kernel
from tests.lab import LabError

ROOT = Path(__file__).parents[2]
kernel = [pytest.mark.kernel, needs_kernel]
pytestmark = kernel


def harness(*arguments: str | Path, temporary: Path) -> "subprocess.Popen[str]":
    """`python -m tests.cluster`, which keeps everything below a folder."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("KUBE_BIN", None)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", *map(str, arguments), "--output", str(temporary / "out")],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its status and all that it printed."""
    text, _ = process.communicate(timeout=300)
    return process.returncode, text


def wait_for(question: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 120
    while not question():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def processes_of(folder: Path) -> list[str]:
    """Command lines that name a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if str(folder) in (text := (entry / "cmdline").read_text()):
                found.append(text.replace("\0", " "))
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (path := tmp_path / "image.tar").touch()
    return path


# What is missing is named before anything starts.


def test_without_a_folder_of_programs_it_says_what_to_set(tmp_path: Path) -> None:
    status, text = said(harness(temporary=tmp_path))
    assert status == 2
    assert "KUBE_BIN" in text


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path, image: Path) -> None:
    programs = standins.make(tmp_path / "bin")
    for gone in ("kubelet", "runc", "host-local"):
        (programs / gone).unlink()
    (programs / "etcd").chmod(0o644)
    status, text = said(harness("--bin", programs, "--image", image, temporary=tmp_path))
    assert status == 2
    assert f"kubelet: not in {programs}" in text
    assert f"runc: not in {programs}" in text
    assert "CNI plugin host-local: not in" in text
    assert f"{programs}/etcd: can't be executed" in text
    assert standins.started(programs) == set()
    assert not list(tmp_path.glob("kpx-cluster-*"))


@pytest.mark.parametrize("version", ["v1.30.9", "v0.0.0", "none"])
def test_an_old_kubernetes_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(MissingError, match=r"kubelet: .*needed is v1.31 or later"):
        find(standins.make(tmp_path, version))


def test_tools_of_this_machine_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="openssl: not installed on this machine"):
        find(standins.make(tmp_path), host_path=str(tmp_path))


def test_versions_are_told_and_plugins_found_in_a_folder_of_their_own(tmp_path: Path) -> None:
    programs = standins.make(tmp_path)
    (tmp_path / "cni").mkdir()
    for plugin in ("bridge", "host-local", "loopback"):
        (programs / plugin).rename(tmp_path / "cni" / plugin)
    found = find(programs)
    assert found.plugins == tmp_path / "cni"
    assert found.versions == {"Kubernetes": "v1.33.2", "etcd": "3.6.1", "containerd": "2.0.1", "runc": "1.2.3"}


def test_it_can_look_for_programs_alone(tmp_path: Path) -> None:
    programs = standins.make(tmp_path / "bin")
    assert said(harness("--bin", programs, "--check", temporary=tmp_path)) == (0, "")
    assert standins.started(programs) == set()
    assert said(harness("--bin", "", "--check", temporary=tmp_path))[0] == 2


def test_a_missing_image_and_a_wrong_group_are_named(tmp_path: Path) -> None:
    programs = standins.make(tmp_path / "bin")
    status, text = said(harness("--bin", programs, "--image", tmp_path / "none.tar", temporary=tmp_path))
    assert (status, "make image" in text) == (2, True)
    status, text = said(harness("--bin", programs, "--only", "wayz", temporary=tmp_path))
    assert (status, "there are migration, ways" in text) == (2, True)
    assert standins.started(programs) == set()


# However a run ends, all that it started ends, and its files go.


@pytest.fixture
def running(tmp_path: Path, image: Path) -> Iterator["subprocess.Popen[str]"]:
    """The harness while it waits for an API server that never gets ready."""
    programs = standins.make(tmp_path / "bin")
    process = harness("--bin", programs, "--image", image, temporary=tmp_path)
    wait_for(lambda: {"etcd", "kube-apiserver"} <= standins.started(programs), "programs that run")
    (folder,) = tmp_path.glob("kpx-cluster-*")
    assert len(processes_of(folder)) >= 2
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_ctrl_c_nothing_is_left(running: "subprocess.Popen[str]", tmp_path: Path, number: signal.Signals) -> None:
    running.send_signal(number)
    status, text = said(running)
    assert status == 1, text
    assert "everything has ended" in text
    assert not list(tmp_path.glob("kpx-cluster-*"))
    assert processes_of(tmp_path / "kpx-cluster-") == []
    assert "0 of 0" in text


def test_a_second_ctrl_c_doesn_t_stop_the_clean_up(running: "subprocess.Popen[str]", tmp_path: Path) -> None:
    for _ in range(3):
        running.send_signal(signal.SIGINT)
        time.sleep(0.02)
    status, text = said(running)
    assert (status, "everything has ended" in text) == (1, True)
    assert processes_of(tmp_path / "kpx-cluster-") == []
    assert not list(tmp_path.glob("kpx-cluster-*"))


def test_what_it_started_ends_even_if_it_is_killed(running: "subprocess.Popen[str]", tmp_path: Path) -> None:
    running.kill()
    running.wait(60)
    wait_for(lambda: processes_of(tmp_path / "kpx-cluster-") == [], "the end of all programs")


def test_a_cluster_that_can_t_start_says_why_and_leaves_nothing(tmp_path: Path, image: Path) -> None:
    programs = standins.make(tmp_path / "bin")
    (programs / "kube-apiserver").write_text(
        '#!/bin/sh\ncase "$*" in *version*) echo v1.33.2; exit;; esac\necho no luck\n'
    )
    status, text = said(harness("--bin", programs, "--image", image, temporary=tmp_path))
    assert status == 2
    assert "no luck" in text
    assert not list(tmp_path.glob("kpx-cluster-*"))
    assert processes_of(tmp_path / "kpx-cluster-") == []


# Spaces and nodes.


def test_a_space_has_processes_a_network_and_a_name_of_its_own() -> None:
    with Space("somewhere") as space:
        assert space.run(["hostname"]).stdout == "somewhere\n"
        assert space.run(["sh", "-c", "echo $$"]).stdout.strip() != str(os.getpid())
        assert len(space.run(["ip", "-o", "link"]).stdout.splitlines()) == 1
        with pytest.raises(LabError, match="status 3"):
            space.run(["sh", "-c", "exit 3"])
    assert not Path(f"/proc/{space.pid}").exists()


def test_a_setup_that_fails_says_why() -> None:
    with pytest.raises(LabError, match="nowhere"):
        Space("somewhere", "mount --bind /nowhere /mnt")


def test_a_process_is_stopped_killed_and_started_again(tmp_path: Path) -> None:
    with Space("somewhere") as space:
        process = Process(space, "sleeper", ["sh", "-c", "echo began; exec sleep 1000"], tmp_path / "log")
        for _ in range(2):
            process.start()
            assert process.running
            wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "the program itself")
            process.stop(signal.SIGKILL)
            assert not process.running
        assert process.last_words() == "began\n" * 2


def test_orphans_end_with_the_space_and_are_reaped_before() -> None:
    with Space("somewhere") as space:
        space.run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & sleep 0.01 >/dev/null 2>&1 &"])
        wait_for(lambda: len(children(space.pid)) == 1, "one orphan left")
        (orphan,) = children(space.pid)
    wait_for(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan's end")


def test_a_node_sees_settings_of_its_own_and_has_its_files(tmp_path: Path) -> None:
    before = {path: Path("/proc/sys", path).read_text() for path in KERNEL_SETTINGS}
    binaries = find(standins.make(tmp_path / "bin"))
    pki = Pki.make(tmp_path / "pki")
    node = Node(NODES[0], binaries, pki, "https://127.0.0.1:1", tmp_path / "node-a", "/group/node-a")
    with node.space as space:
        for path, value in KERNEL_SETTINGS.items():
            assert space.run(["cat", f"/proc/sys/{path}"]).stdout == f"{value}\n"
            space.run(["sh", "-c", f"echo {value} >/proc/sys/{path}"])  # as kubelet does
        space.run(["touch", "/var/log/of-the-node", "/run/of-the-node"])
        assert "kubelet" in space.run(["ls", node.bin]).stdout
        assert '"cgroupRoot": "/group/node-a"' in (node.folder / "kubelet.json").read_text()
        assert node.snapshotter in (node.folder / "containerd.toml").read_text()
    assert {path: Path("/proc/sys", path).read_text() for path in KERNEL_SETTINGS} == before
    assert not Path("/var/log/of-the-node").exists()
    assert not Path("/run/of-the-node").exists()


def test_cgroups_are_made_in_every_hierarchy_and_removed(tmp_path: Path) -> None:
    for hierarchy in ("cpu", "memory"):
        (tmp_path / hierarchy).mkdir()
    (tmp_path / "cpu,cpuacct").symlink_to("cpu")
    cgroups.make("mine", ["node-a"], tmp_path)
    (tmp_path / "cpu/mine/node-a/kubepods").mkdir()
    assert (tmp_path / "memory/mine/node-a").is_dir()
    cgroups.remove("mine", tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cpu", "cpu,cpuacct", "memory"]


def test_what_is_asked_for_is_what_the_readme_lists() -> None:
    text = (ROOT / "tests/cluster/README.md").read_text()
    assert [name for name in PROGRAMS if f"`{name}`" not in text] == []
