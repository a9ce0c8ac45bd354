"""Services that claim what others have: who has it, and that the others lose nothing else."""

import random
from pathlib import Path
from typing import Any

import pytest

from kpx.agent.desired import Desired
from kpx.agent.store import Store
from kpx.analysis.packet import Host, Packet
from kpx.analysis.simulate import Simulator, tables_of
from kpx.api import KubeProxyConfiguration, Object, parse_object
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.family import Family
from kpx.netfilter.tools import Backend
from kpx.sources.events import Gone, Put
from tests.agent.harness import AgentProcess, save
from tests.kernel import BACKENDS, needs_kernel
from tests.lab import Namespace
from tests.manifests import endpoint_slice, service, write

CONFIG = KubeProxyConfiguration()
TARGET = Target("node-0", Family.IPV4, Layout.TREE)


def shop(name: str, cluster_ip: str, pod: str, **spec: Any) -> list[Object]:
    """A Service with one pod."""
    made = service(name, cluster_ip, **spec), endpoint_slice(name, [pod])
    return [parse_object(one["kind"], one) for one in made]


def pods(objects: list[Object], address: str, port: int = 80) -> set[str]:
    """Where connections to an address go."""
    ruleset, _ = compile_sound(objects, CONFIG, TARGET)
    packet = Packet("10.244.0.99", address, "tcp", port)
    outcomes = Simulator(tables_of(ruleset), Family.IPV4, Host(["192.168.0.1"])).outcomes(packet)
    return {str(one).split()[1].partition(":")[0] for one in outcomes}


def test_who_was_allotted_an_address_keeps_it() -> None:
    """Anybody may write what is another's cluster IP into externalIPs (CVE-2020-8554)."""
    objects = shop("web", "10.96.0.10", "10.244.0.1")
    thief = shop("a-thief", "10.96.0.11", "10.244.0.66", externalIPs=["10.96.0.10"])
    assert pods(objects + thief, "10.96.0.10") == {"10.244.0.1"}
    assert pods(objects + thief, "10.96.0.11") == {"10.244.0.66"}


def test_who_goes_without_an_external_ip_keeps_the_rest() -> None:
    objects = [
        *shop("a", "10.96.0.10", "10.244.0.1", externalIPs=["203.0.113.1"]),
        *shop("b", "10.96.0.11", "10.244.0.2", externalIPs=["203.0.113.1", "203.0.113.2"]),
    ]
    assert pods(objects, "203.0.113.1") == {"10.244.0.1"}
    assert pods(objects, "203.0.113.2") == pods(objects, "10.96.0.11") == {"10.244.0.2"}
    _, (problem,) = compile_sound(objects, CONFIG, TARGET)
    assert str(problem) == (
        "Service shop/b: spec.externalIPs: 203.0.113.1 port 80/tcp is already taken by Service shop/a"
    )


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_claimed_when_the_rules_are_those_of_a_fresh_compile(seed: int, layout: Layout) -> None:
    rng = random.Random(seed)
    store, objects = Store("node-0"), dict[str, list[Object]]()
    target = Target("node-0", Family.IPV4, layout)
    desired = Desired(store, CONFIG, target)
    desired.load_all()
    contested = 0
    for _ in range(300):
        name = rng.choice("abcdef")
        touched: set[tuple[str, str]] = set()
        if name in objects and rng.random() < 0.3:
            del objects[name]
            touched |= store.take(Gone("Service", "shop", name))
            touched |= store.take(Gone("EndpointSlice", "shop", f"{name}-a"))
        else:
            addresses = rng.sample(["10.96.0.1", "10.96.0.2", "203.0.113.1", "203.0.113.2"], rng.randrange(3))
            ports = [{"name": "http", "port": 80, "nodePort": rng.choice([30001, 30002, 30003])}]
            objects[name] = shop(
                name,
                f"10.96.0.{rng.randrange(1, 6)}",
                "10.244.0.1",
                type="NodePort",
                externalIPs=addresses,
                ports=ports,
            )
            for one in objects[name]:
                touched |= store.take(Put(one))
        before = dict(desired.losers())
        desired.refresh(touched)
        assert desired.take_new_losers() == {
            loser: winner for loser, winner in desired.losers().items() if before.get(loser) != winner
        }
        whole, problems = compile_sound([one for both in objects.values() for one in both], CONFIG, target)
        assert desired.ruleset() == whole
        assert {f"Service {'/'.join(loser)}" for loser in desired.losers()} == {one.subject for one in problems}
        contested += bool(problems)
        if rng.random() < 0.1:
            before = dict(desired.losers())
            desired.load_all()
            assert desired.ruleset() == whole
            assert desired.losers() == before
            assert not desired.take_new_losers()
    assert contested > 100


BALANCER = "203.0.113.7"


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_the_kernel_a_load_balancers_address_and_its_ranges_stay_when_a_thief_comes(
    backend: Backend, tmp_path: Path
) -> None:
    """And what the thief loses comes to it when the other one goes."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    port = {"name": "http", "port": 80, "nodePort": 30080}
    web = service("web", "10.96.0.10", type="LoadBalancer", ports=[port], loadBalancerSourceRanges=["192.0.2.0/24"])
    web |= {"status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}}
    victim = [web, endpoint_slice("web", ["10.244.0.1"])]
    wanted = [BALANCER, "203.0.113.66"]
    thief = [service("a-thief", "10.96.0.66", externalIPs=wanted), endpoint_slice("a-thief", ["10.244.0.66"])]
    write(folder / "victim.json", victim)
    with Namespace() as namespace:
        namespace.ip("link set lo up")
        arguments = ("--manifests", folder, "--node", "node-0")
        with AgentProcess(namespace, tmp_path, None, *arguments, backend=backend, layout=Layout.CLASSIC) as agent:

            def rules(of: str) -> list[str]:
                lines = save(namespace, backend, Family.IPV4).splitlines()
                return [line for line in lines if line.startswith("-A") and of in line]

            def wait_for(of: str, text: str) -> None:
                for _ in agent.patiently(20, f"{text} in rules of {of}"):
                    if any(text in line for line in rules(of)):
                        return

            wait_for(BALANCER, "-j KUBE-FW-")
            before = rules(BALANCER), rules("shop/web:http")
            write(folder / "thief.json", thief)
            wait_for("203.0.113.66", "shop/a-thief:http")
            assert (rules(BALANCER), rules("shop/web:http")) == before
            (told,) = agent.wait_for_log("an address or node port is another Service's")
            assert (told["service"], told["other"], told["field"]) == ("shop/a-thief", "shop/web", "spec.externalIPs")
            assert f"{BALANCER} port 80/tcp was given to Service shop/web" in told["what"]
            (folder / "victim.json").unlink()
            wait_for(BALANCER, "shop/a-thief:http")
            assert rules("shop/web:http") == []


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("seed", range(2))
def test_rivals_with_many_ports_that_change_step_by_step_end_as_a_fresh_compile(seed: int, layout: Layout) -> None:
    """Steps of one that wins and of one that loses the same addresses meet, and are broken off by further changes."""
    addresses, names, count = ["203.0.113.1", "203.0.113.2", "203.0.113.3"], "abc", 300
    rng, target = random.Random(seed), Target("node-0", Family.IPV4, layout)
    store, objects = Store("node-0"), dict[str, list[Object]]()

    def put(name: str, external: list[str]) -> frozenset[tuple[str, str]]:
        ports = [{"name": f"p{number}", "port": 1000 + number} for number in range(count)]
        made = service(name, f"10.96.1.{names.index(name)}", ports=ports, externalIPs=external)
        listed = endpoint_slice(name, ["10.244.0.1"])
        listed |= {"ports": [{"name": port["name"], "port": 8080} for port in ports]}
        objects[name] = [parse_object(one["kind"], one) for one in (made, listed)]
        return frozenset().union(*(store.take(Put(one)) for one in objects[name]))

    for name in names:
        put(name, addresses)
    desired = Desired(store, CONFIG, target)
    desired.load_all()
    left, steps = frozenset[tuple[str, str]](), 0
    for _ in range(8):
        name = rng.choice(names)
        if name in objects and rng.random() < 0.4:
            del objects[name]
            left |= store.take(Gone("Service", "shop", name)) | store.take(Gone("EndpointSlice", "shop", f"{name}-a"))
        else:
            left |= put(name, rng.sample(addresses, rng.randrange(4)))
        for _ in range(rng.choice([1, 2, 100])):
            changes, left = desired.recompile_step(left)
            desired.edits(changes)
            steps += 1
            if not left:
                break
    while left:
        changes, left = desired.recompile_step(left)
        desired.edits(changes)
    whole, _ = compile_sound([one for both in objects.values() for one in both], CONFIG, target)
    assert desired.ruleset() == whole
    assert steps > 8
