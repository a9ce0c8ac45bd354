"""Balancing by annotations, as `kpx explain` and `kpx trace` tell it: from manifests, and from rules alone."""

from fractions import Fraction
from pathlib import Path

import pytest

from kpx.explain.report import Explanation
from tests.cli.inprocess import Done, run
from tests.explain.broken import PODS, slices, web
from tests.explain.test_explain import ask, explained
from tests.manifests import Manifest, node, write

WEIGHTS = ("95", "5", "0")


def annotated(one: Manifest, **annotations: str) -> Manifest:
    ours = {f"kpx.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return one | {"metadata": one["metadata"] | {"annotations": ours}}


def weighted() -> list[Manifest]:
    found = []
    for pod, weight in zip(PODS, WEIGHTS, strict=True):
        one = annotated(slices(pod), weight=weight)
        found.append(one | {"metadata": one["metadata"] | {"name": f"web-{weight}"}})
    return found


def shares(found: Explanation) -> dict[str, Fraction]:
    (use, *_) = found.ports[0].ways[0].uses
    return {one.destination.partition(":")[0]: Fraction(one.exact) for one in use.outcomes}


@pytest.mark.parametrize("balance", ["random", "round-robin"])
def test_endpoints_have_what_they_weigh(tmp_path: Path, balance: str) -> None:
    objects = [node(), annotated(web(), balance=balance), *weighted()]
    found = explained(tmp_path, "shop/web", objects)
    assert not found.every_finding
    assert found.ports[0].balance == balance
    got = shares(found)
    assert abs(got[PODS[0]] - Fraction(95, 100)) < Fraction(1, 2**30)
    assert got[PODS[0]] + got[PODS[1]] == 1
    assert [one.takes_part for one in found.ports[0].endpoints] == [True, True, False]
    assert "weight 0" in found.ports[0].endpoints[2].why_not


def test_a_client_goes_where_its_hash_leads_it(tmp_path: Path) -> None:
    objects = [node(), annotated(web(), balance="source-hash"), slices()]
    found = explained(tmp_path, "shop/web", objects)
    assert not found.every_finding
    assert all(share == 1 for share in shares(found).values())
    manifests = write(tmp_path / "objects.json", objects)
    reached = set()
    for last in range(1, 30):
        done = trace(manifests, f"10.244.9.{last}")
        (line,) = [line for line in done.stdout.splitlines() if "translated" in line]
        assert line.startswith("1 ")
        assert "by a hash of the source" in done.stdout or "10.244.2.13:8080" in line
        reached.add(line.split()[2])
    assert len(reached) == 3


def trace(manifests: Path, source: str) -> Done:
    return run("trace", f"tcp {source} -> 10.96.0.10:80", "--from", "pod", "-f", str(manifests), "--node", "node-0")


@pytest.mark.parametrize("balance", ["random", "round-robin", "source-hash"])
def test_rules_alone_tell_how_they_balance(tmp_path: Path, balance: str) -> None:
    objects = [annotated(web(), balance=balance), slices()]
    manifests = write(tmp_path / "objects.json", objects)
    rules = tmp_path / "rules.save"
    rules.write_text(run("render", "-f", str(manifests), "--node", "node-0").stdout)
    done = run("explain", "shop/web", "--rules", str(rules), "--json")
    (port,) = Explanation.model_validate_json(done.stdout).ports
    assert port.balance == balance
    assert [one.takes_part for one in port.endpoints] == [True, True, True]


def test_the_limit_of_affinity_is_told_with_its_figure(tmp_path: Path) -> None:
    service = annotated(web(sessionAffinity="ClientIP"), affinity_scope="service")
    said = " ".join(ask(tmp_path, "shop/web", [node(), service, slices()]).stdout.split())
    assert "stays with its pod, for all ports," in said
    assert "300 in all" in said
    assert "source-hash" in said


def test_a_typo_is_named_by_every_command_and_stops_none(tmp_path: Path) -> None:
    objects = [node(), annotated(web(), balance="robin"), annotated(slices(), weight="heavy")]
    found = explained(tmp_path, "shop/web", objects)
    assert [one.code for one in found.every_finding] == ["annotation", "annotation"]
    done = run("render", "-f", str(write(tmp_path / "objects.json", objects)), "--node", "node-0")
    assert done.status == 0
    for words in ("Service shop/web", "'robin'", "EndpointSlice shop/web", "'heavy'"):
        assert words in done.complaint
