"""`kpx verify`: on the demo's shop, on dumps, on the kernel; and on bad input."""

import json
from pathlib import Path

import pytest

from kpx.analysis.verdict import Equivalence, Verification
from kpx.netfilter.tools import Backend
from tests.cli.inprocess import Done, run
from tests.kernel import BACKENDS, Namespace, case_path, needs_kernel

ROOT = Path(__file__).parents[2]
MANIFESTS = ("--config", str(ROOT / "tests/demo/config.yaml"))
SHOP = str(ROOT / "tests/demo/shop")
AFFINITY = case_path("session-affinity")


def verify(*arguments: str, stdin: bytes = b"") -> Done:
    return run("verify", *arguments, stdin=stdin)


def damaged(folder: Path, old: str, new: str) -> str:
    text = (AFFINITY / "ipv4.save").read_text()
    assert old in text
    path = folder / "damaged.save"
    path.write_text(text.replace(old, new))
    return str(path)


def fits(text: str) -> None:
    """Readable on a terminal of 80 columns: only rules and paths, which nobody wants broken, may be longer."""
    assert all(len(line) <= 80 for line in text.splitlines() if "/" not in line)


def test_sound_rules() -> None:
    done = verify("-f", SHOP, *MANIFESTS)
    assert (done.status, done.stdout) == (0, "manifests: nothing wrong in 83 rules\n")
    assert verify("-f", SHOP, *MANIFESTS, "--layout", "tree", "--family", "dual").stdout.count("nothing wrong") == 2


def test_the_family_of_a_dump_is_its_own() -> None:
    dump = case_path("dual-stack") / "ipv6.save"
    found = Verification.model_validate_json(verify("--rules", str(dump), "--json").stdout)
    assert [one.family for one in found.verified] == ["ipv6"]


def test_a_finding(tmp_path: Path) -> None:
    broken = damaged(tmp_path, "0.33333333349", "0.40000000037")
    done = verify("--rules", broken)
    assert done.status == 1
    assert "unequal-shares" in done.stdout
    fits(done.stdout)
    found = Verification.model_validate_json(verify("--rules", broken, "--json").stdout)
    ((one,),) = [report.findings for report in found.verified]
    assert (one.check, one.owner) == ("unequal-shares", "shop/cart:http")


def test_equivalence_with_manifests() -> None:
    options = ("--config", str(AFFINITY / "config.yaml"), "--node", "node-0", "--layout", "tree")
    done = verify("--equivalent", str(AFFINITY / "ipv4.save"), str(AFFINITY / "cluster.yaml"), *options)
    assert done.status == 0
    assert done.stdout.startswith("equivalent:")


def test_a_difference(tmp_path: Path) -> None:
    other = damaged(tmp_path, "--to-destination 10.244.1.10:8080", "--to-destination 10.244.1.10:8081")
    done = verify("--equivalent", str(AFFINITY / "ipv4.save"), other)
    assert done.status == 1
    assert "10.244.1.10:8081" in done.stdout
    fits(done.stdout)
    found = Equivalence.model_validate_json(verify("--equivalent", str(AFFINITY / "ipv4.save"), other, "--json").stdout)
    assert found.equivalent is False
    assert found.example is not None
    assert (found.example.destination, found.example.destination_port) == ("10.96.1.20", 80)
    assert all(abs(sum(one.share for one in side) - 1) < 1e-9 for side in found.example.outcomes)


def test_one_schema_for_both() -> None:
    told = json.loads(verify("--schema").stdout)
    assert told["anyOf"] == [{"$ref": "#/$defs/Verification"}, {"$ref": "#/$defs/Equivalence"}]
    assert json.loads(verify("--equivalent", "a", "b", "--schema").stdout) == told


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rules", "/nowhere"], "/nowhere"),
        (["--equivalent", "/nowhere", "/nowhere"], "/nowhere"),
        (["--equivalent", str(AFFINITY / "ipv4.save"), SHOP, "--family", "dual"], "--family"),
        (["--rules", str(AFFINITY / "ipv4.save"), "--family", "ipv6"], "ipv4"),
    ],
)
def test_bad_input(arguments: list[str], complaint: str) -> None:
    done = verify(*arguments)
    assert done.status == 2
    assert complaint in done.complaint
    assert not done.stdout


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel(namespace: Namespace, backend: Backend) -> None:
    """Sound after apply; then a second set of rules in the other backend, and a foreign rule in front."""
    manifests = ["-f", SHOP, *MANIFESTS]
    namespace.kpx("apply", *manifests, "--backend", backend)
    assert "nothing wrong" in namespace.kpx("verify", "--backend", backend).stdout
    other = next(one for one in BACKENDS if one != backend)
    namespace.kpx("apply", *manifests, "--backend", other)
    namespace.run([f"iptables-{backend}", "-t", "nat", "-I", "PREROUTING", "-p", "tcp", "-j", "ACCEPT"])
    done = namespace.kpx("verify", "--backend", backend, "--json", check=False)
    assert done.returncode == 1
    found = Verification.model_validate_json(done.stdout)
    assert {one.check for report in found.verified for one in report.findings} == {"both-backends", "caught-before"}


def test_rules_that_tell_too_much_apart_are_given_up_soon(tmp_path: Path) -> None:
    """Each of 30 matches that nobody knows decides on a bit of the mark: a thousand million different packets."""
    rules = [f"-A OUTPUT -m u32 --u32 {bit} -j MARK --set-xmark {1 << bit:#x}/{1 << bit:#x}" for bit in range(30)]
    sides = tmp_path / "one.save", tmp_path / "other.save"
    sides[0].write_text("\n".join(["*mangle", *rules, "COMMIT", ""]))
    sides[1].write_text("\n".join(["*mangle", *rules[::-1], "COMMIT", ""]))
    done = verify("--equivalent", str(sides[0]), str(sides[1]))
    assert (done.status, done.stdout) == (2, "")
    assert "too many classes of packets" in done.complaint
