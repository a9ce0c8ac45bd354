"""Fixtures for all tests, and how hypothesis goes about its examples.

They are the same in every run, and may take their time: what fails, fails again, and never because the machine is
busy. KPX_EXPLORE=1 looks for others. KPX_QUICK=1 tries few, for the inner loop.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.kernel import Namespace

QUICK = bool(os.environ.get("KPX_QUICK"))
FEW = 10
"""Examples of each test where it is to be quick."""
LONGEST = (
    "tests/chart/test_image.py",
    "tests/agent/test_lies.py",
    "tests/agent/test_lost_rules.py",
    "tests/agent/test_kill.py",
    "tests/agent/test_convergence.py",
    "tests/agent/test_drift.py",
    "tests/analysis/test_equivalence.py",
    "tests/analysis/test_equality.py",
    "tests/packets",
    "tests/agent",
)
"""What takes longest, in the order in which it is begun."""

settings.register_profile(
    "steady",
    max_examples=FEW if QUICK else 100,
    deadline=None,
    derandomize=not os.environ.get("KPX_EXPLORE"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Few examples also for tests that ask for more, where it is to be quick; and what takes longest comes first.

    With `--dist loadfile` a file is one worker's: a long one that is begun last is waited for by all.
    """
    for item in items:
        test = getattr(getattr(item, "obj", None), "__func__", getattr(item, "obj", None))
        own = getattr(test, "_hypothesis_internal_use_settings", None)
        if QUICK and own is not None and own.max_examples > FEW:
            vars(test)["_hypothesis_internal_use_settings"] = settings(own, max_examples=FEW)
    items.sort(key=lambda item: _turn(item.nodeid))


def _turn(node: str) -> int:
    return next((turn for turn, name in enumerate(LONGEST) if node.startswith(name)), len(LONGEST))


# What runs in a shell's background ignores SIGINT, and so would all that the tests start, and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace for one test."""
    with Namespace() as one:
        yield one
