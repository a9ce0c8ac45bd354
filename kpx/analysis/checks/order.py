"""The order of rules: KUBE-NODEPORTS last, and no rule behind one that takes all of its packets.

Of two rules the one that is in the way is told of, and that is the one that no proxy has written.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from kpx.analysis.checks.advice import CHAIN_AGAIN, STRANGER, claim_less
from kpx.analysis.checks.finding import BUILT_IN, Finding, Jump, Severity, Tables
from kpx.netfilter.names import OWN, TREE, ours
from kpx.netfilter.options import Option
from kpx.netfilter.owners import is_own_chain, rule_owner
from kpx.netfilter.rule import Match, Rule, comment_of

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
                CHAIN_AGAIN,
                tables.owner(jump.target),
            )


def shadowed_rules(tables: Tables) -> Iterator[Finding]:
    """Rules that no packet gets to, because one rule before takes all of theirs and does something else with them.

    Where a rule that no proxy writes takes packets from those of a proxy, it is told of once, however many these are.
    """
    in_the_way: dict[Jump, list[Jump]] = defaultdict(list)
    for table, chains in tables.jumps.items():
        for chain, rules in chains.items():
            if len(rules) < 2 or not (ours(chain) or chain in BUILT_IN):
                continue
            for taker, jump in _shadowed(tables, table, rules):
                culprit = _culprit(tables, table, taker)
                if not _of_proxy(culprit) or _takes_all(tables, culprit):
                    in_the_way[culprit].append(jump)
                elif _of_proxy(jump):
                    yield _claimed_twice(tables, taker, jump)
                elif ours(jump.chain):
                    yield _never(tables, taker, jump)
    for culprit, victims in in_the_way.items():
        mine = [jump for jump in victims if _of_proxy(jump)]
        if mine and not _is_told_elsewhere(culprit):
            yield _taking(tables, culprit, mine)


def _of_proxy(jump: Jump) -> bool:
    """Whether a proxy may have written a rule: it leads to its chains, or says so, or is a step of one Service's."""
    if ours(jump.target) or jump.chain.startswith(TREE):
        return True
    if is_own_chain(jump.chain):
        return jump.target not in ("ACCEPT", "DROP", "REJECT", "RETURN")
    comment = comment_of(jump.rule) or ""
    return ours(jump.chain) and (comment.startswith("kubernetes ") or rule_owner(jump.rule) is not None)


def _takes_all(tables: Tables, jump: Jump) -> bool:
    """Whether a rule of a chain for all Services takes every packet; a proxy writes none that does."""
    if jump.chain not in OWN or jump.target not in ("ACCEPT", "DROP", "REJECT", "RETURN"):
        return False
    rule = tables.parsed(jump.rule)
    return not rule.head and not _asked(rule)


def _culprit(tables: Tables, table: str, taker: Jump) -> Jump:
    """The rule that ends the way of what another one leads there: the last of the last chain."""
    for _ in range(9):
        rules = tables.of(table, taker.target)
        if not rules:
            break
        taker = rules[-1]
    return taker


def _is_told_elsewhere(culprit: Jump) -> bool:
    """Whether another check tells of a rule: `lost_matches`, and `caught_before` of those in built-in chains."""
    return culprit.chain in BUILT_IN or (culprit.chain == "KUBE-FIREWALL" and culprit.target == "DROP")


def _taking(tables: Tables, culprit: Jump, victims: Sequence[Jump]) -> Finding:
    names = list(dict.fromkeys(f"{one.chain} {one.position}" for one in victims))
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    owners = {tables.owner(one.target) for one in victims}
    return culprit.found(
        "shadowed-rule",
        Severity.ERROR,
        f"takes ({culprit.target}) every packet that rules of the proxy behind it would match, so that these never "
        f"take effect: {some}",
        STRANGER,
        owners.pop() if len(owners) == 1 else "",
    )


def _never(tables: Tables, taker: Jump, jump: Jump) -> Finding:
    return jump.found(
        "shadowed-rule",
        Severity.WARNING,
        f"never takes effect: rule {taker.position} ({taker.target}) takes every packet that it would match",
        STRANGER,
        tables.owner(jump.target),
    )


def _claimed_twice(tables: Tables, taker: Jump, jump: Jump) -> Finding:
    """Two ways of Services begin at one address and port, and the second is never gone."""
    first, second = (tables.owner(one.target) or rule_owner(one.rule) or "" for one in (taker, jump))
    what = f"never takes effect: rule {taker.position} ({taker.target}) takes every packet that it would match"
    if first == second and jump.target.startswith("KUBE-FW-"):
        return jump.found(
            "shadowed-rule",
            Severity.WARNING,
            f"{what}; so the load balancer's source ranges bind nobody at this address",
            claim_less(first.partition(":")[0], "spec.externalIPs"),
            second,
        )
    if first and second and first != second:
        whom = f"{first.partition(':')[0]} or of {second.partition(':')[0]}"
        return jump.found(
            "shadowed-rule",
            Severity.WARNING,
            f"{what}; it is {first}'s, and this is {second}'s",
            claim_less(whom, "the spec"),
            second,
        )
    return jump.found("shadowed-rule", Severity.WARNING, what, CHAIN_AGAIN, second)


def _shadowed(tables: Tables, table: str, rules: Sequence[Jump]) -> Iterator[tuple[Jump, Jump]]:
    """Rules, each with an earlier one that takes all of its packets elsewhere."""
    before: dict[Key, list[tuple[Jump, Rule]]] = defaultdict(list)
    for jump in rules:
        if not jump.target:
            continue
        rule = tables.parsed(jump.rule)
        taker = next((one for key in _above(_key(rule)) for one, other in before[key] if _covers(other, rule)), None)
        if taker and not _same_target(tables, taker, jump):
            yield taker, jump
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
