"""Matrices of integer codes in the stored order that digit kernels read; `lowbitvm.digits` says what it is."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowbitvm import arrays, chunk, digits, dtypes
from lowbitvm.digits import BASES, Decomposition
from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.words import check_codes

LANES = 32
BYTES = 0x01010101

NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class PackedDigits:
    """A matrix of integer codes (rows, K) in digits: weights, whose format has `act`, or activations.

    words: u32 (numpy) or i32 (torch) [row tiles, k tiles, words of a tile]; 16 rows of weights or 8 columns of
        activations to a tile, in the order of `lowbitvm.digits`. Padding is stored as 0 bits.
    sums: i32 [rows], the sum over k of value - offset of every row.

    The arrays are contiguous. Compares by identity.
    """

    words: Array
    sums: Array
    format: Format
    rows: int
    columns: int
    permutation = None

    @property
    def is_weight(self) -> bool:
        return self.format.act is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, K): (out_features, in_features) of a weight, (m, in_features) of activations."""
        return (self.rows, self.columns)

    @property
    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name."""
        return {"words": self.words, "sums": self.sums}

    @property
    def decomposition(self) -> Decomposition:
        """The digits of the codes."""
        return format_digits(self.format)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored arrays, padding included."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    def __repr__(self) -> str:
        kind = "weight" if self.is_weight else "activations"
        return f"PackedDigits({str(self.format)!r}, {kind} {self.shape}, {arrays.device(self.words)})"

    def unpack(self) -> Array:
        """The codes (rows, K) as they were packed, in the smallest dtype that holds them."""
        fmt, parts = self.format, self.decomposition
        stored = _unpacked(_host(self.words), self)
        if parts.signed:
            stored = stored - (stored >> (parts.bits - 1) << parts.bits)
        codes = (parts.offset + parts.factor * stored).astype(fmt.code.numpy)
        return _like(self.words, codes)

    def to(self, device: Any) -> "PackedDigits":
        """The same matrix of torch tensors on another device."""
        return replace(self, words=self.words.to(device), sums=self.sums.to(device))


def format_digits(fmt: Format) -> Decomposition:
    """The digits of a format's codes: of weights where it has `act`, of activations where not."""
    assert fmt.digits is not None
    return (digits.of_activations if fmt.act is None else digits.of_weights)(fmt.code, fmt.digits)


def pack_weights(codes: Array, fmt: Format | str) -> PackedDigits:
    """Brings an integer weight, whose format has `act`, into the stored order of its digits.

    codes: integers (out_features, in_features), values of the code type `fmt.dtype`; numpy, or torch on any device.
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, CODES_OUT_OF_RANGE, FORMAT_INVALID.
    """
    fmt = Format.parse(fmt) if isinstance(fmt, str) else fmt
    if fmt.act is None:
        raise LowbitvmError(
            "FORMAT_INVALID", f"{fmt} does not say what its codes are multiplied with", 'add act, as in act="i8"'
        )
    return _pack(codes, fmt)


def pack_activations(
    codes: Array, fmt: Format | str, scales: Array | None = None, zeros: Array | None = None
) -> PackedDigits:
    """Brings integer activations into the stored order; `lb.matmul` multiplies them with packed weights.

    codes: integers (m, in_features), values of the code type `fmt.dtype`. fmt: a Format, or its text, such as "i8" or
    "u4,digits=b1"; its digits, "s8" unless told otherwise, are to be the weight's. scales, zeros: no kernel takes them
    yet. Raises SHAPE_MISMATCH, DTYPE_MISMATCH, CODES_OUT_OF_RANGE, FORMAT_INVALID, FORMAT_UNSUPPORTED.
    """
    fmt = Format.parse(fmt) if isinstance(fmt, str) else fmt
    if fmt.act is not None:
        raise LowbitvmError(
            "FORMAT_INVALID", f"activations of {fmt}, which is a weight's", f"use Format({fmt.act!r}, digits=...)"
        )
    fmt = replace(fmt, digits=fmt.digits or "s8")
    if scales is not None or zeros is not None:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"scales or zeros beside integer activations of {fmt.dtype}",
            "leave them out and scale the exact s32 product",
        )
    return _pack(codes, fmt)


def _pack(codes: Array, fmt: Format) -> PackedDigits:
    """Integer codes (rows, K) in the stored order of a format with digits."""
    if codes.ndim != 2 or not dtypes.of(codes).is_integer:
        code = "SHAPE_MISMATCH" if codes.ndim != 2 else "DTYPE_MISMATCH"
        raise LowbitvmError(
            code, f"codes of {dtypes.of(codes)} with shape {tuple(codes.shape)}", "pass integers (rows, in_features)"
        )
    codes = arrays.detached(codes)
    check_codes("codes", codes, fmt.code, fmt.code.step)
    decomposition = format_digits(fmt)
    values = _host(codes).astype(np.int64)
    stored = ((values - decomposition.offset) // decomposition.factor) & ((1 << decomposition.bits) - 1)
    sums = (values - decomposition.offset).sum(1).astype(np.int32)
    words = _packed(stored.astype(np.uint8), fmt)
    return PackedDigits(_like(codes, words), _like(codes, sums), fmt, *map(int, codes.shape))


def _host(array: Array) -> NumpyArray:
    host: NumpyArray = np.ascontiguousarray(arrays.host(array.cpu() if dtypes.is_tensor(array) else array))
    return host


def _like(like: Array, array: NumpyArray) -> Array:
    """A numpy array in the library and on the device of `like`."""
    return arrays.tensor(np.ascontiguousarray(array)).to(like.device) if dtypes.is_tensor(like) else array


def row_tiles(fmt: Format, rows: int) -> int:
    """Stored tiles along the rows."""
    assert fmt.digits is not None
    if fmt.act is not None:
        return -(-rows // 16)
    return -(-rows * digits.columns_per_row(fmt.code, fmt.digits) // digits.COLUMNS)


def tile_words(fmt: Format) -> int:
    """Words of one stored tile."""
    assert fmt.digits is not None
    base = BASES[fmt.digits]
    return LANES * (fmt.bits * base.tile_k // 64 if fmt.act is not None else digits.ACTIVATION_WORDS)


def tile_k(fmt: Format) -> int:
    """in_features of one stored tile."""
    assert fmt.digits is not None
    return BASES[fmt.digits].tile_k if fmt.act is not None else BASES[fmt.digits].activation_k


# In the transpositions below: t row tile, T k tile, h row & 8, s k32 step, u upper half of a step, q and g of the lane,
# p plane, b the byte of a word, or its 32 bits.


def _packed(stored: NumpyArray, fmt: Format) -> NumpyArray:
    """u32 words of stored numbers u8 (rows, K)."""
    count, k_tiles = row_tiles(fmt, stored.shape[0]), -(-stored.shape[1] // tile_k(fmt))
    if fmt.act is None:
        stored = _columns(stored, fmt)
    high = 1 if fmt.act is None else 2  # rows above g
    full = np.zeros((count * 8 * high, k_tiles * tile_k(fmt)), np.uint8)
    full[: stored.shape[0], : stored.shape[1]] = stored
    if fmt.digits == "s8":
        tiles = full.reshape(count, high, 8, k_tiles, 2, 2, 4, 4).transpose(0, 3, 2, 6, 4, 5, 1, 7)
        quads = np.ascontiguousarray(tiles).view(np.uint32).reshape(count, k_tiles, LANES, 4 * high)
        words = _narrowed(quads, fmt.bits) if fmt.act is not None else quads
    else:
        planes = fmt.bits if fmt.act is not None else 1
        steps = 1 if fmt.act is not None else 2  # of a stored tile
        bits = full[..., None] >> np.arange(planes, dtype=np.uint8) & 1
        tiles = bits.reshape(count, high, 8, k_tiles, steps, 2, 4, 32, planes).transpose(0, 3, 8, 2, 6, 4, 5, 1, 7)
        words = np.packbits(np.ascontiguousarray(tiles), axis=-1, bitorder="little").view(np.uint32)
    return words.reshape(count, k_tiles, tile_words(fmt))


def _unpacked(words: NumpyArray, matrix: PackedDigits) -> NumpyArray:
    """Stored numbers i64 (rows, K) of words; the inverse of `_packed`."""
    fmt, (count, k_tiles, _) = matrix.format, words.shape
    words, high = words.view(np.uint32), 1 if fmt.act is None else 2
    if fmt.digits == "s8":
        quads = _widened(words, fmt.bits) if fmt.act is not None else words
        tiles = np.ascontiguousarray(quads).view(np.uint8).reshape(count, k_tiles, 8, 4, 2, 2, high, 4)
        full = tiles.transpose(0, 6, 2, 1, 4, 5, 3, 7)
    else:
        planes = fmt.bits if fmt.act is not None else 1
        steps = 1 if fmt.act is not None else 2
        bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
        tiles = bits.reshape(count, k_tiles, planes, 8, 4, steps, 2, high, 32).transpose(0, 7, 3, 1, 5, 6, 4, 8, 2)
        full = (tiles.astype(np.int64) << np.arange(planes)).sum(-1)
    rows = full.shape[0] * full.shape[1] * full.shape[2]
    flat = full.reshape(rows, math.prod(full.shape[3:]))[:, : matrix.columns].astype(np.int64)
    if fmt.act is None and fmt.digits == "b1":
        each = digits.columns_per_row(fmt.code, fmt.digits)
        by_row = flat[: matrix.rows * each].reshape(matrix.rows, each, matrix.columns)
        flat = (by_row << np.arange(each)[:, None]).sum(1)
    return flat[: matrix.rows]


def _columns(stored: NumpyArray, fmt: Format) -> NumpyArray:
    """Rows of activations as columns of the n8 side: themselves, or in base b1 their planes."""
    if fmt.digits != "b1":
        return stored
    each = digits.columns_per_row(fmt.code, "b1")
    planes = stored[:, None, :] >> np.arange(each, dtype=np.uint8)[:, None] & 1
    return planes.reshape(stored.shape[0] * each, stored.shape[1])


def _narrowed(quads: NumpyArray, bits: int) -> NumpyArray:
    """The words of tiles [..., 32, 8 quads] with one code per byte."""
    words = np.zeros((*quads.shape[:2], LANES * bits), np.uint32)
    for quad, runs in enumerate(digits.quads(bits)):
        for run in runs:
            field = quads[..., quad] >> np.uint32(run.bit) & np.uint32(((1 << run.length) - 1) * BYTES)
            words[..., _places(bits, run.word)] |= field << np.uint32(run.position)
    return words


def _widened(words: NumpyArray, bits: int) -> NumpyArray:
    """The inverse of `_narrowed`."""
    quads = np.zeros((*words.shape[:2], LANES, digits.QUADS), np.uint32)
    for quad, runs in enumerate(digits.quads(bits)):
        for run in runs:
            field = words[..., _places(bits, run.word)] >> np.uint32(run.position)
            quads[..., quad] |= (field & np.uint32(((1 << run.length) - 1) * BYTES)) << np.uint32(run.bit)
    return quads


def _places(bits: int, word: int) -> NumpyArray:
    """Where word `word` of the lanes lies in a tile of weights."""
    start, width, index = chunk.word_place(bits, word)
    return start + np.arange(LANES) * width + index
