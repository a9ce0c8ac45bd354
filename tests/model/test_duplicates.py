"""One address and port listed twice: which of the two counts, for rules, health checks, explain and diff."""

import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kpx.agent.checks import service_health
from kpx.agent.desired import Desired
from kpx.agent.store import Store
from kpx.analysis.packet import Fate, Host, Origin, Packet
from kpx.analysis.simulate import Simulator, tables_of
from kpx.api import EndpointSlice, KubeProxyConfiguration, parse_object
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.explain.report import Explanation
from kpx.family import Family
from kpx.model.endpoint import Endpoint, count_endpoints, merge_slices, slice_of
from kpx.model.service import ServicePortName
from kpx.sources.events import Put
from tests.cli.inprocess import run
from tests.manifests import Manifest, endpoint_slice, service, write

NODE, OTHER_NODE = "node-0", "node-1"
POD, OTHER_POD = "10.244.0.1", "10.244.1.2"
LOAD_BALANCER = "203.0.113.7"
NAME = ServicePortName("shop", "web", "http", "tcp")


@dataclass(frozen=True)
class Listed:
    """An endpoint as a slice lists it: its state and whether it is on this node."""

    state: str
    local: bool

    @property
    def terminating(self) -> bool:
        return self.state in ("draining", "dead")

    @property
    def usable(self) -> bool:
        return self.state in ("ready", "draining")

    def manifest(self, pod: str = "") -> dict[str, Any]:
        ready, serving = self.state == "ready", self.state in ("ready", "draining")
        found: dict[str, Any] = {
            "addresses": [POD],
            "nodeName": NODE if self.local else OTHER_NODE,
            "conditions": {"ready": ready, "serving": serving, "terminating": self.terminating},
        }
        return found | ({"targetRef": {"kind": "Pod", "name": pod}} if pod else {})


KINDS = tuple(Listed(state, local) for state in ("ready", "draining", "not ready", "dead") for local in (True, False))
PAIRS = tuple(product(KINDS, KINDS))


def kube_proxy_takes(one: Listed, other: Listed, same_slice: bool) -> set[Listed]:
    """Which of two endpoints with the same address and port may count for kube-proxy 1.36.

    Source: `addEndpoints` in `pkg/proxy/endpointslicecache.go`, and what a real kube-proxy 1.36.2 made of all these
    pairs. In one slice the order decides; two slices are taken in either order.
    """

    def in_order(first: Listed, second: Listed) -> Listed:
        return first if second.terminating else second

    return {in_order(one, other)} if same_slice else {in_order(one, other), in_order(other, one)}


def web(**spec: Any) -> Manifest:
    made = service(
        "web",
        "10.96.0.10",
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=32000,
        ports=[{"name": "http", "port": 80, "nodePort": 30080}],
        **spec,
    )
    return made | {"status": {"loadBalancer": {"ingress": [{"ip": LOAD_BALANCER}]}}}


def slices(one: Listed, other: Listed, same_slice: bool, beside: bool) -> list[Manifest]:
    """Both endpoints, in one slice or two, and perhaps a ready one on another node."""
    rest = endpoint_slice("web", [OTHER_POD])["endpoints"] if beside else []
    first = endpoint_slice("web", [])
    if same_slice:
        return [first | {"endpoints": [one.manifest("one"), other.manifest("other"), *rest]}]
    second = first | {"metadata": first["metadata"] | {"name": "web-b"}, "endpoints": [other.manifest("other")]}
    return [first | {"endpoints": [one.manifest("one"), *rest]}, second]


def packed(manifests: list[Manifest]) -> list[Any]:
    parsed = [parse_object("EndpointSlice", one) for one in manifests]
    return [slice_of(one, NODE) for one in parsed if isinstance(one, EndpointSlice)]


def listed(one: Endpoint) -> Listed:
    state = {(True, False): "ready", (True, True): "draining", (False, True): "dead", (False, False): "not ready"}
    return Listed(state[one.serving, one.terminating], one.local)


@pytest.mark.parametrize("same_slice", [True, False], ids=["same slice", "two slices"])
def test_which_of_two_counts_and_whole(same_slice: bool) -> None:
    for one, other in PAIRS:
        some = packed(slices(one, other, same_slice, beside=True))
        merged = merge_slices(some, Family.IPV4)[NAME]
        assert [end.address for end in merged] == [POD, OTHER_POD]
        assert listed(merged[0]) in kube_proxy_takes(one, other, same_slice), (one, other)
        assert merge_slices(some[::-1], Family.IPV4) == merge_slices(some, Family.IPV4)
        assert count_endpoints(some, NAME, Family.IPV4) == 2


def test_the_reported_pair() -> None:
    """A pod's IP is in use again while the old pod terminates (kubernetes/kubernetes#135266)."""
    (endpoint,) = merge_slices(
        packed(slices(Listed("dead", True), Listed("ready", True), True, beside=False)), Family.IPV4
    )[NAME]
    assert (endpoint.ready, endpoint.terminating) == (True, False)


def met(simulator: Simulator, packet: Packet) -> set[str] | Fate:
    """The endpoints that a packet may get to, or how it is refused."""
    outcomes = simulator.outcomes(packet)
    fates = {one.fate for one in outcomes}
    if fates == {Fate.TRANSLATED}:
        return {one.destination.partition(":")[0] for one in outcomes}
    (fate,) = fates
    return fate


def expected(winner: Listed, internal_local: bool, beside: bool, from_outside: bool) -> set[str] | Fate:
    """Where a packet goes: endpoints, or how it is refused. As `CategorizeEndpoints` in `pkg/proxy/topology.go`."""
    if (from_outside or internal_local) and winner.local and winner.usable:
        return {POD}
    if from_outside or internal_local:
        return Fate.DROPPED if winner.usable or beside else Fate.REJECTED
    found = ({POD} if winner.state == "ready" else set()) | ({OTHER_POD} if beside else set())
    return found or ({POD} if winner.usable else Fate.REJECTED)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("same_slice", [True, False], ids=["same slice", "two slices"])
@pytest.mark.parametrize(("policy", "beside"), [("Cluster", False), ("Cluster", True), ("Local", False)])
def test_where_packets_go_and_what_the_health_check_says(
    policy: str, beside: bool, same_slice: bool, layout: Layout
) -> None:
    """As rules that are compiled at once, and as those that an agent comes to from other ones."""
    rng, target = random.Random(7), Target(NODE, Family.IPV4, layout)
    config = KubeProxyConfiguration(cluster_cidr="10.244.0.0/16")
    store = Store(NODE)
    desired = Desired(store, config, target)
    desired.load_all()
    for one, other in rng.sample(PAIRS, len(PAIRS)):
        made = [web(internalTrafficPolicy=policy), *slices(one, other, same_slice, beside)]
        objects = [parse_object(each["kind"], each) for each in made]
        touched = [key for each in objects for key in store.take(Put(each))]
        desired.refresh(touched)
        ruleset, problems = compile_sound(objects, config, target)
        assert not problems
        assert desired.ruleset() == ruleset
        simulator = Simulator(tables_of(ruleset), Family.IPV4, Host(["192.168.0.1"]))
        inside = Packet("10.244.9.9", "10.96.0.10", "tcp", 80)
        outside = Packet("198.51.100.9", LOAD_BALANCER, "tcp", 80, origin=Origin.OUTSIDE)
        ways = [met(simulator, one) for one in (inside, outside)]
        admissible = [
            (
                [expected(winner, policy == "Local", beside, from_outside) for from_outside in (False, True)],
                int(winner.local and winner.state == "ready"),
            )
            for winner in kube_proxy_takes(one, other, same_slice)
        ]
        health = service_health(desired, ("shop", "web"))
        assert health is not None
        assert (ways, health.local_ready) in admissible, (one, other)


def test_explain_tells_of_the_one_that_counts(tmp_path: Path) -> None:
    dead, ready = Listed("dead", True), Listed("ready", False)
    for first, second, pod in ((dead, ready, "other"), (ready, dead, "one")):
        for same_slice in (True, False):
            made = [web(), *slices(first, second, same_slice, beside=False)]
            file = write(tmp_path / "all.json", made)
            done = run("explain", "shop/web", "-f", str(file), "--node", NODE, "--json")
            (port,) = Explanation.model_validate_json(done.stdout).ports
            (told,) = port.endpoints
            assert (told.address, told.pod, told.node, told.takes_part) == (f"{POD}:8080", pod, OTHER_NODE, True)


def test_diff_tells_of_the_one_that_counts(tmp_path: Path) -> None:
    """A second listing that doesn't count changes nothing; one that does changes what it changes."""
    dead, ready = Listed("dead", True), Listed("ready", True)

    def diff(now: list[Manifest]) -> tuple[int, str]:
        old = write(tmp_path / "old.json", [web(), *slices(ready, ready, True, beside=False)])
        new = write(tmp_path / "new.json", [web(), *now])
        done = run("diff", "-f", str(old), "--against", str(new), "--node", NODE)
        return done.status, done.stdout

    assert diff(slices(ready, dead, True, beside=False))[0] == 0
    assert diff(slices(dead, ready, True, beside=False))[0] == 0
    status, text = diff(slices(dead, dead, True, beside=False))
    assert status == 1
    assert POD in text
