"""Dumps as people paste them, and dumps that don't hold everything: what commands say of them first."""

import gzip
import json
from pathlib import Path

import pytest

from tests.cli.inprocess import Done, run

FORMS = Path(__file__).parent / "paste-forms"
OWN = ("--node-address", "192.0.2.10")
FLOW = ("tcp 10.244.0.9 -> 10.96.0.50:80", "--from", "pod")
WHOLE = (FORMS / "nocommit.save").read_text()
FILTER, NAT = (FORMS / "counters.save").read_text().split("*nat")
NAT = f"*nat{NAT}"
READ = ("crlf", "bom", "nocommit", "warning", "warning2", "counters", "indented", "prompt", "twice")


def asked(command: str, text: bytes, *words: str) -> Done:
    return run(command, *words, "--rules", "-", *OWN, stdin=text)


@pytest.mark.parametrize("form", READ)
def test_read_right(form: str) -> None:
    text = (FORMS / f"{form}.save").read_bytes()
    traced = asked("trace", text, *FLOW)
    assert traced.status == 0
    assert [line.split()[:3] for line in traced.stdout.splitlines()[-2:]] == [
        ["1/2", "translated", f"10.244.{node}.5:8080"] for node in (0, 1)
    ]
    assert "nothing wrong in 66 rules" in asked("verify", text).stdout
    assert "KUBE-SERVICES\\r" not in asked("graph", text, "--json").stdout
    explained = asked("explain", text, "shop/web")
    assert "Nothing is wrong" in explained.stdout
    assert ("iptables-legacy-save" in explained.stdout.splitlines()[0] + explained.stdout.splitlines()[1]) == (
        form.startswith("warning")
    )
    packed = asked("trace", gzip.compress(text), *FLOW)
    assert (packed.stdout, packed.status) == (traced.stdout, 0)


@pytest.mark.parametrize(
    ("form", "complaint"),
    [("cut.save", "cut off"), ("dash-S.txt", "`iptables-save`"), ("grepped.txt", "part of a dump")],
)
def test_refused_by_every_command(form: str, complaint: str) -> None:
    text = (FORMS / form).read_bytes()
    shop = ("-f", str(FORMS.parent / "cluster.yaml"), "--config", str(FORMS.parent / "config.yaml"))
    for done in (
        asked("trace", text, *FLOW),
        asked("verify", text),
        asked("explain", text, "shop/web"),
        asked("graph", text),
        run("top", "--once", "--rules", str(FORMS / form)),
        run("diff", *shop, "--against", str(FORMS / form)),
        run("verify", "--equivalent", str(FORMS / form), str(FORMS / "counters.save")),
    ):
        assert (done.status, done.stdout) == (2, "")
        assert complaint in done.complaint


LACKING = {
    "no nat": (FILTER, "nat"),
    "no filter": (NAT, "filter"),
    "nat that iptables can't print": (f"{FILTER}# Table `nat' is incompatible, use 'nft' tool.\n", "nat"),
    "filter that iptables can't print": (f"# Table `filter' is incompatible, use 'nft' tool.\n{NAT}", "filter"),
    "mangle that iptables can't print": (f"# Table `mangle' is incompatible, use 'nft' tool.\n{FILTER}{NAT}", "mangle"),
    "nothing but raw": ("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", "nat"),
}


@pytest.mark.parametrize("what", LACKING)
def test_what_can_not_be_read_is_not_empty(what: str) -> None:
    """Said first, never nothing wrong, never a certain answer, never status 0."""
    text, table = LACKING[what][0].encode(), LACKING[what][1]
    verified = asked("verify", text)
    assert verified.status == 1
    assert verified.stdout.startswith("! ")
    assert f"table {table}" in "\n".join(verified.stdout.splitlines()[:2])
    assert ": nothing wrong" not in verified.stdout
    assert json.loads(asked("verify", text, "--json").stdout)["verified"][0]["about"]["unread"]
    traced = asked("trace", text, *FLOW)
    assert traced.status == 1
    assert traced.stdout.startswith("! ")
    outcomes = json.loads(asked("trace", text, *FLOW, "--json").stdout)["outcomes"]
    assert {one["fate"] for one in outcomes} == {"unknown"}
    explained = asked("explain", text, "shop/web")
    assert explained.status in (1, 2)
    assert f"table {table}" in explained.complaint + "\n".join(explained.stdout.splitlines()[:2])
    assert "Nothing is wrong" not in explained.stdout
    assert "no rule that leads to KUBE-SERVICES" not in explained.stdout
    assert asked("graph", text, "--format", "dot").status == 1


def test_what_the_other_tables_say_is_told() -> None:
    found = json.loads(asked("trace", NAT.encode(), *FLOW, "--json").stdout)["outcomes"]
    assert {one["detail"] for one in found} == {
        f"the dump holds no table filter; by the other tables: translated 10.244.{node}.5:8080" for node in (0, 1)
    }
    known = json.loads(asked("trace", NAT.encode(), *FLOW, "--json", "--ctstate", "ESTABLISHED").stdout)["outcomes"]
    assert [one["detail"] for one in known] == ["the dump holds no table filter; by the other tables: untouched"]


def test_a_comparison_needs_both_sides_whole(tmp_path: Path) -> None:
    (tmp_path / "nat.save").write_text(NAT)
    (tmp_path / "whole.save").write_text(FILTER + NAT)
    shop = ("-f", str(FORMS.parent / "cluster.yaml"), "--config", str(FORMS.parent / "config.yaml"))
    for done in (
        run("verify", "--equivalent", str(tmp_path / "nat.save"), str(tmp_path / "whole.save")),
        run("diff", *shop, "--against", str(tmp_path / "nat.save")),
        run("explain", "shop/web", *shop, "--rules", str(tmp_path / "nat.save")),
    ):
        assert (done.status, done.stdout) == (2, "")
        assert "no table filter" in done.complaint
