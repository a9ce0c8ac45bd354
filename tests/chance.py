"""Whether counts can well be chance."""

from collections.abc import Sequence

from scipy.stats import chisquare

LEAST = 1e-9
"""How often chance alone may fail a test: seldom enough for hundreds of tests in each of many runs."""


def as_shared(counted: Sequence[int], shares: Sequence[float], least: float = LEAST) -> bool:
    """Whether counts can well come of these shares (of any sum), by a chi-square test."""
    scale = sum(counted) / sum(shares)
    return bool(chisquare(counted, [share * scale for share in shares]).pvalue > least)
