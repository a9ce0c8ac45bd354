"""Pictures in READMEs are true: what they say is what would be said today. `make pictures` makes them anew."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from tests.graph.browser import browser, missing
from tests.kernel import needs_kernel
from tests.lab.kpx import ROOT
from tests.pictures import FOLDER, shots, terminal
from tests.pictures.texts import COMMANDS, DRAWN

USED = re.compile(r'(?:\]\(|src="|srcset=")([^)"]*/pictures/[^)"]+)')
SMALL = 200_000


def used() -> set[Path]:
    """The pictures that READMEs show."""
    pages = [ROOT / "README.md", *(ROOT / "kpx").rglob("README.md"), *(ROOT / "charts").rglob("README.md")]
    return {(page.parent / found).resolve() for page in pages for found in USED.findall(page.read_text())}


def test_every_picture_is_shown_and_every_one_shown_is_there() -> None:
    assert used() == set(FOLDER.iterdir())
    assert {path.name for path in FOLDER.iterdir()} == {*COMMANDS, *DRAWN, "page-light.png", "page-dark.png"}


def test_pictures_are_small_and_need_nobody() -> None:
    for path in FOLDER.iterdir():
        assert path.stat().st_size < SMALL
        if path.suffix == ".svg":
            assert not re.findall(r"https?://(?!www\.w3\.org/)", path.read_text())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo.svg"])
def test_what_a_command_prints_is_what_its_picture_shows(name: str) -> None:
    command = COMMANDS[name]
    fresh = terminal.svg(command.typed, command.shown())
    assert terminal.described(fresh) == terminal.described((FOLDER / name).read_text()), "make pictures"


@pytest.mark.kernel
@needs_kernel
def test_what_the_demo_prints_is_what_its_picture_shows() -> None:
    """Chance and the clock apart."""
    command = COMMANDS["demo.svg"]
    fresh, kept = (
        terminal.masked(terminal.described(one))
        for one in (terminal.svg(command.typed, command.shown()), (FOLDER / "demo.svg").read_text())
    )
    assert "✔" in kept
    assert fresh == kept, "make pictures"


@pytest.mark.parametrize("name", DRAWN)
def test_rules_are_drawn_as_their_picture_shows_them(name: str) -> None:
    assert DRAWN[name]() == (FOLDER / name).read_text(), "make pictures"


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_says_what_its_picture_shows(scheme: str, chrome: Chrome, tmp_path: Path) -> None:
    said = shots.opened(chrome, shots.page(tmp_path), scheme)
    kept = (FOLDER / f"page-{scheme}.png").read_bytes()
    assert "shop/front-end:http" in said
    assert said == shots.described(kept), "make pictures"


def test_a_picture_tells_what_was_seen_when_it_was_made(tmp_path: Path) -> None:
    """What a terminal shows, colours too, and other characters than letters."""
    shown = terminal.run("sh", "-c", "test -t 1 && printf '\\033[31mrot\\033[0m <&{}> \\342\\234\\224\\n'")
    picture = terminal.svg("sh", shown)
    assert terminal.described(picture) == "$ sh\nrot <&{}> ✔"
    assert picture.count("rot") >= 2
