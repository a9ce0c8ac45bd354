"""What a command imports before it answers: modules are counted, as no clock is to be trusted."""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from kpx.cli import COMMANDS
from kpx.family import Family
from kpx.netfilter.tools import Backend
from tests.agent.harness import PATIENCE, AgentProcess, save
from tests.apiserver import ApiServer
from tests.cli.scenes import ROOT, SHOP
from tests.kernel import needs_kernel
from tests.lab import Namespace
from tests.manifests import endpoint_slice, node, service, write

_WORK = {f"kpx.cli.{name}" for name in COMMANDS}
CONFIG = ROOT / "tests/demo/config.yaml"


_INSTALLED = packages_distributions().keys() | {"kpx"}


def packages(modules: Iterable[str]) -> set[str]:
    """The packages that aren't Python's own."""
    return {module.partition(".")[0] for module in modules if not module.startswith("_")} & _INSTALLED


def imported(file: Path, *arguments: str, env: Mapping[str, str] | None = None) -> set[str]:
    """The modules that `kpx ARGUMENTS` imports; they are noted in `file`."""
    command = [sys.executable, "-m", "tests.cli.recorded", str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | (env or {}), check=True)
    assert done.stdout, "it says nothing"
    return noted(file)


def noted(file: Path) -> set[str]:
    """The modules in a file."""
    return {name for name in file.read_text().split() if not name.startswith("tests")}


def completion(words: str) -> dict[str, str]:
    """The environment of a program that is asked how the last of these words may go on."""
    return {"_KPX_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}


@pytest.fixture(scope="module")
def click() -> set[str]:
    """What click imports."""
    command = [sys.executable, "-c", "import click, sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("words", [["--version"], ["--help"], *([name, "--help"] for name in sorted(COMMANDS))])
def test_help_takes_no_more_than_click(words: list[str], click: set[str], tmp_path: Path) -> None:
    found = imported(tmp_path / "modules", *words)
    assert "kpx.cli" in found
    assert packages(found) == packages(click) | {"kpx"}
    assert len(found - click) < 60, sorted(found - click)
    assert not found & _WORK


@pytest.mark.parametrize("words", ["kpx re", "kpx render --", "kpx trace --ctstate ", "kpx top --sort "])
def test_a_shell_that_completes_words_takes_no_more_than_click(words: str, click: set[str], tmp_path: Path) -> None:
    found = imported(tmp_path / "modules", env=completion(words))
    assert packages(found) == packages(click) | {"kpx"}
    assert len(found - click) < 60, sorted(found - click)
    assert not found & _WORK


@pytest.mark.parametrize(
    ("words", "answer"),
    [("kpx ren", "render"), ("kpx render --lay", "--layout"), ("kpx top --sort t", "total")],
)
def test_a_shell_completes_words(words: str, answer: str) -> None:
    command = [sys.executable, "-m", "kpx"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | completion(words), cwd=ROOT, check=True
    )
    assert f"plain,{answer}" in done.stdout.splitlines()


def test_render_imports_a_compiler_and_what_reads_manifests(click: set[str], tmp_path: Path) -> None:
    found = imported(tmp_path / "modules", "render", "-f", str(SHOP / "front-end.yaml"), "--config", str(CONFIG))
    wanted = {"kpx", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "yaml"}
    assert packages(found) == packages(click) | wanted
    rooms = {name.split(".")[1] for name in found if name.startswith("kpx.")}
    assert not rooms & {"agent", "analysis", "explain", "doctor", "host"}
    assert not found & {"kpx.netfilter.tools", "kpx.netfilter.rule", "kpx.cli.output", "subprocess", "asyncio"}
    assert found & _WORK == {"kpx.cli.render"}
    assert len(found) < 330, len(found)


@needs_kernel
@pytest.mark.kernel
@pytest.mark.parametrize("follows", ["directory", "server"])
def test_the_agent_imports_nothing_that_it_does_not_use(follows: str, tmp_path: Path) -> None:
    with Namespace() as namespace, ApiServer(netns=namespace.path) as server:
        namespace.ip("link set lo up")
        server.put_all([node(), service("web", "10.96.0.1"), endpoint_slice("web", ["10.244.0.10"])])
        (tmp_path / "objects").mkdir()
        write(tmp_path / "objects/shop.yaml", [node(), service("web", "10.96.0.1")])
        directory = follows == "directory"
        source = ("--manifests", tmp_path / "objects") if directory else ()
        agent = AgentProcess(namespace, tmp_path, None if directory else server, *source)
        at = agent.command.index("kpx")
        agent.command[at : at + 1] = ["tests.cli.recorded", str(tmp_path / "modules")]
        with agent:
            for _ in agent.patiently(PATIENCE, "the first rules"):
                if "shop/web" in save(namespace, Backend.NFT, Family.IPV4):
                    break
            agent.metrics()
            agent.stop()
        found = noted(tmp_path / "modules")
    unused = {"kubernetes", "dateutil"} if directory else {"asyncinotify"}
    never = {"rich", "pygments", "graphviz", "iptc", "requests", "oauthlib", "websocket"}
    assert not packages(found) & (never | unused)
    rooms = {name.split(".")[1] for name in found if name.startswith("kpx.")}
    assert "agent" in rooms
    assert not rooms & {"analysis", "explain", "doctor", "testing"}
    assert found & _WORK == {"kpx.cli.run"}


def test_nothing_but_logging_imports_structlog() -> None:
    having = [path for path in (ROOT / "kpx").rglob("*.py") if "import structlog" in path.read_text()]
    assert [path.name for path in having] == ["logs.py"]
