"""Integers as sums of digits: how codes of 1 to 8 bits are cut into what a tensor core multiplies.

A code's value is offset + sum of coefficient * digit. The offset is chosen so that the digits are the bits of one
stored number t, unsigned or two's complement: value = offset + factor * t. Then, over k,

    a . w = sum_ij c_i d_j (A_i . W_j) + w.offset * sum(A) + a.offset * sum(W) + K * a.offset * w.offset

where A_i, W_j are the digits, c_i, d_j their coefficients and sum(A) = sum over k of a - a.offset: rank-one terms.
Padding of k is t = 0, which adds nothing to any of them.

Stored tiles are in the order of the MMA fragments. With g = lane >> 2, q = lane & 3 (PTX ISA, "Matrix Fragments for
mma.m16n8k32" and ".m16n8k256"):
    s8  weights: 16 rows x 64 k; lane: 8 quads of 4 codes, quad 4 s + r: row g + 8 (r & 1), k = 32 s + 16 (r >> 1) + 4 q
        + byte. Each bit of a quad is somewhere in the same byte of the lane's p words, so that one shift and one mask
        widen four codes: see `quads`. Activations: 8 rows x 64 k, 4 words per lane of one byte per code.
    b1  weights: 16 rows x 256 k; per plane 4 words per lane, word r: row g + 8 (r & 1), k = 128 (r >> 1) + 32 q + bit.
        Activations: 8 columns x 512 k, 4 words per lane, a column being a plane of a row: rows side by side, each with
        its planes padded to a power of two. So the 8 planes of a single row fill the n8 side.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

from lowbitvm.dtypes import CodeType

QUADS = 8  # of a lane in one s8 tile of weights
COLUMNS = 8  # n of the MMA


@dataclass(frozen=True)
class Base:
    """A kind of digit, of `bits` bits. step_k: k of one MMA.

    tile_k: k of a stored tile of weights; of activations it is two steps, 4 words per lane.
    """

    name: str
    bits: int
    step_k: int
    tile_k: int

    @property
    def activation_k(self) -> int:
        """k of a stored tile of activations."""
        return 2 * self.step_k


ACTIVATION_WORDS = 4  # of a lane in a stored tile
BASES: dict[str, Base] = {base.name: base for base in (Base("s8", 8, 32, 64), Base("b1", 1, 256, 256))}


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

    Two's complement wherever t can be the value itself, which needs no offset, and the top digit can have the sign:
    narrow weights are widened by masks and have none. A top digit of one bit counts negatively.
    """
    bits = code.bits if bits is None else bits
    lowest = -(1 << (bits - 1))
    signed = code.low < 0 and lowest <= code.low and code.high < -lowest and bits % digit_bits == 0
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
    """Activations: whole bytes in base s8."""
    return decompose(code, BASES[base].bits, None if base == "b1" else BASES[base].bits)


def columns_per_row(code: CodeType, base: str) -> int:
    """Columns of the n8 side that one row of activations takes: its planes, padded to a power of two."""
    return 1 << (len(of_activations(code, base).digits) - 1).bit_length()


class Run(NamedTuple):
    """Bits `position` .. `position + length - 1` of each byte of a word are bits `bit` .. of each code of a quad."""

    word: int
    position: int
    bit: int
    length: int


@functools.cache
def quads(bits: int) -> tuple[tuple[Run, ...], ...]:
    """Where the QUADS quads of a lane lie in its `bits` words.

    Every byte of a word holds as many whole codes as fit. What is left of the words makes up the last quads, from as
    few runs as there can be.
    """
    whole = 8 // bits
    found: list[tuple[Run, ...]] = [
        (Run(word, place * bits, 0, bits),) for word in range(bits) for place in range(whole)
    ]
    left = {word: (whole * bits, 8 % bits) for word in range(bits) if 8 % bits}  # word -> position, length
    while len(found) < QUADS:
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
