"""What users and developers read besides the README."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from kpx.cli import COMMANDS, cli
from kpx.version import __version__
from tests.docs import render

ROOT = Path(__file__).parents[1]


def test_every_docstring_renders_without_a_warning(tmp_path: Path) -> None:
    render(tmp_path)
    assert (tmp_path / "kpx/compiler/prefix_tree.html").is_file()
    assert len(list(tmp_path.rglob("*.html"))) > 60


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_and_ends_with_an_example(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    paragraphs = shown.output.strip().split("\n\n")
    assert paragraphs[0].startswith(f"Usage: cli {name}")
    assert re.match(rf" +Example:\n( +.*\n)* +kpx {name}\b", paragraphs[-1]), shown.output


def test_the_readme_tells_what_this_version_brought() -> None:
    changes = (ROOT / "README.md").read_text().partition("## Changes\n")[2]
    assert f"### {__version__}" in changes
