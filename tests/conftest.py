"""Fixtures for all tests."""

from collections.abc import Iterator

import pytest

from tests.kernel import Namespace


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace for one test."""
    with Namespace() as one:
        yield one
