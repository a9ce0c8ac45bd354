"""What the agent says of itself is true: while it can write nothing, and while changes wait; whatever hinders it.

A change may wait for two seconds here: twice `syncPeriod`.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.agent.fresh import wait_until_fresh
from tests.agent.harness import HEALTH_PORT, PATIENCE, of_both_families, plans
from tests.agent.scene import LABEL, Scene, scene
from tests.kernel import BACKENDS, needs_kernel
from tests.lies import HANG, HANG_ON_A_WRITE, LOUD

pytestmark = [pytest.mark.kernel, needs_kernel]

V4, V6 = Family.IPV4, Family.IPV6
LAST = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"


def probe(one: Scene, page: str) -> int:
    return one.agent.get(page, HEALTH_PORT)[0]


def last_sync(one: Scene, family: Family) -> float:
    """When the family was last in sync, as the metrics tell; 0 for never."""
    return one.agent.metrics().get(f'{LAST}{{ip_family="{LABEL[family]}"}}', 0.0)


def wait_for(one: Scene, what: str, condition: Callable[[], object]) -> None:
    for _ in one.agent.patiently(PATIENCE, what, pause=0.05):
        if condition():
            return


def wait_until_unwell(one: Scene) -> None:
    for page in ("/healthz", "/livez"):
        wait_for(one, f"{page} 503", lambda page=page: probe(one, page) == 503)  # type: ignore[misc]


def blamed(one: Scene) -> list[object]:
    """The Services that the log says are refused."""
    return [entry.get("service") for entry in one.agent.log() if "refused" in entry["event"]]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


CASES = [*itertools.product([Backend.NFT], LOUD), (Backend.LEGACY, "lock held"), (Backend.LEGACY, "killed")]


@pytest.mark.parametrize(("backend", "lie"), CASES)
def test_who_can_write_nothing_says_so(stack: ExitStack, tmp_path: Path, backend: Backend, lie: str) -> None:
    """From the start; and when a change comes later."""
    one = scene(stack, tmp_path, backend)
    one.liars.tell(lie)
    stack.enter_context(one.agent)
    one.agent.wait_for_log("caches complete")

    def unhealthy_and_failed_often() -> bool:
        assert probe(one, "/healthz") == 503
        assert last_sync(one, V4) == last_sync(one, V6) == 0
        return one.failures(V4) >= 3 and one.failures(V6) >= 3

    wait_for(one, "three failures, each counted", unhealthy_and_failed_often)
    wait_until_unwell(one)
    assert one.unconfirmed(V4) == 0  # nobody claimed to have written anything
    assert blamed(one) == []
    one.liars.be_honest()
    one.wait_until_right()
    one.wait_until_healthy()
    wait_for(one, "a sync in the metrics", lambda: last_sync(one, V4) > 0 and last_sync(one, V6) > 0)

    # A change that can't be written isn't forgotten, however often it is tried.
    one.liars.tell(lie, family=V4)
    failures, last = one.failures(V4), last_sync(one, V4)
    one.change()
    wait_until_unwell(one)
    wait_for(one, "more failures", lambda: one.failures(V4) >= failures + 3)
    for _ in range(20):
        assert (probe(one, "/healthz"), probe(one, "/livez")) == (503, 503)
        time.sleep(0.1)
    assert last_sync(one, V4) == last
    assert blamed(one) == []
    one.liars.be_honest()
    one.wait_until_right()
    one.wait_until_healthy()
    wait_for(one, "a later sync in the metrics", lambda: last_sync(one, V4) > last)
    assert one.agent.log("rules repaired") == []  # what waits to be written is nobody's damage


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("broken", [V4, V6])
def test_a_family_that_never_got_rules_is_named_and_the_other_has_its_own(
    stack: ExitStack, tmp_path: Path, backend: Backend, broken: Family
) -> None:
    one = scene(stack, tmp_path, backend)
    whole = V6 if broken is V4 else V4
    one.liars.tell("killed", family=broken)
    stack.enter_context(one.agent)
    one.agent.wait_for_log("caches complete")
    wait_until_fresh(one.agent, {whole: of_both_families(one.agent, one.server.objects())[whole]})
    wait_for(one, "that in the metrics", lambda: last_sync(one, whole) > 0)
    wait_until_unwell(one)
    one.change()
    wait_until_fresh(one.agent, {whole: of_both_families(one.agent, one.server.objects())[whole]})

    def told_which() -> bool:
        page = "/livez"
        status, body = one.agent.get(page, HEALTH_PORT)
        families = json.loads(body)["status"]
        healthy = {name: family["healthy"] for name, family in families.items()}
        return status == 503 and healthy == {LABEL[whole]: True, LABEL[broken]: False}

    wait_for(one, "which family it is", told_which)
    assert last_sync(one, broken) == 0
    assert plans(one.agent, one.server.objects())[broken]
    one.liars.be_honest()
    one.wait_until_right()
    one.wait_until_healthy()


# Tools that hang.


@pytest.mark.parametrize("backend", BACKENDS)
def test_restores_that_hang_from_the_start(stack: ExitStack, tmp_path: Path, backend: Backend) -> None:
    one = scene(stack, tmp_path, backend)
    one.liars.tell(HANG)
    stack.enter_context(one.agent)
    one.agent.wait_for_log("caches complete")
    wait_for(one, "a restore that hangs", lambda: one.liars.calls)
    assert probe(one, "/healthz") == 503
    wait_until_unwell(one)
    assert last_sync(one, V4) == last_sync(one, V6) == 0
    one.liars.be_honest()  # but those that hang already do so for ever
    one.wait_until_right()
    one.wait_until_healthy()
    assert one.failures(V4) >= 1
    assert one.failures(V6) >= 1
    assert blamed(one) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_restore_that_hangs_once(stack: ExitStack, tmp_path: Path, backend: Backend) -> None:
    """The other family goes on meanwhile, and so do the ports; then all is well without any help."""
    one = scene(stack, tmp_path, backend)
    stack.enter_context(one.agent)
    one.wait_until_right()
    one.wait_until_healthy()
    one.liars.tell(HANG_ON_A_WRITE, family=V4, count=1)
    one.change()
    wait_for(one, "a restore that hangs", lambda: one.liars.calls)
    last = last_sync(one, V4)
    for _ in range(3):
        one.change()
        wait_until_fresh(one.agent, {V6: of_both_families(one.agent, one.server.objects())[V6]})
    wait_until_unwell(one)
    assert last_sync(one, V4) == last
    one.wait_until_right()
    one.wait_until_healthy()
    assert one.failures(V4) >= 1
    assert last_sync(one, V4) > last
    assert blamed(one) == []
