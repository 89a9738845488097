"""The stored order inside a chunk: which bit of a lane's words is which bit of which code.

A packed tile is 16 out_features x 64 in_features. Each of its 32 lanes (lane = 4 g + q) owns 32 codes of p bits,
exactly p words, in which any permutation of the bits is allowed; it is chosen together with the decode sequence.
Code c = 8 s + 2 r + half of a lane is feature n = g + 8 (r & 1) at k = 16 s + 2 q + half + 8 (r >> 1): half `half` of
register r of the A fragment of k16 step s (PTX ISA, "Matrix fragments for mma.m16n8k16").
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm.dtypes import DType

LANES = 32
CODES = 32  # of a lane in one tile
PAIRS = CODES // 2  # registers of A fragments: pair 4 s + r


@dataclass(frozen=True, eq=False)
class Order:
    """The order of a chunk's bits. `positions` is int64 (32, p): bit b of code c is bit `positions[c, b] & 31` of the
    lane's word `positions[c, b] >> 5`; a permutation of 0 .. 32 p - 1, read-only."""

    positions: np.ndarray[Any, np.dtype[np.int64]]


@functools.cache
def order(dtype: DType) -> Order:
    """The stored order of a code type; the same for every target, activation dtype and tile."""
    code, bit = np.arange(CODES)[:, None], np.arange(dtype.bits)
    place = dtype.bits * (code >> 1) + bit  # on the circles of 16 places that the words' halves share
    positions = place // 16 * 32 + place % 16 + 16 * (code & 1)
    positions.flags.writeable = False
    return Order(positions)


def blocks(bits: int) -> tuple[int, ...]:
    """Words per lane of each block of a tile: as many vectors of 4 as there are, then 2, then 1."""
    return (4,) * (bits // 4) + (2,) * (bits // 2 % 2) + (1,) * (bits % 2)


def word_place(bits: int, word: int) -> tuple[int, int, int]:
    """(start, width, index): word `word` of lane l is u32 number start + l * width + index of its tile.

    Blocks of [32 lanes][width words], so that the lanes' vector accesses are contiguous and free of bank conflicts.
    """
    first = start = 0
    for width in blocks(bits):
        if word < first + width:
            return start, width, word - first
        first, start = first + width, start + LANES * width
    raise IndexError(f"word {word} of a chunk of {bits} words")
