"""`kpx trace`: what it says of the demo's shop, of dumps, of the kernel; and of bad input."""

import json
import re
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kpx.analysis.notation import Flow, parse_flow
from kpx.analysis.report import Trace
from kpx.cli.output import share
from kpx.compiler.names import port_hash
from kpx.errors import KpxError
from kpx.model.service import ServicePortName
from kpx.netfilter.tools import Backend
from tests.cli.inprocess import Done, run
from tests.kernel import Namespace, case_path, needs_kernel

ROOT = Path(__file__).parents[2]
SHOP = ("-f", str(ROOT / "tests/demo/shop"), "--config", str(ROOT / "tests/demo/config.yaml"))


def kpx_trace(*arguments: str, stdin: bytes = b"") -> Done:
    return run("trace", *arguments, stdin=stdin)


def traced(*arguments: str, stdin: bytes = b"") -> Trace:
    done = kpx_trace(*arguments, "--json", stdin=stdin)
    assert done.status == 0, done.complaint
    return Trace.model_validate_json(done.stdout)


def ends(found: Trace) -> dict[str, float]:
    return {f"{one.fate} {one.destination}".strip(): round(one.share, 3) for one in found.outcomes}


def test_a_connection_to_a_cluster_ip() -> None:
    found = traced("tcp", "10.244.1.5", "->", "10.96.0.10:80", "--from", "pod", *SHOP)
    pods = ("10.244.0.11", "10.244.1.12", "10.244.2.13")
    assert ends(found) == {f"translated {pod}:8080": 0.333 for pod in pods}
    assert sum(Fraction(one.exact) for one in found.outcomes) == 1
    chain = "KUBE-SVC-" + port_hash(ServicePortName("shop", "front-end", "http", "tcp"))
    for path in found.paths:
        entry, choice, there = [step for step in path.steps if step.table == "nat" and step.hook == "PREROUTING"][1:4]
        assert choice.chain == chain
        assert entry.target_name == choice.chain_name == "shop/front-end:http"
        assert choice.target_name == there.chain_name == f"shop/front-end:http -> {path.outcome.destination}"


def test_a_pod_that_is_sent_to_itself_in_the_layout_compact() -> None:
    """The rule that chooses it translates, and one rule for all masquerades what comes back to its sender."""
    found = traced("tcp 10.244.1.12 -> 10.96.0.10:80", "--layout", "compact", *SHOP)
    assert {(one.destination, one.masqueraded) for one in found.outcomes} == {
        ("10.244.0.11:8080", False), ("10.244.1.12:8080", True), ("10.244.2.13:8080", False),
    }  # fmt: skip
    own = next(path for path in found.paths if path.outcome.masqueraded)
    assert not any(step.chain.startswith("KUBE-SEP-") for path in found.paths for step in path.steps)
    choice = next(step for step in own.steps if step.action.startswith("DNAT"))
    assert (choice.chain_name, choice.action) == ("shop/front-end:http", "DNAT --to-destination 10.244.1.12:8080")
    hairpin = next(step for step in own.steps if step.chain == "KUBE-POSTROUTING")
    assert (hairpin.position, hairpin.action) == (1, "KUBE-MARK-MASQ")
    said = run("trace", "tcp 10.244.1.12 -> 10.96.0.10:80", "--layout", "compact", *SHOP).stdout
    assert "DNAT to its own source" in " ".join(said.split())


def test_an_ipv6_connection_and_the_other_layouts() -> None:
    flow = "tcp fd00:244:0:1::9 -> [fd00:96::10]:80"
    for layout in ("classic", "tree", "compact"):
        found = traced(flow, "--layout", layout, *SHOP)
        assert len(found.outcomes) == 3
        assert all(one.destination.startswith("[fd00:244:") for one in found.outcomes)


def test_a_dump_needs_no_root_and_tells_names_by_itself() -> None:
    save = (case_path("loadbalancer-source-ranges") / "ipv4.save").read_bytes()
    allowed = traced("tcp 192.0.2.9 -> 203.0.113.10:443", "--rules", "-", "--node-address", "10.200.0.2", stdin=save)
    assert len(allowed.outcomes) == 3
    assert all(one.masqueraded for one in allowed.outcomes)
    other = traced("tcp 192.0.3.9 -> 203.0.113.10:443", "--rules", "-", stdin=save)
    assert ends(other) == {"dropped": 1}
    assert other.paths[0].steps[-1].chain == "KUBE-PROXY-FIREWALL"
    assert "shop/web:https" in {step.target_name for step in other.paths[0].steps}


def test_manifests_tell_names_that_a_dump_does_not(tmp_path: Path) -> None:
    save = tmp_path / "bare.save"
    text = run("render", *SHOP).stdout
    save.write_text(
        re.sub(r'-m comment --comment "[^"]*" ', "", re.sub(r"^-I (\S+) \d+ ", r"-A \1 ", text, flags=re.M))
    )
    flow = ("tcp 10.244.1.5 -> 10.96.0.10:80", "--rules", str(save))
    for found, names in (
        (traced(*flow), {None, "endpoint -> 10.244.0.11:8080"}),
        (traced(*flow, *SHOP), {None, "shop/front-end:http", "shop/front-end:http -> 10.244.0.11:8080"}),
    ):
        (path,) = [one for one in found.paths if one.outcome.destination == "10.244.0.11:8080"]
        assert {step.chain_name for step in path.steps} == names


def test_who_went_there_before() -> None:
    flow = ("tcp 198.51.100.7 -> 10.96.0.20:80", *SHOP)
    fresh = traced(*flow)
    assert len(fresh.outcomes) == 3
    (kept,) = traced(*flow, "--known", "10.244.2.13:8081@3000").outcomes
    assert (kept.destination, kept.exact) == ("10.244.2.13:8081", "1")
    assert len(traced(*flow, "--known", "10.244.2.13:8081@3601").outcomes) == 3
    (name,) = next(path.remembered for path in fresh.paths if path.outcome.destination == "10.244.2.13:8081")
    assert ends(traced(*flow, "--known", name)) == {"translated 10.244.2.13:8081": 1}
    assert "no way" in kpx_trace(*flow, "--known", "10.9.9.9:80").complaint
    assert "no session affinity" in kpx_trace(
        "tcp 198.51.100.7 -> 10.96.0.10:80", *SHOP, "--known", "10.244.2.13:8080"
    ).complaint  # fmt: skip


RULES = """*nat
:PREROUTING ACCEPT [0:0]
:A - [0:0]
-A PREROUTING -i cni0 -m comment --comment "esc\x1b[31m" -j A
-A A -p tcp -m tcp --sport 1024: -m mark --mark 0x10/0x10 -j DNAT --to-destination 10.1.1.1:80
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m physdev --physdev-is-in -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
COMMIT
"""


@pytest.mark.parametrize(
    ("options", "fate"),
    [
        ("", "unknown"),
        ("--interface cni0", "unknown"),
        ("--interface cni0 --mark 0x10", "unknown"),
        ("--interface cni0 --mark 16 --sport --bridged", "translated 10.1.1.1:80"),
        ("--interface cni0 --mark 16 --sport --not-bridged", "dropped"),
        ("--interface eth0 --bridged", "untouched"),
        ("--interface eth0 --not-bridged --ctstate ESTABLISHED", "untouched"),
        ("--not-bridged --ctstate INVALID", "dropped"),
    ],
)
def test_what_is_told_of_a_packet_counts(options: str, fate: str) -> None:
    words = options.split()
    source = "10.244.0.9:5000" if "--sport" in words else "10.244.0.9"
    words = [word for word in words if word != "--sport"]
    found = traced(
        f"tcp {source} -> 10.9.9.9:80", "--rules", "-", "--node-address", "10.0.0.1", *words, stdin=RULES.encode()
    )
    assert ends(found) == {fate: 1}


def test_unknown_is_said_and_terminals_are_spared() -> None:
    done = kpx_trace("tcp 10.244.0.9 -> 10.9.9.9:80", "--rules", "-", "--interface", "cni0", stdin=RULES.encode())
    assert done.status == 0
    assert "can't be known: " in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_many_branches_are_cut() -> None:
    save = (
        "*nat\n"
        + "".join(
            f"-A PREROUTING -m statistic --mode random --probability {1 / (40 - n):.9f} "
            f"-j DNAT --to-destination 10.1.1.{n}\n"
            for n in range(40)
        )
        + "COMMIT\n"
    )
    flow = ("tcp 10.9.9.8 -> 10.9.9.9:80", "--rules", "-")
    short, whole = (kpx_trace(*flow, *more, stdin=save.encode()).stdout for more in ((), ("--all",)))
    assert "32 more branches, 4/5 of packets" in short
    assert whole.count("DNAT") == 40


def test_the_schema_describes_every_field() -> None:
    schema = json.loads(kpx_trace("--schema").stdout)
    assert schema == Trace.model_json_schema(mode="serialization")
    for name in ("PacketReport", "OutcomeReport", "StepReport", "PathReport"):
        assert schema["$defs"][name]["description"]
    with pytest.raises(ValidationError):
        Trace.model_validate({**traced("tcp 10.1.1.1 -> 10.96.0.10:80", *SHOP).model_dump(), "more": 1})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tcp", "10.0.0.1", "-"), "quotes"),
        (("tcp 10.0.0.1",), "written like"),
        (("tcp 10.0.0.1 -> 10.0.0.2",), "needs a port"),
        (("icmp 10.0.0.1 -> 10.0.0.2:80",), "no ports"),
        (("tcp 10.0.0.1 -> [::1]:80",), "one family"),
        (("tcp 10.0.0.300 -> 10.0.0.1:80",), "10.0.0.300"),
        (("tcp 10.0.0.1 -> 10.0.0.1:99999",), "99999"),
        (("tcp 10.0.0.1 -> 10.0.0.2:80", "--mark", "many"), "mark"),
        (("tcp 10.0.0.1 -> 10.0.0.2:80", "--known", "x@y"), "seconds"),
        (("tcp 10.0.0.1 -> 10.0.0.2:80", "--node-address", "here"), "here"),
        (("tcp 10.0.0.1 -> 10.0.0.2:80", "--live"), "choose one"),
        (("tcp 10.0.0.1 -> 10.0.0.2:80", "-f", "-"), "only once"),
        (("tcp ::1 -> [::2]:80",), "rules of ipv4"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], complaint: str) -> None:
    done = kpx_trace(*arguments, "--rules", "-", stdin=b"*nat\n-A PREROUTING -d 10.0.0.1/32 -j ACCEPT\nCOMMIT\n")
    assert done.status == 2
    assert complaint in done.complaint
    assert done.stdout == ""


def test_a_missing_or_senseless_file() -> None:
    assert "No such file" in kpx_trace("tcp 10.0.0.1 -> 10.0.0.2:80", "--rules", "/nowhere").complaint
    done = kpx_trace("tcp 10.0.0.1 -> 10.0.0.2:80", "--rules", "-", stdin=b"\xff\x00 hello")
    assert (done.status, "line 1" in done.complaint) == (2, True)


@pytest.mark.parametrize(
    ("text", "flow"),
    [
        ("tcp 10.0.0.1->10.0.0.2:80", Flow("tcp", "10.0.0.1", None, "10.0.0.2", 80)),
        ("UDP 10.0.0.1:53 to 10.0.0.2:53", Flow("udp", "10.0.0.1", 53, "10.0.0.2", 53)),
        ("6 ::1 → [0::2]:80", Flow("tcp", "::1", None, "::2", 80)),
        ("icmp 10.0.0.1 -> 10.0.0.2", Flow("icmp", "10.0.0.1", None, "10.0.0.2", None)),
    ],
)
def test_packets_as_people_write_them(text: str, flow: Flow) -> None:
    assert parse_flow(text) == flow


@given(st.text(max_size=60) | st.from_regex(r"(tcp|udp) [0-9.:\[\]]{1,12} -> [0-9a-f.:\[\]]{1,12}", fullmatch=True))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_packet_or_an_error(text: str) -> None:
    with suppress(KpxError):
        parse_flow(text)


def test_shares_for_people() -> None:
    of_rules = (Fraction(1), Fraction(715827883, 1 << 31), Fraction(123456, 1 << 20), Fraction(1, 10**9))
    assert [share(one) for one in of_rules] == ["1", "1/3", "11.774%", "1.0e-09"]


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", tuple(Backend))
def test_the_rules_in_the_kernel(namespace: Namespace, backend: Backend) -> None:
    namespace.run(["ip", "link", "set", "lo", "up"])
    namespace.run(["ip", "address", "add", "10.200.0.2/32", "dev", "lo"])
    namespace.kpx("apply", *SHOP, "--backend", backend, env={"PYTHONPATH": str(ROOT)})
    ways = {
        "tcp 198.51.100.7 -> 10.96.0.40:80": {"rejected": 1},
        "tcp 10.200.0.2 -> 10.200.0.2:30081": {"untouched": 1},
    }
    for flow, expected in ways.items():
        done = namespace.kpx("trace", flow, "--backend", backend, "--json", env={"PYTHONPATH": str(ROOT)})
        assert ends(Trace.model_validate_json(done.stdout)) == expected
