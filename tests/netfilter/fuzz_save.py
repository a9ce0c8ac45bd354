"""What holds of every text that the readers of iptables-save and of its rules are given, and a search for exceptions.

    pip install atheris
    python -m tests.netfilter.fuzz_save -max_total_time=600 -max_len=4096 build/corpus tests/netfilter/corpus

looks, led by coverage, for a text that breaks `check`; what it learns goes into the first directory. The second is
kept, as the fewest texts that cover all that was found (`-merge=1 NEW OLD...`); tests replay it.
"""

import sys
from contextlib import suppress

from kpx.errors import KpxError
from kpx.family import Family
from kpx.netfilter.rule import (
    RuleError,
    canonical,
    comment_of,
    format_rule,
    normal_rule,
    parse_rule,
    target_of,
)
from kpx.netfilter.save import Saved, SavedChain, SaveError, parse_save, scan_save


def check(data: bytes) -> None:
    """Read any bytes as a dump, and each line as a rule. Raises AssertionError, or whatever a reader raised."""
    text = data.decode(errors="surrogateescape")
    saved = _parsed(text)
    with suppress(SaveError):
        assert saved is None or _values(scan_save(text)) == _values(saved)
    for rule in {rule for table in (saved or {}).values() for chain in table.chains.values() for rule in chain.rules}:
        check_rule(rule)


def _parsed(text: str) -> Saved | None:
    try:
        return parse_save(text)
    except SaveError as error:
        _is_clear(error)
        return None


def _is_clear(error: KpxError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 400


def _values(saved: Saved) -> dict[str, dict[str, SavedChain]]:
    return {name: dict(table.chains) for name, table in saved.items()}


def check_rule(text: str) -> None:
    """A rule is refused, or what was read is what is written, and its normal form has no other one."""
    comment_of(text)
    target_of(text)
    try:
        rule = parse_rule(text)
    except RuleError as error:
        _is_clear(error)
        assert canonical(text, Family.IPV4) == text
        return
    assert parse_rule(format_rule(rule)) == rule, text
    for family in Family:
        normal = normal_rule(rule, family)
        assert normal_rule(parse_rule(format_rule(normal)), family) == normal, text


def main() -> None:
    """Search; the arguments are libFuzzer's."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
