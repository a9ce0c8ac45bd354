"""Tools that say that all went well and did something else: none is believed, and all is right once they are honest.

The world is the judge: what the kernel holds, what the ports answer, how processes end.
"""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.tools import Backend
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from tests.agent.fresh import differences, loaded, our_lines
from tests.agent.harness import (
    HEALTH_PORT,
    PATIENCE,
    ROOT,
    AgentProcess,
    counting,
    of_both_families,
)
from tests.agent.scene import CONFIG, LABEL, Scene, cluster, scene
from tests.kernel import BACKENDS, FAMILIES, PROGRAM, needs_kernel
from tests.lab import Namespace
from tests.lies import HANG, HONEST_CHILD, LOUD, SAVES, SILENT, Liars
from tests.manifests import write

pytestmark = [pytest.mark.kernel, needs_kernel]

V4, V6 = Family.IPV4, Family.IPV6


@pytest.fixture(scope="module")
def all_scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[Backend, Scene]]:
    """An agent at work for each backend."""
    with ExitStack() as stack:
        found = {backend: scene(stack, tmp_path_factory.mktemp(f"lies-{backend}"), backend) for backend in BACKENDS}
        for one in found.values():
            stack.enter_context(one.agent)
        for one in found.values():
            one.wait_until_right()
        yield found


@pytest.fixture
def scenes(all_scenes: Mapping[Backend, Scene]) -> Mapping[Backend, Scene]:
    """The same with honest tools, whatever became of the test before."""
    for one in all_scenes.values():
        one.liars.be_honest()
        if not one.agent.running:
            one.agent.start()
            one.wait_until_right()
    return all_scenes


# The agent at work.


UPDATES = [
    *((backend, lie, V4) for backend in BACKENDS for lie in (*SILENT, "killed halfway", "no memory for a rule")),
    *((Backend.NFT, lie, V6) for lie in ("nothing", "half of the lines", "another family")),
    (Backend.LEGACY, "half of the lines", V6),
]


@pytest.mark.parametrize(("backend", "lie", "family"), UPDATES)
def test_no_lie_about_an_update_is_believed(
    scenes: Mapping[Backend, Scene], backend: Backend, lie: str, family: Family
) -> None:
    scene = scenes[backend]
    before = scene.trust(family)
    scene.liars.tell(lie, family=family)
    scene.change()
    scene.wait_for_distrust(family, lie, before)
    scene.liars.be_honest()
    scene.wait_until_right()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_lie_among_honest_writes_is_not_believed(scenes: Mapping[Backend, Scene], backend: Backend) -> None:
    scene = scenes[backend]
    for skip in (1, 3):
        before = scene.trust(V4)
        scene.liars.tell("half of the lines", family=V4, skip=skip, count=1)
        for _ in scene.agent.patiently(PATIENCE, "the call to lie at"):
            if scene.liars.calls > skip:
                break
            scene.change()
            time.sleep(0.3)  # so that changes come in several writes
        scene.wait_for_distrust(V4, "half of the lines", before)
        scene.wait_until_right()


@pytest.mark.parametrize(
    ("backend", "lie"),
    [
        *itertools.product(BACKENDS, ("nothing, but reads", "half of the lines", "one rule less", "late")),
        (Backend.NFT, "another table"),
        (Backend.LEGACY, "another namespace"),
    ],
)
def test_no_lie_about_a_repair_is_believed(scenes: Mapping[Backend, Scene], backend: Backend, lie: str) -> None:
    scene = scenes[backend]
    before = scene.trust(V4)
    scene.liars.tell(lie, family=V4)
    scene.damage(V4)
    scene.wait_for_distrust(V4, lie, before)
    scene.liars.be_honest()
    scene.wait_until_right()


@pytest.mark.parametrize(("backend", "lie"), [(Backend.NFT, "half of the lines"), (Backend.LEGACY, "nothing")])
def test_who_is_lied_to_for_long_is_not_healthy(scenes: Mapping[Backend, Scene], backend: Backend, lie: str) -> None:
    scene = scenes[backend]
    scene.wait_until_right()
    scene.wait_until_healthy()
    scene.liars.tell(lie, family=V4)
    scene.change()
    for page in ("/healthz", "/livez"):
        for _ in scene.agent.patiently(PATIENCE, f"{page} 503"):
            if scene.agent.get(page, HEALTH_PORT)[0] == 503:
                break
    for _ in range(20):  # and it stays so, however often it tries
        assert scene.agent.get("/healthz", HEALTH_PORT)[0] == 503
        time.sleep(0.1)
    scene.liars.be_honest()
    scene.wait_until_right()
    scene.wait_until_healthy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tool_that_works_as_a_child_of_a_wrapper_is_believed(
    scenes: Mapping[Backend, Scene], backend: Backend
) -> None:
    scene = scenes[backend]
    scene.wait_until_right()
    before = {family: scene.trust(family) for family in FAMILIES}
    scene.liars.tell(HONEST_CHILD)
    for _ in range(3):
        scene.change()
        scene.wait_until_right()
    scene.damage(V4)
    scene.wait_until_right()
    assert scene.liars.calls >= 4
    scene.liars.be_honest()
    assert {family: scene.trust(family) for family in FAMILIES} == before


# Reading.


def verified(scene: Scene, family: Family) -> float:
    name = f'kpx_last_verified_timestamp_seconds{{ip_family="{LABEL[family]}"}}'
    return scene.agent.metrics().get(name, 0.0)


@pytest.mark.parametrize(("backend", "lie"), list(itertools.product(BACKENDS, SAVES)))
def test_a_save_that_lies_does_no_harm(scenes: Mapping[Backend, Scene], backend: Backend, lie: str) -> None:
    """It counts as no verification, and nothing is written on its word that spoils what is right."""
    scene = scenes[backend]
    scene.wait_until_right()
    held = our_lines(scene.save(V4))
    scene.liars.tell(save=lie, listing="empty", family=V4)
    start = verified(scene, V4)
    for _ in scene.agent.patiently(PATIENCE, "lies told"):
        assert our_lines(scene.save(V4)) == held
        if scene.liars.calls == 1:
            start = verified(scene, V4)  # a look that began before may have ended since
        if scene.liars.calls >= 4:
            break
    assert verified(scene, V4) == start
    scene.liars.be_honest()
    scene.damage(V4)
    scene.wait_until_right()
    for _ in scene.agent.patiently(PATIENCE, "verified"):
        if verified(scene, V4) > start:
            break


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_save_that_hangs_holds_up_no_update(scenes: Mapping[Backend, Scene], backend: Backend) -> None:
    scene = scenes[backend]
    scene.liars.tell(save=HANG)
    for _ in scene.agent.patiently(PATIENCE, "a look that hangs"):
        if scene.liars.calls:
            break
    for _ in range(3):
        scene.change()
        scene.wait_until_right()
    scene.liars.be_honest()


# First loads.


@pytest.mark.parametrize(
    ("backend", "lie"),
    [
        *itertools.product(BACKENDS, ("half of the sections", "one rule less", "late")),
        (Backend.NFT, "nothing"),
        (Backend.NFT, "another namespace"),
        (Backend.LEGACY, "half of the lines"),
        (Backend.LEGACY, "another table"),
    ],
)
def test_no_lie_about_a_first_load_is_believed(tmp_path: Path, backend: Backend, lie: str) -> None:
    with ExitStack() as stack:
        one = scene(stack, tmp_path, backend)
        one.liars.tell(lie, family=V4)
        stack.enter_context(one.agent)
        one.agent.wait_for_log("caches complete")
        one.wait_for_distrust(V4, lie, (0.0, 0.0, 0))
        assert one.agent.get("/healthz", HEALTH_PORT)[0] == 503
        one.liars.be_honest()
        one.wait_until_right()
        one.wait_until_healthy()


# Commands that end.


@dataclass(frozen=True, slots=True)
class Case:
    """A command, a lie, and whether there are rules of an older state already."""

    command: str
    backend: Backend
    lie: str
    older: bool
    save: str = ""


CASES = [
    *(Case("run", Backend.NFT, lie, older=True) for lie in (*SILENT, *LOUD)),
    *(Case("apply", Backend.LEGACY, lie, older=True) for lie in (*SILENT, *LOUD)),
    *(Case("apply", Backend.NFT, lie, older=False) for lie in SILENT[1:6]),
    *(Case("run", Backend.LEGACY, lie, older=False) for lie in SILENT[1:6]),
    *(Case("run", Backend.NFT, "", older=True, save=lie) for lie in SAVES),
    *(Case("apply", Backend.LEGACY, "", older=True, save=lie) for lie in SAVES),
    Case("apply", Backend.NFT, "", older=True, save="empty"),
    Case("run", Backend.LEGACY, HONEST_CHILD, older=True),
    Case("apply", Backend.NFT, HONEST_CHILD, older=True),
]


@dataclass(frozen=True, slots=True)
class Shot:
    """One command that ends by itself, in a namespace of its own."""

    case: Case
    agent: AgentProcess
    liars: Liars
    wanted: Mapping[Family, Ruleset]

    def run(self) -> "subprocess.CompletedProcess[str]":
        command = self.agent.command
        if self.case.command == "apply":
            options = ["--config", str(self.agent.config_file), "--node", "node-0", "--family", "dual"]
            files = ["-f", str(self.agent.folder / "manifests"), "--backend", self.case.backend]
            command = [sys.executable, "-m", "kpx", "apply", *options, *files]
        with self.agent.namespace.entered():
            return subprocess.run(
                command,
                cwd=ROOT,
                env=self.agent.environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=2 * PATIENCE,
                check=False,
            )

    def is_right(self, family: Family) -> bool:
        fresh = loaded(self.wanted[family], self.case.backend)
        return not differences(self.wanted[family], fresh, self.agent.namespace, self.case.backend)


def preload(namespace: Namespace, backend: Backend, rulesets: Mapping[Family, Ruleset]) -> None:
    for family, ruleset in rulesets.items():
        if counting(backend, family):
            namespace.run([sys.executable, "-c", "from kpx.netfilter import nfacct; nfacct.ensure()"], directory=ROOT)
        text = payload(transactions(make_plan(ruleset, {}).edits))
        namespace.run([f"{PROGRAM[family]}-{backend}-restore", "--noflush"], stdin=text)


def shoot(case: Case, folder: Path) -> None:
    """Run the command while its tools lie, and again when they don't."""
    manifests = folder / "manifests"
    manifests.mkdir(parents=True)
    write(manifests / "cluster.json", cluster(1))
    with Namespace() as namespace:
        namespace.ip("link set lo up")
        agent = AgentProcess(
            namespace, folder, None, "--once", "--manifests", manifests, backend=case.backend, config=CONFIG
        )
        liars = Liars(folder)
        agent.environment |= liars.environment
        shot = Shot(case, agent, liars, of_both_families(agent, cluster(1)))
        if case.older:
            preload(namespace, case.backend, of_both_families(agent, cluster(0)))
        liars.tell(case.lie, save=case.save, family=None if case.lie == HONEST_CHILD else V4)
        check(shot, shot.run())
        liars.be_honest()
        liars.wait_for_late_ones()
        if case.lie != HONEST_CHILD:
            done = shot.run()
            assert done.returncode == 0, done.stderr
        assert all(shot.is_right(family) for family in FAMILIES)


def check(shot: Shot, done: "subprocess.CompletedProcess[str]") -> None:
    """How a command has to end that was lied to."""
    case = shot.case
    if case.lie == HONEST_CHILD:
        assert done.returncode == 0, done.stderr
    elif case.save and done.returncode == 0:
        assert shot.is_right(V4)  # whatever it read, it wrote what was wanted
    else:
        assert done.returncode == 2, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert f"iptables-{case.backend}-" in done.stderr
        assert "IPv4: up to date" not in done.stdout
    if case.command == "run" and case.lie != HONEST_CHILD:
        assert shot.is_right(V6) or case.lie == "another family"


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[Case, "Future[None]"]]:
    """All commands, under way, a few at a time."""
    with ThreadPoolExecutor(3) as pool:
        folder = tmp_path_factory.mktemp("shots")
        yield {case: pool.submit(shoot, case, folder / str(at)) for at, case in enumerate(CASES)}
        pool.shutdown(cancel_futures=True)


def named(case: Case) -> str:
    return f"{case.command}-{case.backend}-{case.lie or f'save: {case.save}'}"


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_command_that_is_lied_to_says_so(shots: Mapping[Case, "Future[None]"], case: Case) -> None:
    shots[case].result()
