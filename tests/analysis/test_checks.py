"""Static checks: silent about sound rules, and each finds the damage that it is for."""

import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpx
from kpx.analysis.checks import CHECKS, Finding, Tables, findings
from kpx.analysis.checks.backends import both_backends
from kpx.analysis.equivalence import compare
from kpx.analysis.simulate import tables_of, tables_of_save
from kpx.compiler import tree
from kpx.compiler.dispatch import DEFAULT
from kpx.family import Family
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend
from kpx.sources import manifests
from tests.analysis.test_census import text_of
from tests.analysis.test_equality import sticky
from tests.compiler.clusters import Manifest, clusters, configs
from tests.compiler.layouts import Input
from tests.compiler.towns import CONFIG, rivals, town
from tests.kernel import FAMILIES, KUBE_PROXY_1_20, Namespace, case_path, needs_kernel
from tests.manifests import endpoint_slice, service
from tests.netfilter.sketch import sketch

CASES = [*sorted(path for path in case_path("").iterdir() if path.is_dir()), KUBE_PROXY_1_20]
SHOP = case_path("loadbalancer-source-ranges") / "ipv4.save"
NEIGHBOURS = sorted((Path(__file__).parent / "neighbours").iterdir())
"""Rules of other programs that live on nodes, in the shape in which those write them: in front of a proxy's or not."""

SVC, EXT, FW = (f"KUBE-{kind}-UB7LXFC7TRMUABOP" for kind in ("SVC", "EXT", "FW"))
SEP = "KUBE-SEP-B3ISZG2RMVO5OEIX"


def tables_of_text(text: str, family: Family = Family.IPV4) -> Tables:
    return Tables(tables_of_save(parse_save(text))[0], family)


def names(found: Iterable[Finding]) -> set[str]:
    return {one.check for one in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_kube_proxys_rules_are_sound(case: Path, family: Family) -> None:
    assert findings(tables_of_text((case / f"{family}.save").read_text(), family)) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "some", [town(300), town(300, seed=1), rivals(), []], ids=["town", "other town", "rivals", "none"]
)
def test_our_rules_are_sound(some: list[Manifest], family: Family) -> None:
    cluster = Input.of(some, CONFIG, family)
    compact = cluster.compact(), cluster.compact(DEFAULT, tree.choose)
    for ruleset in (cluster.classic(), cluster.tree(), cluster.tree(DEFAULT, tree.choose), *compact):
        assert findings(Tables(tables_of(ruleset), family)) == []


def test_affinity_with_lists_of_groups_is_sound() -> None:
    for ruleset in (sticky().classic(), sticky().tree(DEFAULT, tree.choose), sticky().compact()):
        assert findings(Tables(tables_of(ruleset), Family.IPV4)) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters(), configs, st.sampled_from(FAMILIES))
def test_rules_of_any_cluster_are_sound(objects: list[Manifest], config: Manifest, family: Family) -> None:
    cluster = Input.of(objects, config, family)
    for ruleset in (cluster.classic(), cluster.tree(), cluster.compact()):
        assert findings(Tables(tables_of(ruleset), family)) == []


def damaged(*changes: tuple[str, str], dump: Path = SHOP) -> str:
    """kube-proxy's dump with regular expressions replaced, each of which must be found."""
    text = dump.read_text()
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
        assert count, pattern
    return text


DAMAGES = {
    "dangling-jump": [(f"^-A {SVC} .*{SEP}$", rf"-A {SVC} -j KUBE-SEP-NOBODY")],
    "loop": [(f"^(-A {SEP} .*DNAT.*)$", rf"\1\n-A {SEP} -j {SVC}")],
    "missing-jump": [("^-A OUTPUT .*KUBE-SERVICES\n(COMMIT|-A POST)", r"\1")],
    "empty-chain": [(f"^-A {SEP} .*\n-A {SEP} .*\n", "")],
    "duplicate-jump": [("^(-A PREROUTING .*)$", r"\1\n-A PREROUTING -j KUBE-SERVICES")],
    "nodeports-not-last": [(r"^(-A KUBE-SERVICES -d 10.96.1.10.*SVC.*)\n((?:.*\n)*?)(.*KUBE-NODEPORTS)$", r"\2\3\n\1")],
    "shadowed-rule": [(r"^(-A KUBE-SERVICES -d 10.96.1.10/32) (.*SVC.*)$", r"\1 -p tcp -j DROP\n\1 \2")],
    "unequal-shares": [("0.33333333349", "0.34000000008")],
    "no-translation": [(f"^-A {SEP} -p tcp .*DNAT.*\n", "")],
    "wrong-protocol": [(f"^-A {SEP} -p tcp (.*) -m tcp ", rf"-A {SEP} -p udp \1 -m udp ")],
    "missing-hairpin": [(f"^-A {SEP} -s .*\n", "")],
    "leftover": [("^(:KUBE-SERVICES - .*\n)(?=:KUBE-SVC)", r"\1:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n")],
    "unreachable-chain": [("^COMMIT\n\\*nat\n", ":MINE - [0:0]\n-A MINE -j DROP\nCOMMIT\n*nat\n")],
    "older-mode": [("^COMMIT\n\\*nat\n", "COMMIT\n*nat\n:KUBE-PORTALS-HOST - [0:0]\n")],
}
"""By check, what to change. `missing-masquerade` has several ways to go wrong, and its own test."""


@pytest.mark.parametrize(("check", "changes"), DAMAGES.items())
def test_each_check_finds_its_damage(check: str, changes: list[tuple[str, str]]) -> None:
    found = findings(tables_of_text(damaged(*changes)))
    assert check in names(found)
    (one, *_) = [one for one in found if one.check == check]
    assert one.message
    assert one.advice


POSTROUTING = "KUBE-POSTROUTING"
HAIRPIN = rf"^-A {POSTROUTING} .*bpf.*\n"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("change", "check"),
    [
        ((HAIRPIN, ""), "missing-hairpin"),
        ((rf"({HAIRPIN})(-A {POSTROUTING} -m mark .*\n)", r"\2\1"), "missing-hairpin"),
        ((rf"^(-A {POSTROUTING} .*) (-m bpf)", r"\1 -p udp \2"), "missing-hairpin"),
        ((rf"^(-A {POSTROUTING} .*)32 0 0 \d+,29", r"\g<1>32 0 0 40,29"), "missing-hairpin"),
        ((r"^(-A KUBE-SVC-\S+) -p tcp (.*DNAT)", r"\1 -p udp \2"), "wrong-protocol"),
        ((r"^(-A KPX-SVC-\S+) -p tcp (.*DNAT)", r"\1 -p udp \2"), "wrong-protocol"),
        ((r"^(-A KUBE-SVC-\S+) -p tcp (?:(?!statistic).)*DNAT.*\n", ""), "unequal-shares"),
    ],
)
def test_damage_of_the_layout_compact(change: tuple[str, str], check: str, family: Family, tmp_path: Path) -> None:
    pod, vip = ("10.244.1.{}", "10.96.0.{}") if family is Family.IPV4 else ("fd00:244::1:{}", "fd00:10:96::{}")
    sizes = {1: 3, 2: 20}
    objects = [
        one
        for number, size in sizes.items()
        for one in (
            service(f"web-{number}", vip.format(number)),
            endpoint_slice(f"web-{number}", [pod.format(each) for each in range(1, size + 1)]),
        )
    ]
    ruleset = Input.of(objects, CONFIG, family).compact(DEFAULT, tree.choose)
    dump = tmp_path / "rules"
    dump.write_text(text_of(ruleset))
    assert findings(tables_of_text(dump.read_text(), family)) == []
    assert check in names(findings(tables_of_text(damaged(change, dump=dump), family)))


@pytest.mark.parametrize(
    "change",
    [
        ("^-A KUBE-MARK-MASQ .*\n", ""),
        ("^-A KUBE-MARK-MASQ .*$", "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x8000/0x8000"),
        ("^-A KUBE-POSTROUTING .*MASQUERADE.*\n", ""),
        ("^-A KUBE-POSTROUTING -m mark .*$", "-A KUBE-POSTROUTING -j RETURN"),
        (f"^-A {EXT} .*MARK-MASQ\n", ""),
    ],
)
def test_missing_masquerade(change: tuple[str, str]) -> None:
    assert "missing-masquerade" in names(findings(tables_of_text(damaged(change))))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ((f"^-A {SVC} .*{SEP}\n", ""), "unequal-shares"),
        ((f"^-A KUBE-SERVICES .*{FW}\n", ""), "leftover"),
        ((r"^(-A KUBE-SERVICES -d 10.96.1.10/32 .*) -j KUBE-SVC.*$", rf"\g<0>\n\1 -j {EXT}"), "shadowed-rule"),
        ((r"^(-A KUBE-NODEPORTS .*)$", r"\1\n\1"), "duplicate-jump"),
        (("--to-destination 10.244.2.11:8443", "--to-destination 10.244.2.12:8443"), "missing-hairpin"),
        ((f"^(-A {SEP}) -p tcp (.*) -m tcp -j", r"\1 \2 -j"), "wrong-protocol"),
    ],
)  # fmt: skip
def test_other_damage(change: tuple[str, str], check: str) -> None:
    assert check in names(findings(tables_of_text(damaged(change))))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (("^-A KUBE-MARK-DROP .*\n", ""), "missing-drop"),
        (("^-A KUBE-MARK-DROP .*$", "-A KUBE-MARK-DROP -j MARK --set-xmark 0x4/0x4"), "missing-drop"),
        (("^-A KUBE-FIREWALL .*0x8000 -j DROP\n", ""), "missing-drop"),
        (("^-A KUBE-NODEPORTS .*30080 -j KUBE-MARK-MASQ\n", ""), "missing-masquerade"),
        (("^-A KUBE-FW-IW5YBHPD4ISNF6DV .*MARK-MASQ\n", ""), "missing-masquerade"),
        (("^(-A KUBE-XLB-.*) -j (KUBE-SEP-.*)$", r"\1 -m statistic --mode random --probability 0.5 -j \2"),
         "unequal-shares"),
        (("^-A KUBE-NODEPORTS .*KUBE-XLB-3R55B5W2BQDIGALS\n", ""), "leftover"),
        (("^-A KUBE-XLB-3R55B5W2BQDIGALS .*\n" * 4, ""), "empty-chain"),
    ],
)  # fmt: skip
def test_damage_to_rules_of_an_old_kube_proxy(change: tuple[str, str], check: str) -> None:
    found = findings(tables_of_text(damaged(change, dump=KUBE_PROXY_1_20 / "ipv4.save")))
    assert names(found) == {check}


def test_a_finding_says_where() -> None:
    (one,) = findings(tables_of_text(damaged(*DAMAGES["wrong-protocol"])))
    assert (one.table, one.chain, one.position, one.owner) == ("nat", SEP, 2, "shop/web:https")
    assert one.rule.startswith("-p udp")
    assert "udp" in one.message


def test_both_backends() -> None:
    ours = ["KUBE-SERVICES", "KUBE-SVC-X"]
    assert names(both_backends({"nft": ours, "legacy": ours})) == {"both-backends"}
    assert not names(both_backends({"nft": ours, "legacy": ["DOCKER"]}))
    assert not names(both_backends({"nft": ours}))


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(FAMILIES))
def test_any_rules_can_be_checked(chance: random.Random, family: Family) -> None:
    chains = (
        "PREROUTING",
        "KUBE-SERVICES",
        SVC,
        EXT,
        FW,
        SEP,
        "KPX-SVC-X-0",
        "KUBE-MARK-MASQ",
        "KUBE-POSTROUTING",
        "X",
    )
    rules = {one: tuple(sketch(chance, family).text() for _ in range(chance.randrange(4))) for one in chains}
    jumps = {one: (*some, f"-j {chance.choice(chains)}") for one, some in rules.items()}
    assert isinstance(findings(Tables({"nat": jumps, "filter": rules}, family), CHECKS), list)


@pytest.mark.parametrize(
    ("rule", "table", "chain"),
    [
        ("-j ACCEPT", "nat", "PREROUTING"),
        ("-d 10.96.0.0/16 -p tcp -j DNAT --to-destination 10.9.9.9", "nat", "PREROUTING"),
        ("-p tcp -m tcp --dport 30000:31000 -j DNAT --to-destination 10.9.9.9:80", "nat", "PREROUTING"),
        ("-j OTHERS", "nat", "OUTPUT"),
        ("-s 192.0.2.0/24 -j ACCEPT", "filter", "FORWARD"),
        ("-j DROP", "filter", "FORWARD"),
        ("-d 203.0.113.10/32 -j ACCEPT", "filter", "INPUT"),
    ],
)
def test_rules_that_catch_service_traffic_first(rule: str, table: str, chain: str) -> None:
    text = SHOP.read_text().replace(
        "*nat\n", "*nat\n:OTHERS - [0:0]\n-A OTHERS -d 10.96.1.10/32 -j RETURN\n-A OTHERS -j ACCEPT\n"
    )
    first = "\n*nat\n" if table == "nat" else "\n*filter\n"
    before, start, after = text.partition(first)
    text = before + start + re.sub(f"^-A {chain} ", rf"-A {chain} {rule}\n\g<0>", after, count=1, flags=re.MULTILINE)
    found = [one for one in findings(tables_of_text(text)) if one.check == "caught-before"]
    assert found
    assert {(one.table, one.chain, one.position, one.rule) for one in found} == {(table, chain, 1, rule)}
    assert {one.severity for one in found} == {"error"}


@pytest.mark.parametrize(
    "rule",
    [
        "-d 10.97.0.0/16 -j ACCEPT",
        "-p tcp -m tcp --dport 9999 -j DNAT --to-destination 10.9.9.9:80",
        "-p icmp -j ACCEPT",
        "-m comment --comment counted",
        "-j LOG",
    ],
)
def test_others_rules_that_leave_services_alone(rule: str) -> None:
    text = SHOP.read_text().replace("-A PREROUTING ", f"-A PREROUTING {rule}\n-A PREROUTING ")
    assert findings(tables_of_text(text)) == []


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=lambda path: path.stem)
def test_neighbours_are_no_damage(neighbour: Path) -> None:
    """Their rules next to ours and kube-proxy's, as a kernel holds them; and what they do is no reason to differ."""
    case = case_path("loadbalancer-source-ranges")
    config, _ = kpx.parse_config((case / "config.yaml").read_bytes())
    some = Input(manifests.load([str(case / "cluster.yaml")]).objects, config, Family.IPV4)
    sides = []
    for text in (SHOP.read_text(), text_of(some.classic()), text_of(some.tree())):
        with Namespace() as one:
            for rules in (text, neighbour.read_text()):
                one.restore(Backend.NFT, Family.IPV4, rules)
            sides.append(tables_of_save(parse_save(one.save(Backend.NFT, Family.IPV4))))
        assert findings(Tables(sides[-1][0], Family.IPV4)) == []
    for other in sides[1:]:
        assert not compare(sides[0], other, Family.IPV4).divergences


def test_marks_and_interfaces_of_neighbours_are_theirs() -> None:
    """And yet a rule for everybody else's packets is found."""
    for rule, expected in (
        ("-m mark --mark 0x10000/0x10000 -j ACCEPT", False),
        ("-i cali+ -j DROP", False),
        ("! -i cali+ -j ACCEPT", True),
        ("-i eth0 -j ACCEPT", True),
        ("-m mark --mark 0x4000/0x4000 -j DROP", True),
    ):
        text = re.sub("^-A FORWARD ", rf"-A FORWARD {rule}\n\g<0>", SHOP.read_text(), count=1, flags=re.MULTILINE)
        assert ("caught-before" in names(findings(tables_of_text(text)))) is expected, rule


def test_a_match_that_is_not_known_may_catch() -> None:
    text = SHOP.read_text().replace(
        "-A PREROUTING ", "-A PREROUTING -m set --match-set mine dst -j ACCEPT\n-A PREROUTING "
    )
    (one,) = findings(tables_of_text(text))
    assert (one.check, one.severity) == ("caught-before", "warning")
