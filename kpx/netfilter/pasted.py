"""Dumps as people hand them on: through editors, terminals, tickets and tools that compress.

What is around the rules is taken off where that is certain to be no rule: line ends of Windows, byte order marks,
indentation, line numbers, `>` of mails, colours, fences, prompts. Several saves in one text are told apart. Everything
else is refused, with what to do; a dump that was cut off is, since what follows isn't known. A table that a save
doesn't hold, or that iptables could not print, isn't empty: `unread` says so.
"""

import gzip
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kpx.family import Family
from kpx.netfilter.save import Saved, SaveError, open_quote, parse_save
from kpx.netfilter.sections import GENERATED, Kind, Line, Section, family_of, sections
from kpx.printable import excerpt

DECIDING = ("nat", "filter")
"""The tables in which Services have rules. A host without one of them has no Service proxy; a dump may lack it."""

LARGEST = 1 << 30
"""Bytes that a compressed dump may have unpacked."""


@dataclass(frozen=True, slots=True)
class Pasted:
    """What a dump tells of one family, None where no address and no header tells which.

    `unread` are the tables that it doesn't tell of although they may hold rules, with why. `notes` say what else a
    reader of an answer has to know; `repairs` what was taken off to read it.
    """

    saved: Saved
    family: Family | None
    unread: Mapping[str, str]
    notes: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()


def read_dump(data: bytes) -> tuple[Pasted, ...]:
    """The saves of a dump, at most one of each family. Raises SaveError, with the line's number where one is to blame.

    >>> one, = read_dump(b"*nat\\r\\n:PREROUTING ACCEPT [0:0]\\r\\nCOMMIT\\r\\n")
    >>> one.unread["filter"]
    'the dump holds no table filter'
    """
    text, repairs = _decoded(data)
    if plain := _read_plain(text, repairs):
        return (plain,)
    lines, more = _lines(text)
    found = sections(lines)
    if not found:
        raise SaveError(_no_table(lines))
    groups = _grouped(found)
    return tuple(_pasted(group, lines, (*repairs, *more)) for group in groups)


# ---- bytes to text ----

_MARKS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be", b"\xef\xbb\xbf": "utf-8"}
_COMPRESSED = (b"\x28\xb5\x2f\xfd", b"\xfd7zX", b"PK\x03\x04", b"BZh")


def _decoded(data: bytes) -> tuple[str, tuple[str, ...]]:
    repairs = []
    if data[:2] == b"\x1f\x8b":
        data = _unpacked(data)
        repairs.append("unpacked")
    elif data.startswith(_COMPRESSED):
        raise SaveError("compressed, and not by gzip: unpack it first")
    mark = next((one for one in _MARKS if data.startswith(one)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    text = data.removeprefix(mark).decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace")
    if mark:
        repairs.append("a byte order mark")
    if "\r" in text:
        repairs.append("line ends of another system")
        text = text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")
    return text, tuple(repairs)


def _unpacked(data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SaveError(f"compressed by gzip, and damaged or cut off ({error}): take the dump again") from error
    if len(found) > LARGEST:
        raise SaveError(f"unpacked it is larger than {LARGEST >> 30} GiB")
    return found


# ---- text to lines ----

_PLAIN = re.compile(r"(?:(?:-A |-I |:|\*|#|\[\d)[^\n\r]*+\n|COMMIT\n|\n)*+")
"""A text of which no line has anything in front."""

_STARTS = re.compile(r"^(\*\w+|COMMIT)$", re.MULTILINE)
_COMMENTS = re.compile("^#.*", re.MULTILINE)
_DECLARED = re.compile(r"^:(?:PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) [A-Z]", re.MULTILINE)


def _read_plain(text: str, repairs: tuple[str, ...]) -> Pasted | None:
    """One save as it was printed, without a look at each of its lines; None if it isn't that plain."""
    starts = _STARTS.findall(text)
    tables = starts[::2]
    if not tables or len(set(tables)) < len(tables) or starts != [w for one in tables for w in (one, "COMMIT")]:
        return None
    if not _PLAIN.fullmatch(text) or _CURLY.search(text):
        return None
    comments = _COMMENTS.findall(text)
    tools = {(found[1], found[3]) for one in comments if (found := GENERATED.match(one))}
    if len(tools) > 1 or any(Kind.of(one) is Kind.COMMAND for one in comments):
        return None
    family = family_of("".join(name for name, _ in tools), text)
    return _told(parse_save(text), family, comments, _DECLARED.search(text) is not None, repairs)


_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NUMBER = re.compile(r"\s*\d+\s*[:.|)]?\s*(?=[-*:#\[]|COMMIT|$)")
_QUOTED = re.compile(r"\s*(?:>\s?)+(?=[-*:#\[\s]|COMMIT|$)")
_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})\S*\s*")
_TYPED = re.compile(
    r"(?:sudo\s+)?(?:\S*/)?ip6?tables(?:-legacy|-nft)?(?:-save)?(?:\s+-\S+(?:\s+[\w.-]+)?)*(?:\s*[|>].*)?"
)
_FILTERED = re.compile(r"\|\s*(?:sudo\s+)?(grep|egrep|fgrep|rg|head|tail|awk|sed|cut|sort|uniq)\b")
_ONE_CHAIN = re.compile(r"ip6?tables\S*\s.*(?:-S|--list-rules)\s+(?![-|>])(\S+)")
_PROMPT = re.compile(r"(?:\+ |(?:\[?[\w.@~:/\\ \-]*\]?)?[#$%>❯] ?)(?P<typed>\S.*)?")
_BLANKS = re.compile("[\u00a0\u2000-\u200b\u202f\u3000]")
_CURLY = re.compile("[\u2013\u2014\u2018\u2019\u201c\u201d\u2212]")


def _lines(text: str) -> tuple[Sequence[Line], tuple[str, ...]]:
    """The lines that count, each with its number in the text, and what was taken off."""
    found: list[Line] = []
    repairs: dict[str, None] = {}
    numbers = enumerate(text.split("\n"), 1)
    for number, raw in numbers:
        line, of_line = _bared(raw)
        repairs |= dict.fromkeys(of_line)
        while line[:1] in "-[" and line and ('"' in line or "\\" in line) and open_quote(line):
            following = next(numbers, None)
            if following is None or len(line) > 1 << 15:
                raise SaveError(f"line {number}: a quote is never closed: {excerpt(line)}; the dump is cut off there")
            line = f"{line}\n{following[1]}"
        kind = Kind.of(line)
        if kind is Kind.OTHER:
            kind, line = _around(number, line)
            repairs |= {"prompts": None} if kind is Kind.COMMAND else {}
        elif kind is Kind.RULE and _CURLY.search(re.sub(r'"(?:[^"\\]|\\.)*"', "", line)):
            raise SaveError(f"line {number}: has typographic quotes or dashes: {excerpt(line)}; copy it as plain text")
        found.append(Line(number, line, kind))
    return found, tuple(repairs)


def _bared(line: str) -> tuple[str, tuple[str, ...]]:
    """A line without what stands in front of it, and what that was."""
    if line[:3] == "-A " and line[-1:] != " ":
        return line, ()
    repairs = []
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
        repairs.append("colours")
    if _BLANKS.search(line):
        line = '"'.join(part if at % 2 else _BLANKS.sub(" ", part) for at, part in enumerate(line.split('"')))
    if quoted := _QUOTED.match(line):
        line = line[quoted.end() :]
        repairs.append("> in front")
    if numbered := _NUMBER.match(line):
        if numbered[0].strip():
            repairs.append("line numbers")
        line = line[numbered.end() :]
    if line[:1] in (" ", "\t"):
        repairs.append("indentation")
    return line.strip(" \t"), tuple(repairs)


_COMMANDS = ("kubectl", "docker", "oc", "crictl", "nerdctl", "ssh", "nsenter", "sudo", "cat", "zcat", "exit", "logout")


def _around(number: int, line: str) -> tuple[Kind, str]:
    """What a line is that a shell or a tool left beside the rules. Raises SaveError if it may be a rule."""
    if not line or _FENCE.fullmatch(line):
        return Kind.NOTHING, ""
    prompt = _PROMPT.fullmatch(line)
    typed = (prompt["typed"] or "" if prompt else line).strip()
    if _TYPED.fullmatch(typed) or (prompt and (not typed or typed.split()[0] in _COMMANDS)):
        if found := _FILTERED.search(typed):
            raise SaveError(f"line {number}: {found[1]} left lines out: give all that `iptables-save` prints")
        if found := _ONE_CHAIN.search(typed):
            raise SaveError(
                f"line {number}: this lists chain {excerpt(found[1])} alone: give what `iptables-save` prints"
            )
        return Kind.COMMAND, typed
    if line.startswith(("Warning: ", "iptables", "ip6tables")):
        return Kind.SAID, line
    for pattern, what in _OTHER_TOOLS:
        if pattern.match(line):
            raise SaveError(f"line {number}: {what}; give what `iptables-save` prints (`ip6tables-save` for IPv6)")
    raise SaveError(
        f"line {number}: not a line of iptables-save: {excerpt(line)}; "
        "give what it prints as it is, with no line wrapped or left out"
    )


_OTHER_TOOLS = (
    (re.compile(r"Chain \S+ \("), "this is what `iptables -L` prints, which leaves out interfaces, tables and options"),
    (re.compile(r"table (?:ip|ip6|inet|arp|bridge) \S+ \{"), "this is what `nft list ruleset` prints"),
    (re.compile(r"IP Virtual Server"), "this is what `ipvsadm` prints"),
)


# ---- saves ----


def _no_table(lines: Sequence[Line]) -> str:
    said = next((one.text for one in lines if one.kind is Kind.SAID and "incompatible" not in one.text), None)
    if said:
        return f"holds no rules, but what a tool said: {excerpt(said)}"
    if any(one.kind is Kind.RULE for one in lines):
        return "no table"
    return "holds no table: it is not what `iptables-save` prints, or that failed"


def _grouped(found: Sequence[Section]) -> Sequence[Sequence[Section]]:
    """The sections of each save. A table that declares its built-in chains again begins another save.

    Saves that say the same twice count once. Raises SaveError if two of one family don't.
    """
    groups: list[list[Section]] = []
    for one in found:
        held = groups[-1] if groups else []
        again = any(one.table == other.table and one.declares and other.declares for other in held)
        if not held or again or (one.tool and held[-1].tool and one.tool != held[-1].tool):
            groups.append(held := [])
        held.append(one)
    kept: list[list[Section]] = []
    for group in groups:
        family = _family(group)
        rivals = [other for other in kept if _family(other) in (family, None) or family is None]
        tables = {one.table: one for other in rivals for one in other}
        twice = [one for one in group if one.table in tables]
        if all(one.says == tables[one.table].says for one in twice):
            fresh = [one for one in group if one not in twice]
            if not rivals or not twice:
                kept.append(group)
            elif fresh:
                rivals[-1] += fresh
        elif all(one.is_empty for one in group):
            continue
        elif all(one.is_empty for other in rivals for one in other):
            kept = [other for other in kept if other not in rivals] + [group]
        else:
            first = next(one for one in twice if one.says != tables[one.table].says)
            raise SaveError(
                f"line {first.start}: table {first.table} stands there already, from line "
                f"{tables[first.table].start} on, and isn't the same{_backends(first, tables[first.table])}"
            )
    return _one_a_family(kept)


def _one_a_family(kept: Sequence[Sequence[Section]]) -> Sequence[Sequence[Section]]:
    """Groups of one family that hold different tables are one save in pieces."""
    found: dict[Family | None, list[Section]] = {}
    for group in kept:
        found.setdefault(_family(group), []).extend(group)
    if None in found and len(found) == 2:  # a table without an address goes with the others
        (other,) = [one for one in found if one is not None]
        found[other] += found.pop(None)
    return tuple(found.values())


def _backends(one: Section, other: Section) -> str:
    if one.tool.endswith("(nf_tables)") != other.tool.endswith("(nf_tables)") and one.tool and other.tool:
        return (
            ": these are the rules of both backends, and the kernel asks both. Give one of them, and have the other "
            "emptied if it is left over"
        )
    return ": are these dumps of several nodes, or of several times? Give one of them"


def _family(group: Sequence[Section]) -> Family | None:
    return next((one.family for one in group if one.family is not None), None)


def _pasted(group: Sequence[Section], lines: Sequence[Line], repairs: tuple[str, ...]) -> Pasted:
    said = [one.text for one in lines if one.kind in (Kind.SAID, Kind.COMMENT)]
    declares = any(one.declares for one in group)
    found = _told(parse_save(_joined(group)), _family(group), said, declares, repairs)
    return replace(found, notes=(*found.notes, _ENDLESS)) if any(one.is_listed for one in group) else found


_ENDLESS = "what `iptables -S` prints has no end: whether it was cut off can't be seen"
_OTHER_BACKEND = "the other backend holds rules as well, which act on the same packets and aren't in this dump: see {}"
_LEGACY = re.compile(r"(ip6?tables)-legacy tables present")


def _told(saved: Saved, family: Family | None, said: Sequence[str], declares: bool, repairs: tuple[str, ...]) -> Pasted:
    """What a save tells, and what it doesn't. A payload for restoring is for a host that holds nothing else."""
    unread = dict(unprintable("\n".join(said)))
    if declares:
        absent = (table for table in DECIDING if table not in saved and table not in unread)
        unread |= {table: f"the dump holds no table {table}" for table in absent}
    others = dict.fromkeys(match[1] for one in said if (match := _LEGACY.search(one)))
    return Pasted(saved, family, unread, tuple(_OTHER_BACKEND.format(f"{one}-legacy-save") for one in others), repairs)


def unprintable(said: str) -> Mapping[str, str]:
    """The tables that iptables-save says it can't print, with why."""
    tables = dict.fromkeys(_INCOMPATIBLE.findall(said))
    return {table: f"iptables can't print table {table} (`nft list ruleset` can)" for table in tables}


_INCOMPATIBLE = re.compile(r"[Tt]able [`'](\w+)' is incompatible")


def _joined(group: Sequence[Section]) -> str:
    """The lines of some sections, each where it stood, so that errors name its line."""
    found: list[str] = []
    for line in sorted((line for one in group for line in one.lines), key=lambda line: line.number):
        found += [""] * (line.number - 1 - len(found))
        found += line.saved.split("\n")
    return "\n".join(found) + "\n"
