"""When clean-ups have their turn, and that nothing that waits for one is forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.agent.backlog import LONGEST_PAUSE, MOST_GONE, Backlog, Work
from kpx.model.service import ServicePort, ServicePortName

WEB, DNS = ("shop", "web"), ("kube-system", "dns")


def port(number: int) -> ServicePort:
    return ServicePort(ServicePortName("shop", "web", "", "udp"), "10.96.0.1", number)


def test_nothing_waits_at_first() -> None:
    backlog = Backlog()
    assert backlog.delay(now=0.0) is None
    backlog.add(Work())
    assert backlog.delay(now=0.0) is None
    assert not backlog.take(now=0.0)


@pytest.mark.parametrize("work", [Work(frozenset({WEB})), Work(everything=True), Work(gone=(port(1),))])
def test_what_is_added_waits_until_it_is_taken(work: Work) -> None:
    backlog = Backlog()
    backlog.add(work)
    assert backlog.delay(now=0.0) == 0
    assert backlog.take(now=0.0) == work
    assert backlog.delay(now=0.0) is None


def test_what_comes_together_is_done_together() -> None:
    backlog = Backlog()
    backlog.add(Work(frozenset({WEB}), gone=(port(1),)))
    backlog.add(Work(frozenset({WEB, DNS}), gone=(port(2), port(1))))
    backlog.add(Work(everything=True))
    assert backlog.take(now=0.0) == Work(frozenset({WEB, DNS}), everything=True, gone=(port(2), port(1)))


def test_the_first_have_their_turn_at_once_and_so_have_those_after_a_quiet_time() -> None:
    backlog = Backlog(share=0.05, burst=0.25)
    backlog.add(Work(everything=True))
    for begin in (100.0, 200.0):
        for _ in range(2):
            assert backlog.delay(now=begin) == 0
            backlog.done(now=begin, cost=0.1)
        assert backlog.delay(now=begin) == 0
        backlog.done(now=begin, cost=0.1)
        assert backlog.delay(now=begin) == pytest.approx(1.0)  # 0.05 s too much
        assert backlog.delay(now=begin + 0.4) == pytest.approx(0.6)
        assert backlog.delay(now=begin + 1.0) == 0
        backlog.done(now=begin + 1.0, cost=0.1)
        assert backlog.delay(now=begin + 1.0) == pytest.approx(2.0)


def test_what_failed_is_tried_again_ever_more_seldom() -> None:
    backlog, now, pauses = Backlog(), 0.0, []
    backlog.add(Work(frozenset({WEB}), gone=(port(1),)))
    for _ in range(9):
        assert backlog.delay(now) == 0
        work = backlog.take(now)
        assert work == Work(frozenset({WEB}), gone=(port(1),))
        backlog.failed(work, now, cost=0.001)
        assert backlog.failing
        pause = backlog.delay(now)
        assert pause
        pauses.append(pause)
        now += pause
    assert pauses[:3] == pytest.approx([0.5, 1.0, 2.0])
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE)
    work = backlog.take(now)
    assert not backlog.failing
    backlog.done(now, cost=0.0)
    backlog.failed(work, now, cost=0.0)
    assert backlog.delay(now) == pytest.approx(0.5)


def test_new_work_does_not_wait_for_what_failed() -> None:
    backlog = Backlog()
    backlog.failed(Work(frozenset({WEB}), gone=(port(1), port(2))), now=0.0, cost=0.0)
    backlog.add(Work(frozenset({DNS}), gone=(port(3), port(1))))
    assert backlog.delay(now=0.1) == 0
    assert backlog.take(now=0.1) == Work(frozenset({DNS}), gone=(port(3), port(1)))
    backlog.done(now=0.1, cost=0.0)
    assert backlog.failing
    assert backlog.delay(now=0.1) == pytest.approx(0.4)
    backlog.add(Work(frozenset({DNS}), gone=(port(3), port(1))))
    assert backlog.take(now=0.5) == Work(frozenset({WEB, DNS}), gone=(port(2), port(3), port(1)))
    assert backlog.delay(now=0.5) is None


def test_a_failure_that_cost_much_is_paid_for() -> None:
    backlog = Backlog(share=0.05, burst=0.0)
    backlog.failed(Work(everything=True), now=0.0, cost=1.0)
    assert backlog.delay(now=0.0) == pytest.approx(20.0)


def test_of_too_many_ports_that_are_gone_the_newest_wait() -> None:
    backlog = Backlog()
    backlog.add(Work(gone=tuple(port(number) for number in range(MOST_GONE + 2))))
    gone = backlog.take(now=0.0).gone
    assert len(gone) == MOST_GONE
    assert (gone[0], gone[-1]) == (port(2), port(MOST_GONE + 1))


@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 5), st.booleans()), max_size=40),
    st.floats(0.01, 0.5),
    st.floats(0, 2),
)
def test_no_history_takes_more_than_its_share_and_none_loses_work(
    history: list[tuple[float, float, bool]], share: float, burst: float
) -> None:
    backlog, now, spent, last = Backlog(share, burst), 0.0, 0.0, 0.0
    undone: set[tuple[str, str]] = set()
    for number, (pause, cost, works) in enumerate(history):
        backlog.add(Work(frozenset({("shop", str(number))})))
        undone.add(("shop", str(number)))
        now += pause
        now += backlog.delay(now) or 0.0
        # Clean-ups before this one had their share of the time until now.
        assert spent <= burst + share * now + 1e-6
        work = backlog.take(now)
        assert ("shop", str(number)) in work.services <= undone
        now, spent, last = now + cost, spent + cost, cost
        if works:
            backlog.done(now, cost)
            undone -= work.services
        else:
            backlog.failed(work, now, cost)
        assert backlog.failing == bool(undone)
    assert spent - last <= burst + share * now + 1e-6
    wait = backlog.delay(now)
    assert (wait is None) == (not undone)
    assert backlog.take(now + (wait or 0.0)).services == undone
