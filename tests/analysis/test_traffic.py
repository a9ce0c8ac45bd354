"""Real connections through a tree: they go where the simulator says, as often as it says."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest

from kpx.analysis.packet import Host, Origin, Packet
from kpx.analysis.simulate import Simulator, tables_of
from kpx.compiler import tree
from kpx.compiler.dispatch import DEFAULT
from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from tests import lab, manifests
from tests.chance import as_shared
from tests.compiler.layouts import Input
from tests.compiler.towns import CONFIG
from tests.kernel import needs_kernel
from tests.lab.node import NODE_ADDRESSES

pytestmark = [pytest.mark.kernel, needs_kernel]

PODS = ("10.244.0.10", "10.244.0.11", "10.244.1.10")
PORTS = range(8000, 8024)
SERVICES = 40
CONNECTIONS = 2000
WEB, STICKY = ("10.96.9.1", 80), ("10.96.9.2", 80)


def slices(name: str, count: int) -> Iterator[dict[str, Any]]:
    """All pods on `count` ports."""
    for port in PORTS[:count]:
        one = manifests.endpoint_slice(name, PODS)
        one["metadata"]["name"], one["ports"] = f"{name}-{port}", [{"name": "http", "port": port}]
        yield one


def ruleset() -> Ruleset:
    """Enough Services for trees of addresses and of node ports, and enough endpoints for groups."""
    objects = [manifests.node(), *slices("web", 8), *slices("sticky", len(PORTS))]
    objects.append(manifests.service("web", WEB[0]))
    objects.append(manifests.service("sticky", STICKY[0], sessionAffinity="ClientIP"))
    for number in range(SERVICES):
        ports = [{"name": "http", "port": 80, "targetPort": 8000, "nodePort": 30_000 + number}]
        objects.append(manifests.service(f"svc-{number}", f"10.96.0.{number + 1}", ports=ports, type="NodePort"))
        objects.append(manifests.endpoint_slice(f"svc-{number}", [PODS[number % 3]]))
        objects[-1]["ports"] = [{"name": "http", "port": 8000 + number % 24}]
    return Input.of(objects, CONFIG, Family.IPV4).tree(DEFAULT, tree.choose)


@pytest.fixture(scope="module", params=get_args(lab.Backend))
def node(request: pytest.FixtureRequest) -> Iterator[lab.Node]:
    with lab.Node() as one:
        pods = [one.pod(f"pod-{number}", ipv4, f"fd00:244::{10 + number}") for number, ipv4 in enumerate(PODS)]
        with lab.Backends(*pods, tcp=PORTS):
            one.load(payload(transactions(make_plan(ruleset(), {}).edits)), backend=request.param)
            yield one


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(tables_of(ruleset()), Family.IPV4, Host(NODE_ADDRESSES[:1]))


def answers(result: lab.Result) -> Mapping[str, int]:
    """Connections by where they arrived."""
    found = [attempt.answer for attempt in result.attempts if attempt.answer]
    return Counter(f"{PODS[int(answer.backend[-1])]}:{answer.port}" for answer in found)


def predicted(simulator: Simulator, packet: Packet) -> dict[str, float]:
    return {outcome.destination: float(share) for outcome, share in simulator.outcomes(packet).items()}


def test_connections_spread_as_the_simulator_says(node: lab.Node, simulator: Simulator) -> None:
    expected = predicted(simulator, Packet("198.51.100.7", *WEB[:1], "tcp", WEB[1]))
    assert len(expected) == 24
    found = answers(lab.connect(node.client, *WEB, count=CONNECTIONS))
    assert sum(found.values()) == CONNECTIONS
    assert found.keys() == expected.keys()
    assert as_shared([found[one] for one in expected], list(expected.values()))


def test_every_way_in_leads_where_the_simulator_says(node: lab.Node, simulator: Simulator) -> None:
    senders = {
        Origin.OUTSIDE: (node.client, "198.51.100.7"),
        Origin.POD: (node.pods["pod-0"], PODS[0]),
        Origin.NODE: (node.host, NODE_ADDRESSES[0]),
    }
    for number in range(0, SERVICES, 3):
        ways = [(f"10.96.0.{number + 1}", 80), (NODE_ADDRESSES[0], 30_000 + number)]
        for origin, (host, source) in senders.items():
            for address, port in ways:
                expected = predicted(simulator, Packet(source, address, "tcp", port, origin=origin))
                assert answers(lab.connect(host, address, port)) == dict.fromkeys(expected, 1)


def test_nothing_answers_beside_the_services(node: lab.Node, simulator: Simulator) -> None:
    for address, port in (("10.96.0.41", 80), ("10.96.0.7", 81), ("10.95.0.7", 80), (NODE_ADDRESSES[0], 30_040)):
        assert predicted(simulator, Packet("198.51.100.7", address, "tcp", port)).keys() == {""}
        assert not answers(lab.connect(node.client, address, port, patience=0.1))


def test_a_client_stays_with_one_of_many_endpoints(node: lab.Node) -> None:
    strangers = [f"192.0.2.{number}" for number in range(10, 40)]
    homes = set()
    for source in strangers:
        (home,) = {
            one
            for _ in range(3)
            for one in answers(lab.connect(node.client, *STICKY, count=2, parallel=1, source=(source, 0)))
        }
        homes.add(home)
    assert len(homes) > 10
    rules = node.rules(backend="nft") + node.rules(backend="legacy")
    assert "--name KPX-AFC-" in rules
