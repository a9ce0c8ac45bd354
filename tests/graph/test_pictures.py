"""Pictures of rulesets: everything is in them once, with the shares that rules give; the same for any input order."""

import gzip
import json
import random
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

import kpx
from kpx.analysis.dot import dot
from kpx.analysis.fold import MANY, SHOWN, folded
from kpx.analysis.mermaid import mermaid
from kpx.analysis.picture import Picture, picture
from kpx.analysis.simulate import tables_of, tables_of_save
from kpx.compiler import names
from kpx.family import Family
from kpx.model.balance import AffinityScope, Balance
from kpx.model.cluster import cluster_of
from kpx.model.node import node_view
from kpx.model.policy import select, weights
from kpx.netfilter.owners import is_own_chain
from kpx.netfilter.save import parse_save
from kpx.sources.manifests import load
from tests.compiler.clusters import Manifest, clusters
from tests.compiler.towns import town
from tests.kernel import BACKENDS, KUBE_PROXY_1_20, Namespace, case_path, needs_kernel
from tests.lab.kpx import ROOT, dry_kpx
from tests.manifests import endpoint_slice, node, service, write

SHOP = ("-f", "tests/demo/shop", "--config", "tests/demo/config.yaml", "--node", "node-0")
needs_graphviz = pytest.mark.skipif(not shutil.which("dot"), reason="needs the package graphviz")
SVG = "{http://www.w3.org/2000/svg}"


def drawn(objects: list[kpx.Object], layout: kpx.Layout = kpx.Layout.CLASSIC) -> Picture:
    return picture(tables_of(kpx.compile(objects, node_name="node-0", layout=layout)))


def parsed(manifests: list[Manifest]) -> list[kpx.Object]:
    return [kpx.parse_object(one["kind"], one) for one in manifests]


@settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
@given(clusters(), st.sampled_from([kpx.Layout.CLASSIC, kpx.Layout.COMPACT]))
def test_every_chain_of_a_service_is_drawn_once_and_every_endpoint_with_its_share(
    manifests: list[Manifest], layout: kpx.Layout
) -> None:
    objects = parsed(manifests)
    found = drawn(objects, layout)
    ruleset = kpx.compile(objects, node_name="node-0", layout=layout)
    reached = {chain for chain in ruleset.tables["nat"].chains if is_own_chain(chain)}
    drawn_chains = [box.chain for box in found.boxes.values() if box.kind in ("chain", "endpoint") and not box.rules]
    assert sorted(drawn_chains) == sorted(set(drawn_chains))
    assert reached >= set(drawn_chains)
    cluster = cluster_of(objects, Family.IPV4, "node-0")
    view = node_view("node-0", Family.IPV4, None)
    for name, port in cluster.ports.items():
        chosen = select(cluster.endpoints.get(name, ()), port, view)
        chain = f"nat KUBE-SVC-{names.port_hash(name)}"
        plain = port.balancing.balance is Balance.RANDOM and port.balancing.scope is AffinityScope.PORT
        if not plain or not chosen.anywhere or not chosen.cluster or chain not in found.boxes:
            continue
        shares = [one.label.split("\n")[-1] for one in found.arrows if one.source == chain]
        parts = weights(chosen.cluster, port.balancing)
        expected = [str(Fraction(part, sum(parts))) if len(parts) > 1 else "" for part in parts]
        assert [share if "/" in share else "" for share in shares] == expected
        ends = [found.boxes[one.target] for one in found.arrows if one.source == chain]
        assert [one.title for one in ends if one.kind == "endpoint"] == [str(one) for one in chosen.cluster]


def test_an_endpoint_without_a_chain_has_one_box_for_all_rules_that_choose_it() -> None:
    """In turns it has several, and two policies choose it in chains of their own."""
    manifests = [service("web", "10.96.0.1", **OUTSIDE), endpoint_slice("web", ["10.244.0.1"], "node-0")]
    manifests[0]["metadata"]["annotations"] = {"kpx.dev/balance": "round-robin"}
    manifests.append(endpoint_slice("web", ["10.244.1.1"]))
    manifests[2]["metadata"] |= {"name": "web-b", "annotations": {"kpx.dev/weight": "50"}}
    found = drawn(parsed(manifests), kpx.Layout.COMPACT)
    ends = {box.title: box for box in found.boxes.values() if box.kind == "endpoint"}
    assert set(ends) == {"10.244.0.1:8080", "10.244.1.1:8080"}
    tables = tables_of(kpx.compile(parsed(manifests), node_name="node-0", layout=kpx.Layout.COMPACT))
    for title, box in ends.items():
        told = {
            f"nat {chain} {position}"
            for chain, rules in tables["nat"].items()
            for position, rule in enumerate(rules, 1)
            if rule.endswith(f"-j DNAT --to-destination {title}")
        }
        assert set(box.rules) == told
    assert len(ends["10.244.0.1:8080"].rules) > len(ends["10.244.1.1:8080"].rules) >= 1


def test_the_picture_does_not_depend_on_the_order_of_objects() -> None:
    objects = parsed(town(20, seed=3))
    expected = drawn(objects, kpx.Layout.TREE)
    for seed in range(3):
        random.Random(seed).shuffle(objects)
        found = drawn(objects, kpx.Layout.TREE)
        assert (dot(found), mermaid(found)) == (dot(expected), mermaid(expected))


OUTSIDE: dict[str, Any] = {
    "type": "NodePort",
    "externalTrafficPolicy": "Local",
    "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
}


@pytest.mark.parametrize("layout", list(kpx.Layout))
@pytest.mark.parametrize("spec", [{}, {"sessionAffinity": "ClientIP"}, OUTSIDE])
def test_many_endpoints_are_folded_and_nothing_is_lost(layout: kpx.Layout, spec: dict[str, Any]) -> None:
    pods = [f"10.244.{at // 200}.{at % 200 + 1}" for at in range(700)]
    manifests = [service("big", "10.96.0.1", **spec), endpoint_slice("big", pods)]
    manifests += [service("few", "10.96.0.2"), endpoint_slice("few", pods[:MANY])]
    manifests[1]["endpoints"][0]["nodeName"] = "node-0"
    whole = drawn(parsed(manifests), layout)
    found = folded(whole)
    assert found.of({"shop/few:http"}) == whole.of({"shop/few:http"})
    shown = [box for box in found.boxes.values() if box.group == "shop/big:http" and box.kind == "endpoint"]
    (stack,) = (box for box in shown if box.stands_for)
    assert len(shown) == SHOWN + 1
    assert f"{700 - SHOWN} more endpoints" == stack.title
    assert found.boxes.keys() - {stack.id} | set(stack.stands_for) == whole.boxes.keys()
    assert len(found.of({"shop/big:http"}).boxes) < 30
    for box in found.boxes.values():
        of_chance = [one.share for one in found.arrows if one.source == box.id and one.share is not None]
        assert not of_chance or sum(of_chance) == pytest.approx(1)
    for one in found.arrows:
        members = stack.stands_for if one.target == stack.id else (one.target,)
        before = [old.share for old in whole.arrows if old.source == one.source and old.target in members]
        assert one.share == (pytest.approx(sum(filter(None, before))) if any(before) else None)
    assert folded(found) == found


def test_too_many_services_for_one_picture_are_told(tmp_path: Path) -> None:
    many = [service(f"s-{at}", f"10.96.{at // 250}.{at % 250 + 1}") for at in range(501)]
    manifests = write(tmp_path / "many.json", [node(), *many])
    done = dry_kpx("graph", "-f", manifests, "--node", "node-0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "501 service ports are too many for one picture" in done.stderr
    text = dry_kpx("graph", "-f", manifests, "--node", "node-0", "--format", "mermaid")
    assert (text.returncode, text.stderr.count("GitHub will not draw this")) == (0, 1)


def test_mermaid_has_a_box_for_each_box_and_no_stray_characters(tmp_path: Path) -> None:
    text = dry_kpx("graph", *SHOP, "--format", "mermaid").stdout
    lines = text.splitlines()
    assert lines[0] == "flowchart LR"
    boxes = [re.fullmatch(r'\s+(n\d+)\["(.*)"\]:::\w+', line) for line in lines]
    known = {match[1] for match in boxes if match}
    arrows = [re.fullmatch(r'\s+(n\d+) (?:-->|-\.->)(?:\|"([^"]*)"\|)? (n\d+)', line) for line in lines]
    ends = {end for match in arrows if match for end in (match[1], match[3])}
    assert ends <= known
    assert len(known) > 30
    assert lines.count("  end") == sum(line.startswith("  subgraph ") for line in lines) == 6
    everything = (match[2] for match in boxes if match)
    assert not [text for text in everything if re.search(r'["{}|()\[\]]', text)]


def test_readme_shows_what_mermaid_draws() -> None:
    (block,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "kpx/analysis/README.md").read_text(), re.DOTALL)
    assert block == dry_kpx("graph", "shop/front-end", *SHOP, "--format", "mermaid").stdout


@needs_graphviz
def test_dot_reads_what_rules_say_as_text_only(tmp_path: Path) -> None:
    evil = 'x\\"];evil[label=<b>\\\\'
    dump = tmp_path / "evil.save"
    dump.write_text(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m comment "
        f'--comment "a/b:http {evil}" -m tcp --dport 80 -j KUBE-SVC-A\n-A KUBE-SVC-A -j DROP\nCOMMIT\n'
    )
    told = dry_kpx("graph", "--rules", dump, "--format", "dot").stdout
    drawn = subprocess.run(["dot", "-Tsvg"], input=told, text=True, capture_output=True, check=True).stdout
    root = ElementTree.fromstring(drawn)
    titles = [one.text for one in root.iter(f"{SVG}title")]
    assert not [one for one in titles if one and one.startswith("evil")]
    assert any("];evil[label=<b>" in (text.text or "") for text in root.iter(f"{SVG}text"))


@pytest.mark.parametrize(
    "case", ["loadbalancer-source-ranges", "session-affinity", "nodeport-local-without-local-endpoint"]
)
def test_kube_proxys_rules_are_drawn(case: str) -> None:
    text = dry_kpx("graph", "--rules", case_path(case) / "ipv4.save", "--format", "dot").stdout
    assert text.startswith("digraph kpx {")
    expected = {
        "loadbalancer-source-ranges": ("KUBE-FW-", "DROP", "from "),
        "session-affinity": ("client known for less than", "remembers the client"),
        "nodeport-local-without-local-endpoint": ("DROP", "has no local endpoints"),
    }
    for words in expected[case]:
        assert words in text


@pytest.mark.parametrize("services", [["shop/local"], ["shop/web:http", "kube-system/dns"], ["shop/empty"]])
def test_of_a_service_the_same_is_drawn_alone_as_among_others(services: list[str]) -> None:
    tables, _ = tables_of_save(parse_save((KUBE_PROXY_1_20 / "ipv4.save").read_text()))
    every, alone = picture(tables), picture(tables, services)
    groups = [one for one in every.groups if one in services or one.partition(":")[0] in services]
    assert groups
    assert alone.groups == tuple(groups)
    assert alone.of(groups) == every.of(groups)


def test_rules_of_an_old_kube_proxy_are_drawn() -> None:
    """Where it marks packets before they get to a Service's chains, and has them dropped by a mark."""
    tables, _ = tables_of_save(parse_save((KUBE_PROXY_1_20 / "ipv4.save").read_text()))
    drawn = picture(tables)
    ways = {box.title: box.lines for box in drawn.of(["shop/local:http"]).boxes.values() if box.kind == "way in"}
    assert ways["10.96.1.12:80/tcp"][-1] == "masqueraded if not from 10.244.0.0/16"
    assert ways["node port 30081/tcp"][-1] == "masqueraded if from 127.0.0.0/8"
    ways = {box.title: box.lines for box in drawn.of(["shop/outside:http"]).boxes.values() if box.kind == "way in"}
    to_it = "203.0.113.50:80/tcp"
    assert {f"{to_it}, to the node", f"{to_it}, not in through a bridge, not from the node"} < set(ways)
    assert ways[f"{to_it}, to the node"][-1] == "masqueraded"
    (refusal,) = [box for box in drawn.of(["shop/far:http"]).boxes.values() if box.kind == "refusal"]
    (arrow,) = [arrow for arrow in drawn.arrows if arrow.target == refusal.id]
    assert drawn.boxes[arrow.source].chain == "KUBE-XLB-3R55B5W2BQDIGALS"
    assert "KUBE-FW-" in {
        drawn.boxes[one.source].chain[:8] for one in drawn.arrows if one.target.startswith("KUBE-MARK-DROP shop/local")
    }
    assert not any("e+" in arrow.label for arrow in drawn.arrows)


def test_chains_of_others_that_lead_to_none_of_ours_are_left_out() -> None:
    saved, _ = tables_of_save(parse_save((KUBE_PROXY_1_20 / "ipv4.save").read_text()))
    strangers = {f"cali-{at}": (f"-j cali-{at + 1}",) for at in range(50)}
    tables = {
        "nat": {**saved["nat"], "INPUT": ("-j cali-0",), "MINE": ("-j KUBE-SERVICES",), **strangers},
        "filter": {**saved["filter"], **strangers},
    }
    hooks = {box.id for box in picture(tables).boxes.values() if box.kind == "hook"}
    nat = {f"nat {chain}" for chain in ("PREROUTING", "OUTPUT", "POSTROUTING", "MINE")}
    assert hooks == nat | {f"filter {chain}" for chain in ("INPUT", "FORWARD", "OUTPUT")}


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernels_rules_are_drawn_like_those_of_manifests(
    backend: str, namespace: Namespace, tmp_path: Path
) -> None:
    path = write(tmp_path / "shop.json", [node(), service("web", "10.96.0.1"), endpoint_slice("web", ["10.244.0.1"])])
    namespace.kpx("apply", "-f", str(path), "--node", "node-0", "--backend", backend)
    live = namespace.kpx("graph", "shop/web", "--backend", backend, "--format", "dot").stdout
    assert live == dry_kpx("graph", "shop/web", "-f", path, "--node", "node-0", "--format", "dot").stdout
    assert "10.244.0.1:8080" in live


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_page_holds_both_families_of_the_kernel(backend: str, namespace: Namespace) -> None:
    namespace.kpx("apply", *SHOP, "--family", "dual", "--backend", backend)
    told = namespace.kpx("graph", "--html", "--family", "ipv6", "--backend", backend).stdout
    packed = dict(re.findall(r'data-family="(\w+)">([^<]*)</script>', told))
    assert list(packed) == ["ipv6", "ipv4"]
    sides = {family: json.loads(gzip.decompress(b64decode(text))) for family, text in packed.items()}
    for family, place in (("ipv4", "10.96.0.10:80/tcp"), ("ipv6", "[fd00:96::10]:80/tcp")):
        assert sides[family]["family"] == family
        assert place in {title for _, _, title, *_ in sides[family]["picture"]["boxes"]}
        assert {group: one["level"] for group, one in sides[family]["troubles"].items() if group == "shop/search"} == (
            {"shop/search": "broken"} if family == "ipv4" else {}
        )


def test_the_json_has_every_box_and_arrow_and_keeps_to_its_schema() -> None:
    told = json.loads(dry_kpx("graph", "shop/front-end", *SHOP, "--json").stdout)
    schema = json.loads(dry_kpx("graph", "--schema").stdout)
    assert schema["required"] == ["boxes", "arrows"]
    assert told.keys() == schema["properties"].keys()
    objects = load(["tests/demo/shop"]).objects
    config, _ = kpx.parse_config(Path("tests/demo/config.yaml").read_bytes())
    whole = picture(tables_of(kpx.compile(objects, config, node_name="node-0")))
    assert TypeAdapter(Picture).validate_python(told) == whole.of({"shop/front-end:http"})


def test_a_service_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = dry_kpx("graph", "shop/fornt-end", *SHOP)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no rules of a Service shop/fornt-end; there are kube-system/dns:dns" in done.stderr
    unwritable = dry_kpx("graph", *SHOP, "-o", tmp_path / "no" / "folder.svg")
    assert unwritable.returncode == 2
    assert "No such file" in unwritable.stderr


@pytest.mark.parametrize(
    "text",
    [
        "*nat\nCOMMIT\n",
        "*nat\n:KUBE-SVC-A - [0:0]\n-A KUBE-SVC-A -j KUBE-SVC-A\n-A KUBE-SERVICES -j KUBE-SVC-A\nCOMMIT\n",
        '*nat\n-A KUBE-SERVICES -m comment --comment "a/b:c cluster IP" -j KUBE-SVC-A\n'
        '-A KUBE-SVC-A -m comment --comment "a/b:c -> x" -m statistic --mode random --probability x -j KUBE-SEP-A\n'
        "-A KUBE-SEP-A -j DNAT\n-A KUBE-SEP-A -j DNAT --to-destination\nCOMMIT\n",
    ],
)
@pytest.mark.parametrize("form", [("--format", "svg"), ("--format", "mermaid"), ("--html",)])
def test_no_dump_makes_it_fall_over(text: str, form: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.save").write_text(text)
    done = dry_kpx("graph", "--rules", tmp_path / "a.save", *form)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_nothing_is_no_dump(tmp_path: Path) -> None:
    (tmp_path / "a.save").write_text("")
    done = dry_kpx("graph", "--rules", tmp_path / "a.save", "--html")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a.save: holds no table" in done.stderr
