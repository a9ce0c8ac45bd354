"""A namespace with an API server that allows what the chart asks for."""

from collections.abc import Iterator

import pytest

from tests.apiserver import ApiServer, Promises
from tests.chart.helm import release
from tests.chart.test_chart import cluster_rules
from tests.lab import Namespace
from tests.manifests import endpoint_slice, node, service


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as one:
        one.ip("link set lo up")
        yield one


@pytest.fixture
def server(namespace: Namespace) -> Iterator[ApiServer]:
    """An API server that allows what the chart's ClusterRole grants, and nothing else."""
    promises = Promises(rules=cluster_rules(release().one("ClusterRole")))
    with ApiServer(netns=namespace.path, tls=True, promises=promises) as one:
        one.put_all([node(), service("web", "10.96.0.10"), endpoint_slice("web", ["10.244.0.10"])])
        yield one
