"""`kpx diff` where kube-proxy has left comments off, or not yet: with more than 1,000 endpoints in a family."""

import json
import re
from pathlib import Path

import pytest

from kpx.family import Family
from tests.cli.inprocess import run
from tests.manifests import Manifest, endpoint_slice, service, write

COMMENT = re.compile(r'-m comment --comment "[^"]*" ')


def dual(name: str, number: int) -> Manifest:
    ips = [f"10.96.1.{number}", f"fd00:96::{number:x}"]
    families = ["IPv4", "IPv6"]
    return service(name, ips[0], clusterIPs=ips, ipFamilies=families, ipFamilyPolicy="RequireDualStack")


def cluster(path: Path, six: int) -> str:
    """Eleven Services of 100 IPv4 endpoints each, and so many IPv6 ones."""
    objects: list[Manifest] = []
    for number in range(1, 12):
        name = f"s{number}"
        four = endpoint_slice(name, [f"10.244.{number}.{n}" for n in range(1, 101)])
        other = endpoint_slice(name, [f"fd00:244::{number:x}:{n:x}" for n in range(1, six + 1)])
        other["metadata"]["name"] = f"{name}-six"
        objects += [dual(name, number), four, other]
    return str(write(path / "cluster.json", objects))


def diff(objects: str, family: Family, path: Path) -> tuple[str, int]:
    done = run("diff", "-f", objects, "--node", "node-0", "--family", str(family), "--against", str(path))
    return done.stdout, done.status


@pytest.mark.parametrize("layout", ["classic", "tree"])
@pytest.mark.parametrize("six", [2, 100])
@pytest.mark.parametrize("family", Family)
def test_comments_alone_are_no_difference(layout: str, six: int, family: Family, tmp_path: Path) -> None:
    """The rules as they are with comments and without, whatever this number of endpoints asks for."""
    objects = cluster(tmp_path, six)
    text = run("render", "-f", objects, "--node", "node-0", "--family", str(family), "--layout", layout).stdout
    large = family is Family.IPV4 or six == 100
    assert ("shop/s3:http ->" in text) is not large
    (tmp_path / "as-wanted.save").write_text(text)
    assert diff(objects, family, tmp_path / "as-wanted.save") == ("same\n", 0)
    bare = COMMENT.sub("", text)
    assert bare != text or large
    (tmp_path / "bare.save").write_text(bare)
    assert diff(objects, family, tmp_path / "bare.save") == ("same\n", 0)
    said = re.sub(
        r"^(-A KUBE-S(?:VC|EP)-\S+ )(?!.*--comment)", r'\1-m comment --comment "shop/s:http" ', text, flags=re.M
    )
    if large:
        (tmp_path / "said.save").write_text(said)
        assert said != text
        assert diff(objects, family, tmp_path / "said.save") == ("same\n", 0)


@pytest.mark.parametrize("family", Family)
def test_what_packets_meet_still_counts(family: Family, tmp_path: Path) -> None:
    """Without comments, and one endpoint's port changed: that, and nothing else, is told."""
    objects = cluster(tmp_path, 2)
    text = run("render", "-f", objects, "--node", "node-0", "--family", str(family)).stdout
    to = "10.244.3.2:8080" if family is Family.IPV4 else "[fd00:244::3:2]:8080"
    (tmp_path / "other.save").write_text(COMMENT.sub("", text).replace(f"{to}\n", f"{to[:-4]}9090\n"))
    shown = run(
        "diff", "-f", objects, "--node", "node-0", "--family", str(family), "--against", str(tmp_path / "other.save")
    )
    assert shown.status == 1
    found = json.loads(
        run(
            "diff", "-f", objects, "--node", "node-0", "--family", str(family), "--json",
            "--against", str(tmp_path / "other.save"),
        ).stdout
    )  # fmt: skip
    assert list(found[str(family)]) == ["shop/s3:http"]
    (chain,) = {one["chain"] for one in found[str(family)]["shop/s3:http"]}
    assert chain.startswith("KUBE-SEP-")


def test_another_comment_is_told(tmp_path: Path) -> None:
    """It names another Service than the one that is meant: who reads the rules is misled."""
    objects = cluster(tmp_path, 2)
    text = run("render", "-f", objects, "--node", "node-0", "--family", "ipv6").stdout
    (tmp_path / "other.save").write_text(text.replace('"shop/s3:http ->', '"shop/s9:http ->'))
    assert diff(objects, Family.IPV6, tmp_path / "other.save")[1] == 1
