"""The order of rules: KUBE-NODEPORTS last, and no rule behind one that takes all of its packets."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from kpx.analysis.checks.finding import Finding, Jump, Severity, Tables
from kpx.netfilter.options import Option
from kpx.netfilter.rule import Match, Rule

_ENDS = frozenset({"ACCEPT", "DROP", "REJECT", "DNAT", "SNAT", "MASQUERADE", "RETURN", "REDIRECT"})
"""Targets behind which a packet meets no further rule of the chain."""

Key = tuple[str, str, str]
"""Destination, protocol and destination port that a rule asks for; empty where it doesn't."""


def node_ports_last(tables: Tables) -> Iterator[Finding]:
    """Rules of KUBE-SERVICES behind the jump to KUBE-NODEPORTS."""
    rules = tables.of("nat", "KUBE-SERVICES")
    last = [jump.position for jump in rules if jump.target == "KUBE-NODEPORTS"]
    for jump in rules:
        if last and jump.position > last[0] and jump.target != "KUBE-NODEPORTS":
            yield jump.found(
                "nodeports-not-last",
                Severity.ERROR,
                f"stands behind the jump to KUBE-NODEPORTS (rule {last[0]}): a node port with this number would win "
                "over the Service that owns the address",
                "The jump to KUBE-NODEPORTS must come last; have the proxy write the chain again (`kpx apply`).",
                tables.owner(jump.target),
            )


def shadowed_rules(tables: Tables) -> Iterator[Finding]:
    """Rules that no packet gets to, because one rule before takes all of theirs and does something else with them."""
    for table, chains in tables.jumps.items():
        for rules in chains.values():
            if len(rules) > 1:
                yield from _shadowed(tables, table, rules)


def _shadowed(tables: Tables, table: str, rules: Sequence[Jump]) -> Iterator[Finding]:
    before: dict[Key, list[tuple[Jump, Rule]]] = defaultdict(list)
    for jump in rules:
        if not jump.target:
            continue
        rule = tables.parsed(jump.rule)
        taker = next((one for key in _above(_key(rule)) for one, other in before[key] if _covers(other, rule)), None)
        if taker and not _same_target(tables, taker, jump):
            yield jump.found(
                "shadowed-rule",
                Severity.WARNING,
                f"never takes effect: rule {taker.position} ({taker.target}) takes every packet that it would match",
                f"Delete this rule or move it before rule {taker.position}.",
                tables.owner(jump.target),
            )
        if _always_ends(tables, table, jump, rule):
            before[_key(rule)].append((jump, rule))


def _same_target(tables: Tables, one: Jump, other: Jump) -> bool:
    first, second = tables.parsed(one.rule), tables.parsed(other.rule)
    return (first.target, first.target_options) == (second.target, second.target_options)


def _key(rule: Rule) -> Key:
    heads = {option.name: option for option in rule.head if not option.negated}
    ports = [o for m in rule.matches for o in m.options if o.name == "--dport" and not o.negated]
    return _value(heads.get("-d")), _value(heads.get("-p")), _value(ports[0]) if ports else ""


def _value(option: Option | None) -> str:
    return option.values[0] if option and option.values else ""


def _above(key: Key) -> Iterator[Key]:
    """The keys of rules that ask for no more than a rule with this one does."""
    for destination in {key[0], ""}:
        for protocol in {key[1], ""}:
            for port in {key[2], ""}:
                yield destination, protocol, port


def _covers(one: Rule, other: Rule) -> bool:
    """Whether every packet that matches `other` surely matches `one`: all that this asks for, the other does too."""
    return set(one.head) <= set(other.head) and _asked(one) <= _asked(other)


def _asked(rule: Rule) -> set[Match]:
    return {match for match in rule.matches if match.module != "comment" and match.options}


_PURE = frozenset({"comment", "tcp", "udp", "sctp", "mark", "conntrack", "addrtype", "state"})
"""Matches that depend on the packet alone."""


def _always_ends(tables: Tables, table: str, jump: Jump, rule: Rule) -> bool:
    """Whether what matches a rule surely meets no further rule of the chain."""
    if any(match.module not in _PURE for match in rule.matches):
        return False
    if jump.target in _ENDS or rule.goto:
        return True
    return _chain_ends(tables, table, jump.target, frozenset(rule.head), 0)


def _chain_ends(tables: Tables, table: str, chain: str, known: frozenset[Option], depth: int) -> bool:
    """Whether no packet of which `known` is known comes back from a chain.

    Only its last rule is looked at, as that is where the chains of Services end.
    """
    rules = tables.of(table, chain)
    if not rules or depth > 8 or any(jump.target == "RETURN" or " -g " in f" {jump.rule} " for jump in rules):
        return False
    last = tables.parsed(rules[-1].rule)
    if not set(last.head) <= known or any(not _always(match) for match in last.matches):
        return False
    if rules[-1].target in _ENDS:
        return True
    return _chain_ends(tables, table, rules[-1].target, known, depth + 1)


def _always(match: Match) -> bool:
    """Whether a match holds of every packet."""
    return match.module == "comment" or any(option.name == "--set" for option in match.options)
