"""Equivalence: equal rulesets are found equal, differences are found, and each example is what the simulator says."""

import json
import os
import random
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpx
from kpx.analysis.equivalence import Example, Side, compare, examples
from kpx.analysis.packet import Fate, Host, Packet
from kpx.analysis.simulate import Simulator, tables_of, tables_of_save
from kpx.compiler import tree
from kpx.compiler.dispatch import DEFAULT
from kpx.compiler.words import one_in
from kpx.family import Family
from kpx.netfilter.ruleset import Rules, Ruleset
from kpx.netfilter.save import parse_save
from kpx.sources import manifests
from tests.analysis.mutations import KINDS, mutations
from tests.analysis.probes import PROTOCOLS
from tests.analysis.test_equality import CASES, shown, shuffled, sticky
from tests.analysis.variants import variant
from tests.compiler.clusters import Manifest, clusters, configs
from tests.compiler.layouts import Input
from tests.compiler.towns import CONFIG, rivals, town
from tests.kernel import FAMILIES, case_path
from tests.manifests import endpoint_slice
from tests.manifests import service as one_service
from tests.netfilter.sketch import sketch

IPV4 = Family.IPV4
CHANCE = "-m statistic --mode random --probability"
KNOWN = "-m recent --rcheck --name X --rsource"
PAIRS = int(os.environ.get("KPX_PAIRS", "30"))
"""How many pairs with reordered chains are compared."""
FIRST = int(os.environ.get("KPX_FIRST", "0"))
"""The first seed of these."""


def side(ruleset: Ruleset) -> Side:
    return tables_of(ruleset), {}


def dump(name: str, family: Family = IPV4) -> Side:
    return tables_of_save(parse_save((case_path(name) / f"{family}.save").read_text()))


def chains(nat: Mapping[str, Rules] | None = None, filter_: Mapping[str, Rules] | None = None) -> Side:
    return {"nat": nat or {}, "filter": filter_ or {}}, {}


def difference(one: Side, other: Side, family: Family = IPV4) -> Example | None:
    return next(iter(examples(compare(one, other, family))), None)


def assert_equivalent(one: Side, other: Side, family: Family = IPV4) -> None:
    found = difference(one, other, family)
    assert found is None, found


def assert_as_simulated(found: Example, *sides: Side) -> None:
    """Both sides do to the example what the simulator says they do, and that is not the same."""
    family = found.packet.family
    met = []
    for (tables, policies), told in zip(sides, found.sides, strict=True):
        simulator = Simulator(tables, family, Host(found.addresses), policies)
        told_shares: dict[object, Fraction] = {}
        for one in told:
            told_shares[one.outcome] = told_shares.get(one.outcome, Fraction(0)) + one.probability
        simulated = simulator.outcomes(found.packet, found.known)
        if any(one.fate is Fate.UNKNOWN for one in simulated):
            return  # a diagram sees that what isn't known makes no difference; the simulator doesn't
        assert simulated.keys() == told_shares.keys(), (found, shown(simulated))
        assert all(abs(simulated[one] - told_shares[one]) < Fraction(1, 1 << 60) for one in simulated)
        met.append((simulated, {(one.outcome, one.noted) for one in told}))
    assert met[0] != met[1]


# -- equal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_layouts_and_kube_proxy_are_equivalent(name: str, family: Family) -> None:
    case = case_path(name)
    config, _ = kpx.parse_config((case / "config.yaml").read_bytes())
    some = Input(manifests.load([str(case / "cluster.yaml")]).objects, config, family)
    for layout in (some.classic(), some.tree(), some.compact()):
        assert_equivalent(dump(name, family), side(layout), family)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters(), configs, st.sampled_from(FAMILIES))
def test_all_layouts_are_equivalent_for_any_cluster(objects: list[Manifest], config: Manifest, family: Family) -> None:
    some = Input.of(objects, config, family)
    assert_equivalent(side(some.classic()), side(some.tree()), family)
    # Where nothing is forwarded that nobody lets through, as on a host with Docker.
    policies = {("filter", "FORWARD"): "DROP"}
    assert_equivalent((side(some.classic())[0], policies), (side(some.compact())[0], policies), family)


@pytest.mark.parametrize("objects", [town(150), rivals()], ids=["town", "rivals"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_layouts_are_equivalent_at_size(objects: list[Manifest], family: Family) -> None:
    some = Input.of(objects, CONFIG, family)
    for layout in (some.tree(DEFAULT, tree.choose), some.compact(DEFAULT, tree.choose)):
        assert_equivalent(side(some.classic()), side(layout), family)


def test_affinity_with_lists_of_groups_is_equivalent() -> None:
    some = sticky()
    assert_equivalent(side(some.classic()), side(some.tree(DEFAULT, tree.choose)))


@pytest.mark.parametrize(
    ("affinity", "endpoints", "family"), [("None", 500, Family.IPV4), ("ClientIP", 150, Family.IPV6)]
)
def test_services_with_many_endpoints(affinity: str, endpoints: int, family: Family) -> None:
    """Each of which does something else to packets that it sent itself."""
    pod = "10.244.{}.{}" if family is IPV4 else "fd00:244::{:x}:{:x}"
    pods = [pod.format(1 + (number >> 8), number & 255) for number in range(1, endpoints + 1)]
    vip = "10.96.0.1" if family is IPV4 else "fd00:10:96::1"
    service = one_service("web", vip, sessionAffinity=affinity)
    some = Input.of([service, endpoint_slice("web", pods)], CONFIG, family)
    one, other = side(some.classic()), side(some.tree(DEFAULT, tree.choose))
    assert_equivalent(one, other, family)
    assert_equivalent(one, side(some.compact(DEFAULT, tree.choose)), family)
    chain = random.Random(endpoints).choice([name for name in other[0]["nat"] if name.startswith("KUBE-SEP-")])
    harmed: Side = ({**other[0], "nat": {**other[0]["nat"], chain: other[0]["nat"][chain][1:]}}, {})
    found = difference(one, harmed, family)
    assert found is not None
    assert found.packet.source in pods
    assert_as_simulated(found, one, harmed)


def balanced(balance: str, endpoints: Iterable[int], family: Family, layout: kpx.Layout = kpx.Layout.TREE) -> Side:
    """One Service's rules, whose endpoints are chosen as an annotation says."""
    pod, vip = ("10.244.1.{}", "10.96.0.1") if family is IPV4 else ("fd00:244::1:{:x}", "fd00:10:96::1")
    service = one_service("web", vip)
    service["metadata"]["annotations"] = {"kpx.dev/balance": balance}
    pods = endpoint_slice("web", [pod.format(number) for number in endpoints])
    some = [kpx.api.parse_object(one["kind"], one) for one in (service, pods)]
    config, _ = kpx.parse_config(json.dumps(CONFIG).encode())
    return side(kpx.compile(some, config, family=family, layout=layout))


@pytest.mark.parametrize("balance", ["source-hash", "round-robin"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_ways_to_balance(balance: str, family: Family) -> None:
    """Without an endpoint, some client's or everybody's share goes elsewhere: to whom is found, whatever decides."""
    some = range(1, 81)
    one = balanced(balance, some, family)
    for layout in kpx.Layout:
        assert_equivalent(one, balanced(balance, some, family, layout), family)
    less = balanced(balance, some[1:], family)
    found = difference(one, less, family)
    assert found is not None
    assert found.is_certain
    assert_as_simulated(found, one, less)


HAIRPIN_RULES = (("nat", "KUBE-POSTROUTING", "ACCEPT"), ("filter", "KUBE-FORWARD", "DROP"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("table", "chain", "policy"), HAIRPIN_RULES)
def test_packets_of_pods_to_themselves_are_a_class_of_their_own(
    table: str, chain: str, policy: str, family: Family
) -> None:
    """Who doesn't masquerade them, or doesn't let them through, is found out by one of them."""
    some = Input.of(town(12), CONFIG, family)
    policies = {("filter", "FORWARD"): policy}
    one, other = (side(some.classic())[0], policies), (side(some.compact())[0], policies)
    assert_equivalent(one, other, family)
    left = tuple(rule for rule in other[0][table][chain] if "-m bpf" not in rule)
    assert len(left) == len(other[0][table][chain]) - 1
    harmed: Side = ({**other[0], table: {**other[0][table], chain: left}}, policies)
    found = difference(one, harmed, family)
    assert found is not None
    assert found.is_certain
    assert_as_simulated(found, one, harmed)
    arrives = {share.outcome.destination for side_ in found.sides for share in side_ if share.outcome.destination}
    assert any(place.rpartition(":")[0].strip("[]") == found.packet.source for place in arrives)


def test_what_goes_to_itself_anyway_is_translated_to_nowhere() -> None:
    """An endpoint behind an external address that is its own: conntrack knows of no translation then."""
    service = one_service("web", "10.96.0.1", 8080, externalIPs=["10.200.0.2"], externalTrafficPolicy="Local")
    pods = endpoint_slice("web", ["10.200.0.2", "10.244.0.5"], "node-0")
    some = Input.of([service, pods], CONFIG, IPV4)
    assert_equivalent(side(some.classic()), side(some.compact()))
    tables = side(some.compact())[0]
    own = [name for name in tables["nat"] if name.startswith("KUBE-SEP-")]
    assert len(own) == 1
    assert "10.200.0.2:8080" in tables["nat"][own[0]][1]
    chain = next(name for name in tables["nat"] if name.startswith("KUBE-SVL-"))
    to = "-j DNAT --to-destination 10.200.0.2:8080"
    direct = tuple(
        f"-p tcp {rule.replace(f'-j {own[0]}', to)}" if own[0] in rule else rule for rule in tables["nat"][chain]
    )
    harmed: Side = ({**tables, "nat": {**tables["nat"], chain: direct}}, {})
    found = difference(side(some.classic()), harmed)
    assert found is not None
    assert (found.packet.source, found.packet.destination) == ("10.200.0.2", "10.200.0.2")
    assert_as_simulated(found, side(some.classic()), harmed)


@pytest.mark.parametrize("family", FAMILIES)
def test_programs_that_compare_source_and_destination(family: Family) -> None:
    """In whatever order they look at the words; one that leaves out a word, or takes one for another, is another."""
    places = [(12, 16)] if family is IPV4 else [(8, 24), (12, 28), (16, 32), (20, 36)]

    def program(pairs: list[tuple[int, int]], yes: int = 65535) -> Side:
        steps = [
            f"32 0 0 {one},7 0 0 0,32 0 0 {other},29 0 {4 * (len(pairs) - at) - 3} 0"
            for at, (one, other) in enumerate(pairs)
        ]
        code = ",".join([str(4 * len(pairs) + 2), *steps, f"6 0 0 {yes}", "6 0 0 0"])
        return chains(filter_={"FORWARD": (f'-m bpf --bytecode "{code}" -j DROP',)})

    one = program(places)
    assert_equivalent(one, program([(to, from_) for from_, to in reversed(places)], yes=1), family)
    found = difference(one, chains(), family)
    assert found is not None
    assert found.is_certain
    assert found.packet.source == found.packet.destination
    assert_as_simulated(found, one, chains())
    swapped = [(places[0][1], places[0][1]), *places[1:]]
    for other in (program(places[1:] or swapped), program(swapped), program(places, yes=0)):
        assert difference(one, other, family) is not None


def test_who_is_in_turn_counts_as_chance_does_and_who_has_a_hash_does_not() -> None:
    by_chance, in_turn, by_hash = (balanced(one, range(1, 6), IPV4) for one in ("random", "round-robin", "source-hash"))
    assert_equivalent(by_chance, in_turn)
    found = difference(by_chance, by_hash)
    assert found is not None
    assert_as_simulated(found, by_chance, by_hash)


def test_hashes_are_compared_by_the_numbers_that_they_take() -> None:
    def less_than(threshold: int, program: str = "32 0 0 12,36 0 0 2654435761", end: str = "6 0 0 65535") -> Side:
        code = f"5,{program},53 0 1 {threshold},6 0 0 0,{end}"
        return chains({"PREROUTING": (f'-m bpf --bytecode "{code}" -j DNAT --to-destination 10.1.1.1',)})

    half = 1 << 31
    assert_equivalent(less_than(half), less_than(half, end="6 0 0 1"))
    found = difference(less_than(half), less_than(half + half // 100))
    assert found is not None
    assert_as_simulated(found, less_than(half), less_than(half + half // 100))
    assert found.is_certain
    (unmet,) = examples(compare(less_than(half), less_than(half + 1), IPV4))[:1]
    assert not unmet.is_certain
    other = difference(less_than(half), less_than(half, "32 0 0 16,36 0 0 2654435761"))  # of the destination
    assert other is not None
    assert not other.is_certain


@pytest.mark.parametrize("number", range(FIRST, FIRST + PAIRS))
def test_the_order_of_chains_and_of_unordered_rules_does_not_count(number: int) -> None:
    pick = random.Random(number)
    family = FAMILIES[number // 2 % 2]
    one = variant(12, number, family)[number % 3]
    other = shuffled(one)
    tables = {
        name: dict(pick.sample(list(chains_.items()), len(chains_))) for name, chains_ in tables_of(other).items()
    }
    assert_equivalent(side(one), (tables, {}), family)


def test_names_of_chains_and_comments_do_not_count() -> None:
    tables, policies = dump("loadbalancer-source-ranges")
    nat = {re.sub("^KUBE-(SVC|EXT|FW)-", r"MY-\1-", name): rules for name, rules in tables["nat"].items()}
    renamed = {
        name: tuple(re.sub(r"-j KUBE-(SVC|EXT|FW)-", r"-j MY-\1-", rule).replace("shop/", "mall/") for rule in rules)
        for name, rules in nat.items()
    }
    assert_equivalent((tables, policies), ({**tables, "nat": renamed}, policies))


def test_rules_that_no_packet_reaches_do_not_count() -> None:
    nat = {"PREROUTING": ("-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.1.1.1:80",)}
    filter_ = {"FORWARD": ("-d 10.0.0.1/32 -p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -j DROP",)}
    assert_equivalent(chains(nat), chains(nat, filter_))
    assert difference(chains(), chains(filter_=filter_)) is not None


@pytest.mark.parametrize("number", [*range(2, 18), 40, 99, 100, 333, 640, 1000])
def test_every_share_is_within_one_step_of_its_due(number: int) -> None:
    """What the tolerance is derived from: of n endpoints each gets 1/n, but for less than one step of 2^-31."""
    left, step = Fraction(1), Fraction(1, 1 << 31)
    for ahead in range(number, 0, -1):
        written = one_in(ahead).split()[-1] if ahead > 1 else "1"
        share = left * Fraction(round(float(written) * (1 << 31)), 1 << 31)
        assert abs(share - Fraction(1, number)) < step
        left -= share


# -- different -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-p tcp -j DROP", "-p udp -j DROP"),
        ("-d 10.0.0.0/8 -j DROP", "-d 10.0.0.0/9 -j DROP"),
        ("! -s 10.0.0.0/8 -j DROP", "-j DROP"),
        ("-p tcp -m tcp --dport 80 -j DROP", "-p tcp -m tcp --dport 80:81 -j DROP"),
        ("-p tcp -m tcp --sport 1 -j DROP", "-p tcp -j DROP"),
        ("-i eth0 -j DROP", "-i eth+ -j DROP"),
        ("-i eth0 -j DROP", "-o eth0 -j DROP"),
        ("-m mark --mark 0x4000/0x4000 -j DROP", "-m mark --mark 0x4000 -j DROP"),
        ("-m conntrack --ctstate NEW -j DROP", "-m conntrack --ctstate NEW,RELATED -j DROP"),
        ("-m conntrack --ctstate DNAT -j DROP", "-m conntrack --ctstate SNAT -j DROP"),
        ("-m addrtype --src-type LOCAL -j DROP", "-j DROP"),
        (f"{CHANCE} 0.5 -j DROP", f"{CHANCE} 0.50001 -j DROP"),
        (f"{KNOWN} --seconds 60 -j DROP", f"{KNOWN} --seconds 61 -j DROP"),
        ("-j DROP", "-j REJECT"),
        ("-j REJECT", "-p tcp -j REJECT --reject-with tcp-reset"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("hook", ["FORWARD", "INPUT"])
def test_every_kind_of_match_tells_packets_apart(one: str, other: str, hook: str) -> None:
    sides = chains(filter_={hook: (one,)}), chains(filter_={hook: (other,)})
    found = difference(*sides)
    assert found is not None
    assert found.is_certain
    if "DNAT" not in one:
        assert_as_simulated(found, *sides)
    for tables in sides:
        assert_equivalent(tables, tables)


def test_what_only_translated_packets_meet_counts() -> None:
    """Although it is the same on both sides what is translated, and for all others what comes then."""
    nat = {"PREROUTING": ("-d 10.0.0.1/32 -p tcp -j DNAT --to-destination 10.1.1.1:80",)}
    masked = {"POSTROUTING": ("-m conntrack --ctstate DNAT -j MASQUERADE",)}
    one, other = chains({**nat, **masked}), chains(nat)
    found = difference(one, other)
    assert found is not None
    assert_as_simulated(found, one, other)


def test_what_a_rule_changes_is_what_the_next_one_sees() -> None:
    """Also where the next one asks for it before the first one would ask for what it asks for."""
    lasting = f"{KNOWN} --seconds 60 -j MARK --set-xmark 0x1/0x1"
    marked: Side = ({"mangle": {"PREROUTING": (lasting, "-m mark --mark 0x1/0x1 -j DROP")}}, {})
    dropped: Side = (
        {"mangle": {"PREROUTING": (f"{KNOWN} --seconds 60 -j DROP", "-m mark --mark 0x1/0x1 -j DROP")}},
        {},
    )
    assert_equivalent(marked, dropped)
    unmarked: Side = ({"mangle": {"PREROUTING": (lasting,)}}, {})
    found = difference(marked, unmarked)
    assert found is not None
    assert_as_simulated(found, marked, unmarked)


def test_a_lost_note_is_a_difference() -> None:
    """It shows in the next connection only."""
    tables, policies = dump("session-affinity")
    chain = next(name for name, rules in tables["nat"].items() if any("--set " in rule for rule in rules))
    rules = tuple(re.sub("-m recent .*--rsource ", "", rule) for rule in tables["nat"][chain])
    other = {**tables, "nat": {**tables["nat"], chain: rules}}
    found = difference((tables, policies), (other, policies))
    assert found is not None
    assert_as_simulated(found, (tables, policies), (other, policies))


def test_words_that_no_packet_notices_do_not_count() -> None:
    """Which port masquerading takes, and when a list's old clients are removed, who don't count any more."""
    tables, policies = dump("session-affinity")
    bare = {
        table: {
            name: tuple(re.sub(r" --(reap|random-fully)\b", "", rule) for rule in rules)
            for name, rules in chains_.items()
        }
        for table, chains_ in tables.items()
    }
    assert bare != tables
    assert_equivalent((tables, policies), (bare, policies))


def test_for_how_long_a_client_is_known_counts() -> None:
    tables, policies = dump("session-affinity")
    nat = {
        name: tuple(re.sub(r"--seconds (\d+)", lambda found: f"--seconds {int(found[1]) + 1}", rule) for rule in rules)
        for name, rules in tables["nat"].items()
    }
    other = {**tables, "nat": nat}
    found = difference((tables, policies), (other, policies))
    assert found is not None
    assert found.known
    assert_as_simulated(found, (tables, policies), (other, policies))


def test_a_policy_is_a_difference() -> None:
    found = difference(
        ({"filter": {"FORWARD": ()}}, {}), ({"filter": {"FORWARD": ()}}, {("filter", "FORWARD"): "DROP"})
    )
    assert found is not None
    assert [[share.outcome.fate for share in told] for told in found.sides] == [[Fate.UNTOUCHED], [Fate.DROPPED]]


def test_the_smallest_difference_that_is_tolerated_and_the_next() -> None:
    def spread(steps: int) -> Side:
        chance = f"-m statistic --mode random --probability {(steps / (1 << 31)):.11f}"
        return chains(
            {
                "PREROUTING": (
                    f"-p tcp {chance} -j DNAT --to-destination 10.1.1.1",
                    "-p tcp -j DNAT --to-destination 10.1.1.2",
                )
            }
        )

    half = 1 << 30
    assert_equivalent(spread(half), spread(half + 2))
    found = difference(spread(half), spread(half + 3))
    assert found is not None


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_are_found_and_their_examples_are_true(kind: str) -> None:
    """Some change nothing; that those that do are all found is for `test_confirmed` to show."""
    found = 0
    for seed in range(20):
        family = FAMILIES[seed % 2]
        one = side(variant(4, seed, family)[1])
        for mutation in islice(mutations(one[0], kind, random.Random(seed), family), 3):
            other = (mutation.tables, mutation.policies)
            example = difference(one, other, family)
            if example is not None:
                assert_as_simulated(example, one, other)
                found += 1
        if found >= 2:
            return
    raise AssertionError(f"{found} found")


# -- unknown -------------------------------------------------------------------------------------------


def test_unknown_matches_are_the_same_where_they_read_the_same() -> None:
    strange = chains(filter_={"FORWARD": ("-m set --match-set some src -j DROP",)})
    assert_equivalent(strange, strange)
    assert compare(strange, strange, IPV4).unknown == ("set --match-set some src",)
    found = difference(strange, chains(filter_={"FORWARD": ("-m set --match-set others src -j DROP",)}))
    assert found is not None
    assert not found.is_certain
    found = difference(strange, chains(filter_={"FORWARD": ("-m set --match-set some src -j REJECT",)}))
    assert found is not None


def test_a_limit_is_the_same_in_its_own_place_only() -> None:
    rule = "-m limit --limit 1/sec -j DROP"
    one = chains(filter_={"FORWARD": (rule,)})
    assert_equivalent(one, chains(filter_={"FORWARD": (f"-m comment --comment x {rule}",)}))
    found = difference(one, chains(filter_={"FORWARD": ("-j A",), "A": (rule,)}))
    assert found is not None
    assert not found.is_certain


def test_unknown_targets_are_the_same_in_their_place() -> None:
    one = chains({"PREROUTING": ("-p tcp -j MYSTERY", "-j DNAT --to-destination 10.1.1.1")})
    assert_equivalent(one, one)
    found = difference(one, chains({"PREROUTING": ("-j DNAT --to-destination 10.1.1.1",)}))
    assert found is not None
    assert not found.is_certain


# -- against the simulator -----------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(FAMILIES))
def test_any_rules_can_be_compared(chance: random.Random, family: Family) -> None:
    def some() -> Side:
        rules = [sketch(chance, family).text() for _ in range(4)]
        return chains({"PREROUTING": tuple(rules[:2])}, {"FORWARD": (*rules[2:], "-j KUBE-A"), "KUBE-A": ()})

    one, other = some(), some()
    assert_equivalent(one, one, family)
    found = difference(one, other, family)
    if found is not None and found.is_certain and not found.assumed:
        assert_as_simulated(found, one, other)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_is_called_equivalent_is_the_same_for_random_packets(chance: random.Random) -> None:
    """The other way round: what the simulator tells apart is found."""
    parts = [
        ("-d 10.0.0.0/30", "! -d 10.0.0.1/32"),
        ("-s 10.0.0.0/31",),
        ("-p tcp", "-p udp"),
        ("-m mark --mark 0x1/0x1",),
        ("-i a",),
        (f"{CHANCE} 0.5",),
    ]
    targets = ["-j DROP", "-j RETURN", "-j MARK --set-xmark 0x1/0x1", "-j A", "-g A", "-j ACCEPT"]

    def rule() -> str:
        some = map(chance.choice, chance.sample(parts, chance.randrange(3)))
        return " ".join([*some, chance.choice(targets[: 6 if deep else 3])])

    sides = []
    for _ in range(2):
        deep = False
        below = tuple(rule() for _ in range(2))
        deep = True
        sides.append(chains(filter_={"FORWARD": tuple(rule() for _ in range(3)), "A": below}))
    found = difference(sides[0], sides[1])
    if found is not None:
        assert_as_simulated(found, *sides)
        return
    for _ in range(60):
        source, destination = (f"10.0.0.{chance.randrange(6)}" for _ in range(2))
        packet = Packet(
            source,
            destination,
            chance.choice(PROTOCOLS),
            80,
            1,
            in_interface=chance.choice("ab"),
            mark=chance.randrange(3),
        )
        one, other = (Simulator(tables, IPV4, Host(["10.9.9.9"]), policies) for tables, policies in sides)
        assert one.outcomes(packet) == other.outcomes(packet)
