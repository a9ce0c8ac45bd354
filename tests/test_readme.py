"""What users read: every example is run and has to print what is shown there, and every link leads somewhere."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.kernel import Namespace, needs_kernel

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "kpx/agent/README.md",
    "kpx/analysis/README.md",
    "kpx/cli/README.md",
    "kpx/compiler/README.md",
    "tests/bench/README.md",
    "tests/cluster/README.md",
    "charts/kpx/README.md",
)
SECONDS = re.compile(r"\d+\.\d\d s")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def examples(page: str) -> list[tuple[str, str]]:
    """Commands and what they print, from the console blocks."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for part in re.split(r"^[$#] ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)])
def test_every_example_prints_what_is_shown(page: str, namespace: Namespace) -> None:
    """In the order of the page, in one network namespace."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    for command, output in examples(page):
        done = namespace.run(["sh", "-c", f"cd {ROOT} && {command}"], check=False, env={"PATH": path})
        assert SECONDS.sub("T s", done.stdout + done.stderr) == SECONDS.sub("T s", output), command


def test_there_are_examples_to_run() -> None:
    assert sum(len(examples(page)) for page in PAGES) > 30


def test_the_python_example_runs() -> None:
    text = (ROOT / "kpx/analysis/README.md").read_text()
    (code,) = re.findall(r"```python\n(import kpx.*?)```", text, re.DOTALL)
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        names: dict[str, object] = {}
        exec(code, names)
    finally:
        os.chdir(before)
    ruleset = names["ruleset"]
    assert "KUBE-NODEPORTS" in ruleset.tables["nat"].chains  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target, place in LINK.findall(text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not place or place in _places(path.read_text()), (target, place)


def _places(text: str) -> set[str]:
    """What a page's headings are called in links to them, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
