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
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

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
    """Bits `position` .. `position + length - 1` of each field of a word: bits `bit` .. of each code of a register."""

    word: int
    position: int
    bit: int
    length: int


def folds(digit_bits: int, base: Base) -> bool:
    """Whether a digit of weights leaves room in its fields for a factor 2^digit_bits.

    Rows 8 to 15 of a tile may then keep it until the sums are complete: they lie above the digits of rows 0 to 7, so
    that one shift serves both, and none where they are the lowest of their word.
    """
    return 2 * digit_bits <= base.bits


def widens_once(code: CodeType, base: str, columns: int) -> bool:
    """Whether a block widens its weights once for all warps, in shared memory, to multiply them with so many columns.

    That takes more columns than a warp has sums for, and pays where fields are no whole number of codes.
    """
    narrow_digits = of_weights(code, base).digits
    return columns > 2 * COLUMNS and len(narrow_digits) == 1 and BASES[base].bits % narrow_digits[0].bits != 0


def longest_folded(weights: CodeType, activations: CodeType, base: str) -> int:
    """The largest k whose sums of products of digits stay below 2^31 with the factors that rows of weights keep."""
    narrow_digits = [digit.bits for digit in of_weights(weights, base).digits if folds(digit.bits, BASES[base])]
    if not narrow_digits:
        return 0
    largest = max(((1 << bits) - 1) << bits for bits in narrow_digits)
    sizes = (
        (1 << digit.bits - digit.signed) - (not digit.signed) for digit in of_activations(activations, base).digits
    )
    return ((1 << 31) - 1) // (largest * max(sizes))


@functools.cache
def narrow(bits: int, width: int, registers: int) -> tuple[tuple[Run, ...], ...]:
    """Where the registers, each with codes of `bits` bits in fields of `width`, lie in registers * bits / width words.

    Every field of a word holds as many whole codes as fit. What is left of the words makes up the last registers, from
    as few runs as there can be.
    """
    whole, words = width // bits, registers * bits // width
    found: list[tuple[Run, ...]] = []
    found += [(Run(word, place * bits, 0, bits),) for word in range(words) for place in range(whole)]
    left = {word: (whole * bits, width % bits) for word in range(words) if width % bits}  # word -> position, length
    while len(found) < registers:
        runs, bit = [], 0
        while bit < bits:
            word = max(left, key=lambda w: (min(left[w][1], bits - bit), -left[w][1], -w))
            position, length = left.pop(word)
            taken = min(length, bits - bit)
            runs.append(Run(word, position, bit, taken))
            if taken < length:
                left[word] = (position + taken, length - taken)
            bit += taken
        found.append(tuple(runs))
    return tuple(found)


def field_mask(run: Run, width: int) -> int:
    """The bits of a run in every code of a register."""
    return sum(((1 << run.length) - 1) << run.bit + place for place in range(0, 32, width))
