"""The order in which chains were made, and what it makes listing a table cost. Pure.

nf_tables keeps a table's chains in the order of their creation, and hands them out so. iptables-nft-save (1.8.8 and
later, `nft-cache.c`) sorts them by name: it takes the first of a list, parts the others into those before and those
behind it, and does the same with both parts. Names in no order cost n · log n comparisons; names in order, or in the
reverse order, cost n² / 2, as one part is empty each time. So iptables-nft-save takes 1.7 s of CPU for 61,439 chains
that were made in the order of hashes, and 20 to 90 s, by machine, where they were made in the order of their names: by
iptables-restore of what iptables-save had printed. `iptables -S CHAIN` sorts nothing.
"""

from collections.abc import Sequence
from itertools import pairwise

DEAR = 50_000_000
"""Comparisons that take the tools longer than all the rest: half a second, and up to five times that."""


def comparisons(names: Sequence[str]) -> int:
    """How often the tool compares two names to sort these, which stand in the order of their creation; n · log n.

    What it does is to put one name after the other into a search tree that nothing balances, and each name is compared
    with all above its place. That is one more than above the deeper of its two neighbours among the names before it.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    before, behind = [-1] * len(names), [-1] * len(names)
    for one, other in pairwise(order):
        behind[one], before[other] = other, one
    # The last one's neighbours are those around it; without it, so are those of the one before, and so on.
    found: list[tuple[int, int]] = [(-1, -1)] * len(names)
    for number in reversed(range(len(names))):
        low, high = found[number] = before[number], behind[number]
        if low >= 0:
            behind[low] = high
        if high >= 0:
            before[high] = low
    depth: list[int] = []
    for low, high in found:
        depth.append(1 + max(depth[low] if low >= 0 else -1, depth[high] if high >= 0 else -1))
    return sum(depth)


def is_dear(names: Sequence[str]) -> bool:
    """Whether these names, in the order of their creation, cost the tool more than `DEAR` comparisons."""
    worst = len(names) * (len(names) - 1) // 2
    return worst > DEAR and comparisons(names) > DEAR
