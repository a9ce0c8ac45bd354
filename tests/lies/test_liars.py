"""The stand-ins do what they say they do."""

import subprocess
import time
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.kernel import BACKENDS, PROGRAM, Namespace, needs_kernel
from tests.lies import HANG, HONEST_CHILD, LOUD, SAVES, SILENT, Liars

pytestmark = [pytest.mark.kernel, needs_kernel]

V4 = Family.IPV4
FIRST = "*filter\n:KUBE-A - [0:0]\n-A KUBE-A -j ACCEPT\n-A KUBE-A -p tcp -j DROP\nCOMMIT\n"
SECOND = "*nat\n:KUBE-B - [0:0]\n:KUBE-C - [0:0]\n-A KUBE-B -j KUBE-C\n-A KUBE-C -j RETURN\nCOMMIT\n"
DONE = {"KUBE-A -j ACCEPT", "KUBE-A -p tcp -j DROP", "KUBE-B -j KUBE-C", "KUBE-C -j RETURN"}
LEFT = {
    "half of the sections": {"KUBE-A -j ACCEPT", "KUBE-A -p tcp -j DROP"},
    "killed halfway": {"KUBE-A -j ACCEPT", "KUBE-A -p tcp -j DROP"},
    "half of the lines": {"KUBE-A -j ACCEPT", "KUBE-A -p tcp -j DROP"},
    "one rule less": DONE - {"KUBE-C -j RETURN"},
    HONEST_CHILD: DONE,
}


@pytest.fixture
def liars(tmp_path: Path) -> Liars:
    return Liars(tmp_path)


def restore(namespace: Namespace, liars: Liars, backend: Backend) -> "subprocess.CompletedProcess[str]":
    command = namespace.enter([str(liars.folder / f"iptables-{backend}-restore"), "--noflush"])
    return subprocess.run(command, input=FIRST + SECOND, capture_output=True, text=True, errors="replace", check=False)


def rules(namespace: Namespace, backend: Backend, family: Family = V4) -> set[str]:
    return {line[3:] for line in namespace.save(backend, family).splitlines() if line.startswith("-A ")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lie", ["", HONEST_CHILD, *SILENT, *LOUD])
def test_a_restore_does_what_it_is_told_to(namespace: Namespace, liars: Liars, backend: Backend, lie: str) -> None:
    liars.tell(lie)
    done = restore(namespace, liars, backend)
    assert (done.returncode == 0) is (lie not in LOUD)
    assert bool(done.stderr) is (lie in {"garbage", "error text, status 0", *LOUD} - {"killed", "killed halfway"})
    assert rules(namespace, backend) == ({"": DONE} | LEFT).get(lie, set()) | elsewhere(lie)
    if lie == "another family":
        assert rules(namespace, backend, Family.IPV6) == DONE
    if lie == "late":
        liars.wait_for_late_ones()
        assert rules(namespace, backend) == DONE


def elsewhere(lie: str) -> set[str]:
    return DONE if lie == "another table" else set()


def test_a_lie_into_another_table_leaves_the_right_one_as_it_was(namespace: Namespace, liars: Liars) -> None:
    liars.tell("another table")
    restore(namespace, liars, Backend.NFT)
    tables = [line for line in namespace.save(Backend.NFT, V4).splitlines() if line.startswith("*")]
    assert sorted(tables) == ["*mangle", "*raw"]


def test_lies_come_at_the_chosen_calls(namespace: Namespace, liars: Liars) -> None:
    liars.tell("no memory", family=V4, skip=1, count=2)
    assert [restore(namespace, liars, Backend.NFT).returncode for _ in range(4)] == [0, 4, 4, 0]
    assert liars.calls == 4
    liars.tell("no memory", family=Family.IPV6)
    assert restore(namespace, liars, Backend.NFT).returncode == 0
    assert liars.calls == 0


def test_a_listing_lies_for_itself(namespace: Namespace, liars: Liars) -> None:
    restore(namespace, liars, Backend.NFT)
    command = [str(liars.folder / "iptables-nft-restore"), "--noflush"]
    listed = {}
    for lie in ("", *SAVES):
        liars.tell("nothing, but reads", listing=lie)
        listed[lie] = namespace.run(command, "*filter\n-S KUBE-A\n-S INPUT\nCOMMIT\n", check=False).stdout
    whole = "-N KUBE-A\n-A KUBE-A -j ACCEPT\n-A KUBE-A -p tcp -j DROP\n-P INPUT ACCEPT\n"
    half = "-N KUBE-A\n-A KUBE-A -j ACCEPT\n"
    more = f"{half}-A KUBE-A -p tcp -j DROP\n"
    assert listed == {"": whole, "empty": "", "half": half, "three quarters": more, "another family": ""}


@pytest.mark.parametrize("backend", BACKENDS)
def test_saves_lie(namespace: Namespace, liars: Liars, backend: Backend) -> None:
    restore(namespace, liars, backend)
    printed = {}
    for lie in ("", *SAVES):
        liars.tell(save=lie)
        printed[lie] = namespace.run([str(liars.folder / f"iptables-{backend}-save")]).stdout
    assert "-A KUBE-B -j KUBE-C" in printed[""]
    assert printed["empty"] == ""
    assert printed["half"]
    assert "-A KUBE-B" not in printed["another family"]
    assert len(printed["half"].splitlines()) == len(printed[""].splitlines()) // 2
    assert printed[""].startswith(printed["three quarters"])
    assert printed["half"] < printed["three quarters"] < printed[""]


def test_who_hangs_hangs(namespace: Namespace, liars: Liars) -> None:
    liars.tell(HANG)
    command = namespace.enter([str(liars.folder / f"{PROGRAM[V4]}-nft-restore")])
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        while liars.calls < 1:
            time.sleep(0.02)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
