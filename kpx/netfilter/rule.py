"""One rule: its words, its parts, its normal form.

The text of a rule is what stands after `-A CHAIN` in the output of `iptables-save`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kpx.family import Family
from kpx.netfilter.options import (
    ALIASES,
    Option,
    Options,
    match_options,
    network,
    protocol,
    spelled,
    target_options,
)
from kpx.netfilter.text import RuleError as RuleError
from kpx.netfilter.text import comment_of as comment_of
from kpx.netfilter.text import quote as quote
from kpx.netfilter.text import split as split
from kpx.netfilter.text import target_of as target_of
from kpx.printable import excerpt


@dataclass(frozen=True, slots=True)
class Match:
    """A `-m module` group with its options."""

    module: str
    options: Options = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule taken apart: every one of `head` (-s -d -i -o -p -f) and of `matches` must hold.

    `target` is None for a rule that only counts; `goto` says that it was given by `-g`, so that a RETURN in
    the target chain goes to this chain's caller.
    """

    head: Options = ()
    matches: tuple[Match, ...] = ()
    target: str | None = None
    target_options: Options = ()
    goto: bool = False

    @property
    def comment(self) -> str | None:
        """The text of `--comment`; None without one."""
        texts = (o.values[0] for m in self.matches for o in m.options if o.name == "--comment")
        return next(texts, None)


# ---- parts ----

_HEAD = ("-s", "-d", "-i", "-o", "-p", "-f")
_TEXTS = frozenset(
    {"--comment", "--name", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--hashlimit-name"}
)
"""Options whose value is any text, one that looks like an option included."""

_PROTOCOL_MODULES = frozenset({"tcp", "udp", "sctp", "dccp", "udplite", "icmp", "icmp6", "esp", "ah", "mh"})
_PROTOCOL_OPTIONS = frozenset(
    {"--sport", "--dport", "--syn", "--tcp-flags", "--tcp-option", "--chunk-types"}
    | {"--icmp-type", "--icmpv6-type", "--mh-type"}
)
_MODULE_OF = {"ipv6-icmp": "icmp6", "ipv6-mh": "mh"}


def parse_rule(text: str) -> Rule:
    """Take a rule apart. Groups keep their order; an option stays in the group that it was printed in.

    Options of the protocol that stand without their `-m tcp` get it. Raises RuleError.
    """
    return _Parser(split(text)).rule()


class _Parser:
    """The words of one rule and what was found in them so far."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0
        self.head: list[Option] = []
        self.matches: list[tuple[str, list[Option]]] = []
        self.target: str | None = None
        self.target_options: list[Option] = []
        self.goto = False
        self.current: list[Option] | None = None  # where the next long option goes

    def rule(self) -> Rule:
        negated = False
        while self.at < len(self.words):
            word = self._next("")
            if word == "!":
                negated = True
                continue
            self._take(ALIASES.get(word, word), negated)
            negated = False
        matches = tuple(Match(module, tuple(options)) for module, options in self.matches)
        return Rule(tuple(self.head), matches, self.target, tuple(self.target_options), self.goto)

    def _take(self, name: str, negated: bool) -> None:
        if name == "-m":
            self._open_match(self._next(name))
        elif name in ("-j", "-g"):
            self.target, self.goto, self.current = self._next(name), name == "-g", self.target_options
        elif name in _HEAD:
            if any(option.name == name for option in self.head):
                raise RuleError(f"{name} stands there twice")
            self.head.append(Option(name, () if name == "-f" else (self._next(name),), negated))
        elif _starts_option(name) and _bare(name):
            self._group(name).append(Option(name, self._values(name), negated))
        else:
            raise RuleError(f"not an option: {excerpt(name)}")

    def _open_match(self, module: str) -> None:
        """Begin a match. An option of its protocol that stands before it would have two groups to belong to."""
        groups = (self.target_options, *(options for _, options in self.matches))
        if module in _PROTOCOL_MODULES and not any(one in _PROTOCOL_MODULES for one, _ in self.matches):
            early = {option.name for options in groups for option in options} & _PROTOCOL_OPTIONS
            if early:
                raise RuleError(f"an option of a protocol before its match: {min(early)}")
        self.current = []
        self.matches.append((module, self.current))

    def _group(self, name: str) -> list[Option]:
        """The group that an option belongs to: the open one, or that of the protocol."""
        protocols = [options for module, options in self.matches if module in _PROTOCOL_MODULES]
        if name not in _PROTOCOL_OPTIONS or any(options is self.current for options in protocols):
            return self._open_group(name)
        if not protocols:
            named = next((option.values[0] for option in self.head if option.name == "-p"), None)
            if named is None:
                raise RuleError(f"an option of a protocol that isn't named: {name}")
            module = protocol(named, Family.IPV4)
            module = _MODULE_OF.get(module, module)
            if module not in _PROTOCOL_MODULES:
                return self._open_group(name)
            protocols = [[]]
            self.matches.append((module, protocols[0]))
        return protocols[0]

    def _open_group(self, name: str) -> list[Option]:
        if self.current is None:
            raise RuleError(f"an option of no match and no target: {excerpt(name)}")
        return self.current

    def _values(self, name: str) -> tuple[str, ...]:
        if name in _TEXTS:
            return (self._next(name),)
        start = self.at
        while self.at < len(self.words) and not _starts_option(self.words[self.at]):
            self.at += 1
        return tuple(self.words[start : self.at])

    def _next(self, name: str) -> str:
        if self.at == len(self.words):
            raise RuleError(f"{excerpt(name)} without its value")
        self.at += 1
        return self.words[self.at - 1]


def _starts_option(word: str) -> bool:
    return word == "!" or (word[:1] == "-" and word[1:2] not in "0123456789")


def format_rule(rule: Rule) -> str:
    """The text of a rule, as `parse_rule` reads it."""
    return " ".join(_words(rule))


def _words(rule: Rule) -> Iterator[str]:
    yield from _option_words(rule.head)
    for match in rule.matches:
        yield f"-m {_word(match.module)}"
        yield from _option_words(match.options)
    if rule.target is not None:
        yield f"{'-g' if rule.goto else '-j'} {_word(rule.target)}"
    yield from _option_words(rule.target_options)


def _option_words(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        if option.negated:
            yield "!"
        yield option.name
        for value in option.values:
            yield quote(value) if option.name in _TEXTS else _word(value)


_NOT_BARE = re.compile(r"[\s\"'\\]|^!?$")


def _word(value: str) -> str:
    return value if _bare(value) else quote(value)


def _bare(value: str) -> bool:
    """Whether a value can stand without quotes where no text is expected."""
    return _NOT_BARE.search(value) is None


# ---- normal form ----

_STATEFUL = frozenset({"limit", "hashlimit", "quota", "connlimit", "nfacct", "rateest", "recent", "statistic"})
"""Matches that a packet changes by being asked: what stands before them decides which packets do."""


def canonical(text: str, family: Family) -> str:
    """The normal form of a rule: equal for two texts that iptables stores as the same rule.

    Any spelling that iptables takes and any that 1.8.7 to 1.8.11 print, on either backend, for the modules
    known to `kpx.netfilter.options`; other modules' options stay as they are. The order of `-m` groups
    doesn't count, except around stateful matches. What is no rule comes back as it is.
    """
    try:
        return format_rule(normal_rule(parse_rule(text), family))
    except RuleError:
        return text


def normal_rule(rule: Rule, family: Family) -> Rule:
    """The same rule in its one spelling and order."""
    matches = (Match(m.module, match_options(m.module, m.options, family)) for m in rule.matches)
    options = rule.target_options
    return Rule(
        _normal_head(rule.head, family),
        tuple(_ordered(m for m in matches if m.options or m.module not in _PROTOCOL_MODULES)),
        rule.target,
        options if rule.target is None else target_options(rule.target, options, family),
        rule.goto,
    )


def _normal_head(head: Options, family: Family) -> Options:
    spelled = (_normal_head_option(option, family) for option in head)
    return tuple(sorted((o for o in spelled if o is not None), key=lambda o: _HEAD.index(o.name)))


def _normal_head_option(option: Option, family: Family) -> Option | None:
    """One option of the head, or None if it excludes nothing."""
    everything = False
    if option.name in ("-s", "-d"):
        option = spelled(option, network, family)
        everything = option.values[0].endswith("/0")
    elif option.name == "-p":
        option = spelled(option, protocol, family)
        everything = option.values[0] in ("all", "0")
    elif option.name in ("-i", "-o"):
        everything = option.values[0] == "+"
    return None if everything and not option.negated else option


def _ordered(matches: Iterable[Match]) -> list[Match]:
    """Comments first, then the others, sorted as far as no stateful match stands between them."""
    found: list[Match] = []
    comments: list[Match] = []
    run: list[Match] = []
    for match in matches:
        if match.module == "comment":
            comments.append(match)
        elif match.module in _STATEFUL and Option("--mode", ("random",)) not in match.options:
            found += [*sorted(run, key=_order), match]
            run = []
        else:
            run.append(match)
    return [*sorted(comments, key=_order), *found, *sorted(run, key=_order)]


def _order(match: Match) -> tuple[str, str]:
    return match.module, " ".join(_option_words(match.options))


# ---- fast looks at a text, without taking it apart ----
