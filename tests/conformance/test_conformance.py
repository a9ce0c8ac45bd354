"""kpx's rules against those of a real kube-proxy, through the real kernel."""

from pathlib import Path

import pytest

import kpx
from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.tools import Backend
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from kpx.sources import manifests
from tests.conformance import compare
from tests.kernel import BACKENDS, FAMILIES, Namespace, needs_kernel

CASES = sorted(path for path in (Path(__file__).parent / "cases").iterdir() if path.is_dir())
NODE = "node-0"

pytestmark = [
    pytest.mark.kernel,
    needs_kernel,
    pytest.mark.parametrize("case", CASES, ids=lambda path: path.name),
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.parametrize("backend", BACKENDS),
]


def compiled(case: Path, family: Family) -> kpx.Ruleset:
    loaded = manifests.load([str(case / "cluster.yaml")])
    assert not loaded.problems
    config, _ = kpx.parse_config((case / "config.yaml").read_bytes())
    return kpx.compile(loaded.objects, config, node_name=NODE, family=family, layout=kpx.Layout.CLASSIC)


def test_rendered_rules_equal_kube_proxys(
    case: Path, family: Family, backend: Backend, namespace: Namespace, tmp_path: Path
) -> None:
    ruleset = compiled(case, family)
    namespace.restore(backend, family, payload(transactions(make_plan(ruleset, {}).edits)))
    actual = tmp_path / "actual.save"
    actual.write_text(namespace.save(backend, family))
    assert compare.main(str(case / f"{family}.save"), str(actual)) == 0


def test_taking_over_from_kube_proxy_writes_nothing(
    case: Path, family: Family, backend: Backend, namespace: Namespace
) -> None:
    namespace.restore(backend, family, (case / f"{family}.save").read_text())
    before = namespace.save(backend, family)
    arguments = ["-f", str(case / "cluster.yaml"), "--config", str(case / "config.yaml"), "--family", family]
    done = namespace.kpx("apply", *arguments, "--node", NODE, "--backend", backend)
    assert "up to date, nothing written" in done.stdout
    assert [line for line in namespace.save(backend, family).splitlines() if line[:1] != "#"] == [
        line for line in before.splitlines() if line[:1] != "#"
    ]
