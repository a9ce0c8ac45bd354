"""Do two rulesets do the same to every packet? A proof, or a packet that tells them apart."""

from kpx.analysis.equivalence.comparison import Side, compare
from kpx.analysis.equivalence.example import Example, Share, examples

__all__ = ["Example", "Share", "Side", "compare", "examples"]
