"""The chains of one Service: are its endpoints equally likely, does every one of them get what is meant for it?"""

from collections import defaultdict
from collections.abc import Iterator

from kpx.analysis.checks.advice import CHAIN_AGAIN, MIXED_VERSIONS
from kpx.analysis.checks.finding import Finding, Jump, Severity, Tables
from kpx.netfilter.destination import oddities
from kpx.netfilter.names import MARK_MASQ
from kpx.netfilter.options import Option
from kpx.netfilter.rule import Rule

_STEP = 2.0**-31
"""xt_statistic keeps probabilities in steps of this size."""

_CHOICES = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-XLB-")
_GROUPS = ("KPX-SVC-", "KPX-SVL-")


def unequal_shares(tables: Tables) -> Iterator[Finding]:
    """Chains of Services that leave new clients without endpoint, or give endpoints different shares of them.

    Of n endpoints each gets 1/n, within n steps of 2^-31. Only kube-proxy's rules, which its canary tells, are held to
    that: kpx also writes what annotations ask for, where endpoints have different weights.
    """
    of_kube_proxy = "KUBE-PROXY-CANARY" in tables.chains.get("nat", {})
    for chain, rules in tables.named("nat", *_CHOICES):
        shares = _shares(tables, chain, 1.0, depth=0)
        if not shares or (len(shares) == 1 and sum(shares.values()) > 0.999):
            continue
        fair, rest = 1 / len(shares), 1 - sum(shares.values())
        unfair = {one: share for one, share in shares.items() if abs(share - fair) > len(shares) * _STEP}
        if rest > len(shares) * _STEP:
            message = f"leaves {_percent(rest)} of new connections without endpoint"
        elif unfair and of_kube_proxy:
            least, most = min(unfair, key=unfair.__getitem__), max(unfair, key=unfair.__getitem__)
            message = (
                f"of {len(shares)} endpoints each should get {_percent(fair)} of new clients, but {least} gets "
                f"{_percent(shares[least])} and {most} {_percent(shares[most])}"
            )
        else:
            continue
        yield Finding(
            "unequal-shares",
            Severity.ERROR,
            "nat",
            chain,
            message,
            CHAIN_AGAIN,
            len(rules) if rest > len(shares) * _STEP else 0,
            owner=tables.owner(chain),
        )


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _shares(tables: Tables, chain: str, weight: float, depth: int) -> dict[str, float]:
    """The shares of new clients that endpoints get below a chain, by their chain or, without one, by `address:port`;
    nothing if that can't be told."""
    shares: dict[str, float] = defaultdict(float)
    for jump in tables.of("nat", chain):
        if jump.target != "DNAT" and not jump.target.startswith(("KUBE-SEP-", *_GROUPS)):
            if jump.target.startswith("KUBE-SVC-") and _chance(tables.parsed(jump.rule)) is None:
                continue  # from KUBE-XLB-*: pods and the node itself get the endpoints of all nodes
            if jump.target and jump.target != MARK_MASQ and not jump.target.startswith("KPX-AF"):
                return {}
            continue
        if " --rcheck " in jump.rule:
            continue  # not for new clients
        chance = _chance(tables.parsed(jump.rule))
        if chance is None or depth > 8:
            return {}
        if jump.target == "DNAT":
            shares[destination(tables, jump)] += weight * chance
        elif jump.target.startswith("KUBE-SEP-"):
            shares[jump.target] += weight * chance
        else:
            for endpoint, share in _shares(tables, jump.target, weight * chance, depth + 1).items():
                shares[endpoint] += share
        weight *= 1 - chance
    return dict(shares)


def _chance(rule: Rule) -> float | None:
    """The probability that a rule matches; None if that depends on the packet, but for its protocol (`_mismatch`)."""
    chance = 1.0
    for match in rule.matches:
        options = {option.name: option for option in match.options}
        if match.module == "statistic" and options.keys() == {"--mode", "--probability"}:
            value = options["--probability"]
            try:
                chance *= 1 - float(value.values[0]) if value.negated else float(value.values[0])
            except (ValueError, IndexError):
                return None
        elif match.module not in ("comment", "recent"):
            return None
    return chance if all(option.name == "-p" and not option.negated for option in rule.head) else None


def destination(tables: Tables, jump: Jump) -> str:
    """Where a DNAT rule sends packets, as it says it."""
    return " ".join(value for option in tables.parsed(jump.rule).target_options for value in option.values)


def endpoint_chains(tables: Tables) -> Iterator[Finding]:
    """Endpoint chains whose DNAT is missing; DNAT for another protocol than the ways that lead there."""
    wanted = _protocols(tables)
    for chain, rules in tables.named("nat", "KUBE-SEP-", *_CHOICES, *_GROUPS):
        translations = [jump for jump in rules if jump.target == "DNAT"]
        owner = tables.owner(chain)
        if rules and not translations and chain.startswith("KUBE-SEP-"):
            yield Finding(
                "no-translation",
                Severity.ERROR,
                "nat",
                chain,
                "holds no DNAT rule: packets that are sent here go on untranslated",
                CHAIN_AGAIN,
                owner=owner,
            )
        for jump in translations:
            for oddity in oddities(tables.parsed(jump.rule).target_options):
                yield jump.found("broken-translation", Severity.ERROR, oddity, MIXED_VERSIONS, owner)
            message = _mismatch(tables.parsed(jump.rule), wanted.get(chain, set()))
            if message:
                yield jump.found("wrong-protocol", Severity.ERROR, message, CHAIN_AGAIN, owner)


def _mismatch(rule: Rule, wanted: set[str]) -> str:
    """What is wrong with the protocol of an endpoint's DNAT rule."""
    given = next((option.values[0] for option in rule.head if option.name == "-p" and not option.negated), "")
    if not given:
        ported = any(":" in value for option in rule.target_options for value in option.values)
        return "translates a port, but asks for no protocol (-p)" if ported else ""
    others = wanted - {given}
    return f"translates {given}, but what leads here is {', '.join(sorted(others))}" if others else ""


def _protocols(tables: Tables) -> dict[str, set[str]]:
    """The protocols of the dispatch rules that lead to each chain of a Service."""
    found: dict[str, set[str]] = defaultdict(set)
    edge: list[tuple[str, str]] = []
    for chain, rules in tables.jumps.get("nat", {}).items():
        if chain in ("KUBE-SERVICES", "KUBE-NODEPORTS") or chain.startswith(("KPX-S-", "KPX-N-")):
            for jump in rules:
                if jump.target.startswith("KUBE-") and jump.target != "KUBE-NODEPORTS":
                    protocol = _protocol(tables, jump)
                    edge += [(jump.target, protocol)] if protocol else []
    while edge:
        chain, protocol = edge.pop()
        if protocol not in found[chain]:
            found[chain].add(protocol)
            edge += (
                (jump.target, protocol)
                for jump in tables.of("nat", chain)
                if jump.target.startswith(("KUBE-S", "KUBE-E", "KPX-"))
            )
    return found


def _protocol(tables: Tables, jump: Jump) -> str:
    """The protocol that a rule asks for; empty if it asks for none."""
    asked = [option for option in tables.parsed(jump.rule).head if option.name == "-p"]
    match asked:
        case [Option("-p", (name,), negated=False)]:
            return name
    return ""
