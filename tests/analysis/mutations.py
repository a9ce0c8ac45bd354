"""Damage to rules: one dropped, moved or led elsewhere, a word of it changed; others' rules in front; a policy."""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kpx.analysis.simulate import Policies, Tables
from kpx.family import Family
from kpx.netfilter.ruleset import Rules


@dataclass(frozen=True)
class Mutation:
    """What was done, in words, and the tables with it."""

    kind: str
    where: str
    tables: Tables
    policies: Policies = field(default_factory=dict)


def _dropped(rules: Rules, at: int, pick: random.Random) -> Rules:
    return rules[:at] + rules[at + 1 :]


def _swapped(rules: Rules, at: int, pick: random.Random) -> Rules:
    return (*rules[:at], *reversed(rules[at : at + 2]), *rules[at + 2 :])


def _moved(rules: Rules, at: int, pick: random.Random) -> Rules:
    behind = pick.randrange(at, len(rules))
    return (*rules[:at], *rules[at + 1 : behind + 1], rules[at], *rules[behind + 1 :])


def _led_elsewhere(rules: Rules, at: int, pick: random.Random) -> Rules:
    """To where another rule of the chain leads."""
    target = re.search(r" -j K\S+$", pick.choice(rules))
    changed = re.sub(r" -j K\S+$", target[0], rules[at]) if target else rules[at]
    return (*rules[:at], changed, *rules[at + 1 :])


def _dropped_if(pattern: str) -> "Change":
    def change(rules: Rules, at: int, pick: random.Random) -> Rules:
        return _dropped(rules, at, pick) if re.search(pattern, rules[at]) else rules

    return change


def _of_other_protocol(rules: Rules, at: int, pick: random.Random) -> Rules:
    changed = re.sub(r"(?<=-[pm] )tcp\b", "udp", rules[at])
    return (*rules[:at], changed, *rules[at + 1 :])


def _replaced(pattern: str, by: Callable[[re.Match[str], random.Random], str]) -> "Change":
    def change(rules: Rules, at: int, pick: random.Random) -> Rules:
        changed = re.sub(pattern, lambda found: by(found, pick), rules[at], count=1)
        return (*rules[:at], changed, *rules[at + 1 :])

    return change


def _likelier(found: re.Match[str], pick: random.Random) -> str:
    old = float(found[1])
    return f"--probability {min(old + pick.choice([0.1, 0.3]), 1.0):.11f}"


def _wider(found: re.Match[str], pick: random.Random) -> str:
    return f"{found[1]}/{max(int(found[2]) - pick.choice([1, 4, 8]), 1)}"


def _other_bit(found: re.Match[str], pick: random.Random) -> str:
    return found[0].replace(found[1], hex(int(found[1], 0) << 1))


def _other_port(found: re.Match[str], pick: random.Random) -> str:
    return f"{found[1]}{int(found[2]) + 1}"


Change = Callable[[Rules, int, random.Random], Rules]

CHANGES: Mapping[str, Change] = {
    "dropped": _dropped,
    "swapped": _swapped,
    "probability": _replaced(r"--probability (\S+)", _likelier),
    "network": _replaced(r"(?<=-[sd] )(\S+)/(\d+)", _wider),
    "mark": _replaced(r"(0x[0-9a-f]+)/\1", _other_bit),
    "DNAT port": _replaced(r"(--to-destination \S+:)(\d+)", _other_port),
    "moved": _moved,
    "led elsewhere": _led_elsewhere,
    "protocol": _of_other_protocol,
    "negation": _replaced("! ", lambda found, pick: ""),
    "source range": _dropped_if("-s .* -j KUBE-(SVC|SVL|EXT)"),
    "masquerade": _dropped_if("-j (KUBE-MARK-MASQ|MASQUERADE)"),
    "refusal": _replaced("-j REJECT .*", lambda found, pick: "-j DROP"),
    "state": _replaced("(?<=--ctstate )(INVALID|NEW)", lambda found, pick: "INVALID,NEW"),
    "bytecode": _replaced(r"(?<=53 0 1 )\d+", lambda found, pick: str(int(found[0]) // 2)),
}
"""What can happen to one rule."""

IN_FRONT = {
    ("nat", "PREROUTING"): ("-j ACCEPT", "-p tcp -j DNAT --to-destination {0}", "-s {1} -j RETURN"),
    ("nat", "OUTPUT"): ("-j ACCEPT",),
    ("nat", "POSTROUTING"): ("-j ACCEPT", "-j MASQUERADE"),
    ("filter", "FORWARD"): ("-p tcp -j ACCEPT", "-j DROP", "-m conntrack --ctstate DNAT -j ACCEPT"),
    ("filter", "INPUT"): ("-j ACCEPT",),
}
"""Rules of others that may come to stand in front."""

_OTHERS = {Family.IPV4: ("10.9.9.9:99", "198.51.100.0/24"), Family.IPV6: ("[fd00::9]:99", "2001:db8::/64")}

KINDS = (*CHANGES, "in front", "policy")


def mutations(tables: Tables, kind: str, pick: random.Random, family: Family = Family.IPV4) -> Iterator[Mutation]:
    """Mutations of one kind in random order, each of which changes the text of some rule, or the order of two."""
    if kind == "policy":
        for chain in pick.sample(("INPUT", "FORWARD", "OUTPUT"), 3):
            yield Mutation(kind, f"filter {chain}", tables, {("filter", chain): "DROP"})
        return
    if kind == "in front":
        for table, chain in pick.sample(list(IN_FRONT), len(IN_FRONT)):
            rule = pick.choice(IN_FRONT[table, chain]).format(*_OTHERS[family])
            yield _mutation(tables, kind, (table, chain, 0), (rule, *tables[table].get(chain, ())), rule)
        return
    places = [
        (table, chain, at)
        for table, chains in tables.items()
        for chain, rules in chains.items()
        for at in range(len(rules))
    ]
    for table, chain, at in pick.sample(places, len(places)):
        before = tables[table][chain]
        after = CHANGES[kind](before, at, pick)
        if after != before:
            yield _mutation(tables, kind, (table, chain, at), after, before[at])


def _mutation(tables: Tables, kind: str, place: tuple[str, str, int], rules: Rules, rule: str) -> Mutation:
    table, chain, at = place
    changed = {**tables, table: {**tables[table], chain: rules}}
    return Mutation(kind, f"{table} {chain} {at + 1}: {rule}", changed)
