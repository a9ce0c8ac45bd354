"""The simulator: what it knows of netfilter, case by case, and the kernel's word on whole ways through chains."""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.analysis.packet import Fate, Host, Origin, Outcome, Packet, number
from kpx.analysis.simulate import Simulator, Tables, tables_of_save, translated_to
from kpx.analysis.state import State
from kpx.family import Family
from kpx.netfilter.ruleset import Rules
from kpx.netfilter.save import parse_save
from kpx.netfilter.tools import Backend
from tests.kernel import BACKENDS, KUBE_PROXY_1_20, Namespace, needs_kernel
from tests.netfilter.sketch import sketch

HOST = Host(["10.200.0.2", "fd00:200::2"])
OUTSIDE = Packet("198.51.100.7", "10.96.0.1", "tcp", 80, 40_000, in_interface="eth0")
UNTOUCHED = Outcome(Fate.UNTOUCHED)
DROPPED = Outcome(Fate.DROPPED)


def outcomes(
    packet: Packet = OUTSIDE,
    nat: Mapping[str, Rules] | None = None,
    filter_: Mapping[str, Rules] | None = None,
    known: Mapping[str, float] | None = None,
    policies: Mapping[tuple[str, str], str] | None = None,
) -> dict[Outcome, Fraction]:
    tables: Tables = {"nat": nat or {}, "filter": filter_ or {}}
    simulator = Simulator(tables, packet.family, HOST, policies)
    found = dict(simulator.outcomes(packet, known))
    assert sum(found.values()) == 1
    paths = simulator.paths(packet, known)
    assert {path.outcome for path in paths} == found.keys()
    assert all(sum(path.probability for path in paths if path.outcome == one) == found[one] for one in found)
    return found


def meets(rule: str, packet: Packet = OUTSIDE, known: Mapping[str, float] | None = None) -> Fraction | None:
    """The probability that a packet from outside, through a host that forwards it, matches; None if it is unknown."""
    found = outcomes(packet, filter_={"FORWARD": (f"{rule} -j DROP",), "INPUT": (f"{rule} -j DROP",)}, known=known)
    if any(outcome.fate is Fate.UNKNOWN for outcome in found):
        return None
    return found.get(DROPPED, Fraction(0))


@pytest.mark.parametrize(
    ("rule", "probability"),
    [
        ("", 1),
        ("-d 10.96.0.1/32", 1),
        ("-d 10.96.0.2/32", 0),
        ("! -d 10.96.0.2/32", 1),
        ("-d 10.96.0.0/20", 1),
        ("-s 198.51.100.0/24", 1),
        ("! -s 198.51.100.0/24", 0),
        ("-s 10.0.0.0/8", 0),
        ("-i eth0", 1),
        ("-i eth+", 1),
        ("-i cni+", 0),
        ("! -i cni0", 1),
        ("-o eth1", None),
        ("-d 10.0.0.1/32 -o eth1", 0),
        ("-o eth1 -d 10.0.0.1/32", 0),
        ("-p tcp", 1),
        ("-p 6", 1),
        ("-p udp", 0),
        ("! -p udp", 1),
        ("-f", 0),
        ("-p tcp -m tcp --dport 80", 1),
        ("-p tcp -m tcp --dport 81", 0),
        ("-p tcp -m tcp ! --dport 81", 1),
        ("-p tcp -m tcp --dport 70:80", 1),
        ("-p tcp -m tcp --dport 81:", 0),
        ("-p tcp -m tcp --sport 40000", 1),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", 1),
        ("-p tcp -m tcp ! --syn", 0),
        ("-p tcp -m tcp --tcp-flags ALL NONE", 0),
        ("-p tcp -m tcp --tcp-option 5", None),
        ("-p udp -m udp --dport 80", 0),
        ("-m comment --comment anything", 1),
        ("-m conntrack --ctstate NEW", 1),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", 0),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", 1),
        ("-m conntrack --ctorigdst 10.96.0.1/32", None),
        ("-m mark --mark 0x0", 1),
        ("-m mark --mark 0x4000/0x4000", 0),
        ("-m mark ! --mark 0x4000/0x4000", 1),
        ("-m addrtype --dst-type LOCAL", 0),
        ("-m addrtype ! --dst-type LOCAL", 1),
        ("-m addrtype --src-type LOCAL", 0),
        ("-m addrtype --dst-type UNICAST", None),
        ("-m statistic --mode random --probability 0.5", Fraction(1, 2)),
        ("-m statistic --mode random --probability 0.33333333349", Fraction(715827883, 1 << 31)),
        ("-m statistic --mode random ! --probability 0.25", Fraction(3, 4)),
        ("-m statistic --mode nth --every 3", Fraction(1, 3)),
        ("-m statistic --mode nth ! --every 3 --packet 1", Fraction(2, 3)),
        ('-m bpf --bytecode "4,32 0 0 12,21 0 1 3325256711,6 0 0 1,6 0 0 0"', 1),  # the source is 198.51.100.7
        ('-m bpf --bytecode "4,32 0 0 12,21 0 1 3325256712,6 0 0 1,6 0 0 0"', 0),
        ('-m bpf --bytecode "2,32 0 0 0,6 0 0 1"', None),
        ('-m bpf --bytecode "2,32 0 0 12"', None),
        ("-m recent --rcheck --name A", 1),
        ("-m recent --rcheck --seconds 60 --reap --name A --rsource", 1),
        ("-m recent --rcheck --seconds 59 --name A", 0),
        ("-m recent --rcheck --name B", 0),
        ("-m recent --update --seconds 60 --name A", 1),
        ("-m recent --set --name B", 1),
        ("-m recent --set --name B -m recent --rcheck --seconds 1 --name B", 1),
        ("-m recent --remove --name A -m recent --rcheck --name A", 0),
        ("-m recent --remove --name B", 0),
        ("-m recent --rcheck --hitcount 4 --name A", None),
        ("-m connmark --mark 0x0", 1),
        ("-m connmark ! --mark 0x1/0x1", 1),
        ("-p tcp -m multiport --dports 22,80,443", 1),
        ("-p tcp -m multiport --dports 22,70:79,443", 0),
        ("-p tcp -m multiport ! --dports 22", 1),
        ("-p tcp -m multiport --sports 22,40000", 1),
        ("-p tcp -m multiport --ports 40000", 1),
        ("-p tcp -m multiport --dports http,80", None),
        ("-m iprange --src-range 198.51.100.1-198.51.100.9", 1),
        ("-m iprange ! --dst-range 10.96.0.2-10.96.0.9", 1),
        ("-m addrtype --dst-type MULTICAST", 0),
        ("-m addrtype --dst-type LOCAL,UNICAST", None),
        ("-m addrtype --dst-type LOCAL --limit-iface-in", 0),
        ("-m addrtype ! --dst-type LOCAL --limit-iface-in", 1),
        ("-m addrtype --dst-type UNICAST --limit-iface-in", None),
        ("-m physdev --physdev-is-in", None),
        ("-m nfacct --nfacct-name ct_state_invalid_dropped_pkts", 1),
        ("-m nfacct --nfacct-name somebodys", None),
        ("-m owner --uid-owner 1000", 0),
        ("-i lo", 0),
        ("-o lo", 0),
        ("-m limit --limit 1/sec", None),
        ("-m set --match-set hosts src", None),
        ("-m statistic --mode random --probability many", None),
        ("-m set ! --match-set hosts src", None),
        ("-m hashlimit --hashlimit-upto 10/sec --hashlimit-name x", None),
        ("-m socket", None),
        ("-m socket --transparent --nowildcard", None),
        ('-m u32 --u32 "0x0&0xff=0x1"', None),
        ("-m time --timestart 08:00:00", None),
        ('-m string --string "GET" --algo bm', None),
        ("-m rpfilter", None),
        ("-m rpfilter --invert", None),
        ("-m cgroup ! --cgroup 1", None),
        ("-m policy --dir in --pol none", None),
        ("-m pkttype --pkt-type unicast", None),
        ("-m mac ! --mac-source 02:00:00:00:00:01", None),
        ("-m length --length 0:100", None),
        ("-m connlimit --connlimit-above 10", None),
        ("-p icmp -m icmp --icmp-type 8", 0),
        ("! -p icmp -m ttl --ttl-lt 2", None),
        ("-m owner ! --uid-owner 1000", 1),
        ("-m conntrack --ctstate NEW --ctdir REPLY", None),
        ("-m conntrack ! --ctproto 17", None),
        ("-m connmark --mark 0x4000/0x4000", 0),
        ("-d 10.0.0.1/255.0.0.255", 1),
        ("-p tcp -m tcp --dport http", None),
        ("-d not-an-address/32", None),
        ('-m comment --comment "never closed', None),
    ],
)  # fmt: skip
def test_matches(rule: str, probability: Fraction | int | None) -> None:
    assert meets(rule, known={"A": 60.0}) == probability


def test_a_local_destination_and_source() -> None:
    packet = Packet("10.200.0.2", "127.0.0.1", "udp", 53, origin=Origin.NODE)
    for side in ("src", "dst"):
        rules = {"OUTPUT": (f"-m addrtype --{side}-type LOCAL -j DROP",)}
        assert outcomes(packet, filter_=rules) == {DROPPED: 1}
    assert meets("-m addrtype --dst-type LOCAL", Packet("2001:db8::7", "fd00:200::2")) == 1
    assert meets("-d fd00:200::/64", Packet("2001:db8::7", "fd00:200::2")) == 1
    for rule in ("--dst-type LOCAL --limit-iface-in", "! --dst-type LOCAL --limit-iface-in"):
        assert meets(f"-m addrtype {rule}", Packet("2001:db8::7", "fd00:200::2")) is None
    for rule, expected in (
        ("! -s 2001:db8::/64", 0),
        ("! -d fd00:200::/64 -p tcp", 0),
        ("-m iprange ! --src-range 2001:db8::1-2001:db8::6", 1),
        ("-p tcp -m multiport ! --dports 1:79,81:65535", 1),
        ("-p tcp -m multiport ! --dports 22,80", 0),
        ("-p ipv6-icmp -m icmp6 --icmpv6-type 128", 0),
        ("-m hl --hl-eq 255", None),
        ("-m rt --rt-type 0", None),
        ("-m frag --fragmore", None),
        ("-m ipv6header --header frag --soft", None),
    ):
        assert meets(rule, Packet("2001:db8::7", "fd00:200::2", destination_port=80)) == expected, rule


@pytest.mark.parametrize(
    ("rule", "address", "probability"),
    [
        ("-m addrtype --dst-type MULTICAST", "224.0.0.1", 1),
        ("-m addrtype --dst-type LOCAL", "224.0.0.1", 0),
        ("-m addrtype --dst-type BROADCAST", "255.255.255.255", 1),
        ("-m addrtype --dst-type BROADCAST", "10.96.0.255", None),
        ("-m addrtype --dst-type MULTICAST", "ff02::1", 1),
        ("-m addrtype --dst-type MULTICAST", "fd00:10::1", 0),
    ],
)
def test_kinds_of_addresses(rule: str, address: str, probability: Fraction | int | None) -> None:
    assert meets(rule, Packet("2001:db8::7" if ":" in address else "198.51.100.7", address)) == probability


def test_whether_a_packet_came_through_a_bridge() -> None:
    for bridged, expected in ((True, 0), (False, 1)):
        assert meets("-m physdev ! --physdev-is-in", replace(OUTSIDE, bridged=bridged)) == expected
    assert meets("-m physdev --physdev-in veth0", replace(OUTSIDE, bridged=False)) == 0
    assert meets("-m physdev --physdev-in veth0", replace(OUTSIDE, bridged=True)) is None
    own = Packet("10.200.0.2", "10.96.0.1", origin=Origin.NODE)
    assert outcomes(
        own, nat={"OUTPUT": ("-m physdev ! --physdev-is-in -j DNAT --to-destination 10.1.1.1",)}
    ).keys() == {Outcome(Fate.TRANSLATED, "10.1.1.1:0")}


def test_a_host_whose_addresses_are_not_known() -> None:
    """What depends on them is unknown, and nothing else."""

    def ends(packet: Packet, **rules: Rules) -> set[Outcome]:
        return set(Simulator({"filter": rules}, packet.family, Host(None)).outcomes(packet))

    local = "-m addrtype --dst-type LOCAL -j DROP"
    assert ends(OUTSIDE) == {UNTOUCHED}
    # Where a packet is forwarded, it is for none of the host's addresses.
    assert ends(OUTSIDE, FORWARD=(local,)) == ends(OUTSIDE, FORWARD=(local,), INPUT=("-j LOG",)) == {UNTOUCHED}
    assert ends(OUTSIDE, INPUT=(local,), FORWARD=("-j DROP",)) == {DROPPED}
    assert [one.fate for one in ends(OUTSIDE, INPUT=("-j DROP",))] == [Fate.UNKNOWN]
    assert ends(OUTSIDE, INPUT=("-j DROP",), FORWARD=("-j DROP",)) == {DROPPED}
    assert ends(replace(OUTSIDE, destination="127.0.0.1"), INPUT=("-j DROP",)) == {DROPPED}
    assert ends(replace(OUTSIDE, destination="224.0.0.1"), FORWARD=(local,)) == {UNTOUCHED}
    away = Simulator({"filter": {"INPUT": ("-j DROP",), "FORWARD": (local,)}}, Family.IPV4, Host(None, ["10.96.0.1"]))
    assert away.outcomes(OUTSIDE) == {UNTOUCHED: 1}
    source = "-m addrtype --src-type LOCAL -j DROP"
    assert ends(OUTSIDE, FORWARD=(source,)) == {UNTOUCHED}
    assert ends(replace(OUTSIDE, origin=Origin.NODE), OUTPUT=(source,)) == {DROPPED}


def test_where_rules_translate_to() -> None:
    nat = {"A": ("-j DNAT --to-destination 10.1.1.1:80", "-j DNAT --to-destination 10.1.1.2 --persistent", "-j DNAT"),
           "B": ("-j DNAT --to-destination [fd00::1]:80", "-j DNAT --to-destination 10.1.1.3-10.1.1.9:80",
                 "-j DNAT --to-destination 10.1.1.999", "-d 10.1.1.1/32 -j ACCEPT")}  # fmt: skip
    assert translated_to({"nat": nat, "filter": {"C": ("-j DNAT --to-destination 10.9.9.9",)}}) == {
        "10.1.1.1",
        "10.1.1.2",
        "fd00::1",
    }


def test_marks_of_connections() -> None:
    mangle = {"PREROUTING": ("-j CONNMARK --set-xmark 0x80/0x80",), "FORWARD": ("-m mark --mark 0x80/0xff -j DROP",)}
    nat = {"PREROUTING": ("-j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",)}
    simulator = Simulator({"mangle": mangle, "nat": nat}, Family.IPV4, HOST)
    assert simulator.outcomes(OUTSIDE) == {DROPPED: 1}
    assert simulator.outcomes(replace(OUTSIDE, state="ESTABLISHED")) == {UNTOUCHED: 1}
    older = replace(OUTSIDE, state="ESTABLISHED")
    (unknown,) = Simulator({"mangle": {**mangle, **nat}}, Family.IPV4, HOST).outcomes(older)
    assert unknown.fate is Fate.UNKNOWN
    assert Simulator({"mangle": nat}, Family.IPV4, HOST).outcomes(older) == {UNTOUCHED: 1}  # nobody asks


def test_what_is_not_tracked_is_not_translated() -> None:
    nat = {"PREROUTING": ("-j DNAT --to-destination 10.1.1.1:80",)}
    untracked = {"FORWARD": ("-m conntrack --ctstate UNTRACKED -j DROP",)}
    for target in ("NOTRACK", "CT --notrack"):
        tables: Tables = {"raw": {"PREROUTING": (f"-j {target}",)}, "nat": nat}
        assert Simulator(tables, Family.IPV4, HOST).outcomes(OUTSIDE) == {UNTOUCHED: 1}
        assert Simulator({**tables, "filter": untracked}, Family.IPV4, HOST).outcomes(OUTSIDE) == {DROPPED: 1}


def test_a_translation_to_the_same_place_is_none() -> None:
    nat = {"PREROUTING": ("-p tcp -j DNAT --to-destination 10.96.0.1:80",)}
    assert DROPPED not in outcomes(nat=nat, filter_={"FORWARD": ("-m conntrack --ctstate DNAT -j DROP",)})


def test_marks_are_set_bit_by_bit() -> None:
    def marked(options: str, before: int, after: int) -> None:
        rules = (f"-j MARK {options}", f"-m mark --mark {after:#x} -j DROP")
        packet = Packet("198.51.100.7", "10.96.0.1", mark=before)
        assert outcomes(packet, filter_={"FORWARD": rules}) == {DROPPED: 1}

    marked("--set-xmark 0x4000/0x4000", 0x1, 0x4001)
    marked("--set-xmark 0x4000/0x0", 0x4001, 0x1)
    marked("--set-mark 0x5", 0x4001, 0x5)
    marked("--or-mark 0x6", 0x1, 0x7)
    marked("--and-mark 0x4", 0x7, 0x4)


@pytest.mark.parametrize(
    ("packet", "hooks"),
    [
        (OUTSIDE, "PREROUTING nat, FORWARD filter, POSTROUTING nat"),
        (Packet("198.51.100.7", "10.200.0.2"), "PREROUTING nat, INPUT filter nat"),
        (Packet("10.200.0.2", "8.8.8.8", origin=Origin.NODE), "OUTPUT nat filter, POSTROUTING nat"),
        (
            Packet("10.200.0.2", "127.0.0.1", origin=Origin.NODE),
            "OUTPUT nat filter, POSTROUTING nat, PREROUTING, INPUT filter",
        ),
        (Packet("198.51.100.7", "10.96.0.1", state="ESTABLISHED"), "PREROUTING, FORWARD filter, POSTROUTING"),
    ],
)
def test_hooks_come_in_the_kernels_order(packet: Packet, hooks: str) -> None:
    tables = ("raw", "mangle", "nat", "filter", "security")
    others = {"PREROUTING": ["raw", "mangle"], "OUTPUT": ["raw", "mangle"], "POSTROUTING": ["mangle"]}
    names = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
    every = dict.fromkeys(names, ("-m comment --comment seen",))
    expected = []
    for hook, *of_hook in (part.split() for part in hooks.split(", ")):
        last = ["security"] if "filter" in of_hook else []
        both = [*others.get(hook, ["mangle"]), *of_hook]
        if last:
            both.insert(both.index("filter") + 1, "security")
        expected += [f"{table} {hook}" for table in both]
    (path,) = Simulator(dict.fromkeys(tables, every), Family.IPV4, HOST).paths(packet)
    assert [f"{step.table} {step.hook}" for step in path.steps] == expected


def test_a_translated_packet_is_filtered_by_where_it_goes() -> None:
    nat = {"PREROUTING": ("-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.1:8080",)}
    web = Outcome(Fate.TRANSLATED, "10.244.1.1:8080")
    assert outcomes(nat=nat) == {web: 1}
    assert outcomes(nat=nat, filter_={"FORWARD": ("-d 10.96.0.1/32 -j DROP",)}) == {web: 1}
    assert outcomes(nat=nat, filter_={"FORWARD": ("-d 10.244.1.1/32 -p tcp -m tcp --dport 8080 -j DROP",)}) == {
        DROPPED: 1
    }
    assert outcomes(nat=nat, filter_={"FORWARD": ("-m conntrack --ctstate DNAT -j DROP",)}) == {DROPPED: 1}
    here = {"PREROUTING": ("-j DNAT --to-destination 10.200.0.2",)}
    assert outcomes(nat=here, filter_={"FORWARD": ("-j DROP",)}) == {Outcome(Fate.TRANSLATED, "10.200.0.2:80"): 1}
    six = {"PREROUTING": ("-p tcp -j DNAT --to-destination [fd00:244::1]:8080",)}
    packet = Packet("2001:db8::7", "fd00:10::1", "tcp", 80)
    assert outcomes(packet, nat=six) == {Outcome(Fate.TRANSLATED, "[fd00:244::1]:8080"): 1}


def test_masquerading() -> None:
    nat = {"POSTROUTING": ("-m mark --mark 0x1/0x1 -j MASQUERADE --random-fully",)}
    assert outcomes(nat=nat) == {UNTOUCHED: 1}
    forward = {"FORWARD": ("-j MARK --set-xmark 0x1/0x1",)}
    assert outcomes(nat=nat, filter_=forward) == {Outcome(Fate.UNTOUCHED, masqueraded=True): 1}
    # Behind it the source is some address of the host: a rule that asks for it can't be judged.
    own = Packet("10.200.0.2", "127.0.0.1", mark=1, origin=Origin.NODE)
    assert outcomes(own, nat=nat, filter_={"INPUT": ("-s 127.0.0.0/8 -d 8.8.8.8/32 -j DROP",)}).keys() == {
        Outcome(Fate.UNTOUCHED, masqueraded=True)
    }
    (unknown,) = outcomes(own, nat=nat, filter_={"INPUT": ("-s 127.0.0.0/8 -j DROP",)})
    assert unknown.fate is Fate.UNKNOWN


def test_jumps_returns_and_gotos() -> None:
    def fate(*forward: str, **chains: Rules) -> Fate:
        (outcome,) = outcomes(filter_={"FORWARD": forward, **chains})
        return outcome.fate

    assert fate("-j A", "-j DROP", A=()) is Fate.DROPPED
    assert fate("-j A", "-j DROP", A=("-j RETURN", "-j ACCEPT")) is Fate.DROPPED
    assert fate("-j A", "-j DROP", A=("-j ACCEPT",)) is Fate.UNTOUCHED
    assert fate("-j A", A=("-j B", "-j DROP"), B=()) is Fate.DROPPED
    assert fate("-j A", A=("-g B", "-j DROP"), B=()) is Fate.UNTOUCHED
    assert fate("-j A", "-j DROP", A=("-g B", "-j ACCEPT"), B=("-j RETURN",)) is Fate.DROPPED
    assert fate("-g A", "-j DROP", A=()) is Fate.UNTOUCHED
    assert fate("-j RETURN", "-j DROP") is Fate.UNTOUCHED
    assert fate("-j LOG", "-j DROP") is Fate.DROPPED


def test_policies() -> None:
    drop = {("filter", "FORWARD"): "DROP"}
    assert outcomes(filter_={"FORWARD": ()}, policies=drop) == {DROPPED: 1}
    assert outcomes(filter_={"FORWARD": ("-j RETURN",)}, policies=drop) == {DROPPED: 1}
    assert outcomes(filter_={"FORWARD": ("-j ACCEPT",)}, policies=drop) == {UNTOUCHED: 1}
    (path,) = Simulator({"filter": {"FORWARD": ()}}, Family.IPV4, HOST, drop).paths(OUTSIDE)
    assert [(step.chain, step.position, step.rule) for step in path.steps] == [("FORWARD", 0, "policy DROP")]


def test_rejections_tell_their_kind() -> None:
    rules = {"FORWARD": ("-p tcp -j REJECT --reject-with tcp-reset",)}
    assert outcomes(filter_=rules) == {Outcome(Fate.REJECTED, detail="tcp-reset"): 1}


def test_shares_of_a_chain_add_up_exactly() -> None:
    pods = [f"10.244.1.{number}" for number in range(1, 8)]
    chances = [f"-m statistic --mode random --probability {1 / left:.10f} " for left in range(7, 1, -1)] + [""]
    rules = tuple(f"{chance}-j DNAT --to-destination {pod}" for chance, pod in zip(chances, pods, strict=True))
    found = outcomes(nat={"PREROUTING": rules})
    assert len(found) == 7
    assert all(abs(share - Fraction(1, 7)) < Fraction(7, 1 << 31) for share in found.values())
    # Chance without consequence changes nothing, and doesn't multiply the work.
    idle = {"FORWARD": ("-m statistic --mode random --probability 0.5",) * 40}
    assert outcomes(filter_={"FORWARD": idle["FORWARD"][:5]}) == {UNTOUCHED: 1}
    assert Simulator({"nat": {}, "filter": idle}, Family.IPV4, HOST).outcomes(OUTSIDE) == {UNTOUCHED: 1}


@pytest.mark.parametrize(
    "rules",
    [
        {"PREROUTING": ("-j NFQUEUE",)},
        {"PREROUTING": ("-j MISSING",)},
        {"PREROUTING": ("-j A",), "A": ("-j B",), "B": ("-j A",)},
        {"PREROUTING": ("-j DNAT --to-destination 10.1.1.1-10.1.1.9",)},
        {"PREROUTING": ("-j DNAT --to-destination 10.1.1.1:80-90",)},
        {"PREROUTING": ("-j DNAT --to-destination 10.1.1.1:80-90 --random",)},
        {"PREROUTING": ("-m limit --limit 1/sec -j DROP",)},
        {"PREROUTING": ("no rule at all",)},
    ],
)
def test_what_is_not_known_is_not_guessed(rules: Mapping[str, Rules]) -> None:
    (outcome,) = outcomes(nat=rules)
    assert outcome.fate is Fate.UNKNOWN
    assert outcome.detail.startswith("nat")


def test_what_makes_no_difference_need_not_be_known() -> None:
    def fate(*other: str) -> Fate:
        rules = {"FORWARD": ("-m set --match-set hosts src -j A",), "A": other, "B": ("-m mark --mark 0x1 -j DROP",)}
        (outcome,) = outcomes(filter_=rules)
        return outcome.fate

    assert fate() is fate("-d 10.0.0.1/32 -j DROP") is fate("-j B", "-j LOG") is Fate.UNTOUCHED
    assert fate("-j MARK --set-xmark 0x1/0x1") is fate("-j ACCEPT") is Fate.UNTOUCHED
    assert fate("-j DROP") is fate("-j MARK --set-xmark 0x1/0x1", "-j B") is fate("-j A") is Fate.UNKNOWN
    (outcome,) = outcomes(filter_={"FORWARD": ("-m set --match-set hosts src -g A", "-j DROP"), "A": ()})
    assert outcome.fate is Fate.UNKNOWN


def test_ways_that_can_not_be_listed() -> None:
    """One of those that come to the same is told, for all of them."""
    chance = "-m statistic --mode random --probability"
    idle = {"FORWARD": (*(f"{chance} 0.5",) * 40, f"{chance} 0.25 -j DROP")}
    paths = Simulator({"filter": idle}, Family.IPV4, HOST).paths(OUTSIDE)
    assert [(path.outcome.fate, path.probability, path.is_sample, path.examined) for path in paths] == [
        (Fate.UNTOUCHED, Fraction(3, 4), True, 41),
        (Fate.DROPPED, Fraction(1, 4), True, 41),
    ]
    assert paths[1].steps[-1].position == 41


def test_chains_without_end() -> None:
    deep = {"FORWARD": ("-j C0",)} | {f"C{n}": (f"-j C{n + 1}",) for n in range(1000)} | {"C1000": ("-j DROP",)}
    (outcome,) = outcomes(filter_=deep)
    assert outcome.fate is Fate.UNKNOWN


def test_half_a_guess_is_half_unknown() -> None:
    chance = "-m statistic --mode random --probability 0.5"
    found = outcomes(nat={"PREROUTING": (f"{chance} -m limit --limit 1/sec -j DROP",)})
    assert sorted((outcome.fate, share) for outcome, share in found.items()) == [
        (Fate.UNKNOWN, Fraction(1, 2)),
        (Fate.UNTOUCHED, Fraction(1, 2)),
    ]


@given(st.randoms(use_true_random=False), st.sampled_from(Family))
def test_any_rule_that_iptables_takes_has_an_outcome(chance: random.Random, family: Family) -> None:
    rules = tuple(sketch(chance, family).text() for _ in range(5))
    addresses = ("198.51.100.7", "10.96.0.1") if family is Family.IPV4 else ("2001:db8::7", "fd00:10::1")
    packet = Packet(*addresses, chance.choice(["tcp", "udp", "sctp", "icmp"]), 80)
    tables: Tables = {"filter": {"FORWARD": rules, "KUBE-A": ()}, "nat": {}}
    assert sum(Simulator(tables, family, HOST).outcomes(packet).values()) == 1


# -- the kernel's word ---------------------------------------------------------------------------------

SENDS = 25
HOOKS = ("OUTPUT", "INPUT")
LINKS = """
link add d0 type veth peer name d1
address add 10.200.0.2/32 dev d0
link set lo up
link set d0 up
link set d1 up
route add default dev d0
"""
SENDER = """
import json, socket, sys
listening = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
for port, sock in enumerate(listening, 1):
    sock.bind(("", port))  # so that nothing is answered by an ICMP error
for address, port, source in json.load(sys.stdin):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("10.200.0.2", source))
        try:
            sock.sendto(b"?", (address, port))
        except OSError:
            pass  # DROP and REJECT in OUTPUT are errors to the sender
"""


def random_tables(chance: random.Random) -> Tables:
    """Chains that jump to later ones at random, with rules that some packets match and some don't."""
    names = [f"C{number}" for number in range(6)]

    def rule(table: str, later: Sequence[str]) -> str:
        matches = [
            f"{chance.choice(['', '! '])}-d 10.{chance.randrange(4)}.0.0/16",
            "-p udp",
            "! -p tcp",
            f"-p udp -m udp --dport {chance.randrange(4)}:{chance.randrange(4, 8)}",
            f"-m mark {chance.choice(['', '! '])}--mark {1 << chance.randrange(3):#x}/{1 << chance.randrange(3):#x}",
            "-m addrtype --dst-type LOCAL",
            "-m conntrack --ctstate NEW",
            f"-m conntrack {chance.choice(['', '! '])}--ctstate DNAT",
            "-p udp -m multiport --dports 1,3,5:6",
            f"-m conntrack --ctstate {chance.choice(['UNTRACKED', 'NEW,DNAT'])}",
            f"-m connmark --mark {1 << chance.randrange(3):#x}/0x7",
            f"-m recent {chance.choice(['--set', '--rcheck'])} --name {table[:3]}{chance.randrange(2)}",
            "",
        ]
        targets = ["-j RETURN", f"-j MARK --set-xmark {1 << chance.randrange(3):#x}/{chance.randrange(8):#x}", ""]
        targets += ["-j ACCEPT"] * (chance.random() < 0.3)
        if table == "nat":
            targets += [f"-p udp -j DNAT --to-destination 10.{chance.randrange(4)}.0.9:{chance.randrange(1, 8)}"]
        elif chance.random() < 0.2:
            targets += ["-j DROP", "-j CT --notrack"][: 1 + (table == "raw")]
        if table != "raw":
            targets += ["-j CONNMARK --save-mark", "-j CONNMARK --restore-mark"][: chance.randrange(3)]
        targets += [f"-{arrow} {name}" for name in later for arrow in "jg"]
        match, target = chance.choice(matches), chance.choice(targets)
        return f"{match} {target.removeprefix('-p udp ') if '-p ' in match else target}".strip()

    def chain(table: str, later: Sequence[str]) -> Rules:
        return tuple(rule(table, later) for _ in range(chance.randrange(1, 6)))

    def chains(table: str) -> dict[str, Rules]:
        return {"OUTPUT": chain(table, names)} | {name: chain(table, names[at:]) for at, name in enumerate(names, 1)}

    return {
        "nat": chains("nat") | {"INPUT": ("-p udp",)},  # no DNAT there
        **{table: chains(table) | {"INPUT": chain(table, names)} for table in ("mangle", "filter")},
        "raw": chains("raw"),
    }


def text_of(tables: Tables) -> Iterator[str]:
    for table, chains in tables.items():
        yield f"*{table}\n"
        yield from (f":{name} - [0:0]\n" for name in chains if name not in HOOKS)
        yield from (f"-A {name} {rule}\n" for name, rules in chains.items() for rule in rules)
        yield "COMMIT\n"


@pytest.mark.kernel
@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_counts_packets_where_the_simulator_sees_them(backend: Backend) -> None:
    matched = 0
    for seed in range(12):
        chance = random.Random(seed)
        with Namespace() as namespace:
            links = (
                "link add d0 type veth peer name d1",
                "address add 10.200.0.2/32 dev d0",
                "route add default dev d0",
            )
            up = [f"link set {name} up" for name in ("lo", "d0", "d1")]
            namespace.run(["ip", "-batch", "-"], "\n".join([*links[:2], *up, links[2], ""]))
            namespace.restore(backend, Family.IPV4, "".join(text_of(random_tables(chance))))
            sent = [
                (f"10.{chance.choice([0, 1, 2, 3, 200])}.0.2", chance.randrange(1, 8), 40_000 + number)
                for number in range(SENDS)
            ]
            namespace.run([sys.executable, "-c", SENDER], json.dumps(sent))
            saved = parse_save(namespace.save(backend, Family.IPV4, counters=True))
        tables, policies = tables_of_save(saved)
        simulator = Simulator(tables, Family.IPV4, HOST, policies)
        expected: Counter[tuple[str, str, int]] = Counter()
        known: dict[str, float] = {}
        for address, port, source in sent:
            (path,) = simulator.paths(Packet("10.200.0.2", address, "udp", port, source, Origin.NODE), known)
            assert path.outcome.fate is not Fate.UNKNOWN
            known |= {step.rule.split("--name ")[1][:4]: 0.0 for step in path.steps if "--set --name" in step.rule}
            expected.update((step.table, step.chain, step.position) for step in path.steps)
        counted = Counter(
            {
                (table, name, position): packets
                for table, one in saved.items()
                for name, chain in one.chains.items()
                for position, (packets, _) in enumerate(chain.counters or (), 1)
            }
        )
        matched += expected.total()
        assert expected == +counted, f"seed {seed}"
    assert matched > 12 * SENDS


def test_of_an_old_kube_proxys_services_a_packet_is_compared_with_its_own() -> None:
    """Its rules that mark what comes from outside the cluster begin with the source, but are for one address each."""
    tables, _ = tables_of_save(parse_save((KUBE_PROXY_1_20 / "ipv4.save").read_text()))
    chain = Simulator(tables, Family.IPV4, Host(None)).chain("nat", "KUBE-SERVICES")
    assert chain
    rules = tables["nat"]["KUBE-SERVICES"]
    for address in ("10.96.1.10", "10.96.1.12", "203.0.113.50", "8.8.8.8"):
        met = chain.candidates([State(number("10.244.0.9"), number(address), 80, 0)])
        assert [rules[one - 1] for one in met] == [one for one in rules if address in one or "-d " not in one]
