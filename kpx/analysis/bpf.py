"""Classic BPF, as `-m bpf --bytecode` has it: what a program says of a packet of which only the source is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kpx.family import Family

_WORD = (1 << 32) - 1
_MOST = 64
"""xt_bpf's programs are no longer (`XT_BPF_MAX_NUM_INSTR`)."""

_ALU: dict[int, Callable[[int, int], int | None]] = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x30: lambda a, b: a // b if b else None,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << b if b < 32 else None,
    0x70: lambda a, b: a >> b if b < 32 else None,
    0x90: lambda a, b: a % b if b else None,
    0xA0: lambda a, b: a ^ b,
}
_JUMPS: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: bool(a & b),
}
_X = 8
"""The bit of a code that says: the index register is the operand."""


class BytecodeError(ValueError):
    """Text that is no program."""


@dataclass(frozen=True, slots=True)
class _Instruction:
    code: int
    jt: int
    jf: int
    k: int


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[_Instruction, ...]:
    """The instructions of `--bytecode`'s argument. Raises BytecodeError."""
    count, *rest = text.split(",")
    try:
        program = tuple(_Instruction(*map(int, one.split())) for one in rest if one.strip())
        promised = int(count)
    except (ValueError, TypeError) as error:
        raise BytecodeError(f"not a BPF program: {text[:60]!r}") from error
    if promised != len(program) or not 0 < len(program) <= _MOST:
        raise BytecodeError(f"not a BPF program of {promised} instructions: {text[:60]!r}")
    return program


def matches_source(program: Sequence[_Instruction], source: int, family: Family) -> bool | None:
    """Whether packets from `source`, an address as a number, match.

    None if that depends on more than the source, or on what isn't done here.
    """
    start, bits = (12, 32) if family is Family.IPV4 else (8, 128)
    words = {start + at // 8: source >> (bits - 32 - at) & _WORD for at in range(0, bits, 32)}
    accumulator = index = at = 0
    while at < len(program):
        one = program[at]
        at += 1
        operand = index if one.code & _X else one.k
        match one.code & 7:
            case 0 if one.code == 0x20 and one.k in words:
                accumulator = words[one.k]
            case 0 if one.code == 0x00:
                accumulator = one.k
            case 1 if one.code == 0x01:
                index = one.k
            case 4 if one.code & 0xF0 in _ALU:
                result = _ALU[one.code & 0xF0](accumulator, operand)
                if result is None:
                    return None
                accumulator = result & _WORD
            case 5 if one.code == 0x05:
                at += one.k
            case 5 if one.code & 0xF0 in _JUMPS:
                at += one.jt if _JUMPS[one.code & 0xF0](accumulator, operand) else one.jf
            case 6:
                return bool(accumulator if one.code == 0x16 else one.k)
            case 7:
                accumulator, index = (index, index) if one.code & 0x80 else (accumulator, accumulator)
            case _:
                return None
    return None
