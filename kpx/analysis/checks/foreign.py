"""Other programs' rules that take Service traffic before ours see it, in every built-in chain on its way."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_

from kpx.analysis.checks.advice import NARROWED, Advice, intended, move_behind
from kpx.analysis.checks.finding import Finding, Jump, Severity, Tables
from kpx.analysis.checks.marks import marks_set
from kpx.analysis.equivalence.overlap import Met, Overlaps, Weighed
from kpx.netfilter.names import MARK_DROP, MARK_MASQ, is_policy, ours


@dataclass(frozen=True, slots=True)
class _Post:
    """A built-in chain, and a chain of ours that decides on the packets that get through it.

    `weighed` says what of the rules there counts as a decision. Where the jump to `chain` stands in the built-in chain
    itself, only the rules before it can be in the way.
    """

    table: str
    hook: str
    chain: str
    weighed: Weighed = Weighed.ALL
    of_table: str = ""


_POSTS = (
    *(_Post("raw", hook, "KUBE-SERVICES", Weighed.UNTRACKED, "nat") for hook in ("PREROUTING", "OUTPUT")),
    *(_Post("mangle", hook, "KUBE-SERVICES", Weighed.REFUSALS, "nat") for hook in ("PREROUTING", "OUTPUT")),
    *(_Post("mangle", hook, "KUBE-FORWARD", Weighed.REFUSALS, "filter") for hook in ("FORWARD",)),
    *(_Post("mangle", hook, "KUBE-POSTROUTING", Weighed.REFUSALS, "nat") for hook in ("POSTROUTING",)),
    *(_Post("nat", hook, "KUBE-SERVICES") for hook in ("PREROUTING", "OUTPUT")),
    _Post("nat", "POSTROUTING", "KUBE-POSTROUTING", Weighed.SOURCES),
    *(_Post("filter", "INPUT", chain) for chain in ("KUBE-PROXY-FIREWALL", "KUBE-EXTERNAL-SERVICES")),
    _Post("filter", "FORWARD", "KUBE-PROXY-FIREWALL"),
    _Post("filter", "FORWARD", "KUBE-FORWARD"),
    *(_Post("filter", "FORWARD", chain) for chain in ("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES")),
    *(_Post("filter", "OUTPUT", chain) for chain in ("KUBE-PROXY-FIREWALL", "KUBE-SERVICES")),
)

_MARKERS = (MARK_MASQ, MARK_DROP)


def caught_before(tables: Tables) -> Iterator[Finding]:
    """Rules before our jumps that decide on packets, and otherwise than our chains would."""
    overlaps: Overlaps | None = None
    noted: set[str] = set()
    for post in _POSTS:
        for jump in _before(tables, post):
            overlaps = overlaps or Overlaps(tables.chains, tables.family, _marks(tables), tables.own)
            weighed = post.weighed
            if post.table == "filter" and is_policy(jump.target):
                weighed = Weighed.ACCEPTS  # NetworkPolicies are to refuse what they refuse, before anybody accepts it
            packet = overlaps.between(post.table, jump.rule, post.of_table or post.table, post.chain, weighed)
            if packet is None or (post.table in ("raw", "mangle") and not packet.certain):
                continue
            if post.table == "raw" and (address := _of_dns_cache(tables, jump)):
                if address not in noted:
                    yield _dns_cache(jump, address)
                noted.add(address)
            else:
                yield _finding(jump, post, packet)


def _marks(tables: Tables) -> int:
    """The bits of the mark that ours set, and so ask for."""
    return reduce(or_, (mark for chain in _MARKERS for mark in marks_set(tables, chain)), 0)


def _before(tables: Tables, post: _Post) -> list[Jump]:
    """Others' rules that packets meet before a chain of ours that holds rules."""
    rules = tables.of(post.table, post.hook)
    if not tables.of(post.of_table or post.table, post.chain):
        return []
    if post.of_table:
        # What asks for a source port is for answers, which come back by the connection that they belong to.
        return [jump for jump in rules if not ours(jump.target) and " --sport " not in jump.rule]
    at = next((jump.position for jump in rules if jump.target == post.chain), 0)
    return [jump for jump in rules[: max(at - 1, 0)] if not ours(jump.target)]


def _finding(jump: Jump, post: _Post, packet: Met) -> Finding:
    does = "takes" if packet.certain else "may take"
    severity = Severity.ERROR if packet.certain else Severity.WARNING
    return jump.found("caught-before", severity, f"{does} {_what(jump, post, packet.text)}", _advice(jump, post))


def _what(jump: Jump, post: _Post, packet: str) -> str:
    if post.weighed is Weighed.UNTRACKED:
        return f"packets from conntrack, and so from nat, that {post.chain} would translate, such as {packet}"
    if post.weighed is Weighed.SOURCES:
        return (
            f"packets that {post.chain} would masquerade, such as {packet}: answers to pods that reach themselves, to "
            "node ports and to clients outside get lost"
        )
    return f"packets that {post.chain} would decide on otherwise, such as {packet}"


def _advice(jump: Jump, post: _Post) -> Advice:
    """Where our chain only takes what is for Services, others may stand behind it; KUBE-FORWARD accepts for good.

    Behind KUBE-SERVICES in filter FORWARD a rule would stand behind KUBE-FORWARD, too.
    """
    if post.table == "nat" or (post.table == "filter" and (post.hook != "FORWARD" or "FIREWALL" in post.chain)):
        return move_behind(post.chain)
    return NARROWED


_ONE_ADDRESS = re.compile(r"-d (\S+)/(?:32|128) -p (?:udp|tcp) .*--dport 53 ")


def _of_dns_cache(tables: Tables, jump: Jump) -> str:
    """The address of a Service whose DNS queries NodeLocal DNSCache takes on the node; empty if it isn't so.

    It has its own rules accept them in filter INPUT. See `setupIptablesRules` in its cmd/node-cache/app.
    """
    found = _ONE_ADDRESS.match(jump.rule)
    if not found or jump.target not in ("NOTRACK", "CT"):
        return ""
    accepted = (one.rule for one in tables.of("filter", "INPUT") if one.target == "ACCEPT")
    return found[1] if any(rule.startswith(f"-d {found[1]}/") and "--dport 53" in rule for rule in accepted) else ""


def _dns_cache(jump: Jump, address: str) -> Finding:
    return jump.found(
        "node-local-dns",
        Severity.NOTE,
        f"keeps DNS queries to {address} from conntrack, and so from the Service's endpoints",
        intended("NodeLocal DNSCache answers them on this node. If its pod doesn't run here, these rules must go."),
    )
