"""Integers as sums of digits: how codes of 1 to 8 bits are cut into what a tensor core multiplies.

A code's value is offset + sum of coefficient * digit. The offset is chosen so that the digits are the bits of one
stored number t, unsigned or two's complement: value = offset + factor * t. Then, over k,

    a . w = sum_ij c_i d_j (A_i . W_j) + w.offset * sum(A) + a.offset * sum(W) + K * a.offset * w.offset

where A_i, W_j are the digits, c_i, d_j their coefficients and sum(A) = sum over k of a - a.offset: rank-one terms.
Padding of k is t = 0, which adds nothing to any of them.

Stored tiles are in the order of the MMA fragments. A fragment register has 32 / bits digits of a base; with
g = lane >> 2 and q = lane & 3 (PTX ISA, "Matrix Fragments for mma.m16n8k32", "k64" and "k256")

    weights      register r of a step: row g + 8 (r & 1), k = half of the step (r >> 1) + (32 / bits) q + digit
    activations  register r of a step: column g, k = half of the step r + (32 / bits) q + digit

A stored tile of weights has 16 rows, and per digit the registers of one step (s8: two). Codes are narrower than digits
of 4 or 8 bits: each bit of a register lies somewhere in the same field of `bits` bits of a word, so that one shift and
one mask widen all codes of a register (`narrow`). A stored tile of activations has 8 columns and two steps. A column is
a digit of a row: rows lie side by side, each with its digits, padded to a power of two. So the 8 planes of a single row
fill the n8 side.

Where a field is no whole number of codes, what is left of several words makes up one more register. Instead of cutting
every part out, these words are rotated so that their parts come to lie side by side, XORed, and masked once: packing
has XORed the parts with the bits of the other words that will be in their places (`widening`).
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from lowbitvm.dtypes import CodeType

COLUMNS = 8  # n of the MMA


@dataclass(frozen=True)
class Base:
    """A kind of digit, of `bits` bits. steps: of the k of one MMA in a stored tile of weights; two of activations."""

    name: str
    bits: int
    steps: int

    @property
    def step_k(self) -> int:
        """k of one MMA: two fragment registers of four lanes."""
        return 2 * 4 * 32 // self.bits

    @property
    def tile_k(self) -> int:
        """k of a stored tile of weights."""
        return self.steps * self.step_k

    @property
    def activation_k(self) -> int:
        """k of a stored tile of activations."""
        return 2 * self.step_k


ACTIVATION_WORDS = 4  # of a lane in a stored tile
BASES: dict[str, Base] = {base.name: base for base in (Base("s8", 8, 2), Base("s4", 4, 1), Base("b1", 1, 1))}


@dataclass(frozen=True)
class Digit:
    """Bits `place` .. `place + bits - 1` of t; the value of a code has `coefficient` times this number."""

    place: int
    bits: int
    coefficient: int
    signed: bool  # two's complement

    def of(self, stored: int) -> int:
        """The digit of a stored number."""
        digit = stored >> self.place & ((1 << self.bits) - 1)
        return digit - (1 << self.bits) if self.signed and digit >> (self.bits - 1) else digit


@dataclass(frozen=True)
class Decomposition:
    """value = offset + factor * t, with t stored in `bits` bits, as two's complement if `signed`."""

    digits: tuple[Digit, ...]
    offset: int
    factor: int
    bits: int
    signed: bool

    def stored(self, value: int) -> int:
        """t of a value as its bits, an unsigned number."""
        return (value - self.offset) // self.factor % (1 << self.bits)

    @property
    def coefficients(self) -> tuple[int, ...]:
        return tuple(digit.coefficient for digit in self.digits)


@functools.cache
def decompose(code: CodeType, digit_bits: int, bits: int | None = None) -> Decomposition:
    """A code type in digits of `digit_bits` bits, stored in `bits` bits (its own number where that is None).

    Two's complement wherever t can be the value itself, which needs no offset, in planes or a single whole digit:
    narrow codes are widened by masks, and the columns of an MMA have one sign. A sign plane counts negatively.
    """
    bits = code.bits if bits is None else bits
    lowest = -(1 << (bits - 1))
    signed = code.low < 0 and lowest <= code.low and code.high < -lowest and digit_bits in (1, bits)
    factor, offset = (1, 0) if signed else (code.step, code.low)
    digits = []
    for place in range(0, bits, digit_bits):
        width = min(digit_bits, bits - place)
        top = signed and place + width == bits
        sign = -1 if top and width == 1 else 1
        digits.append(Digit(place, width, sign * factor << place, top and width > 1))
    return Decomposition(tuple(digits), offset, factor, bits, signed)


def of_weights(code: CodeType, base: str) -> Decomposition:
    """Weights: as many bits as the code has."""
    return decompose(code, BASES[base].bits)


def of_activations(code: CodeType, base: str) -> Decomposition:
    """Activations: whole digits."""
    width = BASES[base].bits
    return decompose(code, width, -(-code.bits // width) * width)


def columns_per_row(code: CodeType, base: str) -> int:
    """Columns of the n8 side that one row of activations takes: its digits, padded to a power of two."""
    return 1 << (len(of_activations(code, base).digits) - 1).bit_length()


class Run(NamedTuple):
    """`length` bits from `position` on of each field of a word: those from `place` on of the fields of a register.

    The word is rotated to the left for that, by less than a field: the bits may go to the next one.
    """

    word: int
    position: int
    place: int
    length: int

    def rotation(self, width: int) -> int:
        """Places by which the word is rotated to the left."""
        return (self.place - self.position) % width


# The registers of codes of (bits, width of a field) where fields are no whole number of codes: runs of odd registers
# are those of raised ones. Runs of a register whose words are rotated alike are rotated together.
MIXED: dict[tuple[int, int], tuple[tuple[tuple[int, int, int, int], ...], ...]] = {
    (3, 8): (
        ((0, 0, 0, 3),), ((0, 3, 3, 3),), ((1, 0, 0, 3),), ((1, 3, 3, 3),), ((2, 0, 0, 3),), ((2, 3, 3, 3),),
        ((0, 6, 0, 2), (1, 6, 2, 1)), ((1, 7, 3, 1), (2, 6, 4, 2)),
    ),
    (5, 8): (
        ((0, 0, 0, 5),), ((4, 3, 3, 5),), ((1, 0, 0, 5),), ((0, 5, 5, 3), (3, 5, 3, 2)), ((2, 0, 0, 5),),
        ((1, 5, 5, 3), (3, 7, 3, 1), (4, 2, 4, 1)), ((3, 0, 0, 5),), ((2, 5, 5, 3), (4, 0, 3, 2)),
    ),
    (6, 8): (
        ((0, 0, 0, 6),), ((4, 2, 2, 6),), ((1, 0, 0, 6),), ((0, 6, 6, 2), (1, 6, 2, 2), (4, 0, 4, 2)),
        ((2, 0, 0, 6),), ((5, 2, 2, 6),), ((3, 0, 0, 6),), ((2, 6, 6, 2), (3, 6, 2, 2), (5, 0, 4, 2)),
    ),
    (7, 8): (
        ((0, 0, 0, 7),), ((4, 1, 1, 7),), ((1, 0, 0, 7),), ((5, 1, 1, 7),), ((2, 0, 0, 7),), ((6, 1, 1, 7),),
        ((3, 0, 0, 7),),
        ((0, 7, 7, 1), (1, 7, 1, 1), (4, 0, 2, 1), (2, 7, 3, 1), (5, 0, 4, 1), (3, 7, 5, 1), (6, 0, 6, 1)),
    ),
    (3, 4): (((0, 0, 0, 3),), ((2, 1, 1, 3),), ((1, 0, 0, 3),), ((0, 3, 3, 1), (1, 3, 1, 1), (2, 0, 2, 1))),
}  # fmt: skip


def raised_by(bits: int, width: int) -> int:
    """The factor, as a power of two, that fields have room for beside codes of `bits` bits; no more than 2^bits.

    Rows 8 to 15 of a tile, whose registers are the odd ones, may keep it until the sums are complete: so that of two
    codes in a field none is shifted, and the parts of codes lie at both ends of fields.
    """
    return bits if 2 * bits <= width else width - bits


def widens_once(code: CodeType, base: str, columns: int) -> bool:
    """Whether a block widens its weights once for all warps, in shared memory, to multiply them with so many columns.

    That takes more columns than a warp has sums for, and pays where fields are no whole number of codes.
    """
    narrow_digits = of_weights(code, base).digits
    return columns > 2 * COLUMNS and len(narrow_digits) == 1 and BASES[base].bits % narrow_digits[0].bits != 0


def longest_folded(weights: CodeType, activations: CodeType, base: str) -> int:
    """The largest k whose sums of products of digits stay below 2^31 with the factors that rows of weights keep."""
    width = BASES[base].bits
    narrow_digits = [digit.bits for digit in of_weights(weights, base).digits if digit.bits < width]
    if not narrow_digits:
        return 0
    largest = max(((1 << bits) - 1) << raised_by(bits, width) for bits in narrow_digits)
    sizes = (
        (1 << digit.bits - digit.signed) - (not digit.signed) for digit in of_activations(activations, base).digits
    )
    return ((1 << 31) - 1) // (largest * max(sizes))


@functools.cache
def narrow(bits: int, width: int, registers: int) -> tuple[tuple[Run, ...], ...]:
    """Where registers, each with codes of `bits` bits in fields of `width`, lie in registers * bits / width words."""
    if (bits, width) in MIXED:
        block = MIXED[bits, width]
        words = len(block) * bits // width
        each = [(register, words * i) for i in range(registers // len(block)) for register in block]
        return tuple(tuple(Run(run[0] + first, *run[1:]) for run in register) for register, first in each)
    whole, raised = width // bits, raised_by(bits, width)
    places = [(word, place) for word in range(registers // whole) for place in range(whole)]
    return tuple((Run(word, bits * place, raised * (place % 2), bits),) for word, place in places)


class Step(NamedTuple):
    """The XOR of values, rotated to the left, with all bits but those of the mask cleared unless that is 0.

    Values are numbered: the words, then the results of the steps before. A step rotates or has a mask, not both, and
    two values with a mask or three without: an instruction each.
    """

    values: tuple[int, ...]
    rotation: int
    mask: int


@functools.cache
def widening(bits: int, width: int, registers: int, raised: bool) -> tuple[tuple[Step, ...], tuple[int, ...]]:
    """How the registers are made of words that lie as in `narrow`: (steps, the value of each register).

    raised: odd registers keep a factor 2^raised_by(bits, width).
    """
    numbers: dict[Step, int] = {}
    words = registers * bits // width

    def made(*step: Any) -> int:
        return numbers.setdefault(Step(*step), words + len(numbers))

    def xor(values: list[int], mask: int) -> int:
        while len(values) > 2:
            values = [made(tuple(values[:3]), 0, 0), *values[3:]]
        return made(tuple(values), 0, mask) if mask or len(values) > 1 else values[0]

    found = []
    for number, runs in enumerate(narrow(bits, width, registers)):
        lower = raised_by(bits, width) if number % 2 and not raised else 0
        alike: dict[int, list[int]] = {}
        for run in runs:
            alike.setdefault((run.rotation(width) - lower) % 32, []).append(run.word)
        rotated = []
        for rotation, together in alike.items():
            value = xor(together, 0)
            rotated.append(made((value,), rotation, 0) if rotation else value)
        lowest = min(run.place for run in runs) - lower
        mask = sum(((1 << bits) - 1) << lowest + field for field in range(0, 32, width))
        found.append(xor(rotated, mask))
    return tuple(numbers), tuple(found)
