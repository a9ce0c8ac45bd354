"""The same rule several times in one chain: harmless at first, and in thousands a burden for every packet."""

from collections import defaultdict
from collections.abc import Iterator

from kpx.analysis.checks.advice import ONCE_AGAIN, ONE_OF_THEM
from kpx.analysis.checks.finding import BUILT_IN, Finding, Jump, Severity, Tables
from kpx.netfilter.names import ours
from kpx.netfilter.owners import rule_owner
from kpx.netfilter.rule import format_rule


def repeated_rules(tables: Tables) -> Iterator[Finding]:
    """Rules that stand more than once in a built-in chain or in one of ours: one finding for each such rule.

    Equal are also jumps whose comments differ. Rules that choose by chance or in turn may be meant to come again.
    """
    for table, chains in tables.jumps.items():
        for chain, rules in chains.items():
            if chain in BUILT_IN or ours(chain):
                for equal in _equal(tables, table, rules):
                    yield _finding(tables, table, equal)


def _equal(tables: Tables, table: str, rules: tuple[Jump, ...]) -> Iterator[list[Jump]]:
    by_text: dict[str, list[Jump]] = defaultdict(list)
    for jump in rules:
        if " statistic " not in jump.rule and "-m recent " not in jump.rule:
            by_text[_plain(tables, table, jump)].append(jump)
    for some in by_text.values():
        # A proxy refuses an address twice that is an external IP and a load balancer's IP, too.
        allowed = 2 if rule_owner(some[0].rule) and some[0].target not in tables.jumps[table] else 1
        if len(some) > allowed:
            yield some


def _plain(tables: Tables, table: str, jump: Jump) -> str:
    """What makes rules equal: the text, of jumps to chains their normal form without comments."""
    if jump.target not in tables.jumps[table]:
        return jump.rule
    parsed = tables.parsed(jump.rule)
    matches = tuple(match for match in parsed.matches if match.module != "comment")
    return format_rule(type(parsed)(parsed.head, matches, parsed.target, parsed.target_options, parsed.goto))


def _finding(tables: Tables, table: str, equal: list[Jump]) -> Finding:
    first, second, *more = equal
    is_jump = first.target in tables.jumps[table]
    what = f"stands {len(equal)} times in the chain" if more else f"does the same as rule {first.position}"
    return second.found(
        "duplicate-jump" if is_jump else "repeated-rule",
        Severity.WARNING,
        what,
        ONCE_AGAIN if ours(first.chain) or ours(first.target) else ONE_OF_THEM,
        tables.owner(first.target),
    )
