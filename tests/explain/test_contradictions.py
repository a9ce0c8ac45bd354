"""What an answer of `explain` says in one place it doesn't deny in another, whatever somebody did to the rules."""

import random
import re
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kpx.explain.report import Explanation, UseReport
from tests.cli.inprocess import run

CASES = Path(__file__).parents[1] / "cases"
SOUND = (CASES / "nfacct" / "kube-proxy.save").read_text()
OBJECTS = ("-f", str(CASES / "cluster.yaml"), "--config", str(CASES / "config.yaml"))
NODE = ("--node-address", "192.0.2.10")

PLACES = (
    *(("nat", one) for one in ("PREROUTING", "OUTPUT", "POSTROUTING", "KUBE-SERVICES", "KUBE-NODEPORTS")),
    *(("nat", one) for one in ("KUBE-SVC-67NZLRHBNDSAWJRO", "KUBE-EXT-67NZLRHBNDSAWJRO", "KUBE-SEP-2QFQVMZDRZXAQWB2")),
    *(("filter", one) for one in ("FORWARD", "INPUT", "OUTPUT", "KUBE-FORWARD", "KUBE-FIREWALL", "KUBE-SERVICES")),
    *(("raw", one) for one in ("PREROUTING", "OUTPUT")),
    *(("mangle", one) for one in ("PREROUTING", "FORWARD", "POSTROUTING")),
)
MATCHES = (
    "",
    "-s 10.244.0.0/16",
    "-d 10.96.0.0/16",
    "-d 10.244.0.5/32",
    "-p tcp",
    "-i docker0",
    "-m set --match-set x src",
    "-m mark --mark 0x4000/0x4000",
    "-m statistic --mode random --probability 0.5",
    "-m conntrack --ctstate NEW",
)
TARGETS = {
    "nat": ("-j RETURN", "-j ACCEPT", "-j DNAT --to-destination 10.9.9.9:80", "-j DNAT --to-destination 0.0.0.0:80",
            "-j MARK --set-xmark 0x4000/0x4000"),
    "filter": ("-j DROP", "-j ACCEPT", "-j REJECT --reject-with icmp-port-unreachable", "-j RETURN"),
    "raw": ("-j NOTRACK", "-j DROP", "-j ACCEPT"),
    "mangle": ("-j DROP", "-j ACCEPT", "-j MARK --set-xmark 0x4000/0x4000"),
}  # fmt: skip


ASKED = st.sampled_from(("shop/web", "shop/edge", "kube-system/kube-dns"))


def harmed(chance: random.Random) -> str:
    """Rules of which some are gone, and among which others stand; a policy may drop."""
    text = SOUND
    for _ in range(chance.randrange(4)):
        table, chain = chance.choice(PLACES)
        rule = " ".join(filter(None, (chance.choice(MATCHES), chance.choice(TARGETS[table]))))
        text = inserted(text, table, chain, rule, chance)
    lines = text.splitlines(True)
    for _ in range(chance.randrange(3)):
        at = [number for number, line in enumerate(lines) if line.startswith("-A ")]
        del lines[chance.choice(at)]
    text = "".join(lines)
    if chance.random() < 0.2:
        before, start, after = text.partition("\n*filter\n")
        text = before + start + after.replace(":FORWARD ACCEPT", ":FORWARD DROP", 1)
    return text


def inserted(text: str, table: str, chain: str, rule: str, chance: random.Random) -> str:
    if f"*{table}\n" not in text:
        return f"*{table}\n:{chain} ACCEPT [0:0]\n-A {chain} {rule}\nCOMMIT\n{text}"
    before, start, after = text.partition(f"*{table}\n")
    inner, end, rest = after.partition("COMMIT\n")
    lines = inner.splitlines(True)
    if not any(line.startswith(f":{chain} ") for line in lines):
        lines.insert(0, f":{chain} ACCEPT [0:0]\n")
    own = [number for number, line in enumerate(lines) if line.startswith(f"-A {chain} ")] or [len(lines)]
    lines.insert(chance.choice((own[0], own[-1] + 1 if own[0] < len(lines) else len(lines))), f"-A {chain} {rule}\n")
    return before + start + "".join(lines) + end + rest


def arrives(use: UseReport, number: int) -> bool:
    """Whether a packet gets to an endpoint; all of them are pods."""
    one = use.outcomes[number]
    return one.fate == "translated" and one.destination.startswith("10.244.")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.randoms(use_true_random=False), st.sampled_from(("shop/web", "shop/edge", "kube-system/kube-dns", "10.96.0.50"))
)
def test_with_rules_alone(chance: random.Random, asked: str) -> None:
    text = harmed(chance)
    done = run("explain", asked, "--rules", "-", *NODE, "--json", stdin=text.encode())
    if done.status:
        assert "these rules tell nothing of" in done.complaint
        return
    found = Explanation.model_validate_json(done.stdout)
    said = " ".join(run("explain", asked, "--rules", "-", *NODE, stdin=text.encode()).stdout.split())
    agrees(found, said)
    every = [use for port in found.ports for way in port.ways for use in way.uses]
    lost = [use.stopped[at] for use in every for at in range(len(use.outcomes)) if not arrives(use, at)]
    assert all(lost)
    known = [one for one in lost if not one.startswith("can't be known")]
    assert bool(known) <= any(one.wrong for one in found.every_finding)
    assert ("Nothing is wrong" in said) == (not lost and not any(one.wrong for one in found.every_finding))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False), ASKED)
def test_with_manifests_and_rules(chance: random.Random, asked: str) -> None:
    text = harmed(chance)
    done = run("explain", asked, *OBJECTS, "--rules", "-", "--json", "--family", "ipv4", stdin=text.encode())
    found = Explanation.model_validate_json(done.stdout)
    said = " ".join(
        run("explain", asked, *OBJECTS, "--rules", "-", "--family", "ipv4", stdin=text.encode()).stdout.split()
    )
    agrees(found, said)
    every = [use for port in found.ports for way in port.ways for use in way.uses]
    if any(
        not arrives(use, at) for use in every for at in range(len(use.outcomes)) if use.outcomes[at].fate != "unknown"
    ):
        assert any(one.wrong for one in found.every_finding)
    for one in (one for one in found.every_finding if one.code == "packets-differ"):
        for now, wanted in re.findall(r"are (.+?); they should be (.+?)\.(?= Packets from|$)", one.what):
            assert now.partition(" by ")[0] != wanted
    assert done.stdout.count('"packets-differ"') <= len(found.ports)


def agrees(found: Explanation, said: str) -> None:
    """The sections of an answer with each other."""
    assert ("! " in said) == any(one.wrong for one in found.every_finding)
    assert not ("Nothing is wrong" in said and "! " in said)
    for port in found.ports:
        uses = [use for way in port.ways for use in way.uses]
        for use in uses:
            assert sum(Fraction(one.exact) for one in use.outcomes) == 1
        met = {one.destination for use in uses for one in use.outcomes}
        for endpoint in port.endpoints:
            assert not endpoint.takes_part or endpoint.address in met
            assert endpoint.takes_part or endpoint.address not in met or endpoint.why_not
