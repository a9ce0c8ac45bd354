"""Every example in README.md is run, in order, in one network namespace, and has to print what README says."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.kernel import Namespace, needs_kernel

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SECONDS = re.compile(r"\d+\.\d\d s")


def examples() -> list[tuple[str, str]]:
    """Commands and what they print, from the console blocks."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in re.split(r"^[$#] ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


@pytest.mark.kernel
@needs_kernel
def test_every_example_prints_what_readme_shows(namespace: Namespace) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    assert len(examples()) >= 8
    for command, output in examples():
        done = namespace.run(["sh", "-c", f"cd {ROOT} && {command}"], check=False, env={"PATH": path})
        assert SECONDS.sub("T s", done.stdout + done.stderr) == SECONDS.sub("T s", output), command


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(import kpx.*?)```", README, re.DOTALL)
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        names: dict[str, object] = {}
        exec(code, names)
    finally:
        os.chdir(before)
    ruleset = names["ruleset"]
    assert "KUBE-NODEPORTS" in ruleset.tables["nat"].chains  # type: ignore[attr-defined]
