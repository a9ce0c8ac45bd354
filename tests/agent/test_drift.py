"""Others damage our rules in every way that the tools offer; the agent puts them right and touches nothing else.

Figures are printed (`pytest -s`); the bound in the tests is a generous one, for machines that are busy.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import pytest

from kpx.compiler.frame import JUMPS
from kpx.compiler.names import endpoint_chain, port_hash
from kpx.family import Family
from kpx.model.service import ServicePortName
from kpx.netfilter.names import ours
from kpx.netfilter.rule import target_of
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.save import Saved, parse_save
from kpx.netfilter.tools import Backend
from kpx.reconcile.plan import make_plan
from tests.agent.harness import AgentProcess, counting, expected, live, save, wait_until_converged
from tests.apiserver import ApiServer
from tests.kernel import BACKENDS, FAMILIES, PROGRAM, needs_kernel
from tests.lab import Namespace
from tests.manifests import Manifest, endpoint_slice, node, service

pytestmark = [pytest.mark.kernel, needs_kernel]

LIMIT = 60.0
"""Seconds within which a repair has to be done, at the very most."""
CONFIG = {"iptables": {"minSyncPeriod": "1s"}}
PODS = ("10.244.0.10", "10.244.1.11", "10.244.1.12")
PODS6 = ("fd00:10:244::10", "fd00:10:244::11")
NAMES = {name: ServicePortName("shop", name, "http", "tcp") for name in ("web", "edge", "web6")}
WEB, WEB6 = (f"KUBE-SVC-{port_hash(NAMES[name])}" for name in ("web", "web6"))
EDGE, EDGE_FIREWALL = (f"KUBE-{kind}-{port_hash(NAMES['edge'])}" for kind in ("EXT", "FW"))
FIRST, SECOND, THIRD = (endpoint_chain(NAMES["web"], f"{pod}:8080") for pod in PODS)
FIRST6 = endpoint_chain(NAMES["web6"], f"[{PODS6[0]}]:8080")
COMMENT = f'-m comment --comment "shop/web:http -> {PODS[0]}:8080"'
(PORTAL,) = JUMPS["nat"]["PREROUTING"]
FORWARD = JUMPS["filter"]["FORWARD"]

FOREIGN = {
    family: f"""\
*filter
:FORWARD DROP [0:0]
:FOREIGN - [0:0]
-A INPUT -p tcp -m tcp --dport 666 -j DROP
-A FORWARD -j FOREIGN
-A FOREIGN -p tcp -m tcp --dport 25 -j REJECT --reject-with {reject}
COMMIT
*nat
:FOREIGN - [0:0]
-A PREROUTING -j FOREIGN
-A FOREIGN -p tcp -m tcp --dport 8888 -j REDIRECT --to-ports 9999
-A POSTROUTING -p tcp -m tcp --dport 7777 -j ACCEPT
COMMIT
*mangle
-A POSTROUTING -p tcp -m tcp --dport 5555 -j MARK --set-xmark 0x1/0xffffffff
COMMIT
"""
    for family, reject in {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}.items()
}
"""What another program keeps beside ours."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What somebody does: a shell script, in which `ipt`, `ip6t` and `load` (`iptables-restore`) are the backend's."""

    name: str
    script: str
    backends: tuple[Backend, ...] = BACKENDS


def at_once(name: str, table: str, *lines: str, program: str = "load --noflush") -> Damage:
    """Several commands in one transaction, so that no repair comes between them."""
    return Damage(name, "\n".join([f"{program} <<'END'", f"*{table}", *lines, "COMMIT", "END"]))


LANES = (Backend.NFT,) * 2 + (Backend.LEGACY,) * 4
DAMAGES = (
    Damage("flush the dispatch", "ipt -t nat -F KUBE-SERVICES"),
    Damage("flush a service chain", f"ipt -t nat -F {WEB}"),
    Damage("flush an endpoint chain", f"ipt -t nat -F {FIRST}"),
    Damage("flush the external chain", f"ipt -t nat -F {EDGE}"),
    Damage("flush the masquerading", "ipt -t nat -F KUBE-POSTROUTING"),
    Damage("flush the forwarding", "ipt -F KUBE-FORWARD"),
    Damage("flush the load balancer firewall", "ipt -F KUBE-PROXY-FIREWALL"),
    Damage("flush the refusals", "ipt -F KUBE-SERVICES"),
    Damage("flush the localhost guard", "ipt -F KUBE-FIREWALL"),
    Damage("flush the filter table", "ipt -F"),
    Damage("flush the nat table", "ipt -t nat -F"),
    Damage("flush both families", "ipt -F\nipt -t nat -F\nip6t -F\nip6t -t nat -F"),
    Damage("flush an IPv6 chain", f"ip6t -t nat -F {WEB6}"),
    at_once("empty the nat table, chains and all", "nat", program="load"),
    at_once("load a table of another tool", "nat", ":OTHER - [0:0]", "-A OUTPUT -j OTHER", program="load"),
    at_once("load a policy of another tool", "filter", ":FORWARD ACCEPT [0:0]", ":INPUT ACCEPT [0:0]", program="load"),
    at_once("delete a chain", "nat", f"-D {WEB} 4", f"-F {THIRD}", f"-X {THIRD}"),
    Damage("delete a rule", f"ipt -t nat -D {WEB} 1"),
    Damage("delete an IPv6 rule", f"ip6t -t nat -D {FIRST6} 2"),
    Damage("delete the node ports", "ipt -t nat -D KUBE-SERVICES $(ipt -t nat -S KUBE-SERVICES | grep -c ^-A)"),
    Damage("insert a rule on top of the dispatch", "ipt -t nat -I KUBE-SERVICES -d 10.96.0.1 -j RETURN"),
    Damage("append to an endpoint chain", f"ipt -t nat -A {FIRST} -j ACCEPT"),
    Damage("jump elsewhere from a chain of ours", "ipt -A KUBE-FORWARD -j FOREIGN"),
    Damage("replace a rule", f"ipt -t nat -R {WEB} 4 -j {FIRST}"),
    at_once("reorder endpoints", "nat", f"-D {WEB} 4", f"-I {WEB} 1 -j {THIRD}"),
    Damage(
        "change a probability",
        f"ipt -t nat -R {WEB} 2 {COMMENT} -m statistic --mode random --probability 0.9 -j {FIRST}",
    ),
    Damage("change a DNAT", f"ipt -t nat -R {FIRST} 2 -p tcp -j DNAT --to-destination 10.244.9.9:8080"),
    Damage("change the mark", "ipt -t nat -R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x8000/0x8000"),
    Damage("open the firewall of a Service", f"ipt -t nat -R {EDGE_FIREWALL} 1 -j {EDGE}"),
    Damage("delete a jump", f"ipt -t nat -D PREROUTING {PORTAL}"),
    Damage("delete the jumps of a built-in chain", "ipt -F OUTPUT"),
    Damage("duplicate a jump", f"ipt -t nat -A OUTPUT {PORTAL}"),
    at_once("reorder jumps", "filter", f"-D FORWARD {FORWARD[0]}", f"-A FORWARD {FORWARD[0]}"),
    at_once(
        "get in front of our jumps and delete one",
        "filter",
        "-I INPUT 1 -p tcp -m tcp --dport 99 -j ACCEPT",
        f"-D INPUT {JUMPS['filter']['INPUT'][1]}",
    ),
    Damage("rename a chain", f"ipt -t nat -E {WEB} RENAMED"),
    Damage("rename a chain to a name like ours", f"ipt -t nat -E {WEB} KUBE-SVC-AAAAAAAAAAAAAAAA"),
    at_once("add a chain with a name like ours", "nat", ":KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]"),
    Damage("nft flush ruleset", "nft flush ruleset", (Backend.NFT,)),
    Damage("nft delete table", "nft delete table ip nat", (Backend.NFT,)),
    Damage("nft flush chain", "nft flush chain ip nat KUBE-SERVICES", (Backend.NFT,)),
    Damage("nft delete rules", "nft flush table ip6 filter", (Backend.NFT,)),
)


CASES = [
    pytest.param(backend, damage, id=f"{backend}-{damage.name.replace(' ', '-')}")
    for backend in BACKENDS
    for damage in DAMAGES
    if backend in damage.backends
]


def cluster() -> list[Manifest]:
    """Services that between them have rules of every kind."""
    outside: Manifest = {
        "type": "LoadBalancer",
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "externalIPs": ["203.0.113.80"],
        "sessionAffinity": "ClientIP",
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}],
    }
    edge = service("edge", "10.96.0.2", **outside) | {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}
    return [
        node(),
        service("web", "10.96.0.1"),
        endpoint_slice("web", PODS),
        edge,
        endpoint_slice("edge", PODS[:2]),
        service("empty", "10.96.0.3"),
        service("web6", "fd00:96::1"),
        endpoint_slice("web6", PODS6),
        service("empty6", "fd00:96::3"),
    ]


Foreign = Mapping[str, Mapping[str, tuple[str | None, tuple[str, ...]]]]
"""By table and chain: policy and rules that aren't ours."""


def foreign(saved: Saved) -> Foreign:
    """What isn't ours; chains that hold nothing, as the kernel makes them, don't count."""
    found: dict[str, dict[str, tuple[str | None, tuple[str, ...]]]] = {}
    for name, table in saved.items():
        for chain, one in table.chains.items():
            rules = tuple(rule for rule in one.rules if not ours(target_of(rule) or ""))
            if not ours(chain) and (rules or one.policy != "ACCEPT"):
                found.setdefault(name, {})[chain] = one.policy, rules
    return found


@dataclass(frozen=True, slots=True)
class Victim:
    """A node with an agent, a namespace to try damages in, what the kernel should hold, and how repairs went."""

    agent: AgentProcess
    server: ApiServer
    trial: Namespace
    wanted: Mapping[Family, Ruleset]
    seconds: dict[str, float] = field(default_factory=dict)

    def do(self, damage: Damage, where: Namespace) -> None:
        backend = self.agent.backend
        # Whoever closes the agent's lock is suspect: what happens elsewhere must not.
        lock = (
            self.agent.environment["XTABLES_LOCKFILE"] if where is self.agent.namespace else self.agent.folder / "lock"
        )
        tools = (
            f"export XTABLES_LOCKFILE={lock}",
            f'ipt() {{ iptables-{backend} -w "$@"; }}',
            f'ip6t() {{ ip6tables-{backend} -w "$@"; }}',
            f'load() {{ iptables-{backend}-restore "$@"; }}',
        )
        where.run(["sh", "-e"], stdin="\n".join((*tools, damage.script, "")))

    def try_out(self, damage: Damage) -> tuple[Mapping[Family, Foreign], Mapping[Family, set[str]]]:
        """Do it where nobody repairs it: what it leaves of other programs' rules, and which chains it spoils."""
        backend = self.agent.backend
        if counting(backend, Family.IPV4):  # rules refer to counters that have to be there
            self.trial.run([sys.executable, "-c", "from kpx.netfilter import nfacct; nfacct.ensure()"])
        for family in FAMILIES:
            self.trial.run([f"{PROGRAM[family]}-{backend}-restore"], stdin=save(self.agent.namespace, backend, family))
        self.do(damage, self.trial)
        after = {family: live(self.trial, backend, family) for family in FAMILIES}
        edits = {family: make_plan(self.wanted[family], after[family]).edits for family in FAMILIES}
        spoilt = {family: {f"{one.table} {one.chain}" for one in some} for family, some in edits.items() if some}
        return {family: foreign(after[family]) for family in FAMILIES}, spoilt

    def wait_until_repaired(self, limit: float = LIMIT) -> float:
        """Seconds until the kernel was found as it should be."""
        start = time.monotonic()
        for _ in self.agent.patiently(limit, "repaired", pause=0.01):
            if not any(make_plan(wanted, self.live(family)) for family, wanted in self.wanted.items()):
                break
        return time.monotonic() - start

    def live(self, family: Family) -> Saved:
        return live(self.agent.namespace, self.agent.backend, family)

    def give_back(self) -> None:
        """Put back what a damage took from other programs, and let the agent find that it is none of its business."""
        lost = {family: missing(self.live(family), family) for family in FAMILIES}
        for family, payload in lost.items():
            if payload:
                self.agent.namespace.run([f"{PROGRAM[family]}-{self.agent.backend}-restore", "-n"], stdin=payload)
        if any(lost.values()):
            time.sleep(1.1)  # until what it may do at once is as much as ever


def missing(saved: Saved, family: Family) -> str:
    """A payload for the foreign rules that aren't there; empty if all are."""
    theirs, now = foreign(parse_save(FOREIGN[family])), foreign(saved)
    lines: list[str] = []
    for table, chains in theirs.items():
        present = {chain: now.get(table, {}).get(chain, ("", ()))[1] for chain in chains}
        rules = [f"-A {chain} {rule}" for chain in chains for rule in chains[chain][1] if rule not in present[chain]]
        declared = [
            f":{chain} {policy or '-'} [0:0]" for chain, (policy, _) in chains.items() if policy or not present[chain]
        ]
        lines += [f"*{table}", *declared, *rules, "COMMIT"] if rules else []
    return "".join(f"{line}\n" for line in lines)


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Victim]]:
    """Several, since repairs mostly wait: on legacy for up to a second."""
    with ExitStack() as stack:
        folders = [(backend, tmp_path_factory.mktemp(f"drift-{backend}")) for backend in LANES]
        victims = [stack.enter_context(victim(*place)) for place in folders]
        for one in victims:
            wait_until_converged(one.agent, one.server)
        yield victims
        for one in victims:
            check_accounts(one)


@pytest.fixture(scope="module")
def repairs(victims: Sequence[Victim]) -> Iterator[Mapping[tuple[Backend, Damage], Future[None]]]:
    """Every damage, under way: one after the other on each victim."""
    with ExitStack() as stack:
        lanes = [(one, stack.enter_context(ThreadPoolExecutor(1))) for one in victims]
        found: dict[tuple[Backend, Damage], Future[None]] = {}
        for backend in BACKENDS:
            turns = cycle(lane for lane in lanes if lane[0].agent.backend is backend)
            for damage in DAMAGES:
                if backend in damage.backends:
                    one, pool = next(turns)
                    found[backend, damage] = pool.submit(prove, one, damage)
        yield found
        for _, pool in lanes:
            pool.shutdown(cancel_futures=True)


@contextmanager
def victim(backend: Backend, folder: Path) -> Iterator[Victim]:
    """A node with all of our rules and those of another program."""
    with Namespace() as namespace, Namespace() as trial, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        for family, text in FOREIGN.items():
            namespace.run([f"{PROGRAM[family]}-{backend}-restore"], stdin=text)
        server.put_all(cluster())
        with AgentProcess(namespace, folder, server, backend=backend, config=CONFIG) as agent:
            wanted = {family: expected(cluster(), agent.configuration, family) for family in FAMILIES}
            yield Victim(agent, server, trial, wanted)


def check_accounts(victim: Victim) -> None:
    """Print the seconds, and see that what was counted is what was logged."""
    found = sorted((seconds, name) for name, seconds in victim.seconds.items())
    middle, (most, slowest) = found[len(found) // 2][0], found[-1]
    figures = f"half repaired in {middle:.2f} s, at most {most:.2f} s ({slowest})"
    print(f"\n{victim.agent.backend}: {len(found)} damages, {figures}")
    counted = sum(entry["differences"] for entry in victim.agent.log("rules repaired"))
    assert victim.agent.total("kpx_repairs_total") == counted > 0


def prove(victim: Victim, damage: Damage) -> None:
    """Do a damage; it is repaired, and what was wrong is told; other programs keep what it left them."""
    victim.give_back()
    theirs, spoilt = victim.try_out(damage)
    assert spoilt
    before = len(victim.agent.log("rules repaired"))
    victim.do(damage, victim.agent.namespace)
    victim.seconds[damage.name] = victim.wait_until_repaired()
    assert {family: foreign(victim.live(family)) for family in FAMILIES} == theirs
    reports = victim.agent.wait_for_log("rules repaired", before + len(spoilt))[before:]
    assert {entry["family"] for entry in reports} == spoilt.keys()
    for entry in reports:
        told = {difference.partition(" ")[2] for difference in entry["wrong"]}
        assert told
        assert told <= spoilt[Family(entry["family"])]


@pytest.mark.parametrize(("backend", "damage"), CASES)
def test_a_damage_is_repaired(
    repairs: Mapping[tuple[Backend, Damage], Future[None]], backend: Backend, damage: Damage
) -> None:
    repairs[backend, damage].result()


def test_after_many_repairs_the_cluster_is_not_held_up(victims: Sequence[Victim]) -> None:
    victim = victims[0]
    for _ in range(8):
        victim.do(DAMAGES[0], victim.agent.namespace)
        victim.wait_until_repaired()
    victim.server.put(endpoint_slice("empty", PODS))
    wait_until_converged(victim.agent, victim.server)
