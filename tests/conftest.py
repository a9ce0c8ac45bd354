"""Fixtures for all tests, and how hypothesis goes about its examples.

They are the same in every run, and may take their time: what fails, fails again, and never because the machine is
busy. KPX_EXPLORE=1 looks for others.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.kernel import Namespace

settings.register_profile(
    "steady",
    deadline=None,
    derandomize=not os.environ.get("KPX_EXPLORE"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")

# What runs in a shell's background ignores SIGINT, and so would all that the tests start, and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace for one test."""
    with Namespace() as one:
        yield one
