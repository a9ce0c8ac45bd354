"""Rules and probabilities in few words, for people. Pure."""

import re
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction

from kpx.analysis import bpf
from kpx.family import Family, host_port
from kpx.netfilter.options import Option
from kpx.netfilter.rule import Match, Rule, format_rule

_ALWAYS = frozenset({"comment", "tcp", "udp", "sctp", "nfacct"})
_SINGLE = re.compile(r"/(32|128)$")


def share(exact: str | Fraction) -> str:
    """A probability: `1/3` where it is as near to that as rules can say it, else a percentage."""
    value = Fraction(exact)
    simple = value.limit_denominator(1000)
    if simple and abs(value - simple) < Fraction(1, 10**8):
        return str(simple)
    return f"{float(value):.3%}" if value >= Fraction(1, 100_000) else f"{float(value):.1e}"


def chance(rule: Rule) -> Fraction | None:
    """The probability with which a rule matches what its other matches let through; None if there is no chance."""
    for match in rule.matches:
        if match.module == "statistic":
            return _statistic({option.name: option for option in match.options})
    return None


def _statistic(options: Mapping[str, Option]) -> Fraction | None:
    """By chance, or of `nth` the share that it takes of many packets; None for what makes no sense."""
    with suppress(ValueError, OverflowError):
        if "--probability" in options and not options["--probability"].negated:
            return Fraction(round(float(_first(options["--probability"])) * 2**31), 2**31)
        if "--every" in options and not options["--every"].negated:
            return Fraction(1, int(_first(options["--every"])) or 1)
    return None


def _first(option: Option) -> str:
    """The first value; empty where a text has none, which no kernel takes."""
    return next(iter(option.values), "")


def condition(rule: Rule) -> str:
    """What a rule asks of a packet, chance apart: `to 10.96.0.10:80/tcp, not from 10.244.0.0/16`."""
    parts = [_destination(rule), *(_head(one) for one in rule.head), *(_match(one) for one in rule.matches)]
    return ", ".join(dict.fromkeys(filter(None, parts)))


def is_open(rule: Rule) -> bool:
    """Whether a rule matches every packet, chance apart."""
    return not condition(rule)


def _destination(rule: Rule) -> str:
    """Address, port and protocol in one."""
    address = next((one for one in rule.head if one.name == "-d"), None)
    ports = [_first(o) for m in rule.matches for o in m.options if o.name == "--dport" and not o.negated]
    protocol = next((_first(one) for one in rule.head if one.name == "-p"), "")
    if address is None:
        return f"to port {ports[0]}/{protocol}" if ports else ""
    place = _place(_first(address), ports[0] if ports else "")
    return f"{'not ' if address.negated else ''}to {place}{f'/{protocol}' if ports else ''}"


def _place(address: str, port: str) -> str:
    host = _SINGLE.sub("", address)
    return host_port(host, port) if port else host


def _head(option: Option) -> str:
    no = "not " if option.negated else ""
    match option.name:
        case "-s":
            return f"{no}from {_SINGLE.sub('', _first(option))}"
        case "-i":
            return f"{no}in by {_first(option)}"
        case "-o":
            return f"{no}out by {_first(option)}"
    return ""


def is_to_itself(program: str) -> bool:
    """Whether a program tells the packets whose source is their destination."""
    with suppress(bpf.BytecodeError):
        return any(bpf.asks_to_itself(bpf.parse(program), family) for family in Family)
    return False


def _match(match: Match) -> str:
    if match.module in _ALWAYS:
        rest = tuple(one for one in match.options if one.name not in ("--comment", "--dport", "--nfacct-name"))
        return " ".join([match.module, *(f"{one.name} {' '.join(one.values)}" for one in rest)]) if rest else ""
    options = {option.name: option for option in match.options}
    match match.module, options:
        case "statistic", _ if _statistic(options) is not None:
            return ""
        case "recent", {"--rcheck": _} | {"--update": _}:
            seconds = _first(options["--seconds"]) if "--seconds" in options else ""
            return f"client known for less than {seconds} s" if seconds else "client known"
        case "recent", {"--set": _}:
            return ""
        case "addrtype", {"--src-type": one} if one.values == ("LOCAL",):
            return f"{'not ' if one.negated else ''}from the node"
        case "addrtype", {"--dst-type": one} if one.values == ("LOCAL",):
            return f"{'not ' if one.negated else ''}to the node"
        case "bpf", {"--bytecode": one}:
            return "to its own source" if is_to_itself(_first(one)) else "by a program (bpf)"
        case "physdev", {"--physdev-is-in": one}:
            return f"{'not ' if one.negated else ''}in through a bridge"
        case "conntrack", {"--ctstate": one}:
            return f"{'not ' if one.negated else ''}{_first(one)}"
        case "mark", {"--mark": one}:
            return f"{'not ' if one.negated else ''}marked {_first(one).partition('/')[0]}"
    return format_rule(Rule(matches=(match,)))
