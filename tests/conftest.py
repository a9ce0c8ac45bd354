"""Fixtures for all tests."""

import signal
from collections.abc import Iterator

import pytest

from tests.kernel import Namespace

# What runs in a shell's background ignores SIGINT, and so would all that the tests start, and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace for one test."""
    with Namespace() as one:
        yield one
