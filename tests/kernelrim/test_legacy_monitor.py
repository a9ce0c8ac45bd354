"""Foreign runs of iptables-legacy are told, our own are not."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.legacy_monitor import LegacyMonitor, legacy_fingerprint
from kpx.netfilter.monitor import Change
from kpx.netfilter.tools import legacy_tables
from tests.kernel import needs_kernel

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("own_network"), needs_kernel]

PERIOD = 0.1
RESTORE = ("iptables-legacy-restore", "--noflush")
BASE = (
    "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n"
    "-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A\n-A KUBE-SERVICES -d 10.96.0.2/32 -j RETURN\nCOMMIT\n"
)
IPV4 = Change(frozenset({Family.IPV4}))


def run(command: Sequence[str], payload: str = "") -> None:
    subprocess.run(command, input=payload, text=True, check=True, capture_output=True)


@asynccontextmanager
async def looking() -> AsyncIterator[tuple[LegacyMonitor, list[Change]]]:
    monitor, told = LegacyMonitor(PERIOD), list[Change]()
    task = asyncio.create_task(monitor.run(told.append))
    try:
        yield monitor, told
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        monitor.close()


async def periods(count: float) -> None:
    await asyncio.sleep(count * PERIOD)


async def all_of(told: list[Change]) -> list[Change]:
    """What is told once something is, and a while after that."""
    async with asyncio.timeout(60):
        while not told:
            await periods(0.1)
    await periods(3)
    return told


@pytest.mark.parametrize(
    "command",
    [
        "-t nat -A KUBE-SVC-A -j RETURN",
        "-t nat -F",
        "-t nat -N OTHER",
        "-t nat -R KUBE-SERVICES 1 -d 10.96.0.9/32 -j KUBE-SVC-A",  # the same size
        "-P FORWARD DROP",
        "-A INPUT -j ACCEPT",  # makes the table
    ],
)
def test_foreign_changes_are_told_once(command: str) -> None:
    async def scenario() -> list[Change]:
        run(RESTORE, BASE)
        async with looking() as (_, told):
            await periods(2)
            assert told == []
            run(["iptables-legacy", *command.split()])
            return await all_of(told)

    assert asyncio.run(scenario()) == [IPV4]


def test_a_change_without_the_lock_shows_by_what_it_adds() -> None:
    """As libiptc does it, which some programs use."""
    add = "import iptc; t = iptc.Table('nat'); t.create_chain('NEW')"

    async def scenario() -> list[Change]:
        run(RESTORE, BASE)
        async with looking() as (_, told):
            await asyncio.to_thread(run, [sys.executable, "-c", add])
            return await all_of(told)

    assert asyncio.run(scenario()) == [IPV4]


def test_a_fingerprint_shows_sizes_and_not_contents() -> None:
    assert legacy_fingerprint(Family.IPV4, "nat") is None
    assert legacy_tables(Family.IPV4) == ()  # not made by asking
    run(RESTORE, BASE)
    before = legacy_fingerprint(Family.IPV4, "nat")
    assert before is not None
    run(["iptables-legacy", "-t", "nat", "-R", "KUBE-SERVICES", "1", "-d", "10.96.0.9/32", "-j", "KUBE-SVC-A"])
    assert legacy_fingerprint(Family.IPV4, "nat") == before
    run(["iptables-legacy", "-t", "nat", "-A", "KUBE-SVC-A", "-j", "RETURN"])
    assert legacy_fingerprint(Family.IPV4, "nat") != before
    assert legacy_fingerprint(Family.IPV6, "nat") is None
    run(["ip6tables-legacy-restore", "--noflush"], "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n")
    assert legacy_fingerprint(Family.IPV6, "nat") is not None


def test_our_own_runs_are_not_told_of_either_family() -> None:
    async def scenario() -> list[Change]:
        run(RESTORE, BASE)
        run(["ip6tables-legacy-restore", "--noflush"], "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n")
        async with looking() as (monitor, told):

            def ours(family: Family, program: str) -> None:
                for number in range(10):
                    with monitor.recording(family) as started:
                        started(1)
                        run([program, "--noflush"], f"*nat\n:KUBE-SEP-{number} - [0:0]\nCOMMIT\n")

            await asyncio.gather(
                asyncio.to_thread(ours, Family.IPV4, "iptables-legacy-restore"),
                asyncio.to_thread(ours, Family.IPV6, "ip6tables-legacy-restore"),
            )
            await periods(3)
            return told

    assert asyncio.run(scenario()) == []


def test_what_others_did_just_before_our_run_is_told() -> None:
    async def scenario() -> list[Change]:
        run(RESTORE, BASE)
        async with looking() as (monitor, told):
            run(["iptables-legacy", "-t", "nat", "-R", "KUBE-SERVICES", "1", "-d", "10.96.0.9/32", "-j", "KUBE-SVC-A"])
            with monitor.recording(Family.IPV4):
                run(RESTORE, "*nat\n:KUBE-SEP-A - [0:0]\nCOMMIT\n")
            return await all_of(told)

    assert asyncio.run(scenario()) == [IPV4]


def test_a_lock_that_was_deleted_is_watched_again(tmp_path: Path) -> None:
    async def scenario() -> list[Change]:
        run(RESTORE, BASE)
        async with looking() as (_, told):
            (tmp_path / "xtables.lock").unlink()
            await periods(3)
            told.clear()
            run(["iptables-legacy", "-t", "nat", "-R", "KUBE-SERVICES", "1", "-d", "10.96.0.9/32", "-j", "KUBE-SVC-A"])
            return await all_of(told)

    assert asyncio.run(scenario()) == [IPV4]


def test_without_the_lock_sizes_still_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> list[Change]:
        run(RESTORE, BASE)
        monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "no" / "such" / "folder"))
        async with looking() as (_, told):
            monkeypatch.undo()
            run(["iptables-legacy", "-t", "nat", "-F", "KUBE-SERVICES"])
            return await all_of(told)

    assert asyncio.run(scenario()) == [IPV4]
