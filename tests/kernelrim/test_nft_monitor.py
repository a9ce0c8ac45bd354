"""Foreign commits are told, our own are not: real tools, one real ruleset."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.monitor import UNKNOWN, Change, NftMonitor, OwnCommits
from kpx.netfilter.refusal import RestoreError
from kpx.netfilter.tools import Backend, Tools
from tests.kernel import needs_kernel

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("own_network"), needs_kernel]

RESTORE = ("iptables-nft-restore", "--noflush")
BASE = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n*filter\n:KUBE-FORWARD - [0:0]\nCOMMIT\n"


def run(command: Sequence[str], payload: str = "") -> int:
    """Run a foreign command; its pid."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as child:
        child.communicate(payload)
    assert child.returncode == 0, command
    return child.pid


def own_restore(own: OwnCommits, payload: str, command: Sequence[str] = RESTORE) -> int:
    """Run a child of ours; its pid."""
    with own.recording() as started, subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as child:
        started(child.pid)
        child.communicate(payload)
    assert child.returncode == 0
    return child.pid


class Told:
    """What a monitor told, and when."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    async def soon(self, count: int = 1) -> list[Change]:
        """Wait for so many changes."""
        until = time.monotonic() + 60
        while len(self.changes) < count and time.monotonic() < until:
            await asyncio.sleep(0.005)
        assert len(self.changes) >= count, f"{len(self.changes)} of {count} changes within a minute"
        return self.changes

    async def all(self) -> list[Change]:
        """Everything that has been told after a while without news."""
        await asyncio.sleep(0.1)
        return self.changes


@asynccontextmanager
async def listening(own: OwnCommits, room: int = 32 << 20) -> AsyncIterator[Told]:
    monitor, told = NftMonitor(own, room), Told()
    task = asyncio.create_task(monitor.run(told.changes.append))
    await asyncio.sleep(0)
    try:
        yield told
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        monitor.close()


FOREIGN = {
    "a rule at the end of a chain of ours": (
        ["iptables-nft", "-t", "nat", "-A", "KUBE-SERVICES", "-j", "RETURN"],
        {(Family.IPV4, "nat", "KUBE-SERVICES")},
    ),
    "a rule before our jump": (
        ["iptables-nft", "-t", "nat", "-I", "PREROUTING", "-j", "ACCEPT"],
        {(Family.IPV4, "nat", "PREROUTING")},
    ),
    "a chain flushed": (
        ["iptables-nft", "-t", "nat", "-F", "PREROUTING"],
        {(Family.IPV4, "nat", "PREROUTING")},
    ),
    "a chain deleted": (["iptables-nft", "-X", "KUBE-FORWARD"], {(Family.IPV4, "filter", "KUBE-FORWARD")}),
    "a policy": (["iptables-nft", "-P", "FORWARD", "DROP"], {(Family.IPV4, "filter", "FORWARD")}),
    "IPv6": (["ip6tables-nft", "-N", "KUBE-SERVICES"], {(Family.IPV6, "filter", "KUBE-SERVICES")}),
    # What it was called before isn't told: so nobody knows which.
    "a chain renamed": (["iptables-nft", "-E", "KUBE-FORWARD", "THEIRS"], set()),
    "a chain renamed by nft": (["nft", "rename chain ip filter KUBE-FORWARD theirs"], set()),
    "by nft": (["nft", "flush chain ip nat KUBE-SERVICES; flush chain ip nat PREROUTING"], {
        (Family.IPV4, "nat", "PREROUTING"),
    }),
    "everything": (["nft", "flush ruleset"], {
        (Family.IPV4, "nat", "PREROUTING"),
        (Family.IPV4, "nat", "KUBE-SERVICES"),
        (Family.IPV4, "filter", "KUBE-FORWARD"),
    }),
    "two families at once": (["nft", "delete table ip nat; add table ip6 nat; add chain ip6 nat KUBE-NODEPORTS"], {
        (Family.IPV4, "nat", "PREROUTING"),
        (Family.IPV4, "nat", "KUBE-SERVICES"),
        (Family.IPV6, "nat", "KUBE-NODEPORTS"),
    }),
    "a table put to sleep": (["nft", "add table ip nat { flags dormant; }"], set()),
}  # fmt: skip


@pytest.mark.parametrize(("command", "chains"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_commits_are_told(command: list[str], chains: set[object]) -> None:
    async def scenario() -> None:
        run(RESTORE, BASE)
        async with listening(OwnCommits()) as told:
            pid = await asyncio.to_thread(run, command)
            (change,) = await told.soon()
            assert await told.all() == [change]
        assert change.chains == chains
        assert change.families == {family for family, _, _ in change.chains} or not chains
        assert Family.IPV4 in change.families or "ip6tables-nft" in command
        assert change.process == command[0][:15]
        assert change.generation > 1
        if _in_initial_pid_namespace():
            assert change.pid == pid

    asyncio.run(scenario())


def _in_initial_pid_namespace() -> bool:
    return Path("/proc/self/ns/pid").readlink().name == "pid:[4026531836]"


@pytest.mark.parametrize(
    "command",
    [
        ["iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "ACCEPT"],
        ["iptables-nft", "-t", "nat", "-N", "CNI-HOSTPORT"],
        ["nft", "add table inet nat; add chain inet nat KUBE-SERVICES; add table ip nat2; add chain ip nat2 KUBE-X"],
        ["nft", "add set ip nat mine { type ipv4_addr; }; add element ip nat mine { 1.2.3.4 }"],
        ["iptables-nft-save"],
        ["iptables-nft", "-t", "nat", "-S", "KUBE-SERVICES"],
    ],
)
def test_what_concerns_neither_our_chains_nor_built_in_ones_is_not_told(command: list[str]) -> None:
    async def scenario() -> None:
        run(RESTORE, BASE)
        async with listening(OwnCommits()) as told:
            await asyncio.to_thread(run, command)
            assert await told.all() == []

    asyncio.run(scenario())


def test_our_own_commits_are_not_told_even_if_read_long_after() -> None:
    async def scenario() -> None:
        own = OwnCommits()
        monitor, told = NftMonitor(own), Told()
        for name in ("A", "B", "C"):
            own_restore(own, f"*nat\n:KUBE-SEP-{name} - [0:0]\nCOMMIT\n*filter\n:KUBE-FW-{name} - [0:0]\nCOMMIT\n")
        own_restore(own, "*nat\n:KUBE-SEP-D - [0:0]\nCOMMIT\n", ("ip6tables-nft-restore", "--noflush"))
        pid = run(["iptables-nft", "-t", "nat", "-F", "KUBE-SEP-A"])  # an empty chain: nothing to tell
        pid = run(["iptables-nft", "-t", "nat", "-A", "KUBE-SEP-A", "-j", "RETURN"])
        own_restore(own, "*nat\n-F KUBE-SEP-A\nCOMMIT\n")
        task = asyncio.create_task(monitor.run(told.changes.append))
        changes = await told.soon()
        assert [change.chains for change in await told.all()] == [{(Family.IPV4, "nat", "KUBE-SEP-A")}]
        assert changes[0].pid == pid or not _in_initial_pid_namespace()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        monitor.close()

    asyncio.run(scenario())


def test_our_own_and_foreign_commits_at_the_same_time_are_told_apart() -> None:
    rounds = 15

    async def scenario() -> None:
        own = OwnCommits()
        run(RESTORE, BASE)

        def ours(command: str) -> None:
            for number in range(rounds):
                own_restore(own, f"*nat\n:KUBE-SEP-{number} - [0:0]\nCOMMIT\n", (command, "--noflush"))

        def theirs() -> None:
            for number in range(rounds):
                run(["iptables-nft", "-w", "-t", "nat", "-A", "KUBE-SERVICES", "-s", f"10.0.0.{number}"])

        async with listening(own) as told:
            await asyncio.gather(
                asyncio.to_thread(ours, "iptables-nft-restore"),
                asyncio.to_thread(ours, "ip6tables-nft-restore"),
                asyncio.to_thread(theirs),
            )
            changes = await told.soon(rounds)
            assert await told.all() == changes
        assert [change.process for change in changes] == ["iptables-nft"] * rounds
        assert {change.chains for change in changes} == {frozenset({(Family.IPV4, "nat", "KUBE-SERVICES")})}
        assert [change.generation for change in changes] == sorted(change.generation for change in changes)

    asyncio.run(scenario())


def test_a_foreign_process_that_bears_the_number_of_a_child_that_ended_is_foreign() -> None:
    async def scenario() -> None:
        own = OwnCommits()
        run(RESTORE, BASE)
        async with listening(own) as told:
            pid = await asyncio.to_thread(own_restore, own, "*nat\n:KUBE-SEP-A - [0:0]\nCOMMIT\n")
            # In a pid namespace of its own, the next process gets the number that is asked for.
            script = (
                f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid && "
                "{ iptables-nft -t nat -A KUBE-SEP-A -j RETURN & echo $!; wait $!; }"
            )
            command = ["unshare", "--pid", "--fork", "sh", "-c", script]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
            assert done.stdout.strip() == str(pid), "the test did not get the number it asked for"
            (change,) = await told.soon()
        assert change.process == "iptables-nft"
        assert change.families == frozenset(Family)  # its messages were passed over: it might have been ours

    asyncio.run(scenario())


def test_a_commit_is_ours_by_port_pid_and_generation_together() -> None:
    async def scenario() -> tuple[OwnCommits, int, int]:
        own = OwnCommits()
        run(RESTORE, BASE)
        async with listening(own) as told:
            pid = await asyncio.to_thread(own_restore, own, "*nat\n:KUBE-SEP-A - [0:0]\nCOMMIT\n")
            await asyncio.to_thread(run, ["iptables-nft", "-t", "nat", "-A", "KUBE-SEP-A", "-j", "RETURN"])
            (foreign,) = await told.soon()
            return own, pid, foreign.generation

    own, pid, foreign = asyncio.run(scenario())
    assert own.mine(pid, pid, foreign - 1)
    assert not own.mine(pid, pid, foreign)
    assert not own.mine(pid, pid, foreign - 2)  # before the child was started
    assert not own.mine(pid + 1, pid, foreign - 1)
    assert own.mine(pid, pid + 1, foreign - 1) != _in_initial_pid_namespace()


AGENT = """
import asyncio, os, sys
from kpx.netfilter.monitor import NftMonitor, OwnCommits
from tests.kernelrim.test_nft_monitor import own_restore, run

async def main():
    own = OwnCommits()
    monitor = NftMonitor(own)
    task = asyncio.create_task(monitor.run(lambda one: print(one.process, *sorted(c[2] for c in one.chains))))
    await asyncio.to_thread(own_restore, own, "*nat\\n:KUBE-SEP-OWN - [0:0]\\nCOMMIT\\n")
    await asyncio.to_thread(run, ["iptables-nft", "-t", "nat", "-N", "KUBE-SEP-INSIDE"])
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.to_thread(own_restore, own, "*nat\\n:KUBE-SEP-OWN2 - [0:0]\\nCOMMIT\\n")
    await asyncio.sleep(0.1)
    print("pid", os.getpid())
    task.cancel()

asyncio.run(main())
"""


def test_an_agent_with_a_pid_namespace_of_its_own_knows_its_children() -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", AGENT]
    agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    with agent:
        assert agent.stdout
        assert [agent.stdout.readline() for _ in range(2)] == ["iptables-nft KUBE-SEP-INSIDE\n", "ready\n"]
        run(["iptables-nft", "-t", "nat", "-N", "KUBE-SEP-OUTSIDE"])
        output, _ = agent.communicate("\n")
    assert output == "iptables-nft KUBE-SEP-OUTSIDE\npid 1\n"
    assert agent.returncode == 0


def test_lost_notifications_are_told_as_such_and_later_ones_again_in_full() -> None:
    async def scenario() -> None:
        run(RESTORE, BASE)
        async with listening(OwnCommits(), room=4096) as told:
            run(RESTORE, _load(500))  # while the event loop is busy with this
            assert UNKNOWN in await told.soon()
            await told.all()
            told.changes.clear()
            await asyncio.to_thread(run, ["iptables-nft", "-t", "nat", "-A", "KUBE-SERVICES", "-j", "RETURN"])
            (change,) = await told.soon()
            assert change.chains == {(Family.IPV4, "nat", "KUBE-SERVICES")}

    asyncio.run(scenario())


def _load(chains: int) -> str:
    """A first load in transactions of 250 chains with three rules each."""
    lines = []
    for start in range(0, chains, 250):
        names = [f"KUBE-SEP-{number:016}" for number in range(start, start + 250)]
        lines += ["*nat", *(f":{name} - [0:0]" for name in names)]
        for name in names:
            note = f'-m comment --comment "team-01/{name}:http"'
            lines += [
                f"-A {name} -s 10.128.0.1/32 {note} -j MARK --set-xmark 0x4000/0x4000",
                f"-A {name} -p tcp {note} -m tcp -j DNAT --to-destination 10.128.0.1:8080",
                f"-A {name} -p tcp {note} -m tcp -j RETURN",
            ]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


def test_a_large_load_of_our_own_is_neither_told_nor_lost() -> None:
    async def scenario() -> None:
        own = OwnCommits()
        async with listening(own) as told:
            before = time.process_time()
            await asyncio.to_thread(own_restore, own, _load(10_000))
            assert await told.all() == []
            print(f"\n{time.process_time() - before:.2f} s CPU")  # 0.44 s for 60,000 chains and 180,000 rules

    asyncio.run(scenario())


def test_the_tools_restores_are_our_own() -> None:
    async def scenario() -> None:
        own = OwnCommits()
        async with listening(own) as told:
            for family in Family:
                tools = Tools(Backend.NFT, family, recording=own.recording)
                await asyncio.to_thread(tools.restore, BASE)
                with pytest.raises(RestoreError):
                    await asyncio.to_thread(tools.restore, "*nat\n-X KUBE-NOPE\nCOMMIT\n")
            assert await told.all() == []
            await asyncio.to_thread(Tools(Backend.NFT, Family.IPV6).restore, "*nat\n-F KUBE-SERVICES\nCOMMIT\n")
            await asyncio.to_thread(Tools(Backend.NFT, Family.IPV6).restore, "*nat\n-F PREROUTING\nCOMMIT\n")
            (change,) = await told.soon()
            assert change.chains == {(Family.IPV6, "nat", "PREROUTING")}

    asyncio.run(scenario())


def test_a_child_that_cannot_start_leaves_nothing_behind() -> None:
    own = OwnCommits()
    with pytest.raises(FileNotFoundError):
        own_restore(own, "", ("no-such-program",))
    assert own.mine(os.getpid(), os.getpid(), 1) is False  # and does not wait for ever
