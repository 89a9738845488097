"""Matrices of integer codes in the stored order that digit kernels read; `lowbitvm.digits` says what it is."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowbitvm import arrays, digits, dtypes
from lowbitvm.digits import BASES, Decomposition
from lowbitvm.digitwords import digit_of, put_digit
from lowbitvm.dtypes import CODE_TYPES, Array, DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.words import check_codes

LANES = 32
BLOCK_CODES = 1 << 18  # packed at a time: the digits and words of a block stay in a core's cache

NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class PackedDigits:
    """A matrix of integer codes (rows, K) in digits: weights, whose format has `act`, or activations.

    words: u32 (numpy) or i32 (torch) [row tiles, k tiles, words of a tile]; 16 rows of weights or 8 columns of
        activations to a tile, in the order of `lowbitvm.digits`. Padding is stored as 0 bits.
    sums: i32 [rows], the sum over k of value - offset of every row; or [rows, parts], the sums of equal parts of k.
    scales, zeros: f32 and i32 [rows], or None: the real number of a code is scale * (factor * code - zero), with the
        `factor` 1 but for the top planes of codes. Of formats with a group along k [rows, groups].

    The arrays are contiguous. Compares by identity.
    """

    words: Array
    sums: Array
    format: Format
    rows: int
    columns: int
    scales: Array | None = None
    zeros: Array | None = None
    permutation = None

    @property
    def is_weight(self) -> bool:
        return self.format.act is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, K): (out_features, in_features) of a weight, (m, in_features) of activations."""
        return (self.rows, self.columns)

    @functools.cached_property
    def format_text(self) -> str:
        """The format as `Format.parse` reads it."""
        return str(self.format)

    @property
    def arrays(self) -> dict[str, Array]:
        """The stored arrays that there are, by name."""
        named = {"words": self.words, "sums": self.sums, "scales": self.scales, "zeros": self.zeros}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def summed(self) -> int:
        """in_features of each sum."""
        return self.columns if self.sums.ndim == 1 else self.columns // max(1, int(self.sums.shape[1]))

    @property
    def group(self) -> int | None:
        """in_features that share a scale, where these are not all."""
        return self.format.group if self.scales is not None and isinstance(self.format.group, int) else None

    @property
    def decomposition(self) -> Decomposition:
        """The digits of the codes."""
        return format_digits(self.format)

    @property
    def factor(self) -> int:
        """What codes count, beside their zeros."""
        return code_factor(self.format)

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
        stored = _unpacked(_host(self.words), self).astype(np.int16)
        if parts.signed:
            stored = stored - (stored >> (parts.bits - 1) << parts.bits)
        codes = (parts.offset + parts.factor * stored).astype(fmt.code.numpy)
        return _like(self.words, codes)

    def top(self, bits: int) -> "PackedDigits":
        """The weight of the top `bits` planes of every code, over the same words: a kernel reads those planes only.

        A code v of p bits becomes floor(v / 2**d) of the same kind, u, i or bp, with d = p - bits. Scaled, every one of
        them stands for the middle of what becomes it, 2**d floor(v / 2**d) + (2**d - 1) / 2, less the zero: numbers are
        off by less than half of their new step (any-precision LLM, arXiv:2402.10517). The half makes whole numbers of
        twice the size, `factor` * code - zero, with half the scale. Of a bipolar code, whose planes are +1 and -1, the
        middle is 2**d times the top. For weights in digits="b1". Raises ARGUMENT_INVALID.
        """
        fmt, code = self.format, self.format.code
        kind = code.name.rstrip("0123456789")
        name = f"{kind}{bits}"
        if fmt.digits != "b1" or not self.is_weight or name not in CODE_TYPES or not 1 <= bits < fmt.bits:
            raise LowbitvmError(
                "ARGUMENT_INVALID",
                f"the top {bits} planes of {fmt.bits} of {fmt}",
                "take fewer planes than there are, of a u, i or bp weight in digits='b1', two or more of i",
            )
        dropped = fmt.bits - bits
        made = replace(self, format=replace(fmt, dtype=name, planes=fmt.planes or fmt.bits))
        values = _host(made.unpack()).astype(np.int64)
        made = replace(made, sums=_like(self.words, sums_of(values - made.decomposition.offset, self.summed)))
        if self.scales is None:
            return made
        if kind == "bp":
            return made if self.zeros is not None else replace(made, scales=self.scales * 2.0**dropped)
        zeros = np.zeros(self.scales.shape, np.int32) if self.zeros is None else _host(self.zeros)
        twice = 1 if self.factor > 1 else 2
        middle = (twice * self.factor * ((1 << dropped) - 1)) // 2
        return replace(
            made,
            format=replace(made.format, zero="int"),
            scales=self.scales / twice,
            zeros=_like(self.words, (twice * zeros - middle).astype(np.int32)),
        )

    def to(self, device: Any) -> "PackedDigits":
        """The same matrix of torch tensors on another device. Raises DEVICE_UNAVAILABLE and DEVICE_MISMATCH."""
        return replace(self, **arrays.moved(self.arrays, device))


def format_digits(fmt: Format) -> Decomposition:
    """The digits of a format's codes: of weights where it has `act`, of activations where not."""
    assert fmt.digits is not None
    return (digits.of_activations if fmt.act is None else digits.of_weights)(fmt.code, fmt.digits)


def code_factor(fmt: Format) -> int:
    """What the codes of a format count beside their zeros: see `PackedDigits.top`."""
    if fmt.planes is None or fmt.zero is None:
        return 1
    return (3 - fmt.code.step) << fmt.planes - fmt.bits  # of steps of 2 the middle is a whole number


def pack_weights(
    codes: Array,
    fmt: Format | str,
    scales: Array | None = None,
    zeros: Array | None = None,
    *,
    sums: int | None = None,
) -> PackedDigits:
    """Brings an integer weight, whose format has `act`, into the stored order of its digits.

    codes: integers (out_features, in_features), values of the code type `fmt.dtype`; numpy, or torch on any device.
    scales: floats (out_features, G), f16, bf16 or f32, with G groups along K, 1 for "channel"; None: the codes are the
        numbers. Groups are whole steps of the digits' instruction: 32 to 256 in "s8", 64 to 256 in "s4", 256 in "b1".
    zeros: integers (out_features, G) in the range of the codes for zero="int": numbers are scale * (code - zero).
    sums: the in_features of each stored sum; by default the format's group. Products with activations in smaller groups
        that have zero points, or an offset in their digits, need sums of those.
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, CODES_OUT_OF_RANGE, FORMAT_INVALID, FORMAT_UNSUPPORTED, ARGUMENT_INVALID,
    GROUP_INDIVISIBLE.
    """
    fmt = Format.parse(fmt) if isinstance(fmt, str) else fmt
    if fmt.act is None:
        raise LowbitvmError(
            "FORMAT_INVALID", f"{fmt} does not say what its codes are multiplied with", 'add act, as in act="i8"'
        )
    if fmt.planes is not None:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"{fmt} is the top {fmt.bits} of {fmt.planes} planes, of which the codes of {fmt.bits} bits are not all",
            f"pack all {fmt.planes} planes, then take PackedDigits.top({fmt.bits})",
        )
    return _pack(codes, fmt.in_digits, scales, zeros, sums)


def pack_activations(
    codes: Array,
    fmt: Format | str,
    scales: Array | None = None,
    zeros: Array | None = None,
    *,
    sums: int | None = None,
) -> PackedDigits:
    """Brings integer activations into the stored order; `lb.matmul` multiplies them with packed weights.

    codes: integers (m, in_features), values of the code type `fmt.dtype`. fmt: a Format, or its text, such as "i8" or
    "u4,digits=b1"; its digits, "s8" unless told otherwise, are to be the weight's. scales, zeros: (m, G), one for each
    group of a token, as `pack_weights` takes them. sums: the in_features of each stored sum, as there: those of the
    weight's groups. Raises what that does.
    """
    fmt = Format.parse(fmt) if isinstance(fmt, str) else fmt
    if fmt.act is not None:
        raise LowbitvmError(
            "FORMAT_INVALID", f"activations of {fmt}, which is a weight's", f"use Format({fmt.act!r}, digits=...)"
        )
    return _pack(codes, fmt.in_digits, scales, zeros, sums)


def _pack(codes: Array, fmt: Format, scales: Array | None, zeros: Array | None, each: int | None) -> PackedDigits:
    """Integer codes (rows, K) in the stored order of a format with digits."""
    given = {"scales": scales, "zeros": zeros}
    arrays.check_readable({"codes": codes, **{name: array for name, array in given.items() if array is not None}})
    if codes.ndim != 2 or not dtypes.of(codes).is_integer:
        code = "SHAPE_MISMATCH" if codes.ndim != 2 else "DTYPE_MISMATCH"
        raise LowbitvmError(
            code, f"codes of {dtypes.of(codes)} with shape {tuple(codes.shape)}", "pass integers (rows, in_features)"
        )
    decomposition = format_digits(fmt)
    rows, columns = map(int, codes.shape)
    parts = _rank_one(fmt, (rows, columns), scales, zeros)
    each = fmt.group if each is None and isinstance(fmt.group, int) and scales is not None else each
    values, size = _host(arrays.detached(codes)), _rows_per_tile(fmt)
    words = np.empty((row_tiles(fmt, rows), -(-columns // tile_k(fmt)), tile_words(fmt)), np.uint32)
    sums = np.zeros(_sums_shape(rows, columns, each), np.int32)

    def block(tiles: tuple[slice, slice]) -> None:
        some = slice(tiles[0].start * size, tiles[0].stop * size)
        part = arrays.row_major(values[some])
        check_codes("codes", part, fmt.code, fmt.code.step, within=values)
        stored = _stored(part, decomposition)
        words[tiles[0]] = _packed(stored, fmt)
        counted = part.astype(np.int8) if decomposition.signed else stored
        sums[some] = sums_of(counted, each) * (1 if decomposition.signed else decomposition.factor)

    arrays.for_each_block(values, (words.shape[0], 1), max(1, BLOCK_CODES // max(1, size * columns)), block)
    return PackedDigits(_like(codes, words), _like(codes, sums), fmt, rows, columns, *parts)


def _stored(codes: NumpyArray, parts: Decomposition) -> NumpyArray:
    """The stored numbers of codes in range as u8: all steps may wrap modulo 256, the result fits."""
    halved = codes >> 1 if parts.factor == 2 else codes  # codes and offset are odd then
    stored = halved.astype(np.uint8) - np.uint8((parts.offset // parts.factor) & 0xFF)
    return stored & np.uint8((1 << parts.bits) - 1) if parts.signed else stored


def _sums_shape(rows: int, k: int, each: int | None) -> tuple[int, ...]:
    """Shape of the sums over k of (rows, K), or of each so many of k. Raises GROUP_INDIVISIBLE, ARGUMENT_INVALID."""
    if each is None or each == k:
        return (rows,)
    if each < 1:
        raise LowbitvmError("ARGUMENT_INVALID", f"sums of {each} in_features each", "give a number above 0, or None")
    if k % each:
        raise LowbitvmError("GROUP_INDIVISIBLE", f"{k} in_features in sums of {each}", "pad in_features")
    return rows, k // each


def sums_of(values: NumpyArray, each: int | None) -> NumpyArray:
    """The sums i32 of values (rows, K), of the shape that `_sums_shape` says. Raises what that does."""
    rows, k = values.shape
    shape = _sums_shape(rows, k, each)
    sums: NumpyArray = values.reshape(*shape, each if each and len(shape) == 2 else k).sum(-1, dtype=np.int32)
    return sums


def _rank_one(
    fmt: Format, shape: tuple[int, int], scales: Array | None, zeros: Array | None
) -> tuple[Array | None, Array | None]:
    """Scales and zeros as they are stored."""
    if (zeros is not None) != (fmt.zero is not None and scales is not None):
        given = [name for name, array in (("scales", scales), ("zeros", zeros)) if array is not None]
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"{' and '.join(given) or 'nothing'} was given beside codes of {fmt}",
            "give zeros together with scales where the format has zero='int', and only there",
        )
    if scales is None:
        return None, None
    check_scales(fmt)
    check_group(fmt)
    wanted = fmt.scales_shape(*shape)
    for name, array, right in (
        ("scales", scales, dtypes.of(scales) == fmt.scale_dtype),
        ("zeros", zeros, zeros is None or dtypes.of(zeros).is_integer),
    ):
        if not right:
            raise LowbitvmError("DTYPE_MISMATCH", f"{name} of {dtypes.of(array)} for {fmt}", "cast them")
        if array is not None and tuple(array.shape) != wanted:
            raise LowbitvmError(
                "SHAPE_MISMATCH", f"{name} of shape {tuple(array.shape)} for {shape[0]} rows", f"pass {wanted}"
            )
    if zeros is not None:
        check_codes("zeros", zeros, fmt.code, 1)
        zeros = _by_row(zeros, dtypes.i32)
    return _by_row(scales, dtypes.f32), zeros


def _by_row(array: Array, dtype: DType) -> Array:
    """Numbers (rows, groups) as they are stored: [rows] of one group."""
    stored = arrays.contiguous(arrays.cast(arrays.detached(array), dtype))
    return stored.reshape(stored.shape[0]) if stored.shape[1] == 1 else stored


def check_scales(fmt: Format) -> None:
    """Raises FORMAT_UNSUPPORTED for scales and zeros that codes in digits cannot have, whatever the digits."""
    if fmt.group in ("tensor", 16) or fmt.zero not in (None, "int") or fmt.scale not in ("f16", "bf16", "f32"):
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"scales of {fmt} beside codes in digits",
            "use group='channel' or 32 to 256, a scale of f16, bf16 or f32, and zero=None or 'int'",
        )


def check_group(fmt: Format) -> None:
    """Raises FORMAT_UNSUPPORTED for groups along k that are no whole steps of the digits' instruction."""
    assert fmt.digits is not None
    if isinstance(fmt.group, int) and fmt.group % BASES[fmt.digits].step_k:
        serving = [f"digits={base.name!r}" for base in BASES.values() if fmt.group % base.step_k == 0]
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"groups of {fmt.group} in digits of {fmt.digits}, multiplied {BASES[fmt.digits].step_k} at a time",
            f"use {' or '.join([*serving, 'larger groups'])}",
        )


def _host(array: Array) -> NumpyArray:
    host: NumpyArray = arrays.host(array.cpu() if dtypes.is_tensor(array) else array)
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


def digit_words(fmt: Format) -> list[int]:
    """Words of a lane in one stored tile, digit by digit; activations have one digit, the others are columns."""
    assert fmt.digits is not None
    if fmt.act is None:
        return [digits.ACTIVATION_WORDS]
    base = BASES[fmt.digits]
    return [4 * base.steps * digit.bits // base.bits for digit in format_digits(fmt).digits]


def tile_words(fmt: Format) -> int:
    """Words of one stored tile."""
    return LANES * sum(digit_words(fmt)) + skipped_words(fmt)


def skipped_words(fmt: Format) -> int:
    """Words of the lowest planes of a stored tile, where a format takes the top ones only."""
    return 0 if fmt.planes is None else LANES * 4 * (fmt.planes - fmt.bits)


def tile_k(fmt: Format) -> int:
    """in_features of one stored tile."""
    assert fmt.digits is not None
    return BASES[fmt.digits].tile_k if fmt.act is not None else BASES[fmt.digits].activation_k


def _rows_per_tile(fmt: Format) -> int:
    """Rows of the matrix in a stored tile: activations have a column for each digit of a row."""
    assert fmt.digits is not None
    return 16 if fmt.act is not None else digits.COLUMNS // digits.columns_per_row(fmt.code, fmt.digits)


def _tile_shape(fmt: Format) -> tuple[int, int]:
    """(steps, rows / 8) of a stored tile: a step is the k of one MMA."""
    assert fmt.digits is not None
    return (2, 1) if fmt.act is None else (BASES[fmt.digits].steps, 2)


def _packed(stored: NumpyArray, fmt: Format) -> NumpyArray:
    """u32 words of stored numbers u8 (rows, K)."""
    assert fmt.digits is not None
    rows, k = stored.shape
    shape = row_tiles(fmt, rows), -(-k // tile_k(fmt)), tile_words(fmt)
    whole = shape[0] * _rows_per_tile(fmt), shape[1] * tile_k(fmt)
    if stored.shape != whole:
        stored = np.pad(stored, ((0, whole[0] - rows), (0, whole[1] - k)))
    stored = np.ascontiguousarray(stored)
    parts, base = format_digits(fmt).digits, BASES[fmt.digits]
    cut = [_cut(stored, digit, base) for digit in parts]
    if fmt.act is None:
        each = digits.columns_per_row(fmt.code, fmt.digits)
        columns = np.zeros((whole[0], each, whole[1]), np.uint8)
        columns[:, : len(parts)] = np.stack(cut, 1)
        cut = [columns.reshape(whole[0] * each, whole[1])]
    words, start = np.empty(shape, np.uint32), 0
    for digit, part, count in zip(cut, parts, digit_words(fmt), strict=False):
        put_digit(digit, words[..., start : start + LANES * count], base, part.bits, *_tile_shape(fmt))
        start += LANES * count
    return words


def _cut(stored: NumpyArray, digit: digits.Digit, base: digits.Base) -> NumpyArray:
    """One digit of stored numbers, u8; of a plane 1 where there is any number."""
    if digit.bits == 8:
        return stored
    mask = np.uint8(((1 << digit.bits) - 1) << digit.place)
    return stored & mask if base.bits == 1 or not digit.place else (stored & mask) >> np.uint8(digit.place)


def put_codes(matrix: PackedDigits, row: int, column: int, codes: NumpyArray) -> None:
    """Stores codes i32 (rows, K) of whole stored tiles along K into activations at (row, column), numpy only.

    What lies in their tiles beyond the matrix becomes padding.
    """
    fmt, parts = matrix.format, matrix.decomposition
    assert fmt.digits is not None
    stored = (codes.astype(np.int64) - parts.offset) // parts.factor & ((1 << parts.bits) - 1)
    stored[max(0, matrix.rows - row) :] = 0
    stored[:, max(0, matrix.columns - column) :] = 0
    each = digits.columns_per_row(fmt.code, fmt.digits)
    places = np.arange(row * each, (row + codes.shape[0]) * each)
    above = row % (digits.COLUMNS // each)  # rows of the first stored tile that are not ours
    words = _packed(np.pad(stored.astype(np.uint8), ((above, 0), (0, 0))), fmt)
    row_tile, k_tile = row * each // digits.COLUMNS, column // tile_k(fmt)
    for place in places[(places >= 0) & (places < digits.COLUMNS * matrix.words.shape[0])]:
        tile, own = divmod(int(place), digits.COLUMNS)
        words_of = slice(16 * own, 16 * (own + 1))  # of a stored tile: a column's, 4 lanes of 4
        target = matrix.words[tile, k_tile : k_tile + words.shape[1], words_of]
        target[...] = words[tile - row_tile, : target.shape[0], words_of]


def _unpacked(words: NumpyArray, matrix: PackedDigits) -> NumpyArray:
    """Stored numbers u8 (rows, K) of words; the inverse of `_packed`."""
    fmt, (rows, k) = matrix.format, matrix.shape
    assert fmt.digits is not None
    parts, base = format_digits(fmt).digits, BASES[fmt.digits]
    ends = np.cumsum([LANES * count for count in digit_words(fmt)])
    pieces = np.split(words.view(np.uint32)[..., skipped_words(fmt) :], ends[:-1], -1)
    found = [digit_of(piece, base, part.bits, *_tile_shape(fmt)) for piece, part in zip(pieces, parts, strict=False)]
    if fmt.act is None:
        each = digits.columns_per_row(fmt.code, fmt.digits)
        columns = found[0].reshape(found[0].shape[0] // each, each, found[0].shape[1])
        found = [columns[:, i] for i in range(len(parts))]
    return functools.reduce(
        np.bitwise_or, [digit[:rows, :k] << np.uint8(part.place) for part, digit in zip(parts, found, strict=True)]
    )
