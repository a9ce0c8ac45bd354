"""One node for each backend, shared by all packet tests."""

from collections.abc import Iterator
from typing import get_args

import pytest

from tests.kernel import needs_kernel
from tests.lab import Backend, Backends, Node
from tests.packets.proxy import TCP_PORTS, UDP_PORTS, Proxy
from tests.packets.web import FamilyName


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests in here need the kernel."""
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.kernel)
            item.add_marker(needs_kernel)


@pytest.fixture(scope="session", params=get_args(Backend))
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The node under test."""
    config = tmp_path_factory.mktemp("packets") / "config.yaml"
    with Node() as node:
        proxy = Proxy(node, request.param, config)
        with Backends(node.host, *proxy.pods, tcp=TCP_PORTS, udp=UDP_PORTS):
            yield proxy


@pytest.fixture(params=get_args(FamilyName))
def family(request: pytest.FixtureRequest) -> FamilyName:
    """The IP family of the packets."""
    name: FamilyName = request.param
    return name
