"""Every advice of `verify`, carried out on the rules that provoked it, in a kernel where one takes them.

Afterwards the finding is gone; traffic that didn't meet it has the verdict that it had; Service traffic has the one
that it should have; and the rules of NetworkPolicies see what they saw. Nothing else says that an advice does no harm.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kpx.analysis.checks import Finding, Tables, advice, findings
from kpx.analysis.checks.advice import Act, Advice
from kpx.analysis.checks.backends import both_backends
from kpx.analysis.simulate import tables_of_save
from kpx.family import Family
from kpx.netfilter.save import parse_save
from tests.analysis.advised import NODE, TO_OTHERS, TO_SERVICES, applied, carried_out, met, probes, simulator, touched
from tests.kernel import KUBE_PROXY_1_20, Namespace, needs_kernel

CASES = Path(__file__).parents[1] / "cases"
CLUSTER, CONFIG = CASES / "cluster.yaml", CASES / "config.yaml"
COUNTING = (CASES / "nfacct" / "kube-proxy.save").read_text()
POLICIES = """:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-POD-FW-A - [0:0]
-A FORWARD -m comment --comment "kube-router netpol" -j KUBE-ROUTER-FORWARD
-A KUBE-ROUTER-FORWARD -d 10.244.0.5/32 -j KUBE-POD-FW-A
-A KUBE-POD-FW-A -s 10.244.0.77/32 -j DROP
"""


def sound() -> str:
    """A kube-proxy's rules on a kernel without nfacct, and in front of them NetworkPolicies that filter one pod."""
    text = re.sub(" -m nfacct --nfacct-name  [a-z_]*", "", COUNTING)
    text = "".join(line for line in text.splitlines(True) if "-d 127.0.0.0/8 -p" not in line)
    before, start, after = text.partition("*filter\n")
    chains, rest = re.split("^(?=-A )", after, maxsplit=1, flags=re.MULTILINE)
    return f"{before}{start}{chains}{POLICIES}{rest}"


BASE = sound()


def changed(*changes: tuple[str, str], text: str = BASE) -> str:
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
        assert count, pattern
    return text


def first(table: str, hook: str, rule: str) -> str:
    """The base with a rule in front of a built-in chain."""
    if f"*{table}\n" not in BASE:
        return f"*{table}\n:{hook} ACCEPT [0:0]\n-A {hook} {rule}\nCOMMIT\n{BASE}"
    before, start, after = BASE.partition(f"*{table}\n")
    chains, rest = re.split("^(?=-A |COMMIT)", after, maxsplit=1, flags=re.MULTILINE)
    return f"{before}{start}{chains}-A {hook} {rule}\n{rest}"


SEP = "KUBE-SEP-2QFQVMZDRZXAQWB2"
SVC = "KUBE-SVC-67NZLRHBNDSAWJRO"
STALE = "KUBE-SVC-AAAAAAAAAAAAAAAA"


@dataclass(frozen=True)
class Situation:
    """Rules that provoke an advice. `exceptions` narrow the rule in the way, where that is to be narrowed.

    `stays` where the rule in the way goes on to act on traffic that isn't for Services, as before.
    """

    text: Callable[[], str]
    check: str
    exceptions: tuple[str, ...] = ()
    stays: bool = False
    cluster: Path = CLUSTER
    config: Path = CONFIG


TRANSLATED = "-m conntrack --ctstate DNAT"
SITUATIONS: dict[str, list[Situation]] = {
    "CHAIN_AGAIN": [
        Situation(lambda: changed((f"^-A {SVC} .*10.244.1.5:8080.*\n", "")), "unequal-shares"),
        Situation(lambda: changed((f"^-A {SEP} .*DNAT.*\n", "")), "no-translation"),
        Situation(lambda: changed((f"^-A {SEP} .*MARK-MASQ\n", "")), "missing-hairpin"),
        Situation(lambda: changed((f"^-A {SEP} -p tcp (.*) -m tcp ", rf"-A {SEP} -p udp \1 -m udp ")),
                  "wrong-protocol"),
        Situation(lambda: changed(("^-A KUBE-MARK-MASQ .*\n", "")), "missing-masquerade"),
        Situation(lambda: changed(("^-A KUBE-POSTROUTING .*MASQUERADE.*\n", "")), "missing-masquerade"),
        Situation(lambda: changed((f"^-A {SVC} .*\n" * 3, "")), "empty-chain"),
        Situation(
            lambda: changed((r"^(-A KUBE-SERVICES -d 10.96.0.50/32 .*)\n((?:-A KUBE-SERVICES .*\n)*)", r"\2\1\n")),
            "nodeports-not-last",
        ),
        Situation(
            lambda: changed((r"^(-A KUBE-SERVICES -d 10.96.0.50/32 .*) -j KUBE-SVC.*$",
                             r"\g<0>\n\1 -j KUBE-EXT-67NZLRHBNDSAWJRO")),
            "shadowed-rule",
        ),
    ],
    "JUMPS_AGAIN": [
        Situation(lambda: changed(("^-A PREROUTING .*KUBE-SERVICES\n", "")), "missing-jump"),
        Situation(lambda: changed(("^-A POSTROUTING .*KUBE-POSTROUTING\n", "")), "missing-jump"),
        Situation(lambda: changed(("^-A FORWARD .*KUBE-FORWARD\n", "")), "missing-jump"),
    ],
    "ONCE_AGAIN": [
        Situation(lambda: changed((f"^-A {SEP} -s .*\n", r"\g<0>\g<0>\g<0>")), "duplicate-jump"),
        Situation(lambda: changed(("^-A KUBE-FORWARD .*0x4000 -j ACCEPT\n", r"\g<0>\g<0>")), "repeated-rule"),
        Situation(lambda: changed(("^-A OUTPUT .*portals.*-j KUBE-SERVICES\n", r"\g<0>\g<0>")), "duplicate-jump"),
        Situation(lambda: (CASES / "firewall-duplicates" / "dump.save").read_text(), "repeated-rule"),
    ],
    "MIXED_VERSIONS": [
        Situation(lambda: changed((f"^(-A {SEP} .*) --to-dest.*$", r"\1 --to-destination :0 --persistent")),
                  "broken-translation"),
        Situation(lambda: changed((f"^(-A {SEP} .*) --to-dest.*$", r"\1 --to-destination 0.0.0.0:8080")),
                  "broken-translation"),
        Situation(lambda: changed((f"^(-A {SEP} .*) --to-dest.*$", r"\1")), "broken-translation"),
    ],
    "REFUSED": [
        Situation(lambda: changed(("^-A FORWARD ", r"-A FORWARD -j GONE\n\g<0>")), "dangling-jump"),
        Situation(lambda: changed(("^-A KUBE-POD-FW-A ", r"-A KUBE-POD-FW-A -j KUBE-ROUTER-FORWARD\n\g<0>")), "loop"),
    ],
    "REFUSED_OURS": [
        Situation(lambda: changed((f"^-A {SVC} .*0.50000000000 -j .*$", f"-A {SVC} -j KUBE-SEP-NOBODY")),
                  "dangling-jump"),
        Situation(lambda: changed((f"^(-A {SEP} .*DNAT.*)$", rf"\1\n-A {SEP} -j {SVC}")), "loop"),
    ],
    "ONE_OF_THEM": [
        Situation(lambda: changed(("^-A FORWARD .*KUBE-ROUTER-FORWARD\n", r"\g<0>\g<0>\g<0>")), "duplicate-jump"),
        Situation(lambda: first("filter", "INPUT", "-s 203.0.113.66/32 -j DROP\n-A INPUT -s 203.0.113.66/32 -j DROP"),
                  "repeated-rule"),
    ],
    "NEWER_PROXY": [
        Situation(lambda: changed(("^-A KUBE-FIREWALL .*0x8000 -j DROP\n", ""),
                                  text=(KUBE_PROXY_1_20 / "ipv4.save").read_text()),
                  "missing-drop", cluster=KUBE_PROXY_1_20 / "cluster.yaml", config=KUBE_PROXY_1_20 / "config.yaml"),
    ],
    "LEFT": [
        Situation(lambda: changed(("^:KUBE-SVC-", r":KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n\g<0>")), "leftover"),
        Situation(lambda: changed(("^:KUBE-SEP-", r":KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]\n\g<0>")), "leftover"),
    ],
    "UNUSED": [
        Situation(lambda: changed((r"^\*nat\n", "*nat\n:MINE - [0:0]\n-A MINE -j ACCEPT\n")), "unreachable-chain"),
    ],
    "held_by": [
        Situation(
            lambda: changed((r"^\*nat\n", f"*nat\n:MINE - [0:0]\n:{STALE} - [0:0]\n-A MINE -j {STALE}\n")),
            "leftover",
        ),
    ],
    "OLD_MODE": [
        Situation(lambda: changed((r"^\*nat\n", "*nat\n:KUBE-PORTALS-HOST - [0:0]\n"),
                                  ("^-A OUTPUT -m comment .*\n", r"\g<0>-A OUTPUT -j KUBE-PORTALS-HOST\n")),
                  "older-mode"),
    ],
    "STRANGER": [
        Situation(lambda: changed(("^-A KUBE-SERVICES -d 10.96.0.10/32 -p udp", r"-A KUBE-SERVICES -j RETURN\n\g<0>")),
                  "shadowed-rule"),
        Situation(lambda: changed((f"^-A {SEP} ", rf"-A {SEP} -j ACCEPT\n\g<0>")), "shadowed-rule"),
        Situation(lambda: changed(("^-A KUBE-NODEPORTS -p tcp .*30443", r"-A KUBE-NODEPORTS -p tcp -j DROP\n\g<0>")),
                  "shadowed-rule"),
    ],
    "LOST_MATCH": [
        Situation(lambda: changed(("^-A KUBE-FIREWALL .*$", r"\g<0>\n-A KUBE-FIREWALL -j DROP")), "lost-match"),
        Situation(lambda: (CASES / "firewall-lost-mark" / "dump.save").read_text(), "lost-match"),
    ],
    "move_behind": [
        Situation(lambda: first("nat", "PREROUTING", "-j ACCEPT"), "caught-before", stays=True),
        Situation(lambda: first("nat", "OUTPUT", "-d 10.96.0.0/16 -p tcp -j DNAT --to-destination 10.9.9.9"),
                  "caught-before", stays=True),
        Situation(lambda: first("nat", "POSTROUTING", "-s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN"), "caught-before",
                  stays=True),
        Situation(lambda: first("nat", "POSTROUTING", "-j ACCEPT"), "caught-before", stays=True),
    ],
    "NARROWED": [
        Situation(lambda: first("filter", "FORWARD", "-s 198.51.100.0/24 -j DROP"), "caught-before",
                  (TRANSLATED,), True),
        Situation(lambda: first("raw", "PREROUTING", "-d 10.96.0.0/16 -j NOTRACK"), "caught-before",
                  ("-d 10.96.0.50/32", "-d 10.96.0.51/32", "-d 10.96.0.10/32"), True),
        Situation(lambda: first("mangle", "FORWARD", "-d 10.244.0.0/16 -j DROP"), "caught-before",
                  (TRANSLATED,), True),
    ],
}  # fmt: skip
"""By the name of the advice."""

EVERY = [(name, situation) for name, some in SITUATIONS.items() for situation in some]


def found_in(text: str, check: str = "") -> list[Finding]:
    tables = Tables(tables_of_save(parse_save(text))[0], Family.IPV4, (NODE,))
    return [one for one in findings(tables) if check in ("", one.check)]


def key(one: Finding) -> tuple[str, str, str, str]:
    return one.check, one.table, one.chain, one.rule


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize(("name", "situation"), EVERY, ids=[f"{name} {s.check}" for name, s in EVERY])
def test_advice_helps_and_harms_nobody(name: str, situation: Situation) -> None:
    text = situation.text()
    (finding, *_) = [one for one in found_in(text, situation.check) if called(one.advice) == name]
    after = text
    for _ in range(5):  # of several rules in the way, each is told of by itself
        now = next((one for one in found_in(after, situation.check) if key(one) == key(finding)), None)
        if now is None:
            break
        after = carried_out(after, now, situation.cluster, situation.config, situation.exceptions)
    left = found_in(after, situation.check)
    assert key(finding) not in {key(one) for one in left}
    if situation.cluster is CLUSTER:
        unharmed(text, after, finding, situation)


def unharmed(text: str, after: str, finding: Finding, situation: Situation) -> None:
    """Traffic that isn't for Services is as before; Services are as they should be; policies see what they should."""
    wanted = BASE if "KUBE-ROUTER" in text else plain_base(text)
    before, now, base = simulator(text), simulator(after), simulator(wanted)
    for packet in probes(TO_OTHERS):
        if situation.stays or not touched(before, packet, finding):
            assert met(now, packet) == met(before, packet), packet
        else:
            assert met(now, packet) == met(base, packet), packet
    for packet in probes(TO_SERVICES):
        assert met(now, packet) == met(base, packet), packet


def plain_base(text: str) -> str:
    """What the rules without policies should be."""
    whole = "".join(line for line in BASE.splitlines(True) if not re.search("KUBE-ROUTER|KUBE-POD-FW", line))
    return whole if "*filter" in text else whole[whole.index("*nat") :]


def called(one: Advice) -> str:
    """The name of an advice in its module."""
    for name, value in vars(advice).items():
        if value is one or (isinstance(value, Advice) and value == one):
            return name
    makers = {Act.MOVE_BEHIND: "move_behind", Act.DELETE_CHAIN: "held_by", Act.CLAIM_LESS: "claim_less"}
    return makers.get(one.act, "")


def test_every_advice_is_carried_out() -> None:
    """Here, or in the tests below, or by `tests/explain`; nobody can add one that isn't."""
    here = {*SITUATIONS, "empty_backend", "claim_less", "intended", "ACCEPTED", "LED"}
    names = {name for name, value in vars(advice).items() if isinstance(value, Advice)}
    names |= {
        name
        for name, value in vars(advice).items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation is Advice
    }
    assert names == here


def test_the_base_has_nothing_wrong() -> None:
    assert found_in(BASE) == []


@pytest.mark.kernel
@needs_kernel
def test_rules_of_two_backends(namespace: Namespace) -> None:
    """`kpx cleanup --backend` empties one, and leaves the other alone."""
    for tool in ("iptables-nft-restore", "iptables-legacy-restore"):
        namespace.run([tool], BASE)

    def holding() -> dict[str, list[str]]:
        texts = {one: namespace.run([f"iptables-{one}-save", "-t", "nat"]).stdout for one in ("nft", "legacy")}
        return {one: re.findall("^-A (KUBE-[A-Z-]*)", text, re.MULTILINE) for one, text in texts.items()}

    (finding,) = both_backends(holding())
    assert finding.advice.act is Act.EMPTY_BACKEND
    kept = namespace.run(["iptables-nft-save"]).stdout
    namespace.kpx("cleanup", "--backend", "legacy")
    assert list(both_backends(holding())) == []
    strip = re.compile("^#.*\n", re.MULTILINE)
    assert strip.sub("", namespace.run(["iptables-nft-save"]).stdout) == strip.sub("", kept)
    assert "KUBE-ROUTER-FORWARD" in namespace.run(["iptables-legacy-save"]).stdout


@pytest.mark.kernel
@needs_kernel
def test_an_address_that_is_asked_for_twice(tmp_path: Path) -> None:
    """Out of externalIPs with it, then `kpx apply`: the source ranges bind everybody again."""
    folder = CASES / "externalip-equals-lbip"
    text = re.sub(" -m nfacct --nfacct-name  [a-z_]*", "", (folder / "kube-proxy.save").read_text())
    text = "".join(line for line in text.splitlines(True) if "-d 127.0.0.0/8 -p" not in line)
    found = [one for one in found_in(text, "shadowed-rule") if one.advice.act is Act.CLAIM_LESS]
    assert {one.owner for one in found} == {"shop/edge:https"}
    assert "spec.externalIPs of shop/edge" in found[0].advice.words
    (tmp_path / "cluster.yaml").write_text(
        (folder / "cluster.yaml").read_text().replace("  externalIPs: [203.0.113.10]\n", "")
    )
    after = applied(text, tmp_path / "cluster.yaml", CONFIG)
    assert found_in(after) == []
    stranger = next(one for one in probes((("tcp", "203.0.113.10", 443),)) if one.source == "10.244.0.9")
    assert {str(one) for one in simulator(after).outcomes(stranger)} == {"dropped"}
    for packet in probes(TO_OTHERS):
        assert met(simulator(after), packet) == met(simulator(text), packet)


def test_what_is_right_as_it_is_needs_nothing() -> None:
    text = (CASES / "nodelocaldns" / "dump.save").read_text()
    (finding,) = found_in(text)
    assert (finding.severity, finding.advice.act) == ("note", Act.NOTHING)
