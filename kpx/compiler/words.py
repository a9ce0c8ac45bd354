"""Pieces of rules, in `iptables-save` spelling.

Only values that the API models have validated come in here (names, addresses, numbers), none of which needs
escaping; comments are quoted because all of ours contain a `/` or a space.
"""

from functools import lru_cache

_STEPS = 1 << 31


def comment(text: str) -> str:
    """A comment match."""
    return f'-m comment --comment "{text}"'


@lru_cache(maxsize=8192)
def one_in(n: int) -> str:
    """The match that takes one packet in `n` at random.

    kube-proxy writes 1/n with ten digits, xt_statistic keeps it in steps of 2^-31 and `iptables-save` prints
    that step with eleven digits; this is what it prints.
    """
    step = round(float(f"{1 / n:.10f}") * _STEPS)
    return f"-m statistic --mode random --probability {step / _STEPS:.11f}"
