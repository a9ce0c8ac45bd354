"""One number that stands for many chains, so that they can be compared without being compiled anew. Pure.

Sums of keyed hashes: chains can be added and taken away in any order. Python's own hash is keyed anew in each process,
so nobody can choose rules that cancel each other out.
"""

from collections.abc import Iterable

from kpx.netfilter.ruleset import Rules

_MODULUS = 1 << 64


def digest(chains: Iterable[tuple[str, Rules]]) -> int:
    """The number of these chains, each given with its rules."""
    return sum(map(hash, chains)) % _MODULUS


def plus(one: int, other: int) -> int:
    """The number of the chains of both."""
    return (one + other) % _MODULUS


def minus(one: int, other: int) -> int:
    """The number of the chains of `one` without those of `other`."""
    return (one - other) % _MODULUS
