"""Which loadBalancerSourceRanges restrict: those that a real kube-proxy 1.36.2 wrote a KUBE-FW chain for."""

from pathlib import Path

import pytest

from kpx.analysis.packet import Fate, Host, Packet
from kpx.analysis.simulate import Simulator, tables_of
from kpx.api import KubeProxyConfiguration, Object, parse_object
from kpx.compiler.compile import Layout, Target, compile_objects
from kpx.family import Family
from kpx.model.cluster import cluster_of
from tests.cli.inprocess import run
from tests.manifests import Manifest, endpoint_slice, node, service, write

CASES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "everybody": (["0.0.0.0/0"], [], []),
    "everybody of IPv6": (["::/0"], [], []),
    "more beside everybody": (["0.0.0.0/0", "10.0.0.0/8"], [], []),
    "everybody last": (["10.0.0.0/8", "0.0.0.0/0"], [], []),
    "everybody of both": (["0.0.0.0/0", "::/0"], [], []),
    "everybody of the other family": (["10.0.0.0/8", "::/0"], ["10.0.0.0/8"], []),
    "everybody here, few there": (["0.0.0.0/0", "2001:db8::/32"], [], ["2001:db8::/32"]),
    "the other family only": (["2001:db8::/32"], [], ["2001:db8::/32"]),
    "one": (["10.0.0.0/8"], ["10.0.0.0/8"], []),
    "everybody between spaces": ([" 0.0.0.0/0 "], [], []),
    "one twice": (["10.0.0.0/8", "10.0.0.0/8"], ["10.0.0.0/8", "10.0.0.0/8"], []),
    "both halves": (["0.0.0.0/1", "128.0.0.0/1"], ["0.0.0.0/1", "128.0.0.0/1"], []),
    "none": ([], [], []),
}
"""What the Service says, and the ranges that its KUBE-FW chain lets in, by family; none: there is no such chain."""

PLACES = {
    Family.IPV4: ("198.18.1.1", "10.244.0.1", ("10.1.2.3", "192.0.2.9", "203.0.113.9")),
    Family.IPV6: ("2001:db8:ff::1", "fd00:244::1", ("2001:db8::9", "2001:470::9")),
}
"""The load balancer's address, the pod's, and clients."""


def manifests(ranges: list[str]) -> list[Manifest]:
    made = service(
        "web",
        "10.96.0.10",
        clusterIPs=["10.96.0.10", "fd00:96::10"],
        type="LoadBalancer",
        loadBalancerSourceRanges=ranges,
        ports=[{"name": "http", "port": 80, "nodePort": 30080}],
    )
    made |= {"status": {"loadBalancer": {"ingress": [{"ip": address} for address, _, _ in PLACES.values()]}}}
    slices = [endpoint_slice("web", [pod]) for _, pod, _ in PLACES.values()]
    slices[1]["metadata"] |= {"name": "web-six"}
    return [node(), made, *slices]


def objects(ranges: list[str]) -> list[Object]:
    return [parse_object(one["kind"], one) for one in manifests(ranges)]


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("case", CASES)
def test_who_is_let_in(case: str, family: Family, layout: Layout) -> None:
    ranges, *by_family = CASES[case]
    let_in = by_family[list(Family).index(family)]
    address, _, clients = PLACES[family]
    config = KubeProxyConfiguration(cluster_cidr="10.244.0.0/16,fd00:244::/64")
    ruleset = compile_objects(objects(ranges), config, Target("node-0", family, layout))
    firewalls = [rules for chain, rules in ruleset.tables["nat"].chains.items() if chain.startswith("KUBE-FW-")]
    if not let_in:
        assert firewalls == []
        assert not any(
            "not accepted by" in rule for rules in ruleset.tables["filter"].chains.values() for rule in rules
        )
    else:
        (rules,) = firewalls
        assert [rule.split()[1] for rule in rules if rule.startswith("-s ") and address not in rule] == let_in
    simulator = Simulator(tables_of(ruleset), family, Host(["192.168.0.1"]))
    port = cluster_of(objects(ranges), family, "node-0").ports
    assert [list(one.source_ranges) for one in port.values()] == [let_in]
    open_to = {
        client: {one.fate for one in simulator.outcomes(Packet(client, address, "tcp", 80))} == {Fate.TRANSLATED}
        for client in clients
    }
    assert open_to == {client: not let_in or _in(client, let_in) for client in clients}


def _in(client: str, ranges: list[str]) -> bool:
    """Whether a client is in one of the ranges of `CASES`, by its first digits."""
    known = {
        "10.0.0.0/8": client.startswith("10."),
        "2001:db8::/32": client.startswith("2001:db8:"),
        "0.0.0.0/1": client.startswith("10."),
        "128.0.0.0/1": client.startswith(("192.", "203.")),
    }
    return any(known[one] for one in ranges)


def test_explain_says_that_everybody_is_let_in(tmp_path: Path) -> None:
    file = write(tmp_path / "all.json", manifests(["0.0.0.0/0", "10.0.0.0/8"]))
    done = run("explain", "shop/web", "-f", str(file), "--node", "node-0")
    assert "holds 0.0.0.0/0: for this family everybody may use" in " ".join(done.stdout.split())
    assert "only." not in done.stdout


def test_diff_tells_that_a_load_balancer_opens(tmp_path: Path) -> None:
    old, new = (
        write(tmp_path / name, manifests(ranges))
        for name, ranges in (("old.json", ["10.0.0.0/8"]), ("new.json", ["10.0.0.0/8", "0.0.0.0/0"]))
    )
    done = run("diff", "-f", str(new), "--against", str(old), "--node", "node-0")
    assert "load balancer open to 10.0.0.0/8 → everybody" in " ".join(done.stdout.split())
