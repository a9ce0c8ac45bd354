"""Classic BPF, as `-m bpf --bytecode` has it: programs that look at nothing but a packet's source and destination."""

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


def matches(program: Program, source: int | None, destination: int | None, family: Family) -> bool | None:
    """Whether packets between two addresses, as numbers, match; None for one that isn't known. None if `result` is."""
    found = result(program, source, family, destination)
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
    words = _places(family)[0]
    loads = (one for one in program if one.code & 7 in (0, 1))
    return all(one.code in (0x00, 0x01) or (one.code == 0x20 and one.k in words) for one in loads)


def asks_to_itself(program: Program, family: Family) -> bool:
    """Whether a program matches the packets whose source is their destination, and no others.

    It is told of one that compares the addresses word by word, in any order, and ends where two words differ.
    """
    sources, destinations = _places(family)
    partner = {**dict(zip(sources, destinations, strict=True)), **dict(zip(destinations, sources, strict=True))}
    left = set(sources)
    accumulator = index = -1
    at = 0
    while at < len(program):
        one = program[at]
        at += 1
        match one:
            case Instruction(code=0x20):
                accumulator = one.k
            case Instruction(code=0x07):
                index = accumulator
            case Instruction(code=0x1D) if partner.get(accumulator) == index and _refuses(program, at + one.jf):
                left.discard(min(accumulator, index))  # a source's words stand before those of its destination
                at += one.jt
            case Instruction(code=0x06):
                return one.k > 0 and not left
            case _:
                return False
    return False


def _refuses(program: Program, at: int) -> bool:
    """Whether what stands there says that the packet doesn't match."""
    return at < len(program) and program[at].code == 0x06 and program[at].k == 0


def _places(family: Family) -> tuple[range, range]:
    """Where the words of source and destination stand in the header (RFC 791, RFC 8200), in bytes."""
    start, size = (12, 4) if family is Family.IPV4 else (8, 16)
    return range(start, start + size, 4), range(start + size, start + 2 * size, 4)


def _words(address: int, places: range) -> dict[int, int]:
    """The words of an address, by where they stand."""
    return {place: address >> 32 * (len(places) - 1 - at) & _WORD for at, place in enumerate(places)}


def result(program: Program, source: int | None, family: Family, destination: int | None = None) -> int | None:
    """What a program returns for packets from `source` to `destination`: 0 if they don't match.

    None if that depends on more than what is given, or on what isn't done here.
    """
    addresses = zip((source, destination), _places(family), strict=True)
    words = {at: word for one, places in addresses if one is not None for at, word in _words(one, places).items()}
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
