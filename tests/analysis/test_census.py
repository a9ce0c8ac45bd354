"""Real connections counted by those who answer them, against what the simulator says of each.

`KPX_TOWNS` says how many random clusters are tried, 50 connections each; `KPX_FIRST` is the first seed.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

import kpx
from kpx.analysis.packet import Fate, Host, Origin, Outcome
from kpx.analysis.simulate import Path as Way
from kpx.analysis.simulate import Simulator, tables_of, tables_of_save
from kpx.compiler import tree
from kpx.compiler.dispatch import DEFAULT
from kpx.family import Family
from kpx.model.node import contains
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.save import Saved, parse_save
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from kpx.sources import manifests
from tests import lab
from tests.analysis.probes import entries
from tests.analysis.towns import HOST, HOST_PORT, PODS, PORTS, STRANGERS, Flow, Sender, Town
from tests.chance import as_shared
from tests.compiler.layouts import FEW, LOW, Input
from tests.kernel import KUBE_PROXY_1_20, case_path, needs_kernel
from tests.lab.client import Attempt
from tests.lab.node import CLIENT_NETWORKS, NODE_ADDRESSES

pytestmark = [pytest.mark.kernel, needs_kernel]

TOWNS = int(os.environ.get("KPX_TOWNS", "10"))
FIRST = int(os.environ.get("KPX_FIRST", "0"))
CONNECTIONS = 50
REPEATED = 8
SOURCE_PORTS = cycle(range(10_000, 30_000))
BINS = 10
AWAY = ("192.0.2.201:", "192.0.2.202:")
OWN_CHAINS = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-XLB-", "KUBE-SEP-", "KPX-SV", "KPX-AF")


@pytest.fixture(scope="module")
def node() -> Iterator[lab.Node]:
    with lab.Node() as one:
        pods = [one.pod(name, ipv4, ipv6, on=on) for name, (ipv4, ipv6, on) in PODS.items()]
        on_host = lab.Backends(one.host, tcp=[HOST_PORT], udp=[HOST_PORT])
        with lab.Backends(*pods, tcp=PORTS, udp=PORTS), on_host:
            yield one


class Seen(NamedTuple):
    """What a connection came to: who answered (`address:port`) and whether it saw another address than the sender's."""

    outcome: lab.Outcome
    destination: str = ""
    masqueraded: bool = False


def connect(node: lab.Node, flow: Flow, count: int = 1) -> list[Seen]:
    host = node.client
    if flow.sender.name:
        host = node.host if flow.sender.origin is Origin.NODE else node.pods[flow.sender.name]
    found = []
    for _ in range(count):
        # A port that was used a moment ago may still be somebody's in conntrack, which then asks no rule.
        source = (flow.sender.address, next(SOURCE_PORTS))
        result = lab.connect(host, flow.address, flow.port, protocol=flow.protocol, source=source)
        found += [seen(node, flow, attempt) for attempt in result.attempts]
    return found


def seen(node: lab.Node, flow: Flow, attempt: Attempt) -> Seen:
    if attempt.answer is None:
        return Seen(attempt.outcome)
    answering = {node.host.name: node.host, node.client.name: node.client, **node.pods}[attempt.answer.backend]
    address = answering.address(Family.of(flow.address).value)
    return Seen(attempt.outcome, place(address, attempt.answer.port), attempt.answer.source != flow.sender.address)


def place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def agrees(node: lab.Node, flow: Flow, outcome: Outcome, seen: Seen) -> bool:
    """Whether this is how an outcome looks from outside."""
    match outcome.fate:
        case Fate.TRANSLATED:
            # The node's own packets bear its address anyway.
            same = flow.sender.origin is Origin.NODE or outcome.masqueraded == seen.masqueraded
            # Addresses outside of the cluster are the client's, who answers by its first one.
            away = outcome.destination.startswith(AWAY) and seen.destination.startswith(f"{node.client.ipv4}:")
            there = outcome.destination.split(":")[-1] == seen.destination.split(":")[-1]
            return same and (outcome.destination == seen.destination or (away and there))
        case Fate.UNTOUCHED:
            if is_pod(node, flow):
                return seen == (lab.Outcome.ANSWERED, place(flow.address, flow.port), False)
            # The host that has the address says that nobody listens there; else nobody says anything.
            hosts = [f"{one}/{32 if '.' in one else 128}" for one in (*HOST, "127.0.0.1")]
            somebody = any(contains(one, flow.address) for one in (*hosts, *CLIENT_NETWORKS))
            return seen.outcome is (lab.Outcome.REFUSED if somebody else lab.Outcome.TIMED_OUT)
        case Fate.REJECTED:
            return seen.outcome is lab.Outcome.REFUSED
        case Fate.DROPPED:
            # What a host's own rules drop is an error to those who send it.
            refused = seen.outcome is lab.Outcome.REFUSED and flow.sender.origin is Origin.NODE
            return seen.outcome is lab.Outcome.TIMED_OUT or refused
    return False


def is_pod(node: lab.Node, flow: Flow) -> bool:
    return flow.port in PORTS and any(flow.address in (pod.ipv4, pod.ipv6) for pod in node.pods.values())


class Census:
    """Connections made through one ruleset, with the way that each of them must have taken."""

    def __init__(self, node: lab.Node, simulator: Simulator, chance: random.Random) -> None:
        self.node, self.simulator, self.chance = node, simulator, chance
        self.known: dict[str, dict[str, float]] = {}
        self.unexplained: list[str] = []
        self.ranks: list[float] = []
        self.steps: Counter[tuple[str, int]] = Counter()

    def take(self, flows: Sequence[Flow]) -> None:
        """Connections with affinity one after the other, since each depends on those before; the others at once."""
        sticky = [flow for flow in flows if any(way.noted for way in self.simulator.paths(flow.packet()))]
        others = [flow for flow in flows if flow not in sticky]
        with ThreadPoolExecutor(8) as pool:
            for flow, every in zip(others, pool.map(self._connect, others), strict=True):
                for one in every:
                    self._judge(flow, one)
        for flow in sticky:
            self._judge(flow, *connect(self.node, flow))

    def _connect(self, flow: Flow) -> list[Seen]:
        """Where chance decides, several connections tell more of it than one."""
        return connect(self.node, flow, REPEATED if len(self.simulator.outcomes(flow.packet())) > 1 else 1)

    def _judge(self, flow: Flow, seen: Seen) -> None:
        known = self.known.setdefault(flow.sender.address, {})
        ways = self.simulator.paths(flow.packet(), known)
        fitting = [way for way in ways if agrees(self.node, flow, way.outcome, seen)]
        if not fitting:
            expected = sorted({str(way.outcome) for way in ways})
            self.unexplained.append(f"{flow}: {seen}, not {expected}, known {known}")
            return
        self._rank(ways, fitting)
        known |= dict.fromkeys(fitting[0].noted, 0.0)
        nat = (step for step in fitting[0].steps if step.table == "nat" and step.chain.startswith(OWN_CHAINS))
        self.steps.update((step.chain, step.position) for step in nat)

    def _rank(self, ways: Sequence[Way], fitting: Sequence[Way]) -> None:
        """Where in the distribution the connection fell: evenly spread over (0, 1) if the distribution is right."""
        order = sorted(ways, key=lambda way: (str(way.outcome), way.steps))
        before = sum((way.probability for way in order[: order.index(fitting[0])]), Fraction(0))
        share = sum((way.probability for way in fitting), Fraction(0))
        if share < 1:
            self.ranks.append(float(before) + float(share) * self.chance.random())


def counters(saved: Saved) -> Counter[tuple[str, int]]:
    """What the kernel counted in chains that are a Service's own."""
    found = Counter(
        {
            (name, position): packets
            for name, chain in saved["nat"].chains.items()
            if name.startswith(OWN_CHAINS)
            for position, (packets, _) in enumerate(chain.counters or (), 1)
        }
    )
    return +found


def put(node: lab.Node, text: str, family: Family, backend: lab.Backend) -> None:
    node.flush()
    node.host.namespace.run(["conntrack", "-F"])
    node.load(text, family=family.value, backend=backend)


def text_of(ruleset: Ruleset) -> str:
    return payload(transactions(make_plan(ruleset, {}).edits))


def spreads_evenly(ranks: Sequence[float]) -> bool:
    counted = Counter(min(int(rank * BINS), BINS - 1) for rank in ranks)
    return as_shared([counted[one] for one in range(BINS)], [1] * BINS)


def read_counters(node: lab.Node, family: Family, backend: lab.Backend) -> Counter[tuple[str, int]]:
    command = [node.tool("save", family.value, backend), "-c", "-t", "nat"]
    return counters(parse_save(node.host.namespace.run(command).stdout))


def test_random_clusters(node: lab.Node) -> None:
    ranks: list[float] = []
    fates: Counter[Fate] = Counter()
    for seed in range(FIRST, FIRST + TOWNS):
        town = Town(seed)
        some = Input.of(town.objects, town.config, town.family)
        layouts = (some.classic(), some.tree(LOW, FEW), some.tree(DEFAULT, tree.choose))
        ruleset, backend = layouts[seed % 3], get_args(lab.Backend)[seed % 2]
        put(node, text_of(ruleset), town.family, backend)
        census = Census(node, Simulator(tables_of(ruleset), town.family, Host(HOST)), random.Random(seed))
        flows = list(town.flows(CONNECTIONS))
        census.take(flows)
        assert not census.unexplained, f"seed {seed} ({backend}, layout {seed % 3}): {census.unexplained}"
        assert read_counters(node, town.family, backend) == census.steps, f"seed {seed}"
        ranks += census.ranks
        fates.update(min(census.simulator.outcomes(flow.packet())).fate for flow in flows)
    assert spreads_evenly(ranks)
    if TOWNS >= 10:
        assert set(fates) == {Fate.TRANSLATED, Fate.UNTOUCHED, Fate.REJECTED, Fate.DROPPED}
        assert len(ranks) > TOWNS * 10


# -- kube-proxy's own rules ----------------------------------------------------------------------------

CASE_PODS = {
    "12": ("10.244.0.12", "fd00:244::12", "node-0"),
    "10": ("10.244.1.10", "fd00:244:1::10", "node-1"),
    "11": ("10.244.2.11", "fd00:244:2::11", "node-2"),
    "dns-1": ("10.244.1.3", "fd00:244:1::3", "node-1"),
    "dns-2": ("10.244.2.3", "fd00:244:2::3", "node-2"),
}
TCP_PORTS = (80, 8080, 8443, 2905, 53, 9153)
AWAY_PORTS = (5432, 9000)
CASES = [*sorted(path for path in case_path("").iterdir() if path.is_dir()), KUBE_PROXY_1_20]


@pytest.fixture(scope="module")
def case_node() -> Iterator[lab.Node]:
    with lab.Node() as one:
        pods = [one.pod(name, ipv4, ipv6, on=on) for name, (ipv4, ipv6, on) in CASE_PODS.items()]
        away = lab.Backends(one.client, tcp=AWAY_PORTS, addresses=[address[:-1] for address in AWAY])
        with lab.Backends(*pods, tcp=TCP_PORTS, udp=[53]), away:
            yield one


def flows_of(case: Path, family: Family, pick: random.Random) -> list[Flow]:
    """Connections to everything that a case's Services offer, from everywhere."""
    config, _ = kpx.parse_config((case / "config.yaml").read_bytes())
    some = Input(manifests.load([str(case / "cluster.yaml")]).objects, config, family)
    six = family is Family.IPV6
    strangers = [Sender("", Origin.OUTSIDE, one) for one in STRANGERS[family][:2]]
    pods = [Sender(name, Origin.POD, pod[six]) for name, pod in CASE_PODS.items()]
    own = Sender("node-0", Origin.NODE, NODE_ADDRESSES[six])
    flows = []
    for address, protocol, port in entries(some.classic()):
        if protocol != "sctp":
            where = address or NODE_ADDRESSES[six]
            outside = [] if contains(CLIENT_NETWORKS[six], where) else strangers  # what is its own it doesn't send
            for sender in (*outside, *pick.sample(pods, 2), own) * 2:
                flows += [Flow(sender, where, port, "udp" if protocol == "udp" else "tcp")]
    return pick.sample(flows, min(len(flows), CONNECTIONS))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kube_proxys_dumps(case_node: lab.Node, case: Path) -> None:
    """They are loaded as they are; one backend and family each, all of them if many towns are tried."""
    number = CASES.index(case)
    every = [(family, backend) for family in Family for backend in get_args(lab.Backend)]
    chosen = every if TOWNS >= 100 or case.name == "dual-stack" else [every[number % 2]]
    if case == KUBE_PROXY_1_20:
        chosen = [(Family.IPV4, "nft"), (Family.IPV6, "legacy")]
    for family, backend in chosen:
        text = (case / f"{family}.save").read_text()
        put(case_node, text, family, backend)
        tables, policies = tables_of_save(parse_save(text))
        pick = random.Random(number)
        census = Census(case_node, Simulator(tables, family, Host(HOST), policies), pick)
        census.take(flows_of(case, family, pick))
        assert not census.unexplained, f"{family} {backend}: {census.unexplained}"
        if case.name != "selectorless":  # whose two endpoints can't be told apart
            assert read_counters(case_node, family, backend) == census.steps
        if len(census.ranks) >= 10 * BINS:
            assert spreads_evenly(census.ranks)
