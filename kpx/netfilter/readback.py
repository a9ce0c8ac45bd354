"""What a payload should have left in the chains that it names, compared with what they hold. Pure.

Only what the payload decides is asked for: of a chain that it doesn't declare, that the rules that come are there and
those that go are not.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kpx.family import Family
from kpx.netfilter.rule import canonical
from kpx.netfilter.save import SavedChain


@dataclass(slots=True)
class Left:
    """What a payload leaves of one chain: all of its rules if `whole`, else some; or nothing, if it is dropped."""

    whole: bool = False
    dropped: bool = False
    come: Counter[str] = field(default_factory=Counter)
    gone: Counter[str] = field(default_factory=Counter)


Leaves = Mapping[str, Mapping[str, Left]]
"""By table and chain."""


def leaves(payload: str) -> Leaves:
    """What a payload leaves behind, in the words of its rules."""
    tables: dict[str, dict[str, Left]] = {}
    chains: dict[str, Left] = {}
    for line in payload.split("\n"):
        match line[:1]:
            case "*":
                chains = tables.setdefault(line[1:], {})
            case ":":
                chain, _, policy = line[1:].partition(" ")
                if policy.startswith("-"):
                    chains[chain] = Left(whole=True)
            case "-":
                _carry_out(chains, line)
    return tables


def _carry_out(chains: dict[str, Left], line: str) -> None:
    chain, _, rule = line[3:].partition(" ")
    left = chains.setdefault(chain, Left())
    match line[1]:
        case "X":
            chains[chain] = Left(dropped=True)
        case "A":
            left.come[rule] += 1
        case "I":
            left.come[rule.partition(" ")[2]] += 1
        case "D" if left.come[rule]:
            left.come[rule] -= 1
        case "D":
            left.gone[rule] += 1


def differing(left: Leaves, live: Mapping[str, Mapping[str, SavedChain | None]], family: Family) -> Iterator[str]:
    """Where the live chains, by table and name, aren't as a payload left them, in words. None is a missing chain."""
    for table, chains in left.items():
        for name, one in chains.items():
            words = _differs(one, live[table][name], family)
            if words:
                yield f"{table} {name}: {words}"


def _differs(left: Left, live: SavedChain | None, family: Family) -> str:
    if left.dropped:
        return "" if live is None else "is still there"
    if live is None:
        return "is missing"
    have = Counter(canonical(rule, family) for rule in live.rules)
    come = Counter(canonical(rule, family) for rule in left.come.elements())
    if left.whole:
        return "" if have == come else f"{(come - have).total()} rules missing, {(have - come).total()} too many"
    missing = (come - have).total()
    still = sum(1 for rule in left.gone if (text := canonical(rule, family)) in have and text not in come)
    return f"{missing} rules missing, {still} still there" if missing or still else ""
