"""The text of a rule, as far as it can be read without knowing what its words mean: its words, comment and target."""

import re

from kpx.errors import KpxError
from kpx.printable import excerpt

_PLAIN = re.compile(r"[-_0-9A-Za-z]+")
_ESCAPED = re.compile(r"[\"'\\]")
_STRING = r'"((?:[^"\\]|\\.)*)"'
_WORD = re.compile(rf'{_STRING}|([^ \t\n"]+)(?:{_STRING})?|(")', re.DOTALL)
_COMMENT = re.compile(rf"--comment (?:{_STRING}|(\S+))", re.DOTALL)
_TARGET = re.compile(r"(?:^|\s)-[jg] (\S+)")
_QUOTED = re.compile(_STRING, re.DOTALL)


class RuleError(KpxError):
    """A text that is no rule."""


def split(text: str) -> list[str]:
    """The words of a rule, as iptables-restore reads them: quotes taken off, backslash escapes resolved.

    An escape counts only inside double quotes, and a closing quote ends the word. Raises RuleError if a
    quote isn't closed.
    """
    if '"' not in text and "\t" not in text and "\n" not in text:
        return [word for word in text.split(" ") if word]
    words = []
    for quoted, plain, joined, stray in _WORD.findall(text):
        if stray:
            raise RuleError(f"a quote isn't closed: {excerpt(text)}")
        words.append(plain + _unescaped(joined) if plain else _unescaped(quoted))
    return words


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) if "\\" in text else text


def quote(value: str) -> str:
    """A value as iptables-save prints a text: bare if it has only letters, digits, `-` and `_`."""
    if _PLAIN.fullmatch(value):
        return value
    return '"' + _ESCAPED.sub(r"\\\g<0>", value) + '"'


def comment_of(text: str) -> str | None:
    """The comment of a rule as iptables-save prints it; None without one."""
    match = _COMMENT.search(text)
    if match is None:
        return None
    return match[2] if match[1] is None else _unescaped(match[1])


def target_of(text: str) -> str | None:
    """The target (chain, verdict or extension) of a rule as iptables-save prints it; None without one."""
    if '"' in text:
        text = _QUOTED.sub('""', text)
    match = _TARGET.search(text)
    return None if match is None else match[1]
