"""Who is served when: by hand, and for any sequence of changes."""

from hypothesis import given
from hypothesis import strategies as st

from kpx.agent.pending import BATCH, CALM, LARGE, PATIENCE, Batch, Pending
from kpx.agent.steady import PAUSE, Steady
from kpx.agent.store import ServiceKey
from kpx.agent.suspects import BURST, PERIOD, Culprit, Suspects

SMALL, OTHER, HUGE, GIANT = (("shop", name) for name in ("small", "other", "huge", "giant"))
WEIGHTS = {SMALL: 10, OTHER: 20, HUGE: LARGE, GIANT: 10 * LARGE}


def pending(period: float = 0.0) -> Pending:
    return Pending(lambda key: WEIGHTS.get(key, 10), period, 0.0)


def touch(one: Pending, key: ServiceKey, now: float) -> None:
    one.touch([key], "EndpointSlice", None, now)


def test_what_is_small_goes_before_what_is_large_and_has_waited_longer() -> None:
    one = pending()
    touch(one, HUGE, 0.0)
    touch(one, SMALL, 1.0)
    assert list(one.take(1.0).services) == [SMALL]
    batch = one.take(1.1)
    assert (list(batch.services), batch.large) == ([HUGE], True)
    assert one.take(1.2) == Batch()


def test_large_ones_rest_after_each_turn_and_the_one_that_has_waited_longest_is_next() -> None:
    one = pending()
    touch(one, HUGE, 0.0)
    touch(one, GIANT, 0.1)
    one.served(one.take(0.2), 2.0, 2.0)
    touch(one, HUGE, 2.0)
    assert one.due(2.0) == 2.0
    assert one.take(3.9) == Batch()
    assert list(one.take(4.0).services) == [GIANT]
    assert list(one.take(5.0).services) == [HUGE]


def test_a_large_one_that_has_waited_long_goes_before_calm_ones() -> None:
    one = pending()
    touch(one, HUGE, 0.0)
    touch(one, SMALL, PATIENCE)
    assert list(one.take(PATIENCE).services) == [SMALL]
    touch(one, OTHER, PATIENCE + 0.1)
    assert list(one.take(PATIENCE + 0.1).services) == [HUGE]
    assert list(one.take(PATIENCE + 0.2).services) == [OTHER]


def test_a_restless_service_leaves_the_turns_of_calm_ones_alone() -> None:
    one = pending(period=1.0)
    now = 0.0
    for _ in range(20):  # it changes ten times a second and uses up its own turns
        touch(one, SMALL, now)
        while (wait := one.due(now)) == 0.0:
            one.served(one.take(now), 0.01, now)
        assert wait is None or wait > 0
        now += 0.1
    touch(one, SMALL, now)
    touch(one, OTHER, now)
    assert one.due(now) == 0.0
    assert OTHER in one.take(now).services


def test_a_comparison_of_everything_takes_all() -> None:
    one = pending()
    touch(one, HUGE, 0.0)
    touch(one, SMALL, 0.0)
    one.compare("start")
    one.compare("damage")
    batch = one.take(0.0)
    assert (set(batch.services), batch.full) == ({HUGE, SMALL}, "start")
    one.put_back(batch)
    assert (one.full, one.since()) == ("start", 0.0)


def test_what_could_not_be_written_keeps_its_time_and_its_triggers() -> None:
    one = pending()
    one.touch([SMALL], "EndpointSlice", 100.0, 1.0)
    batch = one.take(2.0)
    one.touch([SMALL], "Service", 200.0, 3.0)
    one.put_back(batch)
    assert one.since() == 1.0
    assert (one.waiting("EndpointSlice"), one.waiting("Service")) == (1, 1)
    assert sorted(one.take(4.0).triggers) == [100.0, 200.0]


def test_one_sync_takes_up_so_much_and_no_more() -> None:
    one = pending()
    every = [("shop", f"s{number}") for number in range(BATCH // 10 + 5)]
    for key in every:
        touch(one, key, 0.0)
    assert list(one.take(0.0).services) == every[: BATCH // 10]
    assert list(one.take(0.0).services) == every[BATCH // 10 :]


@given(
    st.lists(
        st.tuples(st.sampled_from([SMALL, OTHER, HUGE, GIANT]), st.floats(0.0, 3.0), st.booleans(), st.booleans()),
        max_size=40,
    ),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_everything_is_served_in_the_end(changes: list[tuple[ServiceKey, float, bool, bool]], period: float) -> None:
    one, now = pending(period), 0.0
    waiting: set[ServiceKey] = set()
    for key, pause, serve, fail in changes:
        now += pause
        touch(one, key, now)
        waiting.add(key)
        if serve:
            batch = one.take(now)
            if fail:
                one.put_back(batch)
            else:
                one.served(batch, 0.5, now)
                waiting -= batch.services.keys()
        assert len(one) == len(waiting)
    for _ in range(200):
        wait = one.due(now)
        if wait is None:
            break
        now += wait + 1e-6
        batch = one.take(now)
        assert batch.services, "due, and nothing to serve"
        one.served(batch, 0.5, now)
        waiting -= batch.services.keys()
    assert not waiting
    assert len(one) == 0


def test_a_chain_is_repaired_a_few_times_at_once_and_then_seldom() -> None:
    suspects, chain = Suspects(), ("nat", "KUBE-SERVICES")
    by = Culprit("iptables-nft", 42)
    for turn in range(BURST):
        suspects.add([("nat", "KUBE-SERVICES")], by)
        assert suspects.due(float(turn) / 100) == 0.0
        assert suspects.take().keys() == {chain}
        held = suspects.repaired([("nat", "KUBE-SERVICES")], float(turn) / 100)
    assert held.keys() == {chain}
    suspects.add([("nat", "KUBE-SERVICES"), ("nat", "KUBE-POSTROUTING")], by)
    wait = suspects.due(0.1)
    assert wait is not None
    assert PERIOD - 1 < wait <= PERIOD
    assert suspects.due(0.1 + PERIOD) == 0.0


def test_suspects_that_nobody_names_are_everything() -> None:
    suspects = Suspects()
    suspects.add([], Culprit())
    assert suspects.everything
    assert suspects.due(0.0) is None
    many = Suspects()
    many.add([("nat", f"KUBE-SEP-{number}") for number in range(2000)], None)
    assert many.everything


def test_a_steady_setting_changes_once_a_minute_at_most_but_comes_to_rest() -> None:
    steady = Steady()
    assert steady.settle(True, 0.0)
    assert not steady.settle(False, 1.0)
    changes, value = 0, False
    for second in range(2, 300):
        wanted = bool(second % 2)
        if steady.settle(wanted, float(second)) != value:
            changes, value = changes + 1, not value
    assert changes <= 300 / PAUSE + 1
    wait = steady.due(not value, 300.0)
    assert wait is not None
    assert wait <= PAUSE
    assert steady.settle(not value, 300.0 + wait) is not value
    assert steady.due(not value, 400.0) is None


def test_calm_is_as_long_as_it_says() -> None:
    one = pending(period=1.0)
    touch(one, SMALL, 0.0)
    one.served(one.take(0.0), 0.1, 0.0)
    for turn in range(2):
        touch(one, OTHER, 0.1)
        one.served(one.take(0.1 + turn / 100), 0.1, 0.1)
    touch(one, SMALL, CALM)
    assert one.due(CALM) == 0.0
