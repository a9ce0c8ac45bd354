"""The incremental path against the whole: after any changes, in any order, both lead to the same kernel."""

import random
import sys
from itertools import islice
from zlib import crc32

import pytest

from kpx.agent import desired as desired_module
from kpx.agent.desired import Desired
from kpx.agent.store import ServiceKey, Store
from kpx.api import KubeProxyConfiguration, Object, parse_object
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.family import Family
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.apply import payload_of
from kpx.reconcile.plan import make_plan
from kpx.sources.events import Event, Gone, Put
from tests.agent.harness import counting
from tests.apiserver import churn, node_objects
from tests.apiserver.churn import Change
from tests.compiler.towns import rivals, town
from tests.kernel import BACKENDS, FAMILIES, Namespace, needs_kernel
from tests.manifests import Manifest, endpoint_slice, service

NODE = "node-0"
CONFIG = KubeProxyConfiguration()
WEIGHTS = ("100", "100", "95", "5", "0")


def event_of(change: Change) -> Event:
    metadata = change.obj["metadata"]
    if change.verb == "delete":
        return Gone(change.obj["kind"], metadata.get("namespace", ""), metadata["name"])
    if change.obj["kind"] == "EndpointSlice":
        weight = WEIGHTS[crc32(str(metadata).encode()) % len(WEIGHTS)]
        metadata.setdefault("annotations", {})["kpx.dev/weight"] = weight
    return Put(parse_object(change.obj["kind"], change.obj))


def note(objects: dict[tuple[str, str, str], Object], change: Change, event: Event) -> None:
    metadata = change.obj["metadata"]
    key = (change.obj["kind"], metadata["namespace"], metadata["name"])
    if isinstance(event, Put):
        objects[key] = event.object
    else:
        objects.pop(key, None)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_desired_equals_a_fresh_compile_after_every_change(seed: int, family: Family, layout: Layout) -> None:
    store = Store(NODE)
    node = parse_object("Node", node_objects(1)[0])
    store.take(Put(node))
    target = Target(NODE, family, layout, nfacct=bool(seed % 2))
    desired = Desired(store, CONFIG, target)
    desired.load_all()
    objects: dict[tuple[str, str, str], Object] = {}
    for number, change in enumerate(islice(churn(seed, services=60), 500)):
        event = event_of(change)
        note(objects, change, event)
        desired.refresh(store.take(event))
        if number % 20 == 0:
            whole, _ = compile_sound([node, *objects.values()], CONFIG, target)
            assert desired.ruleset() == whole


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(2))
def test_edits_lead_the_kernel_to_what_a_fresh_compile_wants(
    seed: int, family: Family, backend: Backend, layout: Layout, namespace: Namespace
) -> None:
    store = Store(NODE)
    store.take(Put(parse_object("Node", node_objects(1)[0])))
    counts = bool(seed % 2) and counting(backend, family)
    target, tools = Target(NODE, family, layout, nfacct=counts), Tools(backend, family)
    if counts:
        namespace.run([sys.executable, "-c", "from kpx.netfilter import nfacct; nfacct.ensure()"])
    desired = Desired(store, CONFIG, target)
    desired.load_all()
    first = make_plan(desired.ruleset(), {}).edits
    namespace.restore(backend, family, payload_of(first, tools))
    objects: dict[tuple[str, str, str], Object] = {}
    for change in islice(churn(seed, services=60), 400):
        event = event_of(change)
        note(objects, change, event)
        edits = desired.refresh(store.take(event))
        if edits:
            namespace.restore(backend, family, payload_of(edits, tools))
    live = parse_save(namespace.save(backend, family))
    assert not make_plan(desired.ruleset(), live)
    assert store.node is not None
    whole, problems = compile_sound([store.node, *objects.values()], CONFIG, target)
    assert problems == ()
    assert not make_plan(whole, live)


def greedy(number: int, pick: random.Random) -> list[Manifest]:
    """A Service of many ports and of addresses that others want, too, with some endpoints."""
    ports = [{"name": f"p{port}", "port": 1000 + port, "targetPort": 8080} for port in range(pick.randrange(14))]
    addresses = [f"203.0.113.{one}" for one in pick.sample(range(1, 8), 3)]
    made = endpoint_slice(f"greedy-{number}", [f"10.250.{number}.{one + 1}" for one in range(pick.randrange(4))])
    made["ports"] = [{"name": one["name"], "port": 8080, "protocol": "TCP"} for one in ports]
    unnamed = [{"port": 80}]
    return [service(f"greedy-{number}", f"10.111.0.{number + 1}", ports=ports or unnamed, externalIPs=addresses), made]


def crowd(pick: random.Random) -> list[Manifest]:
    """A Service of many endpoints, and some of its slices, which repeat each other's endpoints now and then."""
    found: list[Manifest] = [service("crowd", "10.112.0.1")]
    for number in pick.sample(range(8), 3):
        pods = [f"10.240.{pick.choice((number, 0))}.{one + 1}" for one in pick.sample(range(20), pick.randrange(10))]
        made = endpoint_slice("crowd", pods)
        made["metadata"]["name"] = f"crowd-{number}"
        found.append(made)
    return found


def test_a_crowd_changes_a_few_endpoints_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that come, change and go; those that go on changing don't keep the others waiting."""
    monkeypatch.setattr(desired_module, "ENDPOINTS", 25)
    store = Store(NODE)
    store.take(Put(parse_object("Node", node_objects(1)[0])))
    desired = Desired(store, CONFIG, Target(NODE))
    desired.load_all()
    key = ("shop", "crowd")

    def put(number: int, count: int) -> None:
        made = endpoint_slice("crowd", [f"10.240.{number}.{one + 1}" for one in range(count)])
        made["metadata"]["name"] = f"crowd-{number:02}"
        store.take(Put(parse_object("EndpointSlice", made)))

    def in_force() -> frozenset[str]:
        return frozenset(str(one) for served in desired.served(key) for one in served.endpoints)

    store.take(Put(parse_object("Service", service("crowd", "10.112.0.1"))))
    for number in range(40):
        put(number, 10)
    before = in_force()
    for turn in range(20):
        put(turn % 2, 5 + turn % 5)  # these two never rest
        desired.recompile_step({key})
        changed, before = in_force() ^ before, in_force()
        assert 0 < len(changed) <= 45, "a slice more than there is room for, and what has to change again"
    assert len(in_force()) >= 390
    for number in range(20, 40):
        store.take(Gone("EndpointSlice", "shop", f"crowd-{number:02}"))
    left, steps = frozenset({key}), 0
    while left:
        _, left = desired.recompile_step(left)
        steps += 1
    assert steps > 6
    fresh = Desired(store, CONFIG, Target(NODE))
    fresh.load_all()
    assert desired.digest == fresh.digest
    assert len(in_force()) < 200


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("seed", range(3))
def test_large_services_are_changed_step_by_step_whatever_comes_in_between(
    seed: int, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desired_module, "STEP", 12)
    monkeypatch.setattr(desired_module, "ENDPOINTS", 9)
    pick, store, tools = random.Random(seed), Store(NODE), Tools(Backend.NFT, Family.IPV4)
    store.take(Put(parse_object("Node", node_objects(1)[0])))
    desired = Desired(store, CONFIG, Target(NODE))
    desired.load_all()
    namespace.restore(Backend.NFT, Family.IPV4, payload_of(make_plan(desired.ruleset(), {}).edits, tools))
    objects: dict[tuple[str, str, str], Object] = {}
    waiting: set[ServiceKey] = set()
    most = 0
    for turn in range(150):
        if turn < 100:
            made = greedy(pick.randrange(3), pick) if pick.random() < 0.7 else crowd(pick)
            for one in (parse_object(str(one["kind"]), one) for one in made):
                objects[type(one).__name__, one.metadata.namespace, one.metadata.name] = one
                waiting |= store.take(Put(one))
        changes, unfinished = desired.recompile_step(waiting)
        waiting = set(unfinished)
        most = max(most, len(waiting))
        if payload := payload_of(desired.edits(changes), tools):
            namespace.restore(Backend.NFT, Family.IPV4, payload)
        if turn % 10 == 0:  # what is believed is so, also halfway
            assert not make_plan(desired.ruleset(), parse_save(namespace.save(Backend.NFT, Family.IPV4)))
    assert most
    assert not waiting
    assert store.node is not None
    whole, _ = compile_sound([store.node, *objects.values()], CONFIG, Target(NODE))
    assert not make_plan(whole, parse_save(namespace.save(Backend.NFT, Family.IPV4)))
    fresh = Desired(store, CONFIG, Target(NODE))
    fresh.load_all()
    assert desired.digest == fresh.digest


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", Layout)
def test_where_two_rules_match_one_packet_their_order_is_kept(
    family: Family, layout: Layout, namespace: Namespace
) -> None:
    manifests = town(120) + rivals()[1:]
    for one in manifests:
        if one["kind"] == "EndpointSlice":  # too many of them, and all rules lose their comments
            del one["endpoints"][2:]
    node, *objects = [parse_object(one["kind"], one) for one in manifests]
    store = Store(NODE)
    store.take(Put(node))
    desired, tools = Desired(store, CONFIG, Target(NODE, family, layout)), Tools(Backend.NFT, family)
    desired.load_all()
    namespace.restore(Backend.NFT, family, payload_of(make_plan(desired.ruleset(), {}).edits, tools))
    pick = random.Random(0)
    pick.shuffle(objects)
    counted = []
    for number in range(0, len(objects), 12):
        touched = {key for one in objects[number : number + 12] for key in store.take(Put(one))}
        edits = desired.refresh(touched)
        if desired.order_counts:
            live = parse_save(namespace.save(Backend.NFT, family))
            edits = make_plan(desired.ruleset(), live).edits
        if payload := payload_of(edits, tools):
            namespace.restore(Backend.NFT, family, payload)
        assert not make_plan(desired.ruleset(), parse_save(namespace.save(Backend.NFT, family)))
        counted.append(desired.order_counts)
    if family is Family.IPV4:
        assert any(counted) == (layout is Layout.CLASSIC)
    assert not all(counted)
