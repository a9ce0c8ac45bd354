"""Checks on facts that no prepared host here can have, and that every kind of rule is tried."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.doctor.checks import Finding, Level, examine
from kpx.doctor.facts import Facts, Tables
from kpx.doctor.trials import features, options
from kpx.family import Family
from kpx.netfilter.tools import Backend

ROOT = Path(__file__).parents[1]


def facts(
    version: str = "1.8.9", ip_vs: int = 0, flows: int | None = None, sysctls: dict[str, str] | None = None
) -> Facts:
    return Facts(
        kernel="6.1.0",
        tables={Backend.NFT: Tables(version, hinted=True)},
        backend=Backend.NFT,
        trials=(),
        ip_vs=ip_vs,
        flows=flows,
        most_flows=1000,
        sysctls=sysctls or {},
    )


def complaints(known: Facts) -> list[Finding]:
    return [finding for finding in examine(known) if finding.level is not Level.OK]


@pytest.mark.parametrize(("version", "sound"), [("1.8.2", False), ("1.8.3", True), ("1.8.11", True), ("2.0", True)])
def test_versions_compare_as_numbers(version: str, sound: bool) -> None:
    assert (complaints(facts(version)) == []) == sound


def test_virtual_servers_of_ipvs_are_named() -> None:
    (finding,) = complaints(facts(ip_vs=7))
    assert (finding.level, finding.message) == (Level.FAIL, "IPVS mode: 7 IPVS virtual servers")


def test_bridges_that_iptables_doesn_t_see() -> None:
    (finding,) = complaints(facts(sysctls={"net.bridge.bridge-nf-call-iptables": "0"}))
    assert (finding.level, finding.check) == (Level.WARN, "sysctl")


@given(st.integers(0, 1000))
def test_a_fuller_table_is_never_better(flows: int) -> None:
    order = list(Level)

    def level(number: int) -> int:
        (finding,) = (one for one in examine(facts(flows=number)) if one.check == "conntrack")
        return order.index(finding.level)

    assert level(0) <= level(flows) <= level(1000) == order.index(Level.FAIL)


def test_every_complaint_says_what_to_do() -> None:
    source = (ROOT.parent / "kpx/doctor/checks.py").read_text()
    for call in re.findall(r"Finding\(Level\.(?:WARN|FAIL), ([^\n]*)\)\n", source):
        assert call.count(", ") >= 2, call


@pytest.mark.parametrize("family", list(Family))
def test_every_match_and_target_that_kpx_writes_is_tried(family: Family) -> None:
    tried = " ".join(rule for _, rule, *_ in (*features(family).values(), *options(family).values()))
    names = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}[family]
    files = [*ROOT.glob(f"golden/*/{names}.*rules"), *ROOT.glob(f"conformance/cases/*/{names}.save")]
    assert len(files) > 20
    rules = "\n".join(file.read_text() for file in files)
    used = set(re.findall(r"-m [a-z]+|-j (?!KUBE-)[A-Z]+(?: --(?!to-|set-|reject-)[a-z-]+)?", rules))
    assert used >= {"-m statistic", "-m comment", "-j MASQUERADE --random-fully"}
    assert {one for one in used if one not in tried} == set()
