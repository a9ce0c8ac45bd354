"""What `iptables-save` prints, as values. Restore payloads are read too."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kpx.errors import KpxError
from kpx.printable import excerpt


class SaveError(KpxError):
    """A text that `iptables-save` didn't print; the message starts with the line's number."""


@dataclass(frozen=True, slots=True)
class SavedChain:
    """One chain as it was found.

    `policy` is None for a chain that somebody made; `packets` and `bytes` count what met the policy.
    `rules` are the words after `-A CHAIN`, untouched. `counters` holds (packets, bytes) of each rule, or
    is None if the text (no `-c`) doesn't tell.
    """

    policy: str | None
    packets: int
    bytes: int
    rules: tuple[str, ...]
    counters: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, slots=True)
class SavedTable:
    """One table: all its chains, in the text's order, other people's as well."""

    chains: Mapping[str, SavedChain]


Saved = Mapping[str, SavedTable]
"""Tables by name, those that the text names."""


class _Chain:
    """A chain while it is read."""

    __slots__ = ("bytes", "counters", "packets", "policy", "rules")

    def __init__(self, policy: str | None = None, packets: int = 0, size: int = 0) -> None:
        self.policy = policy
        self.packets = packets
        self.bytes = size
        self.rules: list[str] = []
        self.counters: list[tuple[int, int]] | None = None  # no list for each of 60,000 chains: collecting costs

    def finished(self) -> SavedChain:
        counted = self.counters is not None and len(self.counters) == len(self.rules)
        counters = tuple(self.counters or ()) if counted else None
        return SavedChain(self.policy, self.packets, self.bytes, tuple(self.rules), counters)


LONGEST_RULE = 32_768
"""Characters, more than iptables can print for one rule; bounds the search for a closing quote."""

_DECLARATION = re.compile(r":(\S+) (\S+)(?: \[([0-9]{1,20}):([0-9]{1,20})\])?\s*")
_INSERTION = re.compile(r"-I (\S+) ([0-9]{1,9}) (.*)", re.DOTALL)
_COUNTERS = re.compile(r"\[([0-9]{1,20}):([0-9]{1,20})\] ")


def parse_save(text: str) -> Saved:
    """Read the output of `iptables-save` (with or without `-c`, either backend), or a restore payload.

    Sections of one table add up; a chain that somebody made and that is declared again starts empty, as in
    `iptables-restore --noflush`. A rule of a chain that no line declares makes the chain. A quoted string
    may hold line ends: iptables-save prints a comment that has one as it is.

    Raises SaveError.
    """
    tables: dict[str, dict[str, _Chain]] = {}
    chains: dict[str, _Chain] | None = None
    lines = enumerate(text.split("\n"), 1)  # not splitlines(): a comment may hold \x0b, \x85, …
    for number, line in lines:
        if not line.strip() or line[0] == "#":
            continue
        if line[0] == "*":
            chains = tables.setdefault(line[1:].rstrip(), {})
        elif chains is None:
            raise SaveError(f"line {number}: no table (`*nat`) before: {excerpt(line)}")
        elif line[0] == ":":
            _declare(chains, number, line)
        elif line[0] == "-" or line[0] == "[":
            if len(line) > LONGEST_RULE:
                raise SaveError(f"line {number}: longer than any rule: {excerpt(line)}")
            while (line.count('"') & 1 or "\\" in line) and open_quote(line):
                following = next(lines, None)
                if following is None or len(line) > LONGEST_RULE:
                    raise SaveError(f"line {number}: a quote is never closed: {excerpt(line)}")
                line = f"{line}\n{following[1]}"
            _append(chains, number, line)
        elif line.rstrip() == "COMMIT":
            chains = None
        else:
            raise SaveError(f"line {number}: not a line of iptables-save: {excerpt(line)}")
    return {name: SavedTable({key: c.finished() for key, c in table.items()}) for name, table in tables.items()}


def _declare(chains: dict[str, _Chain], number: int, line: str) -> None:
    match = _DECLARATION.fullmatch(line)
    if match is None:
        raise SaveError(f"line {number}: not a chain declaration: {excerpt(line)}")
    name, policy, packets, size = match.groups()
    known = chains.get(name)
    fresh = _Chain(None if policy == "-" else policy, int(packets or 0), int(size or 0))
    if known is not None and fresh.policy is not None:
        fresh.rules, fresh.counters = known.rules, known.counters
    chains[name] = fresh


def _append(chains: dict[str, _Chain], number: int, line: str) -> None:
    counted = None
    if line[0] == "[":
        counted = _COUNTERS.match(line)
        if counted is not None:
            line = line[counted.end() :]
    if not line.startswith("-A "):
        _insert(chains, number, line)
        return
    name, _, rule = line[3:].partition(" ")
    chain = chains.get(name)
    if chain is None:
        chain = chains[name] = _Chain()
    chain.rules.append(rule)
    if counted is not None:
        if chain.counters is None:
            chain.counters = []
        chain.counters.append((int(counted[1]), int(counted[2])))


def _insert(chains: dict[str, _Chain], number: int, line: str) -> None:
    """Read `-I CHAIN position rule`, which only restore payloads have: there, jumps come before other rules."""
    match = _INSERTION.fullmatch(line)
    chain = chains.setdefault(match[1], _Chain()) if match else None
    if match is None or chain is None or not 1 <= int(match[2]) <= len(chain.rules) + 1:
        raise SaveError(f"line {number}: iptables-save prints rules as `-A CHAIN …`, not: {excerpt(line)}")
    chain.rules.insert(int(match[2]) - 1, match[3])


def open_quote(line: str) -> bool:
    """Whether a double-quoted string is still open at the end of the line."""
    return re.fullmatch(r'(?:[^"]|"(?:[^"\\]|\\.)*")*', line, re.DOTALL) is None


# -- large tables --


def scan_save(text: str) -> Saved:
    """The same as `parse_save`, but chains are read from the text only when they are looked up, each time anew.

    So a table of 170,000 rules takes little more memory than its text. Raises SaveError; where `parse_save` would
    raise it for a rule, this may see it only when the rule's chain is looked up.
    """
    try:
        return _scan(text)
    except _NotPlainError:
        return parse_save(text)


class _NotPlainError(Exception):
    """A text that has to be read line by line: with counters, inserted rules, chains in pieces, lines in quotes."""


def _scan(text: str) -> Saved:
    if (text and text[-1] != "\n") or "\\" in text or any("\n" in quoted for quoted in text.split('"')[1::2]):
        raise _NotPlainError
    tables: dict[str, SavedTable] = {}
    at = 0
    while at < len(text):
        after = text.find("\n", at) + 1
        if text.startswith("*", at) and after:
            chains = _Scanned(text, after)
            name = text[at + 1 : after - 1].rstrip()
            if not text.startswith("COMMIT\n", chains.end) or name in tables:
                raise _NotPlainError
            tables[name] = SavedTable(chains)
            after = text.index("\n", chains.end) + 1
        elif not text.startswith(("#", "\n"), at) or not after:
            raise _NotPlainError
        at = after
    return tables


_NO_POLICY = " - [0:0]"


class _Scanned(Mapping[str, SavedChain]):
    """The chains of a table whose declarations start somewhere in a text; its rules reach up to `end`."""

    def __init__(self, text: str, start: int) -> None:
        self._text = text
        self._at: dict[str, int] = {}  # where a chain's rules begin; -1 without any
        self._built_in: dict[str, SavedChain] = {}
        self.end = self._index_rules(self._index_declarations(start))

    def _index_declarations(self, at: int) -> int:
        text = self._text
        while text.startswith(":", at):
            end = text.index("\n", at)
            if text.endswith(_NO_POLICY, at, end):
                name = text[at + 1 : end - len(_NO_POLICY)]
                if name in self._built_in:
                    raise _NotPlainError
                self._at[name] = -1
            else:
                declared: dict[str, _Chain] = {}
                _declare(declared, 0, text[at:end])
                for name, chain in declared.items():
                    self._at[name] = -1
                    self._built_in[name] = chain.finished()
            at = end + 1
        return at

    def _index_rules(self, at: int) -> int:
        text = self._text
        while text.startswith("-A ", at):
            line_end = text.index("\n", at)
            name_end = text.find(" ", at + 3, line_end)
            head = text[at : name_end if name_end > 0 else line_end]
            if self._at.get(head[3:], 0) >= 0:
                raise _NotPlainError
            self._at[head[3:]] = at
            while text.startswith(head, at) and text[at + len(head)] in " \n":
                at = text.index("\n", at) + 1
        return at

    def __getitem__(self, name: str) -> SavedChain:
        rules = tuple(self._rules(name))
        built_in = self._built_in.get(name)
        if built_in is not None:
            return SavedChain(built_in.policy, built_in.packets, built_in.bytes, rules, None)
        return SavedChain(None, 0, 0, rules, None)

    def _rules(self, name: str) -> Iterator[str]:
        at, text, head = self._at[name], self._text, f"-A {name}"
        while at >= 0 and text.startswith(head, at) and text[at + len(head)] in " \n":
            end = text.index("\n", at)
            yield text[at + len(head) + 1 : end]
            at = end + 1

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)
