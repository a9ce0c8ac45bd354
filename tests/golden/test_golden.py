"""Rules compared with golden files, to the byte; `make golden` rewrites them. The kernel has to agree with them."""

import os
import random
from pathlib import Path

import pytest

import kpx
from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.tools import Backend
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from kpx.sources import manifests
from tests.kernel import BACKENDS, FAMILIES, Namespace, needs_kernel

FOLDER = Path(__file__).parent
DEMO = FOLDER.parent / "demo"
CASES = {path.name: path / "cluster.yaml" for path in sorted(FOLDER.iterdir()) if (path / "cluster.yaml").exists()}
CASES["shop"] = DEMO / "shop"


LAYOUTS = pytest.mark.parametrize("layout", [kpx.Layout.TREE, kpx.Layout.COMPACT])


def rendered(case: str, family: Family, layout: kpx.Layout, shuffle: int | None = None) -> str:
    loaded = manifests.load([str(CASES[case])])
    assert loaded.problems == ()
    objects = list(loaded.objects)
    if shuffle is not None:
        random.Random(shuffle).shuffle(objects)
    config, _ = kpx.parse_config((CASES[case].parent / "config.yaml").read_bytes())
    ruleset = kpx.compile(objects, config, family=family, layout=layout)
    return payload(transactions(make_plan(ruleset, {}).edits))


def golden_file(case: str, family: Family, layout: kpx.Layout) -> Path:
    """That of the default layout is called by the family alone."""
    return FOLDER / case / (f"{family}.rules" if layout is kpx.Layout.TREE else f"{family}.{layout}.rules")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
@LAYOUTS
def test_rules_equal_the_golden_file_whatever_the_input_order(case: str, family: Family, layout: kpx.Layout) -> None:
    golden = golden_file(case, family, layout)
    if os.environ.get("KPX_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(rendered(case, family, layout))
    expected = golden.read_text()
    assert rendered(case, family, layout) == expected
    for seed in range(3):
        assert rendered(case, family, layout, shuffle=seed) == expected


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
@LAYOUTS
def test_the_kernel_holds_the_golden_rules_as_they_are(
    case: str, family: Family, backend: Backend, layout: kpx.Layout, namespace: Namespace
) -> None:
    golden = golden_file(case, family, layout).read_text()
    namespace.restore(backend, family, golden)
    held = {line for line in namespace.save(backend, family).splitlines() if line.startswith("-A ")}
    sent = {line for line in golden.splitlines() if line.startswith("-A ")}
    jumps = {
        "-A " + " ".join(line.split()[1:2] + line.split(" ")[3:])
        for line in golden.splitlines()
        if line.startswith("-I ")
    }
    assert held == sent | jumps
