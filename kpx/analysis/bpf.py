"""Classic BPF, as `-m bpf --bytecode` has it: programs that look at nothing but a packet's source."""

from collections.abc import Callable
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
class Instruction:
    """One instruction, as `struct sock_filter` of the kernel's `uapi/linux/filter.h` has it."""

    code: int
    jt: int
    jf: int
    k: int


Program = tuple[Instruction, ...]


@lru_cache(maxsize=4096)
def parse(text: str) -> Program:
    """The instructions of `--bytecode`'s argument. Raises BytecodeError."""
    count, *rest = text.split(",")
    try:
        program = tuple(Instruction(*map(int, one.split())) for one in rest if one.strip())
        promised = int(count)
    except (ValueError, TypeError) as error:
        raise BytecodeError(f"not a BPF program: {text[:60]!r}") from error
    if promised != len(program) or not 0 < len(program) <= _MOST:
        raise BytecodeError(f"not a BPF program of {promised} instructions: {text[:60]!r}")
    return program


def matches_source(program: Program, source: int, family: Family) -> bool | None:
    """Whether packets from `source`, an address as a number, match. None if `result` is."""
    found = result(program, source, family)
    return None if found is None else found > 0


def threshold(program: Program) -> tuple[Program, int] | None:
    """A program that computes a number, and what this has to be less than for `program` to match.

    Of a program that ends otherwise than by comparing the accumulator, in this way, None.
    """
    match program[-3:]:
        case (Instruction(0x35, 0, 1, bound), Instruction(0x06, _, _, 0), Instruction(0x06, _, _, yes)) if yes:
            number = program[:-3]
            if all(one.code & 7 not in (5, 6) for one in number):
                return (*number, Instruction(0x16, 0, 0, 0)), bound
    return None


def asks_source_alone(program: Program, family: Family) -> bool:
    """Whether a program loads nothing of a packet but its source."""
    words = _words(0, family)
    loads = (one for one in program if one.code & 7 in (0, 1))
    return all(one.code in (0x00, 0x01) or (one.code == 0x20 and one.k in words) for one in loads)


def _words(source: int, family: Family) -> dict[int, int]:
    """The words of the source address, by where they stand in the header (RFC 791, RFC 8200), in bytes."""
    start, bits = (12, 32) if family is Family.IPV4 else (8, 128)
    return {start + at // 8: source >> (bits - 32 - at) & _WORD for at in range(0, bits, 32)}


def result(program: Program, source: int, family: Family) -> int | None:
    """What a program returns for packets from `source`: 0 if they don't match.

    None if that depends on more than the source, or on what isn't done here.
    """
    words = _words(source, family)
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
                return accumulator if one.code == 0x16 else one.k
            case 7:
                accumulator, index = (index, index) if one.code & 0x80 else (accumulator, accumulator)
            case _:
                return None
    return None
