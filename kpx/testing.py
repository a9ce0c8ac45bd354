"""A pytest fixture that holds compiled rules against files that people review.

    # conftest.py
    pytest_plugins = ["kpx.testing"]

    # test_rules.py
    def test_the_shop_has_the_rules_that_were_reviewed(kpx_golden):
        kpx_golden("manifests", "golden", config="config.yaml", node="node-0")

The first argument is what `kpx render -f` takes, the second a folder with `ipv4.rules` and `ipv6.rules`: what `kpx
render -o` writes. Paths are relative to the test's file. `KPX_GOLDEN=write pytest` writes the folder, for the next
review; any other run fails where rules differ, and says which Service's and how.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from kpx.api import KubeProxyConfiguration, parse_config
from kpx.compiler.compile import Layout, Target, compile_objects
from kpx.errors import InputError, KpxError
from kpx.family import Family
from kpx.netfilter.restore import payload
from kpx.netfilter.ruleset import Ruleset
from kpx.netfilter.save import parse_save
from kpx.reconcile.owners import owners_of
from kpx.reconcile.phases import transactions
from kpx.reconcile.plan import make_plan
from kpx.reconcile.report import differences
from kpx.sources import manifests


@pytest.fixture
def kpx_golden(request: pytest.FixtureRequest) -> "Golden":
    """Compiles manifests and compares the rules with golden files; see the module."""
    return Golden(request.path.parent, os.environ.get("KPX_GOLDEN") == "write")


@dataclass(frozen=True, slots=True)
class Golden:
    """What the fixture gives: call it. Paths are taken from `folder`; `writes` golden files instead of comparing."""

    folder: Path
    writes: bool

    def __call__(
        self,
        objects: str | Path,
        golden: str | Path,
        *,
        config: str | Path | None = None,
        node: str = "",
        layout: str = Layout.TREE,
    ) -> None:
        """Fail the test unless what `objects` compile to on `node` is, to the byte, what the folder `golden` holds."""
        __tracebackhide__ = True
        for family in Family:
            path = self.folder / golden / f"{family}.rules"
            try:
                ruleset = self._compile(objects, config, Target(node, family, Layout(layout)))
                text = payload(transactions(make_plan(ruleset, {}).edits))
                if self.writes:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text)
                trouble = _trouble(ruleset, text, path)
            except (KpxError, OSError, ValueError) as error:
                trouble = str(error)
            if trouble:
                pytest.fail(trouble, pytrace=False)

    def _compile(self, objects: str | Path, config: str | Path | None, target: Target) -> Ruleset:
        loaded = manifests.load([str(self.folder / objects)])
        if loaded.problems:
            raise InputError(loaded.problems)
        settings = parse_config((self.folder / config).read_bytes())[0] if config else KubeProxyConfiguration()
        name = target.node_name or settings.hostname_override
        return compile_objects(loaded.objects, settings, Target(name, target.family, target.layout))


def _trouble(ruleset: Ruleset, text: str, path: Path) -> str:
    """How the rules differ from a golden file; empty if they don't."""
    if not path.exists():
        return f"{path}: no golden file yet; run with KPX_GOLDEN=write, read what it writes, and commit it"
    golden = path.read_text()
    if golden == text:
        return ""
    held = parse_save(golden)
    found = differences(make_plan(ruleset, held).edits, owners_of(ruleset, held))
    lines = [f"{path}: rules differ (live: the golden file); KPX_GOLDEN=write takes them over"]
    for owner, some in found.items():
        lines += [owner, *(f"  {line}" for one in some for line in one.lines())]
    return "\n".join(lines if found else [*lines, "(the same rules in another order)"])
