"""Input that nobody means, to all commands: they answer, or say what is wrong, and never fall over.

`KPX_FUZZ` says for how many seconds each kind is tried, with other input every time. What once made trouble stays in
`corpus`: dumps (`.save`), manifests (`.yaml`), configurations (`.config`).
"""

import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import mangle
from tests.cli.inprocess import Done, run
from tests.cli.mangle import FLOWS, QUESTIONS
from tests.kernel import case_path

SECONDS = float(os.environ.get("KPX_FUZZ", "0"))
CORPUS = Path(__file__).parent / "corpus"
SHOP = str(Path(__file__).parents[1] / "demo" / "shop")
GOLDEN = str(Path(__file__).parents[1] / "golden" / "shop" / "ipv4.rules")
DUMP = str(case_path("loadbalancer-source-ranges") / "ipv4.save")
OWN = ("--node-address", "10.200.0.2")
SENDERS = ("pod", "outside", "node")
FORMS = (("--format", "dot"), ("--format", "mermaid"), ("--html",), ("--json",))

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def behaves(done: Done, *statuses: int) -> None:
    """A result or a complaint, both fit for a terminal."""
    assert done.status in (*statuses, 2)
    assert done.complaint if done.status == 2 else done.stdout
    assert not _CONTROL.search(done.stdout)
    assert not _CONTROL.search(done.complaint)
    assert all(len(line) < 1000 for line in done.complaint.split("\n"))


# ---- what is tried ----


def of_dump(data: bytes, number: int, room: Path) -> None:
    """trace, explain, verify, graph, top and diff of a dump."""
    rules = room / "mangled.save"
    rules.write_bytes(data)
    own, shape = OWN if number % 3 else (), ("--json",) if number % 2 else ("--all",)
    of = ("--rules", str(rules))
    flow, asked = FLOWS[number % len(FLOWS)], QUESTIONS[number % len(QUESTIONS)]
    behaves(run("trace", flow, "--from", SENDERS[number % 3], *of, *own, *shape), 0, 1)
    behaves(run("explain", asked, "--rules", "-", *own, *shape, stdin=data), 0, 1)
    behaves(run("verify", *of, *(["--json"] if number % 2 else [])), 0, 1)
    behaves(run("graph", *FORMS[number % len(FORMS)], *of), 0, 1)
    behaves(run("top", "--once", *of, *(["--json"] if number % 2 else ["--endpoints"])), 0)
    form = ("text", "json", "markdown")[number % 3]
    behaves(run("diff", "-f", SHOP, "--against", str(rules), "--node", "node-0", "--format", form), 0, 1)


def of_drawing(data: bytes, number: int, room: Path) -> None:
    """The pictures in SVG."""
    behaves(run("graph", "--rules", "-", stdin=data), 0, 1)


def of_comparison(data: bytes, number: int, room: Path) -> None:
    """A dump against another one, which may be mangled, too."""
    sides = room / "one.save", room / "other.save"
    sides[0].write_bytes(data)
    sides[1].write_bytes(mangle.dump(random.Random(-number)) if number % 2 else Path(DUMP).read_bytes())
    pair = [str(side) for side in (sides if number % 3 else sides[::-1])]
    behaves(run("verify", "--equivalent", *pair, *(["--json"] if number % 2 else [])), 0, 1)


def of_objects(data: bytes, number: int, room: Path) -> None:
    """render, diff, and questions about manifests."""
    file = room / ("mangled.json" if data[:1] == b"{" and number % 2 else "mangled.yaml")
    file.write_bytes(data)
    these = ("-f", str(file), "--node", "node-0", *(["--keep-going"] if number % 3 else []))
    done = run("render", *these, "--format", ("json", "restore")[number % 2])
    behaves(done, 0)
    if done.status == 0 or number % 3:
        behaves(run("render", *these, "--family", "ipv6", "--layout", "classic"), 0)
        behaves(run("diff", *these, "--against", (SHOP, GOLDEN, str(file))[number % 3]), 0, 1)
        behaves(run("diff", "-f", SHOP, "--against", str(file), "--family", "dual"), 0, 1)
        behaves(run("explain", QUESTIONS[number % len(QUESTIONS)], *these), 0)
        behaves(run("trace", FLOWS[number % len(FLOWS)], *these), 0)
        behaves(run("graph", *FORMS[number % len(FORMS)], *these), 0)
        behaves(run("verify", *these), 0, 1)


def of_config(data: bytes, number: int, room: Path) -> None:
    """A configuration that compiles, or is refused."""
    file = room / "mangled.config"
    file.write_bytes(data)
    behaves(run("render", "-f", SHOP, "--config", str(file)), 0)
    behaves(run("explain", "shop/front-end", "-f", SHOP, "--config", str(file)), 0)


def of_words(data: bytes, number: int, room: Path) -> None:
    """Packets and questions as one might type them."""
    typed = data.decode(errors="surrogateescape")
    words = [typed] if number % 3 else typed.split(" ")
    behaves(run("trace", "--rules", DUMP, *words), 0)
    behaves(run("trace", "--rules", DUMP, FLOWS[0], "--known", typed, "--json"), 0)
    behaves(run("explain", "--rules", DUMP, "--", typed), 0)
    behaves(run("explain", "-f", SHOP, "--node", "node-0", "--", typed), 0)
    behaves(run("graph", "--rules", DUMP, "--json", "--", typed), 0)


def words(pick: random.Random) -> bytes:
    typed = mangle.packet(pick) if pick.random() < 0.5 else mangle.question(pick)
    return typed.encode(errors="surrogatepass")


Try = Callable[[bytes, int, Path], None]
KINDS: dict[str, tuple[Callable[[random.Random], bytes], Try, int]] = {
    "dump": (mangle.dump, of_dump, 20),
    "drawing": (mangle.dump, of_drawing, 5),
    "comparison": (mangle.dump, of_comparison, 20),
    "objects": (mangle.objects, of_objects, 20),
    "config": (mangle.config, of_config, 20),
    "words": (words, of_words, 20),
}
"""What makes input, what is done with it, and how often at least."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(SECONDS + 300)
def test_mangled(kind: str, tmp_path: Path) -> None:
    make, try_, least = KINDS[kind]
    end, seed = time.monotonic() + SECONDS, int(time.time()) if SECONDS else 0
    first = seed
    while time.monotonic() < end or seed - first < least:
        try:
            try_(make(random.Random(seed)), seed, tmp_path)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        seed += 1


TROUBLE: dict[str, tuple[Try, ...]] = {
    ".save": (of_dump, of_drawing, of_comparison),
    ".yaml": (of_objects,),
    ".config": (of_config,),
}


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_once_made_trouble(path: Path, tmp_path: Path) -> None:
    for try_ in TROUBLE[path.suffix]:
        for number in range(6):
            try_(path.read_bytes(), number, tmp_path)
