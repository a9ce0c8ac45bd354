"""`kpx explain`: causes in broken clusters, endpoints with the reasons, ways in; what rules alone tell; bad input."""

import json
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpx
from kpx import Layout
from kpx.api import parse_object
from kpx.compiler.names import endpoint_chain, port_hash
from kpx.explain.report import EndpointReport, Explanation, ServicePortReport, WayReport
from kpx.family import Family
from kpx.model.cluster import cluster_of
from kpx.model.node import NodeView
from kpx.model.policy import exclusions, select
from kpx.model.service import ServicePortName
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from tests.cli.inprocess import Done, run
from tests.compiler.clusters import clusters
from tests.explain.broken import BROKEN, CONFIG, NODE_PORT, PODS, Broken, endpoint, slices, web
from tests.kernel import KUBE_PROXY_1_20, Namespace, case_path, needs_kernel
from tests.manifests import Manifest, endpoint_slice, node, service, write

WEB = ServicePortName("shop", "web", "http", "tcp")


def save_of(ruleset: Ruleset) -> str:
    """What a kernel with these rules would print: there, jumps are rules like others."""
    return re.sub(r"^-I (\S+) \d+ ", r"-A \1 ", payload(transactions(make_plan(ruleset, {}).edits)), flags=re.MULTILINE)


def ask(folder: Path, asked: str, objects: Iterable[Manifest], config: Manifest | None = None, *options: str) -> Done:
    path = write(folder / "objects.json", objects)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    return run("explain", asked, "-f", str(path), "--config", str(folder / "config.json"), *options)


def explained(
    folder: Path, asked: str, objects: Iterable[Manifest], config: Manifest | None = None, *options: str
) -> Explanation:
    done = ask(folder, asked, objects, config, "--json", *options)
    assert done.status == 0, done.complaint
    return Explanation.model_validate_json(done.stdout)


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BROKEN, ids=[case.name for case in BROKEN])
def test_the_cause_is_named(case: Broken, tmp_path: Path) -> None:
    options: tuple[str, ...] = ()
    if case.rules:
        objects = [parse_object(one["kind"], one) for one in case.objects]
        ruleset = kpx.compile(objects, kpx.parse_config(json.dumps(CONFIG).encode())[0], node_name="node-0")
        save = save_of(ruleset)
        (tmp_path / "sound.save").write_text(save)
        (tmp_path / "rules.save").write_text(case.rules(save))
        sound = explained(tmp_path, case.asked, case.objects, case.config, "--rules", str(tmp_path / "sound.save"))
        assert not sound.every_finding
        options = ("--rules", str(tmp_path / "rules.save"))
    found = explained(tmp_path, case.asked, case.objects, case.config, *options)
    causes = [one for one in found.every_finding if one.code == case.cause]
    assert causes, found.every_finding
    said = " ".join(one.what for one in causes)
    assert [word for word in case.words if word not in said] == [], said
    printed = ask(tmp_path, case.asked, case.objects, case.config, *options).stdout
    assert max(map(len, printed.splitlines())) <= 80
    assert causes[0].what.split()[0] in printed


def test_there_are_enough_broken_clusters() -> None:
    assert len({case.name for case in BROKEN}) >= 25
    assert len({case.cause for case in BROKEN}) >= 20


def test_nothing_is_wrong_with_a_sound_service(tmp_path: Path) -> None:
    found = explained(tmp_path, "shop/web", [node(), web(), slices()])
    assert not found.every_finding
    assert "Nothing is wrong" in ask(tmp_path, "shop/web", [node(), web(), slices()]).stdout


# -- endpoints ---------------------------------------------------------------------------------------


def port_of(found: Explanation, family: str = "ipv4") -> ServicePortReport:
    (port,) = [one for one in found.ports if one.family == family]
    return port


def endpoints(found: Explanation) -> dict[str, EndpointReport]:
    return {one.address: one for one in port_of(found).endpoints}


def hinted(address: str, zone: str, where: str = "node-1") -> Manifest:
    return endpoint(address, where) | {"hints": {"forZones": [{"name": zone}]}}


@pytest.mark.parametrize(
    ("kind", "spec", "some", "expected"),
    [
        ("ready", {}, [endpoint(PODS[0]), endpoint(PODS[1], ready=False)], ["", "not ready"]),
        (
            "terminating",
            {},
            [endpoint(PODS[0]), endpoint(PODS[1], ready=False, serving=True, terminating=True)],
            ["", "terminating: used only while"],
        ),
        ("zone", {}, [hinted(PODS[0], "zone-a"), hinted(PODS[1], "zone-b")], ["", "for zone zone-b by its hints"]),
        (
            "local",
            {"internalTrafficPolicy": "Local"},
            [endpoint(PODS[0], "node-0"), endpoint(PODS[1])],
            ["", "on another"],
        ),
    ],
)  # fmt: skip
def test_why_an_endpoint_takes_no_part(
    kind: str, spec: dict[str, Any], some: list[Manifest], expected: list[str], tmp_path: Path
) -> None:
    found = endpoints(explained(tmp_path, "shop/web", [node(), web(**spec), slices(endpoints=some)]))
    assert [one.takes_part for one in found.values()] == [True, False]
    for one, words in zip(found.values(), expected, strict=True):
        assert words in one.why_not
        assert bool(words) == bool(one.why_not)


def test_endpoints_that_belong_to_no_port_or_another_family(tmp_path: Path) -> None:
    other = slices(PODS[1]) | {
        "metadata": slices()["metadata"] | {"name": "web-b"},
        "ports": [{"name": "x", "port": 1}],
    }
    six = endpoint_slice("web", ["fd00:244::11"]) | {"metadata": slices()["metadata"] | {"name": "web-c"}}
    found = endpoints(explained(tmp_path, "shop/web", [node(), web(), slices(PODS[0]), other, six]))
    assert found["10.244.0.11:8080"].takes_part
    assert "no tcp port called 'http'" in found[PODS[1]].why_not
    assert "IPv6" in found["fd00:244::11"].why_not
    assert not found[PODS[1]].takes_part
    assert not found["fd00:244::11"].takes_part


def test_an_endpoint_that_gets_a_part_of_the_traffic(tmp_path: Path) -> None:
    spec = {"type": "NodePort", "ports": NODE_PORT, "externalTrafficPolicy": "Local"}
    some = slices(endpoints=[endpoint(PODS[0], "node-0"), endpoint(PODS[1])])
    found = explained(tmp_path, "shop/web", [node(), web(**spec), some])
    here, there = endpoints(found).values()
    assert (here.takes_part, here.why_not, there.takes_part) == (True, "", True)
    assert "clients from outside" in there.why_not
    ways = {way.kind: way for way in port_of(found).ways}
    assert (ways["cluster IP"].policy, ways["node port"].policy) == ("Cluster", "Local")
    assert destinations(ways["node port"]) == {
        "pods": {"10.244.0.11:8080", "10.244.1.12:8080"},
        "the node itself": {"10.244.0.11:8080", "10.244.1.12:8080"},
        "outside": {"10.244.0.11:8080"},
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters(), st.sampled_from(Family))
def test_whoever_is_left_out_has_a_reason_and_nobody_else(objects: list[Manifest], family: Family) -> None:
    cluster = cluster_of([parse_object(one["kind"], one) for one in objects], family, "node-0")
    view = NodeView("node-0", family, "zone-a")
    for name, port in cluster.ports.items():
        every = cluster.endpoints.get(name, ())
        chosen, why = select(every, port, view), exclusions(every, view)
        if port.uses_cluster_endpoints:
            assert set(every) - set(chosen.cluster) == why.cluster.keys()
        if port.uses_local_endpoints:
            assert set(every) - set(chosen.local) == why.local.keys()


# -- ways in -----------------------------------------------------------------------------------------


def destinations(way: WayReport) -> dict[str, set[str]]:
    return {use.sender: {one.destination for one in use.outcomes} for use in way.uses}


def test_every_way_in_and_who_may_use_it(tmp_path: Path) -> None:
    spec = {
        "type": "LoadBalancer",
        "ports": NODE_PORT,
        "externalIPs": ["192.0.2.80"],
        "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "sessionAffinity": "ClientIP",
    }
    balanced = web(**spec) | {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}
    found = explained(tmp_path, "203.0.113.9:80", [node(), balanced, slices()])
    assert found.about == "load balancer IP 203.0.113.9:80 of shop/web:http"
    port = port_of(found)
    assert (port.affinity_seconds, list(port.source_ranges)) == (10_800, ["198.51.100.0/24"])
    ways = {way.kind: way for way in port.ways}
    assert {way.kind: f"{way.address}:{way.port}" for way in port.ways} == {
        "cluster IP": "10.96.0.10:80",
        "external IP": "192.0.2.80:80",
        "load balancer IP": "203.0.113.9:80",
        "node port": "10.200.0.2:30080",
    }
    fates = {use.sender: use.outcomes[0].fate for use in ways["load balancer IP"].uses}
    assert fates == {
        "pods": "dropped",
        "the node itself": "dropped",
        "outside in 198.51.100.0/24": "translated",
        "elsewhere outside": "dropped",
    }
    hidden = {use.sender: {one.masqueraded for one in use.outcomes} for use in ways["cluster IP"].uses}
    assert (hidden["pods"], hidden["elsewhere outside"]) == ({False}, {True})
    for way in port.ways:
        for use in way.uses:
            assert sum(Fraction(one.exact) for one in use.outcomes) == 1


@pytest.mark.parametrize(
    ("asked", "about"),
    [
        ("shop/web", "Service shop/web"),
        ("shop/web:http", "Service shop/web"),
        ("10.96.0.10", "cluster IP 10.96.0.10 of shop/web:http"),
        ("10.96.0.10:80", "cluster IP 10.96.0.10:80 of shop/web:http"),
        ("30080", "node port 30080 of shop/web:http"),
        (":30080", "node port 30080 of shop/web:http"),
        ("10.244.1.12", "10.244.1.12: an endpoint of shop/web:http"),
        ("10.244.1.12:8080", "10.244.1.12:8080: an endpoint of shop/web:http"),
        ("10.200.0.2", "10.200.0.2: an address of node-0, where node ports are open"),
        (f"KUBE-SVC-{port_hash(WEB)}", "all endpoints that this node may use of shop/web:http"),
        (f"KUBE-EXT-{port_hash(WEB)}", "what comes from outside for shop/web:http"),
        (endpoint_chain(WEB, "10.244.1.12:8080"), "endpoint 10.244.1.12:8080 of shop/web:http"),
    ],
)
def test_ways_to_ask(asked: str, about: str, tmp_path: Path) -> None:
    objects = [node(), web(type="NodePort", ports=NODE_PORT), slices(), service("other", "10.96.0.99")]
    found = explained(tmp_path, asked, objects)
    assert about in found.about
    assert [port.name for port in found.ports] == ["shop/web:http"]


def test_chains_of_the_layout_tree(tmp_path: Path) -> None:
    many = [f"10.244.1.{number}" for number in range(1, 60)]
    objects = [node(), web(sessionAffinity="ClientIP"), slices(*many)]
    ruleset = kpx.compile([parse_object(one["kind"], one) for one in objects], node_name="node-0", layout=Layout.TREE)
    groups = [chain for chain in ruleset.tables["nat"].chains if chain.startswith(("KPX-SVC-", "KPX-AFC-"))]
    assert groups
    for chain in groups[:3]:
        found = explained(tmp_path, chain, objects, None, "--layout", "tree")
        assert found.about == f"chain {chain}: a group of endpoints of shop/web:http"
    of_one = explained(tmp_path, "shop/web", objects, None, "--layout", "compact").ports[0]
    assert len(of_one.endpoints) == 59
    shared = explained(tmp_path, "KUBE-MARK-MASQ", objects)
    assert (shared.about, shared.ports) == ("chain KUBE-MARK-MASQ: 1 rules in table nat, no single Service's", [])


def test_an_ipv6_service(tmp_path: Path) -> None:
    both = web(clusterIPs=["10.96.0.10", "fd00:96::10"])
    six = endpoint_slice("web", ["fd00:244::11"]) | {"metadata": slices()["metadata"] | {"name": "web-six"}}
    found = explained(tmp_path, "fd00:96::10", [node(), both, slices(), six])
    assert [port.family for port in found.ports] == ["ipv6"]
    (way,) = found.ports[0].ways
    assert destinations(way)["outside"] == {"[fd00:244::11]:8080"}
    assert {one.family for one in explained(tmp_path, "shop/web", [node(), both, slices(), six]).ports} == {
        "ipv4",
        "ipv6",
    }


# -- rules alone ---------------------------------------------------------------------------------------


def told(name: str | Path, asked: str, *options: str) -> Explanation:
    save = str(case_path("") / name / "ipv4.save")
    done = run("explain", asked, "--rules", save, "--node-address", "10.200.0.2", "--json", *options)
    assert done.status == 0, done.complaint
    return Explanation.model_validate_json(done.stdout)


def test_what_a_dump_alone_tells() -> None:
    found = told("loadbalancer-source-ranges", "shop/web")
    (port,) = found.ports
    assert (port.name, port.protocol) == ("shop/web:https", "tcp")
    assert list(port.source_ranges) == ["192.0.2.0/24", "198.51.100.0/25"]
    assert [one.address for one in port.endpoints] == ["10.244.0.12:8443", "10.244.1.10:8443", "10.244.2.11:8443"]
    ways = {way.kind: way for way in port.ways}
    assert set(ways) == {"cluster IP", "load balancer IP", "node port"}
    assert destinations(ways["load balancer IP"])["elsewhere outside"] == {""}
    assert len(destinations(ways["load balancer IP"])["outside in 192.0.2.0/24"]) == 3
    assert len(destinations(ways["cluster IP"])["pods"]) == 3


@pytest.mark.parametrize("layout", list(Layout))
def test_rules_are_compared_in_their_own_layout(layout: Layout, tmp_path: Path) -> None:
    """Unless another one is asked for."""
    many = [f"10.244.7.{number}" for number in range(1, 41)]
    objects = [node(), web(), slices(*many)]
    parsed = [parse_object(one["kind"], one) for one in objects]
    ruleset = kpx.compile(parsed, kpx.parse_config(json.dumps(CONFIG).encode())[0], node_name="node-0", layout=layout)
    rules = tmp_path / "rules.save"
    rules.write_text(save_of(ruleset))
    assert not explained(tmp_path, "shop/web", objects, None, "--rules", str(rules)).every_finding
    other = "tree" if layout is not Layout.TREE else "compact"
    found = explained(tmp_path, "shop/web", objects, None, "--rules", str(rules), "--layout", other)
    assert {one.code for one in found.every_finding} == {"rules-differ"}


def test_what_rules_of_the_layout_compact_tell(tmp_path: Path) -> None:
    """Endpoints are those that rules translate to, whatever chain these stand in."""
    few, many = slices("10.244.0.11", "10.244.1.12"), [f"10.244.7.{number}" for number in range(1, 41)]
    objects = [web(), few, service("big", "10.96.0.70"), endpoint_slice("big", many)]
    ruleset = kpx.compile(
        [parse_object(one["kind"], one) for one in objects], node_name="node-0", layout=Layout.COMPACT
    )
    path = tmp_path / "rules"
    path.write_text(save_of(ruleset))

    def told_of(asked: str) -> Explanation:
        done = run("explain", asked, "--rules", str(path), "--node-address", "10.200.0.2", "--json")
        assert done.status == 0, done.complaint
        return Explanation.model_validate_json(done.stdout)

    (port,) = told_of("shop/web").ports
    assert [(one.address, one.takes_part) for one in port.endpoints] == [
        ("10.244.0.11:8080", True), ("10.244.1.12:8080", True),
    ]  # fmt: skip
    assert port.balance == "random"
    (big,) = told_of("shop/big").ports
    assert {one.address for one in big.endpoints} == {f"{pod}:8080" for pod in many}
    assert told_of("10.244.7.9").about == "10.244.7.9: an endpoint of shop/big:http"
    chain = f"KUBE-SVC-{port_hash(WEB)}"
    assert told_of(chain).about == f"chain {chain} of shop/web:http: endpoints 10.244.0.11:8080, 10.244.1.12:8080"


def test_what_a_dump_of_an_old_kube_proxy_tells() -> None:
    found = told(KUBE_PROXY_1_20, "shop/local")
    ways = {way.kind: destinations(way) for way in found.ports[0].ways}
    local, every = {"10.244.0.12:8080"}, {"10.244.0.12:8080", "10.244.1.10:8080", "10.244.2.11:8080"}
    assert ways == {
        "cluster IP": {"pods": every, "the node itself": every, "outside": every},
        "node port": {"pods": every, "the node itself": every, "outside": local},
        "load balancer IP": {"pods": every, "the node itself": every, "outside": local},
    }
    assert {chain[:9] for chain in found.ports[0].chains} == {"KUBE-FW-F", "KUBE-SVC-", "KUBE-XLB-"}
    assert {one.code for one in told(KUBE_PROXY_1_20, "shop/far").every_finding} == {"no-local-endpoint"}


@pytest.mark.parametrize(
    ("case", "asked", "about"),
    [
        ("nodeport-cluster", "30080", "node port 30080 of shop/web:http"),
        ("clusterip-three-endpoints", "10.96.1.10", "10.96.1.10: an address of shop/web:http"),
        ("clusterip-three-endpoints", "10.244.1.10", "10.244.1.10: an endpoint of shop/web:http"),
        ("clusterip-three-endpoints", "KUBE-MARK-MASQ", "chain KUBE-MARK-MASQ"),
    ],
)
def test_ways_to_ask_a_dump(case: str, asked: str, about: str) -> None:
    assert about in told(case, asked).about


def test_causes_in_a_dump() -> None:
    assert "none-ready" in {one.code for one in told("no-endpoints", "shop/empty").every_finding}
    found = told("nodeport-local-without-local-endpoint", "shop/web")
    assert "no-local-endpoint" in {one.code for one in found.every_finding}
    assert told("session-affinity", "10.96.1.20").ports[0].affinity_seconds > 0
    save = (case_path("nodeport-cluster") / "ipv4.save").read_text()
    lines = [line for line in save.split("\n") if not line.startswith("-A PREROUTING")]
    cut = run("explain", "shop/web", "--rules", "-", "--json", stdin="\n".join(lines).encode())
    codes = {one.code for one in Explanation.model_validate_json(cut.stdout).every_finding}
    assert {"not-connected", "unknown-host"} <= codes


# -- the kernel's rules ----------------------------------------------------------------------------------


@pytest.mark.kernel
@needs_kernel
def test_rules_in_the_kernel_that_somebody_changed(namespace: Namespace, tmp_path: Path) -> None:
    path = str(write(tmp_path / "objects.json", [node(), web(), slices()]))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    given = ("-f", path, "--config", str(tmp_path / "config.json"), "--backend", "nft")
    namespace.kpx("apply", *given)
    namespace.run(["iptables-nft", "-t", "nat", "-D", f"KUBE-SVC-{port_hash(WEB)}", "2"])
    done = namespace.kpx("explain", "shop/web", *given, "--live", "--family", "ipv4", "--json")
    (port,) = Explanation.model_validate_json(done.stdout).ports
    (differs,) = [one for one in port.findings if one.code == "rules-differ"]
    assert "missing in nat" in differs.what
    (way,) = port.ways
    assert all(len(use.outcomes) == 2 for use in way.uses)
    (packets,) = [one for one in port.findings if one.code == "packets-differ" and "from pods" in one.what]
    assert "sent to 10.244.1.12:8080, 10.244.2.13:8080;" in packets.what


# -- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("shop/wbe", "did you mean shop/web?"),
        ("10.9.9.9", "10.9.9.9"),
        ("31000", "31000"),
        ("KUBE-SVC-AAAAAAAAAAAAAAAA", "KUBE-SVC-AAAAAAAAAAAAAAAA"),
        ("what?", "no namespace/name"),
        ("shop/web:https", "shop/web:https"),
    ],
)
def test_what_is_not_there(asked: str, complaint: str, tmp_path: Path) -> None:
    done = ask(tmp_path, asked, [node(), web(), slices()])
    assert (done.status, done.stdout) == (2, "")
    assert complaint in done.complaint
    save = str(case_path("clusterip-three-endpoints") / "ipv4.save")
    assert run("explain", asked, "--rules", save).status == 2


def test_the_schema() -> None:
    assert json.loads(run("explain", "--schema").stdout) == Explanation.model_json_schema(mode="serialization")


@given(st.text(max_size=30) | st.sampled_from(["0.0.0.0", "::", "[::1]", "/", "a/b/c", ":", "-", "KUBE-"]))
@settings(max_examples=60, deadline=None)
def test_any_question_has_an_answer_or_an_error(asked: str) -> None:
    save = str(case_path("clusterip-three-endpoints") / "ipv4.save")
    assert run("explain", "--rules", save, "--", asked).status in (0, 2)
