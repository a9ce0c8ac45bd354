"""`kpx diff` between two revisions of manifests: what it says, and that it says the same each time."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import kpx
from kpx.family import Family
from kpx.model.cluster import cluster_of
from kpx.model.node import node_view
from kpx.model.review import Finding, Revision, review
from tests.compiler.clusters import Manifest, clusters
from tests.kernel import FAMILIES
from tests.manifests import endpoint_slice, node, service, write

ROOT = Path(__file__).parents[2]
ENDPOINTS = ("10.244.0.10", "10.244.1.10", "10.244.2.10")


def shop() -> list[Manifest]:
    """A Service of each sort, in a fixed order: tests change one of them."""
    lb = service(
        "lb",
        "10.96.0.2",
        type="LoadBalancer",
        ports=[{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}],
        externalTrafficPolicy="Local",
        healthCheckNodePort=32000,
        loadBalancerSourceRanges=["192.0.2.0/24"],
    )
    lb["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}
    local = endpoint_slice("lb", ["10.244.0.20"], "node-0")
    return [node(), service("web", "10.96.0.1"), endpoint_slice("web", ENDPOINTS), lb, local]


Change = Callable[[list[Manifest]], Any]


def endpoints(objects: list[Manifest], at: int = 2) -> list[Manifest]:
    found: list[Manifest] = objects[at]["endpoints"]
    return found


def conditions(objects: list[Manifest], number: int, **values: bool) -> None:
    endpoints(objects)[number]["conditions"] = values


def joins(objects: list[Manifest]) -> None:
    endpoints(objects).append({"addresses": ["10.244.3.10"], "conditions": {"ready": True}})


def annotate(one: Manifest, name: str, value: str) -> None:
    one["metadata"]["annotations"] = {f"kpx.dev/{name}": value}


def drained(objects: list[Manifest]) -> None:
    """One of three endpoints moves to a slice of its own, of weight 0."""
    other = deepcopy(objects[2])
    other["metadata"]["name"] += "-b"
    other["endpoints"] = [endpoints(objects).pop(1)]
    annotate(other, "weight", "0")
    objects.append(other)


def hinted(objects: list[Manifest]) -> None:
    for number, one in enumerate(endpoints(objects)):
        one["hints"] = {"forZones": [{"name": "zone-b" if number else "zone-a"}]}


SAID: dict[str, tuple[Change, str]] = {
    "an endpoint leaves": (
        lambda objects: endpoints(objects).pop(1),
        "shop/web:http: endpoint 10.244.1.10 leaves; shares 1/3 → 1/2",
    ),
    "an endpoint joins": (joins, "shop/web:http: endpoint 10.244.3.10 joins; shares 1/3 → 1/4"),
    "all leave": (
        lambda objects: endpoints(objects).clear(),
        "shop/web:http: endpoints 10.244.0.10, 10.244.1.10, 10.244.2.10 leave; shares 1/3 → none; connections to the "
        "cluster IP are rejected: there are no endpoints",
    ),
    "not ready": (
        lambda objects: conditions(objects, 0, ready=False),
        "shop/web:http: endpoint 10.244.0.10 turns from ready to not ready; shares 1/3 → 1/2",
    ),
    "terminating": (
        lambda objects: conditions(objects, 0, ready=False, serving=True, terminating=True),
        "shop/web:http: endpoint 10.244.0.10 turns from ready to terminating and serving; shares 1/3 → 1/2",
    ),
    "hints": (
        hinted,
        "shop/web:http: endpoints 10.244.1.10, 10.244.2.10 take no part any more (not for this node); "
        "shares 1/3 → 1",
    ),
    "round robin": (
        lambda objects: annotate(objects[1], "balance", "round-robin"),
        "shop/web:http: balance random → round-robin",
    ),
    "local weight": (
        lambda objects: annotate(objects[1], "local-weight", "100"),
        "shop/web:http: local weight +0 % → +100 %",
    ),
    "weight": (
        lambda objects: annotate(objects[2], "weight", "5"),
        "shop/web:http: endpoints 10.244.0.10, 10.244.1.10, 10.244.2.10 weigh 5 now",
    ),
    "weight 0": (
        drained,
        "shop/web:http: endpoint 10.244.1.10 takes no part any more (weight 0); shares 1/3 → 1/2",
    ),
    "target port": (
        lambda objects: objects[2].update(ports=[{"name": "http", "port": 9090}]),
        "shop/web:http: target port 8080 → 9090",
    ),
    "cluster IP": (
        lambda objects: objects[1]["spec"].update(clusterIP="10.96.0.9"),
        "shop/web:http: cluster IP 10.96.0.1 → 10.96.0.9",
    ),
    "port": (
        lambda objects: objects[1]["spec"]["ports"][0].update(port=81),
        "shop/web:http: port 80 → 81",
    ),
    "node port": (
        lambda objects: objects[3]["spec"]["ports"][0].update(nodePort=30081),
        "shop/lb:http: node port 30080 → 30081",
    ),
    "affinity": (
        lambda objects: objects[1]["spec"].update(sessionAffinity="ClientIP"),
        "shop/web:http: client affinity none → 10800 s",
    ),
    "external policy": (
        lambda objects: objects[3]["spec"].update(externalTrafficPolicy="Cluster", healthCheckNodePort=0),
        "shop/lb:http: external traffic policy Local → Cluster; health check node port 32000 → none",
    ),
    "internal policy without a local endpoint": (
        lambda objects: objects[1]["spec"].update(internalTrafficPolicy="Local"),
        "shop/web:http: internal traffic policy Cluster → Local; endpoints 10.244.0.10, 10.244.1.10, 10.244.2.10 "
        "take no part any more (not for this node); connections to the cluster IP are dropped: "
        "no endpoint is on this node",
    ),
    "away from this node": (
        lambda objects: endpoints(objects, 4)[0].update(nodeName="node-1"),
        "shop/lb:http: endpoint 10.244.0.20 moves away from this node; shares 1 → none under policy Local; "
        "connections from outside are dropped: no endpoint is on this node",
    ),
    "source ranges": (
        lambda objects: objects[3]["spec"].update(loadBalancerSourceRanges=["192.0.2.0/24", "198.51.100.0/24"]),
        "shop/lb:http: load balancer open to 192.0.2.0/24 → 192.0.2.0/24, 198.51.100.0/24",
    ),
    "load balancer address": (
        lambda objects: objects[3].update(status={"loadBalancer": {"ingress": [{"ip": "203.0.113.2"}]}}),
        "shop/lb:http: load balancer IP 203.0.113.2 added; load balancer IP 203.0.113.1 removed",
    ),
    "external IP": (
        lambda objects: objects[1]["spec"].update(externalIPs=["192.0.2.9"]),
        "shop/web:http: external IP 192.0.2.9 added",
    ),
    "new": (
        lambda objects: objects.extend([service("new", "10.96.0.3"), endpoint_slice("new", ENDPOINTS)]),
        "shop/new:http: new: cluster IP 10.96.0.3:80/tcp; 3 endpoints, 1/3 each",
    ),
    "gone": (
        lambda objects: objects.pop(3),
        "shop/lb:http: gone; was cluster IP 10.96.0.2:80/tcp, node port 30080, load balancer 203.0.113.1",
    ),
    "the node": (
        lambda objects: objects[0]["metadata"].update(labels={"topology.kubernetes.io/zone": "zone-b"}),
        "node node-0: zone zone-a → zone-b",
    ),
}  # fmt: skip


def diff(old: Path, new: Path, *more: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kpx", "diff", "-f", str(new), "--against", str(old), "--node", "node-0", *more]
    environment = os.environ | {"PYTHONHASHSEED": seed}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def findings(old: list[Manifest], new: list[Manifest], family: Family = Family.IPV4) -> tuple[Finding, ...]:
    return review(*(revision([kpx.parse_object(one["kind"], one) for one in some], family) for some in (old, new)))


def revision(objects: list[kpx.Object], family: Family) -> Revision:
    this = next((one for one in objects if isinstance(one, kpx.api.Node)), None)
    return Revision(cluster_of(objects, family, "node-0"), node_view("node-0", family, this))


@pytest.mark.parametrize("name", SAID)
def test_a_change_is_told_in_a_sentence(name: str) -> None:
    change, sentence = SAID[name]
    new = deepcopy(shop())
    change(new)
    told = [f"{one.subject}: {'; '.join(s.text for s in one.statements)}" for one in findings(shop(), new)]
    assert told == [sentence]


BREAKING = {"all leave", "cluster IP", "port", "node port", "gone", "load balancer address"} | {
    name for name, (_, sentence) in SAID.items() if "dropped" in sentence
}


@pytest.mark.parametrize("name", SAID)
def test_what_stops_serving_is_told_apart(name: str) -> None:
    new = deepcopy(shop())
    SAID[name][0](new)
    (one,) = findings(shop(), new)
    assert one.breaking == (name in BREAKING)


@settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
@given(clusters(), clusters())
def test_nothing_that_changes_rules_goes_unmentioned(old: list[Manifest], new: list[Manifest]) -> None:
    for family in FAMILIES:
        rules = [
            kpx.compile([kpx.parse_object(one["kind"], one) for one in some], node_name="node-0", family=family)
            for some in (old, new)
        ]
        assert findings(old, old, family) == ()
        assert rules[0] == rules[1] or findings(old, new, family)


def everything() -> list[Manifest]:
    """All changes that go together, in one new revision."""
    new = deepcopy(shop())
    for name in ("terminating", "affinity", "node port", "source ranges", "new", "the node"):
        SAID[name][0](new)
    return new


@pytest.mark.parametrize("form", ["text", "json", "markdown"])
def test_the_same_revisions_give_the_same_bytes(form: str, tmp_path: Path) -> None:
    outputs = set()
    for seed in ("0", "1", "42"):
        old, new = shop(), everything()
        random.Random(seed).shuffle(old)
        random.Random(seed).shuffle(new)
        for one in (old, new):
            for found in one:
                random.Random(seed).shuffle(found.get("endpoints", []))
        before, after = write(tmp_path / f"old-{seed}.json", old), write(tmp_path / f"new-{seed}.json", new)
        done = diff(before, after, "--format", form, "--family", "dual", seed=seed)
        assert (done.returncode, done.stderr) == (1, "")
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_text_fits_a_terminal(tmp_path: Path) -> None:
    old, new = (write(tmp_path / f"{n}.json", some) for n, some in enumerate((shop(), everything())))
    lines = diff(old, new).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-2:] == ["1 new, 3 changed.", "1 no longer serves all that was served."]


def test_json_has_what_help_says(tmp_path: Path) -> None:
    old, new = (write(tmp_path / f"{n}.json", some) for n, some in enumerate((shop(), everything())))
    found = json.loads(diff(old, new, "--format", "json").stdout)["ipv4"]
    assert [one["subject"] for one in found] == ["node node-0", "shop/lb:http", "shop/new:http", "shop/web:http"]
    assert [one["kind"] for one in found] == ["changed", "changed", "new", "changed"]
    (moved,) = [one for one in found[1]["statements"] if one["aspect"] == "node port"]
    assert moved == {
        "aspect": "node port", "text": "node port 30080 → 30081", "before": ["30080"], "after": ["30081"],
        "breaking": True,
    }  # fmt: skip


def test_markdown_is_a_table(tmp_path: Path) -> None:
    old, new = (write(tmp_path / f"{n}.json", some) for n, some in enumerate((shop(), everything())))
    lines = diff(old, new, "--format", "markdown").stdout.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert len({row.count("|") for row in rows}) == 1
    assert any(row.startswith("| `shop/lb:http` | ⚠️ ") for row in rows)


def test_equal_revisions_are_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", shop())
    done = diff(path, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "same\n", "")


def test_what_was_broken_before_does_not_stop_a_review_and_what_is_does(tmp_path: Path) -> None:
    broken = [*shop(), service("broken", "10.96.9.999")]
    before, after = write(tmp_path / "broken.json", broken), write(tmp_path / "sound.json", shop())
    done = diff(before, after)
    assert (done.returncode, done.stdout) == (0, "same\n")
    assert "in the old revision: Service shop/broken: spec.clusterIP" in done.stderr
    back = diff(after, before)
    assert (back.returncode, back.stdout) == (2, "")
    assert "Service shop/broken: spec.clusterIP" in back.stderr
    taken = write(tmp_path / "taken.json", [*shop(), service("zweb", "10.96.0.1")])
    assert "already taken by Service shop/web" in diff(after, taken).stderr
