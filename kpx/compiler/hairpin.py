"""The match for packets that a Service sent back to where they came from, for the layout `compact`. Pure.

kube-proxy marks them where an endpoint is chosen, by a rule for each endpoint. Here one rule asks all packets, once
they are translated: is the source what the destination is by now? A pod that gets a packet from its own address
answers itself, past conntrack, so such packets have to be masqueraded, whoever translated them.

Why bpf: no other match compares two fields of a packet. The kernel compiles the program.
"""

from functools import lru_cache

from kpx.compiler.words import comment
from kpx.family import Family

_WORDS_AT = {Family.IPV4: ((12, 16),), Family.IPV6: tuple((at, at + 16) for at in range(8, 24, 4))}
"""Where the words of source and destination stand in the header (RFC 791, RFC 8200), in bytes."""

_LOAD, _TO_X, _IF_EQUALS_X, _RETURN = 32, 7, 29, 6
"""Codes of classic BPF, as in the kernel's `uapi/linux/bpf_common.h`."""

_LOOPBACK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1/128"}
"""No endpoint has such an address (the API takes none), but hosts do redirect their own packets to themselves."""


@lru_cache
def to_itself(family: Family) -> str:
    """The match for translated packets whose source and destination are one address; without a space behind it.

    Which connections were translated is looked at first: that is one bit, and of most packets it isn't set.
    """
    note = comment("kubernetes service traffic to itself")
    return f"! -s {_LOOPBACK[family]} {note} -m conntrack --ctstate DNAT {_same_address(family)}"


def _same_address(family: Family) -> str:
    """The match for packets whose source equals their destination, word by word."""
    pairs = _WORDS_AT[family]
    program: list[tuple[int, int, int, int]] = []
    for index, (source, destination) in enumerate(pairs):
        rest = len(pairs) - 1 - index
        # If these words differ: over the rest, and the instruction that says yes, to the one that says no.
        program += [(_LOAD, 0, 0, source), (_TO_X, 0, 0, 0), (_LOAD, 0, 0, destination)]
        program.append((_IF_EQUALS_X, 0, 4 * rest + 1, 0))
    program += [(_RETURN, 0, 0, 65535), (_RETURN, 0, 0, 0)]
    words = ",".join(" ".join(map(str, one)) for one in program)
    return f'-m bpf --bytecode "{len(program)},{words}"'
