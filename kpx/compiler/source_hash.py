"""A match that depends on nothing but a packet's source: `-m bpf`, with a hash of the address against a threshold.

Why bpf: what else xt_hash offers can't tell one endpoint in n exactly. `-m cluster` knows 32 nodes at most, `HMARK`
writes the mark that masquerading needs, `-m u32` sees the address's bits as they are, and clients' low bits are not
evenly spread. A program for xt_bpf costs about as much as `-m statistic`, and the kernel compiles it.
"""

from functools import lru_cache
from hashlib import sha256

from kpx.family import Family

SPACE = 1 << 32
"""How many values the hash has."""

_SOURCE_AT = {Family.IPV4: (12,), Family.IPV6: (8, 12, 16, 20)}
"""Where the words of the source address stand in the header (RFC 791, RFC 8200), in bytes."""

_LOAD, _LOAD_X, _XOR, _XOR_X, _MULTIPLY, _SHIFT, _TO_X, _IF_AT_LEAST, _RETURN = 32, 1, 164, 172, 36, 116, 7, 53, 6
"""Codes of classic BPF, as in the kernel's `uapi/linux/bpf_common.h`."""

_MIX = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
"""Shift and multiplier of each round, and then one more shift: the constants of MurmurHash3's last step."""

_LAST_SHIFT = 16

Instruction = tuple[int, int, int, int]


def seed_of(name: str) -> int:
    """The seed for what is called `name`: 32 bits."""
    return int.from_bytes(sha256(name.encode()).digest()[:4], "big")


@lru_cache(maxsize=4096)
def below(family: Family, seed: int, threshold: int) -> str:
    """The match for sources whose hash with `seed` is less than `threshold`, of `SPACE` values."""
    program = [*_hash(family, seed), (_IF_AT_LEAST, 0, 1, threshold), (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 65535)]
    words = ",".join(" ".join(map(str, one)) for one in program)
    return f'-m bpf --bytecode "{len(program)},{words}"'


def _hash(family: Family, seed: int) -> list[Instruction]:
    """Instructions that leave the hash in the accumulator."""
    program: list[Instruction] = [(_LOAD_X, 0, 0, seed)]
    for offset in _SOURCE_AT[family]:
        program += [(_LOAD, 0, 0, offset), (_XOR_X, 0, 0, 0)]
        for shift, factor in _MIX:
            program += [*_fold(shift), (_MULTIPLY, 0, 0, factor)]
        program += [*_fold(_LAST_SHIFT), (_TO_X, 0, 0, 0)]
    return program


def _fold(shift: int) -> list[Instruction]:
    """A ^= A >> shift."""
    return [(_TO_X, 0, 0, 0), (_SHIFT, 0, 0, shift), (_XOR_X, 0, 0, 0)]
