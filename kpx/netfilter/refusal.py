"""What the tools say when they refuse a payload, or can't do their work at all.

What the tools (1.8.9) say of a payload that they refuse, found by experiment; line numbers count from 1 over
the whole payload:

- What the tool's parser refuses (unknown match or option, bad value, name too long, unknown table) comes as
  `Error occurred at line: N` on both backends, with N the line itself.
- What needs the table's state (`-D` of a rule that is not there, `-I` or `-D` beyond the end, a command on a
  missing chain) comes as `line N failed`, with N the line itself; the legacy backend gives no reason.
- A jump to a chain that isn't there: the legacy tool calls it a target that can't be loaded, at the line
  itself; nft-restore gives the line of COMMIT, but names the chain, so the line is looked up here.
- What the kernel refuses: nft-restore prints `line N: RULE_APPEND failed (reason)` for every command refused,
  N the line itself (a loop of jumps is reported at several lines). The legacy kernel takes or refuses the
  table as a whole: `line N failed`, N being that of COMMIT.
- A quote that isn't closed is no error: both tools drop the rest of the line, target included, so
  `kpx.netfilter.restore.payload` refuses it. A text longer than the kernel's field is cut without a word.
- `-w` is taken and ignored by nft-restore: the nft backend has no lock, the kernel's transactions do that work.
"""

import re
from collections.abc import Sequence

from kpx.errors import KpxError


class ToolError(KpxError):
    """A tool couldn't do its work, whatever it was sent: the lock is held, no memory, no right, killed, too slow.

    So no Service's rules are to blame, and to try the same again soon is all that can be done.
    """


WANT = (OSError, MemoryError, RuntimeError)
"""What Python raises where files, memory or threads are wanting: it says nothing about what was to be done."""


def wanting(error: Exception) -> ToolError:
    """The same as an error of ours, after which everything is tried again."""
    return ToolError(f"this process lacks something: {error or type(error).__name__}")


class UnconfirmedError(KpxError):
    """A tool ended as if all were well, but the kernel doesn't hold what the tool was sent."""

    def __init__(self, command: str, missing: Sequence[str]) -> None:
        more = f"; {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        what = "; ".join(missing[:_SHOWN])
        super().__init__(f"{command}: ended with status 0, but the kernel has not done it: {what}{more}")


_SHOWN = 3
"""So many of the chains that aren't as they should be are named."""


class RestoreError(KpxError):
    """`iptables-restore` refused a payload.

    Sections before the one that failed are in the kernel, the one that failed and those after it are not.
    `command` is the command line, `stderr` what it said; `line_number` counts from 1 in the payload, `line` is
    that line and `table` the one it belongs to: None where the tool doesn't tell. `line` is `COMMIT` if the
    kernel refused a section as a whole without saying why (legacy backend).
    """

    def __init__(self, command: Sequence[str], stderr: str, payload: str) -> None:
        self.command = " ".join(command)
        self.stderr = stderr.strip()
        lines = payload.split("\n")
        self.line_number = failed_line(self.stderr, lines)
        self.line = lines[self.line_number - 1] if self.line_number is not None else None
        self.table = _table_at(lines, self.line_number)
        whole = " (the kernel refused the section as a whole)" if self.line == "COMMIT" else ""
        super().__init__("\n".join([f"{self.command}: {reason_of(self.stderr)}{whole}", *self._excerpt(lines)]))

    def _excerpt(self, lines: list[str], around: int = 2) -> list[str]:
        if self.line_number is None:
            return []
        at = self.line_number
        numbers = range(max(1, at - around), min(len(lines), at + around) + 1)
        shown = (f"{'>' if n == at else ' '} {n:>6}  {lines[n - 1]}" for n in numbers if lines[n - 1])
        return [f"  table {self.table}:" if self.table else "  payload:", *shown]


_LINE = (
    re.compile(r"^Error occurred at line: (\d+)", re.MULTILINE),
    re.compile(r"^(?:\S+ v\S+ \(\w+\): )?line (\d+): [A-Z_]+ failed", re.MULTILINE),
    re.compile(r"^\S+: line (\d+) failed", re.MULTILINE),
    re.compile(r" line (\d+): Bad policy name", re.MULTILINE),
    re.compile(r"^\S+: COMMIT expected at line (\d+)", re.MULTILINE),
)
_NO_CHAIN = re.compile(r"Chain '(\S+)' does not exist")


def failed_line(stderr: str, lines: Sequence[str]) -> int | None:
    """The number, from 1, of the payload line that the tool complains about; None if it names none."""
    found = next((match for match in (line.search(stderr) for line in _LINE) if match), None)
    if found is None or not 1 <= int(found[1]) <= len(lines):
        return None
    number = int(found[1])
    missing = _NO_CHAIN.search(stderr)
    if missing and lines[number - 1] == "COMMIT":
        jump = re.compile(rf" -[jg] {re.escape(missing[1])}(?: |$)")
        return next((n for n in _section_before(lines, number) if jump.search(lines[n - 1])), number)
    return number


def _section_before(lines: Sequence[str], number: int) -> range:
    """The numbers of the lines of the section that a COMMIT line ends."""
    start = number
    while start > 1 and not lines[start - 1].startswith("*"):
        start -= 1
    return range(start, number)


def _table_at(lines: Sequence[str], number: int | None) -> str | None:
    before = reversed(lines[:number]) if number is not None else ()
    return next((line[1:] for line in before if line.startswith("*")), None)


_INCAPABLE = (
    "xtables lock",
    "annot allocate memory",
    "emory allocation problem",
    "ut of memory",
    "Permission denied",
    "Operation not permitted",
    "Resource temporarily unavailable",
    "No buffer space",
    "Too many open files",
    "shared libraries",
)
"""What a tool says if it can't work. A first letter that may be a capital is left out."""
_PARSED = re.compile(r"^Error occurred at line: \d+", re.MULTILINE)
_SHELL_SAYS = range(126, 128 + 65)
"""Exit statuses by which a shell around a tool tells that it couldn't be started, or was ended by a signal."""


def refusal(command: Sequence[str], status: int, stderr: str, payload: str) -> KpxError:
    """What to raise where a tool ended with a status other than 0, negative for a signal: a ToolError if it couldn't
    do its work, a RestoreError if it refuses this payload."""
    if status < 0 or status in _SHELL_SAYS:
        ended = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        words = f": {reason_of(stderr)}" if stderr.strip() else ""
        return ToolError(f"{' '.join(command)}: {ended}{words}")
    # A parser's complaint may quote the payload, whose texts can say anything.
    if not _PARSED.search(stderr) and any(words in stderr for words in _INCAPABLE):
        return ToolError(f"{' '.join(command)}: {reason_of(stderr)}")
    return RestoreError(command, stderr, payload)


def reason_of(stderr: str) -> str:
    """What the tool said, in one line, without its remarks and its advice to read the manual."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(("#", "Try `"))]
    return "; ".join(lines) or "failed without a word"
