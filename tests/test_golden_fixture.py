"""The fixture that users take into their own tests: run by pytest in a project of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parent / "demo"

README = (Path(__file__).parent.parent / "kpx/cli/README.md").read_text()
((CONFTEST, TEST),) = re.findall(r"```python\n# conftest.py\n(.*?)\n# test_rules.py\n(.*?)```", README, re.DOTALL)
(ENTRY,) = re.findall(r"entry: kpx (.*)\n", README)
(GITHUB,) = re.findall(r"    kpx (diff .*) >> \"\$GITHUB_STEP_SUMMARY\"", README)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(DEMO / "shop", tmp_path / "tests" / "manifests")
    shutil.copy(DEMO / "config.yaml", tmp_path / "tests")
    (tmp_path / "tests" / "conftest.py").write_text(CONFTEST)
    (tmp_path / "tests" / "test_rules.py").write_text(TEST)
    return tmp_path


def run(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project / "tests" / "test_rules.py")]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("KPX_", "PYTEST_"))}
    return subprocess.run(
        command, cwd=project, capture_output=True, text=True, check=False, env=clean | environment, timeout=120
    )


def test_it_writes_compares_and_says_what_is_different(project: Path) -> None:
    first = run(project)
    assert first.returncode == 1
    assert "ipv4.rules: no golden file yet; run with KPX_GOLDEN=write" in first.stdout
    assert run(project, KPX_GOLDEN="write").returncode == 0
    for family in ("ipv4", "ipv6"):
        written = (project / "tests" / "golden" / f"{family}.rules").read_bytes()
        assert written == (DEMO.parent / "golden" / "shop" / f"{family}.rules").read_bytes()
    assert run(project).returncode == 0
    path = project / "tests" / "manifests" / "front-end.yaml"
    path.write_text(path.read_text().replace("10.244.1.12", "10.244.1.99"))
    changed = run(project)
    assert changed.returncode == 1
    assert "shop/front-end:http" in changed.stdout
    assert "--to-destination 10.244.1.99:8080" in changed.stdout
    path.write_text(path.read_text().replace("nodePort: 30080", "nodePort: many"))
    broken = run(project)
    assert broken.returncode == 1
    assert "Service shop/front-end: spec.ports[0].nodePort" in broken.stdout


def kpx(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kpx", *arguments]
    return subprocess.run(command, cwd=project / "tests", capture_output=True, text=True, check=False)


def test_what_readme_gives_to_ci_tells_a_change(project: Path) -> None:
    assert kpx(project, "render", "-f", "manifests", "--config", "config.yaml", "-o", "golden").returncode == 0
    shutil.copytree(project / "tests", project / "base")
    assert (kpx(project, *ENTRY.split()).stdout, kpx(project, *ENTRY.split()).returncode) == ("same\n", 0)
    path = project / "tests" / "manifests" / "front-end.yaml"
    path.write_text(re.sub(r".*10\.244\.1\.12.*\n", "", path.read_text()))
    hook, comment = kpx(project, *ENTRY.split()), kpx(project, *GITHUB.split())
    assert (hook.returncode, comment.returncode) == (1, 1)
    assert "shop/front-end:http" in hook.stdout
    assert "| `shop/front-end:http` | endpoint 10.244.1.12 leaves; shares 1/3 → 1/2 |" in comment.stdout
