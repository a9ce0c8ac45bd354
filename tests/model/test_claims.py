"""Who has an address that several claim: nobody takes what another was given (the class of CVE-2020-8554)."""

import random
from pathlib import Path
from typing import Any

import pytest

from kpx.agent.desired import Desired
from kpx.agent.store import Store
from kpx.analysis.packet import Fate, Host, Origin, Packet
from kpx.analysis.simulate import Simulator, tables_of
from kpx.api import KubeProxyConfiguration, Object, parse_object
from kpx.compiler.compile import Layout, Target, compile_sound
from kpx.explain.report import Explanation
from kpx.family import Family
from kpx.model.claims import Claims
from kpx.model.service import ServicePort, ServicePortName
from kpx.sources.events import Gone, Put
from tests.cli.inprocess import run
from tests.manifests import Manifest, endpoint_slice, node, service, write

CONFIG = KubeProxyConfiguration(cluster_cidr="10.244.0.0/16,fd00:244::/64")
BALANCER, BALANCER_6 = "203.0.113.7", "2001:db8::7"
NODE_ADDRESS = "10.200.0.2"
API_ADDRESS = "192.0.2.6"


def shop(
    name: str,
    number: int,
    ingress: tuple[str, ...] = (),
    protocol: str = "TCP",
    port: int = 80,
    node_port: int | None = None,
    **spec: Any,
) -> list[Manifest]:
    """A dual-stack Service with a pod in each family, told by its number."""
    ports: dict[str, Any] = {"name": "http", "port": port, "protocol": protocol}
    if ingress and node_port is None:
        node_port = 30000 + number
    if node_port is not None:
        spec |= {"type": "LoadBalancer" if ingress else "NodePort"}
        ports |= {"nodePort": node_port}
    made = service(
        name, f"10.96.0.{number}", clusterIPs=[f"10.96.0.{number}", f"fd00:96::{number}"], ports=[ports], **spec
    )
    made |= {"status": {"loadBalancer": {"ingress": [{"ip": one} for one in ingress]}}}
    slices = [endpoint_slice(name, [pod]) for pod in (f"10.244.0.{number}", f"fd00:244::{number}")]
    slices[1]["metadata"] |= {"name": f"{name}-six"}
    for one in slices:
        one["ports"] = [{"name": "http", "port": 8080, "protocol": protocol}]
    return [made, *slices]


def api_server(**spec: Any) -> list[Manifest]:
    """default/kubernetes, as an API server makes it."""
    made = service("kubernetes", "10.96.0.1", port=443, **spec)
    listed = endpoint_slice("kubernetes", [API_ADDRESS]) | {"ports": [{"name": "http", "port": 6443}]}
    for one in (made, listed):
        one["metadata"] |= {"namespace": "default"}
    return [made, listed]


def parsed(manifests: list[Manifest]) -> list[Object]:
    return [parse_object(one["kind"], one) for one in manifests]


def met(
    manifests: list[Manifest],
    address: str,
    port: int = 80,
    protocol: str = "tcp",
    client: str = "",
    layout: Layout = Layout.CLASSIC,
) -> set[str] | Fate:
    """The pods that packets to an address get to, by number; or what becomes of them otherwise."""
    family = Family.of(address)
    ruleset, _ = compile_sound(parsed(manifests), CONFIG, Target("node-0", family, layout))
    client = client or {Family.IPV4: "198.51.100.9", Family.IPV6: "2001:470::9"}[family]
    packet = Packet(client, address, protocol, port, origin=Origin.OUTSIDE)
    outcomes = Simulator(tables_of(ruleset), family, Host([NODE_ADDRESS])).outcomes(packet)
    fates = {one.fate for one in outcomes}
    if fates == {Fate.TRANSLATED}:
        return {one.destination.removesuffix(":8080").strip("[]") for one in outcomes}
    (fate,) = fates
    return fate


def problems(manifests: list[Manifest], family: Family = Family.IPV4) -> list[str]:
    return [str(one) for one in compile_sound(parsed(manifests), CONFIG, Target("node-0", family))[1]]


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
@pytest.mark.parametrize(("address", "own"), [(BALANCER, "10.244.0.20"), (BALANCER_6, "fd00:244::20")])
@pytest.mark.parametrize("thief", ["a-thief", "z-thief"])
def test_who_was_given_a_load_balancers_address_keeps_it(
    thief: str, address: str, own: str, protocol: str, layout: Layout
) -> None:
    lower = protocol.lower()
    made = [
        *shop("web", 20, (BALANCER, BALANCER_6), protocol),
        *shop(thief, 66, protocol=protocol, externalIPs=[BALANCER, BALANCER_6, "203.0.113.66", "2001:db8::66"]),
    ]
    assert met(made, address, 80, lower, layout=layout) == {own}
    family = Family.of(address)
    other, its_own, pod = {
        Family.IPV4: ("203.0.113.66", "10.96.0.66", "10.244.0.66"),
        Family.IPV6: ("2001:db8::66", "fd00:96::66", "fd00:244::66"),
    }[family]
    assert met(made, other, 80, lower, layout=layout) == met(made, its_own, 80, lower, layout=layout) == {pod}
    assert problems(made, family) == [
        f"Service shop/{thief}: spec.externalIPs: {address} port 80/{lower} was given to Service shop/web "
        "in its status.loadBalancer.ingress"
    ]


@pytest.mark.parametrize("layout", Layout)
def test_its_source_ranges_stay(layout: Layout) -> None:
    made = [
        *shop("web", 20, (BALANCER,), loadBalancerSourceRanges=["192.0.2.0/24"]),
        *shop("a-thief", 66, externalIPs=[BALANCER]),
    ]
    assert met(made, BALANCER, client="192.0.2.9", layout=layout) == {"10.244.0.20"}
    assert met(made, BALANCER, client="198.51.100.9", layout=layout) is Fate.DROPPED


def test_another_port_of_a_load_balancers_address_is_nobodys() -> None:
    made = [*shop("web", 20, (BALANCER,)), *shop("a-thief", 66, port=8080, externalIPs=[BALANCER])]
    assert met(made, BALANCER) == {"10.244.0.20"}
    assert met(made, BALANCER, 8080) == {"10.244.0.66"}
    assert problems(made) == []


def test_a_service_may_have_an_address_by_both_fields() -> None:
    made = [*shop("web", 20, (BALANCER,), externalIPs=[BALANCER]), *shop("a-thief", 66, externalIPs=[BALANCER])]
    assert met(made, BALANCER) == {"10.244.0.20"}
    alone, _ = compile_sound(parsed(shop("web", 20, (BALANCER,), externalIPs=[BALANCER])), CONFIG, Target("node-0"))
    both, _ = compile_sound(parsed(made), CONFIG, Target("node-0"))
    rules = {rule for rule in alone.tables["nat"].chains["KUBE-SERVICES"] if BALANCER in rule}
    assert rules == {rule for rule in both.tables["nat"].chains["KUBE-SERVICES"] if BALANCER in rule}


def test_of_two_that_were_given_an_address_the_first_by_name_has_it() -> None:
    made = [*shop("web", 20, (BALANCER,)), *shop("a", 21, (BALANCER,))]
    assert met(made, BALANCER) == {"10.244.0.21"}


def test_a_status_takes_no_cluster_ip() -> None:
    made = [*shop("web", 20), *shop("a-thief", 66, ("10.96.0.20",))]
    assert met(made, "10.96.0.20") == {"10.244.0.20"}


@pytest.mark.parametrize("layout", Layout)
def test_a_node_port_stays_its_services_on_the_nodes_own_address(layout: Layout) -> None:
    victim = [node(), *shop("web", 20, node_port=30080)]
    thief = shop("a-thief", 66, port=30080, externalIPs=[NODE_ADDRESS, "203.0.113.66"])
    assert met(victim + thief, NODE_ADDRESS, 30080, layout=layout) == {"10.244.0.20"}
    assert met(victim + thief, "203.0.113.66", 30080, layout=layout) == {"10.244.0.66"}
    assert problems(victim + thief) == [
        f"Service shop/a-thief: spec.externalIPs: {NODE_ADDRESS} port 30080/tcp is a node port of Service shop/web "
        "on this node"
    ]


def test_a_nodes_address_is_an_external_ip_where_no_node_port_is_meant() -> None:
    """Many clusters without load balancers do so: it is as kube-proxy has it."""
    victim = [node(), *shop("web", 20, node_port=30080)]
    own = shop("a", 66, externalIPs=[NODE_ADDRESS])
    assert met(victim + own, NODE_ADDRESS, 80) == {"10.244.0.66"}
    both = shop("b", 67, port=31000, node_port=31000, externalIPs=[NODE_ADDRESS])
    assert met([node(), *both], NODE_ADDRESS, 31000) == {"10.244.0.67"}
    two = [
        *shop("a", 66, port=31000, externalIPs=[NODE_ADDRESS]),
        *shop("b", 67, port=31000, externalIPs=["192.0.2.1"]),
    ]
    assert problems([node(), *two]) == problems([node(), *both]) == problems(victim + own) == []


def test_where_node_ports_arent_open_none_is_taken() -> None:
    config = KubeProxyConfiguration(node_port_addresses=("192.0.2.0/24",))
    made = [node(), *shop("web", 20, node_port=30080), *shop("a", 66, port=30080, externalIPs=[NODE_ADDRESS])]
    assert compile_sound(parsed(made), config, Target("node-0"))[1] == ()


def test_nobody_takes_what_the_api_server_listens_on() -> None:
    thief = shop("a-thief", 66, port=6443, externalIPs=[API_ADDRESS, "203.0.113.66"])
    made = [*api_server(), *thief]
    assert met(thief, API_ADDRESS, 6443) == {"10.244.0.66"}
    assert met(made, API_ADDRESS, 6443) is Fate.UNTOUCHED
    assert met(made, "203.0.113.66", 6443) == {"10.244.0.66"}
    assert met(made, "10.96.0.1", 443) == {f"{API_ADDRESS}:6443"}
    assert problems(made) == [
        f"Service shop/a-thief: spec.externalIPs: {API_ADDRESS} port 6443/tcp is the API server's, an endpoint of "
        "Service default/kubernetes"
    ]


def test_the_api_servers_own_service_and_load_balancers_may_have_its_address() -> None:
    own = api_server(externalIPs=[API_ADDRESS], ports=[{"name": "http", "port": 6443}])
    assert met(own, API_ADDRESS, 6443) == {f"{API_ADDRESS}:6443"}
    given = [*api_server(), *shop("front", 20, (API_ADDRESS,), port=6443)]
    assert met(given, API_ADDRESS, 6443) == {"10.244.0.20"}
    assert problems(own) == problems(given) == []


def test_explain_says_who_has_it(tmp_path: Path) -> None:
    def findings(asked: str, made: list[Manifest]) -> str:
        file = write(tmp_path / "all.json", made)
        done = run("explain", asked, "-f", str(file), "--node", "node-0", "--keep-going", "--json")
        told = Explanation.model_validate_json(done.stdout)
        return " ".join(f"{one.code}: {one.what} {one.advice}" for port in told.ports for one in port.findings)

    web, thief = shop("web", 20, (BALANCER,)), shop("a-thief", 66, externalIPs=[BALANCER])
    for asked in ("shop/web", "shop/a-thief", BALANCER):
        told = findings(asked, [node(), *web, *thief])
        assert f"address-taken: {BALANCER} port 80/tcp was given to shop/web, as its status says." in told
        assert "shop/a-thief asks for it in spec.externalIPs; shop/a-thief goes without" in told
    thief = shop("a-thief", 66, port=6443, externalIPs=[API_ADDRESS])
    for asked in ("default/kubernetes", "shop/a-thief"):
        told = findings(asked, [node(), *api_server(), *thief])
        assert ("is where the API server listens, an endpoint of default/kubernetes." in told) == (
            asked != "default/kubernetes"
        )
    thief = shop("a-thief", 66, port=30080, externalIPs=[NODE_ADDRESS])
    for asked in ("shop/web", "shop/a-thief"):
        told = findings(asked, [node(), *shop("web", 20, node_port=30080), *thief])
        assert f"{NODE_ADDRESS} port 30080/tcp is a node port of shop/web on this node." in told


def test_diff_of_manifests_tells_of_it(tmp_path: Path) -> None:
    web, thief = shop("web", 20, (BALANCER,)), shop("a-thief", 66, externalIPs=[BALANCER])
    old, new = write(tmp_path / "old.json", web), write(tmp_path / "new.json", web + thief)
    done = run("diff", "-f", str(new), "--against", str(old), "--node", "node-0", "--keep-going")
    assert (
        f"Service shop/a-thief: spec.externalIPs: {BALANCER} port 80/tcp was given to Service shop/web"
        in done.complaint
    )
    assert done.status == 2


ADDRESSES = (BALANCER, "203.0.113.8", NODE_ADDRESS, API_ADDRESS, "10.96.0.21")


def chosen(rng: random.Random, number: int) -> list[Manifest]:
    return shop(
        "abcdef"[number],
        20 + number,
        tuple(rng.sample(ADDRESSES, rng.randrange(2))),
        port=rng.choice([80, 6443, 30001, 30002]),
        node_port=rng.choice([30001, 30002, 30003]) if rng.random() < 0.5 else None,
        externalIPs=rng.sample(ADDRESSES, rng.randrange(4)),
    )


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("seed", range(4))
def test_changes_lead_to_the_same_as_a_fresh_compile_and_touch_only_who_wins_or_loses(
    seed: int, layout: Layout
) -> None:
    """Services, the API server's endpoints and the node's addresses come, change and go."""
    rng = random.Random(seed)
    store, target = Store("node-0"), Target("node-0", Family.IPV4, layout)
    desired = Desired(store, CONFIG, target)
    desired.load_all()
    objects: dict[str, list[Manifest]] = {}
    contested = 0
    for _ in range(250):
        touched: set[tuple[str, str]] = set()
        before = {key: desired.ports(key) for key in desired.services()}
        name = rng.choice(["abcdef"[one] for one in range(6)] + ["kubernetes", "node"])
        if name in objects and rng.random() < 0.3:
            for gone in objects.pop(name):
                metadata = gone["metadata"]
                touched |= store.take(Gone(gone["kind"], metadata.get("namespace", ""), metadata["name"]))
        else:
            if name == "node":
                address = rng.choice([NODE_ADDRESS, "10.200.0.9"])
                made = [node() | {"status": {"addresses": [{"type": "InternalIP", "address": address}]}}]
            elif name == "kubernetes":
                made = api_server()
            else:
                made = chosen(rng, "abcdef".index(name))
            objects[name] = made
            for one in parsed(made):
                touched |= store.take(Put(one))
        if desired.settings_changed():
            desired.load_all()
        else:
            changes = desired.recompile(touched)
            compiled = {(one.name.namespace, one.name.name) for change in changes for one in change if one}
            won_or_lost = {key for key in before if desired.ports(key) != before[key]}
            assert compiled <= touched | won_or_lost | {key for key in desired.services() if key not in before}
            desired.edits(changes)
        whole, found = compile_sound(parsed([one for each in objects.values() for one in each]), CONFIG, target)
        assert desired.ruleset() == whole
        assert {f"Service {'/'.join(loser)}" for loser in desired.losers()} == {one.subject for one in found}
        for loser, winner in desired.losers().items():
            assert winner in {loss.winner for loss in desired.losses(loser)}
        contested += bool(found)
    assert contested > 100


def rivals(count: int, addresses: int = 3) -> dict[tuple[str, str], tuple[ServicePort, ...]]:
    return {
        ("shop", f"s{number:02}"): (
            ServicePort(
                ServicePortName("shop", f"s{number:02}", "", "tcp"),
                f"10.96.0.{number}",
                80,
                external_ips=tuple(f"203.0.113.{one}" for one in range(addresses)),
            ),
        )
        for number in range(count)
    }


def test_a_change_concerns_only_those_between_whom_something_changes_hands() -> None:
    claims, every = Claims(), rivals(20)
    for who, ports in every.items():
        claims.put(who, ports)
    names = list(every)
    assert claims.put(names[5], every[names[5]]).changed == frozenset()
    assert claims.put(names[5], ()).changed == frozenset()
    gone = claims.put(names[0], ())
    assert gone.changed == {names[1]}
    assert gone.beaten_by_another == {*names[2:5], *names[6:]}
    assert claims.put(names[0], every[names[0]]).changed == {names[1]}
    assert claims.losers() == dict.fromkeys([*names[1:5], *names[6:]], names[0])
