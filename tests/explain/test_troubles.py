"""What lists say of Services: nothing of healthy ones, and of others what their packets meet, whoever is to blame."""

import re
from collections.abc import Mapping

import pytest

from kpx.analysis.packet import Fate, Host, Packet
from kpx.analysis.page import Trouble
from kpx.analysis.picture import picture
from kpx.analysis.simulate import Simulator, tables_of_save, translated_to
from kpx.explain.troubles import troubles
from kpx.family import Family
from kpx.netfilter.save import parse_save
from tests.compiler.towns import NODE_ADDRESSES
from tests.kernel import FAMILIES, KUBE_PROXY_1_20, case_path

CASES = sorted(path.name for path in case_path("").iterdir() if path.is_dir())
SHOP = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXT-A - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SVC-B - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SEP-B - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 10.96.0.20/32 -p tcp -m comment --comment "shop/cart cluster IP" -m tcp --dport 80 -j KUBE-SVC-B
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-A
-A KUBE-EXT-A -j KUBE-MARK-MASQ
-A KUBE-EXT-A -j KUBE-SVC-A
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SVC-A ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-A -m comment --comment "shop/web:http -> 10.244.1.5:8080" -j KUBE-SEP-A
-A KUBE-SVC-B -m comment --comment "shop/cart -> 10.244.1.6:8080" -j KUBE-SEP-B
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.244.1.6:8080
COMMIT
"""


def simulator(text: str, family: Family = Family.IPV4, host: Host | None = None) -> Simulator:
    tables, policies = tables_of_save(parse_save(text))
    return Simulator(tables, family, host or Host(NODE_ADDRESSES), policies)


def found(text: str, host: Host | None = None) -> Mapping[str, Trouble]:
    one = simulator(text, host=host)
    return troubles(one, picture(one.tables))


def shop(before: str = "", after: str = "") -> Mapping[str, Trouble]:
    """What is found in the shop's rules with one text in place of another one."""
    assert not before or before in SHOP
    return found(SHOP.replace(before, after, 1) if before else SHOP)


def test_nothing_is_said_of_healthy_services() -> None:
    assert shop() == {}


LOST_JUMP = "-A OUTPUT -j KUBE-SERVICES\n-A KUBE-SERVICES"
LAST_OF_CART = '-A KUBE-SVC-B -m comment --comment "shop/cart -> 10.244.1.6:8080" -j '
PARTLY = ("partly", "partly")
CART = (None, "broken")


@pytest.mark.parametrize(
    ("before", "after", "levels", "said"),
    [
        # a policy that lets nothing pass
        (":FORWARD ACCEPT", ":FORWARD DROP", PARTLY, "from pods, outside to cluster IP 10.96.0.20:80: dropped"),
        # a stranger's rule in front
        ("-A PREROUTING -j", "-A PREROUTING -j RETURN\n-A PREROUTING -j", PARTLY, "10.96.0.20:80: not translated"),
        # one in KUBE-SERVICES that takes all
        (
            '-A KUBE-SERVICES -d 10.96.0.10/32',
            '-A KUBE-SERVICES -j RETURN\n-A KUBE-SERVICES -d 10.96.0.10/32',
            ("broken", "broken"),
            "from pods, the node itself, outside to cluster IP 10.96.0.20:80: not translated",
        ),
        # one for one Service only, from one network
        (
            "-A FORWARD -m",
            "-A FORWARD -s 10.244.0.0/16 -d 10.244.1.6/32 -j DROP\n-A FORWARD -m",
            (None, "partly"),
            "from pods to cluster IP 10.96.0.20:80: dropped",
        ),
        # lost jumps
        (LOST_JUMP, "-A KUBE-SERVICES", PARTLY, "from the node itself to cluster IP 10.96.0.20:80"),
        # a flushed chain, a lost endpoint rule, and one endpoint of two that is lost
        (LAST_OF_CART + "KUBE-SEP-B\n", "", CART, "not translated"),
        ("-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.244.1.6:8080", "", CART, "not translated"),
        (
            LAST_OF_CART,
            "-A KUBE-SVC-B -m statistic --mode random --probability 0.25 -j ",
            (None, "partly"),
            "75% not translated",
        ),
        # no endpoints
        (
            "-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n",
            "-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n"
            '-A KUBE-SERVICES -d 10.96.0.30/32 -p tcp -m comment --comment "shop/search has no endpoints" -m tcp '
            "--dport 80 -j REJECT --reject-with icmp-port-unreachable\n",
            (None, None, "broken"),
            "from pods, the node itself, outside to 10.96.0.30:80: rejected (icmp-port-unreachable)",
        ),
        # a rule that nobody knows, and that decides
        ("-A FORWARD", "-A FORWARD -m strange --thing -j DROP\n-A FORWARD", ("unknown", "unknown"), "can't be known"),
    ],
)  # fmt: skip
def test_what_packets_meet_is_said(before: str, after: str, levels: tuple[str | None, ...], said: str) -> None:
    told = shop(before, after)
    services = ("shop/web:http", "shop/cart", "shop/search")
    assert tuple(told[one].level if one in told else None for one in services[: len(levels)]) == levels
    assert len(told) == len(levels) - levels.count(None)
    assert any(said in line for trouble in told.values() for line in trouble.says)


def test_node_ports_are_tried_where_they_are_open_and_only_there() -> None:
    only = "-A KUBE-SERVICES -d 10.200.0.7/32 -j KUBE-NODEPORTS\n"
    text = SHOP.replace("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n", only)
    assert found(text, Host(["10.200.0.2", "10.200.0.7"])) == {}
    assert found(text, Host(["10.200.0.2"])) == {}
    lost = text.replace("-A KUBE-EXT-A -j KUBE-SVC-A\n", "")
    told = found(lost, Host(["10.200.0.2", "10.200.0.7"]))
    assert told["shop/web:http"].says == (
        "from pods, the node itself, outside to node port 10.200.0.7:30080: not translated",
    )
    assert found(lost, Host(None, elsewhere=["10.244.1.5", "10.244.1.6"])) == {}


def test_who_is_kept_out_on_purpose_is_no_trouble() -> None:
    path = case_path("loadbalancer-source-ranges") / "ipv4.save"
    told = found(path.read_text())
    assert not [line for trouble in told.values() for line in trouble.says if "load balancer IP" in line]


WAY_IN = re.compile(r"(\[?[0-9a-f.:]+\]?):(\d+)/(\w+)")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", [*CASES, "1.20"])
def test_of_kube_proxys_rules_it_says_what_is_so(case: str, family: Family) -> None:
    """Of outsiders, who need no guess: where it says nothing they get through; where it says something, they don't."""
    path = (KUBE_PROXY_1_20 if case == "1.20" else case_path(case)) / f"{family}.save"
    if not path.exists():
        pytest.fail(f"no rules of {family} in {case}")
    one = simulator(path.read_text(), family)
    drawn = picture(one.tables)
    told = troubles(one, drawn)
    outside = "2001:db8:ffff::7" if family is Family.IPV6 else "198.51.100.7"
    for group, boxes in drawn.grouped.items():
        says = told[group].says if group in told else ()
        complained = [line.partition(" to ")[2] for line in says if "outside" in line]
        firewalled = any(box.chain.startswith("KUBE-FW-") for box in boxes)
        for box in boxes:
            match = WAY_IN.fullmatch(box.title)
            if not group or firewalled or box.kind != "way in" or not match:
                continue
            place, protocol = f"{match[1]}:{match[2]}", match[3]
            packet = Packet(outside, match[1].strip("[]"), protocol, int(match[2]), 40_000, bridged=False)
            fates = {end.fate for end in one.outcomes(packet)}
            said = any(f"{place}:" in line for line in complained)
            assert said == bool(fates - {Fate.TRANSLATED}), (group, box.title, fates, says)


def test_any_rules_get_an_answer() -> None:
    """Also those that are none: whether what they mark is masqueraded isn't known, but packets get through."""
    text = SHOP.replace("! -s 10.244.0.0/16", "! -s nonsense").replace("-d 10.96.0.20/32", "-d nonsense/7")
    one = simulator(text, host=Host(None, elsewhere=translated_to(simulator(text).tables)))
    assert troubles(one, picture(one.tables)) == {}
