"""Dumps that no iptables-save wrote: trace and explain answer, or say what is wrong, and never fall over.

`KPX_FUZZ` says for how many seconds each is tried, with other dumps every time. Texts that once made trouble stay as
examples.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kpx.errors import KpxError
from kpx.netfilter.save import parse_save
from tests.cli.inprocess import run
from tests.kernel import case_path

SECONDS = float(os.environ.get("KPX_FUZZ", "0"))
LEAST = 60
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.save"))
_WORDS = """
-A -I -j -g ! -m --comment " \\ ' *nat *raw :A COMMIT [1:2] \x00
tcp udp mark recent statistic addrtype conntrack physdev set connmark multiport
--dport --dports --mark 0x1/0x1 --set-xmark --probability 0.5 nan inf -1 1e400
--rcheck --set --seconds --name --ctstate NEW,DNAT --dst-type LOCAL --tcp-flags ALL
DNAT REJECT MASQUERADE CONNMARK --restore-mark --nfmask CT --notrack REDIRECT SNAT
--to-destination --to-source --to-ports 10.0.0.1:80 [::1]:80 1.2.3.4-5.6.7.8 : / 10.0.0.0/33
99999999999999999999 ٣ \udcff é \x1b[31m KUBE-SERVICES KUBE-POSTROUTING PREROUTING FORWARD POSTROUTING
--every --packet --mode nth random 0 --src-range --physdev-in --uid-owner --nfacct-name
"""
WORDS = _WORDS.split()
FLOWS = (
    "tcp 192.0.2.9 -> 10.96.1.10:80",
    "tcp 10.244.0.9:5000 -> 203.0.113.10:443",
    "udp 10.200.0.2 -> 10.200.0.2:30080",
    "icmp 10.1.1.1 -> 10.200.0.2",
    "tcp 127.0.0.1 -> 127.0.0.1:30080",
)
QUESTIONS = ("shop/web", "10.96.1.10", "30080", "KUBE-SERVICES", "10.244.1.10")


def mangled(pick: random.Random) -> str:
    """A real dump with a few words or lines dropped, doubled, swapped or replaced."""
    name = pick.choice(sorted(path.name for path in case_path("").iterdir() if path.is_dir()))
    lines = (case_path(name) / "ipv4.save").read_text().split("\n")
    for _ in range(pick.choice([1, 2, 5, 20])):
        at, other = pick.randrange(len(lines)), pick.randrange(len(lines))
        words = lines[at].split(" ")
        place = pick.randrange(len(words))
        match pick.randrange(6):
            case 0:
                words[place] = pick.choice(WORDS)
            case 1:
                words.insert(place, pick.choice(WORDS))
            case 2:
                del words[place]
            case 3:
                lines.insert(other, lines[at])
            case 4:
                lines[other], words = lines[at], lines[other].split(" ")
            case 5:
                words = [*words[:place], *lines[other].split(" ")[place:]]
        lines[at] = " ".join(words)
    return "\n".join(lines)


def ask(text: str, number: int) -> None:
    data = text.encode(errors="surrogateescape")
    own = () if number % 3 else ("--node-address", "10.200.0.2")
    sender = ("pod", "outside", "node")[number % 3]
    shape = ("--json",) if number % 2 else ("--all",)
    traced = run("trace", FLOWS[number % len(FLOWS)], "--from", sender, "--rules", "-", *own, *shape, stdin=data)
    told = run("explain", QUESTIONS[number % len(QUESTIONS)], "--rules", "-", *own, *shape, stdin=data)
    checked = run("verify", "--rules", "-", *(["--json"] if number % 2 else []), stdin=data)
    assert checked.status in (0, 1, 2)
    assert bool(checked.complaint) or checked.status < 2
    for done in (traced, told):
        assert done.status in (0, 2)
        assert bool(done.stdout) != bool(done.status)
        assert done.status == 0 or done.complaint
        assert "\x1b" not in done.stdout
        assert "\x00" not in done.stdout


def parse(text: str, number: int) -> None:
    try:
        parse_save(text)
    except KpxError as error:
        assert str(error).startswith("line ")  # noqa: PT017


@pytest.mark.parametrize("what", [ask, parse], ids=["commands", "parser"])
@pytest.mark.timeout(SECONDS + 300)
def test_mangled_dumps(what: Callable[[str, int], None]) -> None:
    end, seed = time.monotonic() + SECONDS, int(time.time()) if SECONDS else 0
    first = seed
    while time.monotonic() < end or seed - first < LEAST:
        text = mangled(random.Random(seed))
        try:
            what(text, seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        seed += 1


@pytest.mark.parametrize("path", CORPUS, ids=[path.stem for path in CORPUS])
def test_texts_that_made_trouble(path: Path) -> None:
    text = path.read_bytes().decode(errors="surrogateescape")
    parse(text, 0)
    for number in range(len(FLOWS) * 6):
        ask(text, number)
