"""Masquerading: is everything marked that has to be, and is what is marked masqueraded?"""

from collections.abc import Iterator

from kpx.analysis.checks.advice import CHAIN_AGAIN, Act, Advice
from kpx.analysis.checks.finding import Finding, Jump, Severity, Tables
from kpx.analysis.checks.marks import asks_for, is_used, marks_set
from kpx.analysis.words import is_to_itself
from kpx.netfilter.destination import destination_of
from kpx.netfilter.names import CHOICES, ENDPOINT, MARK_MASQ
from kpx.netfilter.options import Option
from kpx.netfilter.rule import Match, Rule

_EXECUTOR = "KUBE-POSTROUTING"


def masquerade(tables: Tables) -> Iterator[Finding]:
    """KUBE-MARK-MASQ that marks nothing, or a mark that KUBE-POSTROUTING doesn't masquerade."""
    if not is_used(tables, MARK_MASQ):
        return
    marks = marks_set(tables, MARK_MASQ)
    if not marks:
        yield _wrong(MARK_MASQ, "sets no mark, so that nothing that Services need masqueraded is")
        return
    if all(jump.target != "MASQUERADE" for jump in tables.of("nat", _EXECUTOR)):
        yield _wrong(_EXECUTOR, f"has no MASQUERADE rule, while {MARK_MASQ} marks packets for it")
        return
    for mark in marks:
        if not _executes(tables, mark):
            yield _wrong(_EXECUTOR, f"does not masquerade packets with the mark {mark:#x}, which {MARK_MASQ} sets")


def _wrong(chain: str, what: str) -> Finding:
    why = f"{what}; answers to pods that reach themselves, to node ports and to clients outside get lost"
    return Finding("missing-masquerade", Severity.ERROR, "nat", chain, why, CHAIN_AGAIN)


def _executes(tables: Tables, mark: int) -> bool:
    """Whether a packet with a mark meets MASQUERADE before it returns."""
    for jump in tables.of("nat", _EXECUTOR):
        rule = tables.parsed(jump.rule)
        if jump.target in ("RETURN", "ACCEPT", "MASQUERADE") and asks_for(rule, mark):
            return jump.target == "MASQUERADE"
    return False


def hairpins(tables: Tables) -> Iterator[Finding]:
    """Endpoints to which packets from themselves go without being masqueraded: a pod couldn't reach itself.

    Their own chains mark such packets, or KUBE-POSTROUTING does, all of them.
    """
    if any(_marks_what_goes_to_itself(tables, jump) for jump in _before_return(tables)):
        return
    for chain, rules in tables.named("nat", *CHOICES):
        translated = sorted({_host(tables, jump) for jump in rules if jump.target == "DNAT"})
        if translated:
            some = ", ".join(translated[:3]) + (f" and {len(translated) - 3} more" if len(translated) > 3 else "")
            yield Finding(
                "missing-hairpin",
                Severity.ERROR,
                "nat",
                chain,
                f"packets from {some} to themselves are not masqueraded, as {_EXECUTOR} has no rule for them: these "
                "pods can't reach themselves by their Service",
                Advice(Act.REWRITE, f"Have the proxy write {_EXECUTOR} again (`kpx apply`)."),
                owner=tables.owner(chain),
            )
    for chain, rules in tables.named("nat", ENDPOINT):
        endpoint = next((_host(tables, jump) for jump in rules if jump.target == "DNAT"), "")
        marked = {_source(tables, jump) for jump in rules if jump.target == MARK_MASQ}
        if endpoint and not marked & {endpoint, ""}:
            yield Finding(
                "missing-hairpin",
                Severity.ERROR,
                "nat",
                chain,
                f"packets from {endpoint} to itself are not masqueraded: that pod can't reach itself by its Service",
                CHAIN_AGAIN,
                owner=tables.owner(chain),
            )


def _before_return(tables: Tables) -> Iterator[Jump]:
    """The rules of KUBE-POSTROUTING that packets without a mark get to."""
    for jump in tables.of("nat", _EXECUTOR):
        if jump.target in ("RETURN", "ACCEPT") and asks_for(tables.parsed(jump.rule), 0):
            return
        yield jump


def _marks_what_goes_to_itself(tables: Tables, jump: Jump) -> bool:
    """Whether a rule masquerades, or marks, translated packets whose source is their destination."""
    if jump.target not in (MARK_MASQ, "MASQUERADE"):
        return False
    rule = tables.parsed(jump.rule)
    asked = [match for match in rule.matches if match.module != "comment"]
    of_hosts = all(option.name == "-s" and option.negated for option in rule.head)  # what no endpoint has as address
    return of_hosts and any(map(_tells_itself, asked)) and all(_tells_itself(one) or _is_dnat(one) for one in asked)


def _tells_itself(match: Match) -> bool:
    return match.module == "bpf" and any(is_to_itself(value) for one in match.options for value in one.values)


def _is_dnat(match: Match) -> bool:
    return match == Match("conntrack", (Option("--ctstate", ("DNAT",)),))


def _host(tables: Tables, jump: Jump) -> str:
    """The address that a DNAT rule puts in; empty if there isn't just one."""
    to = destination_of(tables.parsed(jump.rule).target_options)
    return to.address if to and to.is_one_address else ""


def _source(tables: Tables, jump: Jump) -> str | None:
    """The one address that a rule asks for as source; empty if it asks for nothing, None if for something else."""
    rule = tables.parsed(jump.rule)
    rest = [match for match in rule.matches if match.module != "comment"]
    if not rest and not rule.head:
        return ""
    if not rest and len(rule.head) == 1 and rule.head[0].name == "-s" and not rule.head[0].negated:
        address, _, length = rule.head[0].values[0].partition("/")
        return address if length == str(tables.family.host_bits) else None
    return None


def external_masquerade(tables: Tables) -> Iterator[Finding]:
    """Ways from outside to the endpoints on all nodes whose packets are not marked first.

    They lead through KUBE-EXT-*; before 1.24, from KUBE-FW-* and KUBE-NODEPORTS straight to KUBE-SVC-*.
    """
    for chain, rules in tables.named("nat", "KUBE-EXT-", "KUBE-FW-", "KUBE-NODEPORTS"):
        marked: set[Rule] = set()
        for jump in rules:
            asked = _asked(tables, jump)
            if jump.target == MARK_MASQ:
                marked.add(asked)
            # KUBE-EXT-* leads this node's pods to all endpoints under policy Local, too, and needs no mark for them.
            outside = not chain.startswith("KUBE-EXT-") or asked == _ANY
            if jump.target.startswith("KUBE-SVC-") and outside and not marked & {asked, _ANY}:
                yield jump.found(
                    "missing-masquerade",
                    Severity.ERROR,
                    "sends clients from outside to endpoints on any node without masquerading them first, so that "
                    "answers bypass this node",
                    CHAIN_AGAIN,
                    tables.owner(jump.target),
                )


_ANY = Rule()


def _asked(tables: Tables, jump: Jump) -> Rule:
    """What a rule asks of packets."""
    rule = tables.parsed(jump.rule)
    return Rule(rule.head, tuple(match for match in rule.matches if match.module != "comment"))
