"""One digit of every code of a matrix to and from the registers and words of stored tiles: see `lowbitvm.digits`.

The registers of all lanes are planes: u32 [register, row tile, k tile, 32 lanes], so that an operation on one register
is an operation on a long array.
"""

import functools
from typing import Any

import numpy as np

from lowbitvm import digits
from lowbitvm.digits import Base
from lowbitvm.words import LANES, transposed, word_views

NumpyArray = np.ndarray[Any, Any]

# axes of the transposition: row tile, row & 8, g, k tile, step, half of the step, q
TO_REGISTERS, FROM_REGISTERS = (4, 5, 1, 0, 3, 2, 6), (3, 2, 5, 4, 0, 1, 6)
# how 8 bytes with 4 bits each come to fill the lower half of a u64
GATHERED = ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF))
SPREAD = ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F))


def put_digit(digit: NumpyArray, words: NumpyArray, base: Base, bits: int, steps: int, high: int) -> None:
    """Stores digits u8 of `bits` bits, whole tiles of 8 * high rows, in words u32 [row tiles, k tiles, ...].

    steps: of a stored tile.
    """
    tiles_n, tiles_k, count = words.shape
    parts = _merged(digit, base.bits).reshape(tiles_n, high, 8, tiles_k, steps, 2, 4)
    registers = transposed(parts, TO_REGISTERS).reshape(2 * steps * high, tiles_n, tiles_k, LANES)
    for (_, lanes), word in zip(word_views(words, count // LANES), _narrowed(registers, bits, base.bits), strict=True):
        lanes[...] = word


def digit_of(words: NumpyArray, base: Base, bits: int, steps: int, high: int) -> NumpyArray:
    """The inverse of `put_digit`."""
    tiles_n, tiles_k, count = words.shape
    views = [np.ascontiguousarray(lanes) for _, lanes in word_views(words, count // LANES)]
    registers = np.ascontiguousarray(_widened(views, bits, base.bits))
    parts = transposed(registers.reshape(steps, 2, high, tiles_n, tiles_k, 8, 4), FROM_REGISTERS)
    return _split(parts.reshape(tiles_n * high * 8, tiles_k * steps * 8), base.bits)


def _merged(digit: NumpyArray, bits: int) -> NumpyArray:
    """Digits u8 (rows, K) one beside the other in u32, the first in the lowest bits."""
    if bits == 1:
        return np.packbits(digit, axis=-1, bitorder="little").view(np.uint32)
    if bits == 8:
        return digit.view(np.uint32)
    pairs = digit.view(np.uint64)
    for distance, mask in GATHERED:
        pairs = (pairs | pairs >> np.uint64(distance)) & np.uint64(mask)
    return pairs.astype(np.uint32)


def _split(merged: NumpyArray, bits: int) -> NumpyArray:
    """The inverse of `_merged`."""
    if bits == 1:
        return np.unpackbits(merged.view(np.uint8), axis=-1, bitorder="little")
    if bits == 8:
        return merged.view(np.uint8)
    pairs = merged.astype(np.uint64)
    for distance, mask in SPREAD:
        pairs = (pairs | pairs << np.uint64(distance)) & np.uint64(mask)
    return pairs.view(np.uint8)


def _narrowed(registers: NumpyArray, bits: int, width: int) -> NumpyArray:
    """The words of registers with codes of `bits` bits in fields of `width`, both as planes.

    Parts of codes are first stored as they are, and then changed until what widens them finds the codes.
    """
    if bits == width:
        return registers
    count = len(registers)
    words = np.zeros((count * bits // width, *registers.shape[1:]), np.uint32)
    raised, wrong = digits.raised_by(bits, width), registers
    while wrong.any():
        for register, runs in enumerate(digits.narrow(bits, width, count)):
            moved = _rotated(wrong[register], raised * (register % 2))
            for run in runs:
                mask = sum(((1 << run.length) - 1) << run.place + field for field in range(0, 32, width))
                words[run.word] ^= _rotated(moved & np.uint32(mask), -run.rotation(width))
        wrong = registers ^ _widened(list(words), bits, width)
    return words


def _widened(words: list[NumpyArray], bits: int, width: int) -> NumpyArray:
    """The inverse of `_narrowed`."""
    steps, found = digits.widening(bits, width, len(words) * width // bits, raised=False)
    values = list(words)
    for step in steps:
        value = _rotated(functools.reduce(np.bitwise_xor, [values[i] for i in step.values]), step.rotation)
        values.append(value & np.uint32(step.mask) if step.mask else value)
    return np.stack([values[i] for i in found])


def _rotated(words: NumpyArray, distance: int) -> NumpyArray:
    """Words rotated to the left, or to the right where the distance is negative."""
    left = distance % 32
    return words << np.uint32(left) | words >> np.uint32(32 - left) if left else words
