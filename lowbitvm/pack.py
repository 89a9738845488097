"""Codes, scales, zero points and codebooks to and from the stored order.

Everything here works through array methods, alike for numpy arrays and for torch tensors on any device.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from lowbitvm import arrays, dtypes
from lowbitvm.dtypes import Array, DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits, pack_weights
from lowbitvm.words import TILE_N, check_codes, pack_codes, unpack_codes, unpack_patterns, words_shape

OPTIONAL_PARTS = ("zeros", "table", "outer", "outer_zeros", "permutation")
E4M3_NAN = 0x7F  # without the sign
# of the numbers of a scale dtype: bits of the significand, exponent of the smallest
SCALE_PRECISION = {
    "f16": (11, -24),
    "bf16": (8, -133),
    "f32": (24, -149),
    "e8m0": (1, -127),
    "e4m3": (4, -9),
    "i8": (7, 0),
}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix (N = out_features, K = in_features) in the stored order that every kernel reads.

    words: u32[ceil(N/16), ceil(K/64), 32 * bits] (numpy) or i32 (torch). One (16 n x 64 k) tile is 128 * bits bytes;
        lane 4 g + q of 32 owns 32 codes, which are `bits` words. Code c = 8 * step + 2 * r + half is that of
            n = 16 * tile_n + g + 8 * (r & 1),   k = 64 * tile_k + 16 * step + 2 * q + half + 8 * (r >> 1),
        so the two halves at r are register r of the m16n8k16 A fragment of k16 step `step` (PTX ISA, "Matrix fragments
        for mma.m16n8k16"). Where its bits lie in the lane's words says `chunk.order`, where word w of a lane lies in
        the tile `chunk.word_place`. Padding (n >= N or k >= K) is stored as 0 bits.
    scales: scale dtype [G, ceil(N/16), 8, 2]: feature 16 * t + g + 8 * h is at [group, t, g, h]. "tensor" is repeated
        for every feature. Padding is 0 bits.
    zeros: the same shape; f16 integers for zero="int", scale dtype for "float" and "offset"; None without zeros.
    table: the codebooks, f16 with E = 2**bits entries: [1, E], [ceil(N/16), E] or, for table="group",
        [G, ceil(N/16), 8, 2, E].
    outer, outer_zeros: the second level of scales and, for zero="offset", of offsets: f32 [1, 1] for "tensor", else
        [K / 256, ceil(N/16), 8, 2].
    permutation: i32 [K] or None. Column j of the stored codes, which groups and words count by, is that of in_feature
        permutation[j]. Not part of the format; `dequantize` and `unpack` give the columns in their original order.

    The arrays are contiguous. Compares by identity. Raises SHAPE_MISMATCH, DTYPE_MISMATCH, TENSOR_NOT_CONTIGUOUS,
    DEVICE_MISMATCH, ARGUMENT_INVALID or GROUP_INDIVISIBLE when they do not fit `format` and the shape.
    """

    words: Array
    scales: Array
    zeros: Array | None
    format: Format
    out_features: int
    in_features: int
    table: Array | None = None
    outer: Array | None = None
    outer_zeros: Array | None = None
    permutation: Array | None = None

    def __post_init__(self) -> None:
        _check_wanted({name: getattr(self, name) for name in OPTIONAL_PARTS}, self.format)
        arrays.check_one_device(self.arrays)
        shapes = _stored_shapes(self.format, *self.shape)
        for name, array in self.arrays.items():
            dtype = _part_dtype(name, self.format)
            if name == "words" and not dtypes.is_tensor(array):
                dtype = dtypes.u32
            _check_dtype(f"stored {name}", array, dtype)
            _check_shape(f"stored {name}", array, shapes[name], f"for {self.format} with shape {self.shape}")
            _check_contiguous(f"stored {name}", array)

    @property
    def arrays(self) -> dict[str, Array]:
        """The stored arrays that there are, by name, in the order of the fields."""
        named = {"words": self.words, "scales": self.scales, **{name: getattr(self, name) for name in OPTIONAL_PARTS}}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return (self.out_features, self.in_features)

    @functools.cached_property
    def format_text(self) -> str:
        """The format as `Format.parse` reads it."""
        return str(self.format)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored arrays, padding included."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    def __repr__(self) -> str:
        return (
            f"PackedWeight({str(self.format)!r}, shape={self.shape}, {arrays.device(self.words)}, {self.nbytes} bytes)"
        )

    def unpack(self) -> tuple[Array, Array, Array | None]:
        """(codes, scales, zeros) as `pack` took them: codes and integer zeros in the smallest dtype that holds them.

        A "tensor" scale of a weight without output features is stored nowhere and comes back as 0.
        """
        fmt = self.format
        codes = restored(unpack_codes(self.words, self.shape, fmt.code), self.permutation)
        zeros = None if self.zeros is None else self._given(self.zeros)
        return codes, self._given(self.scales), arrays.cast(zeros, fmt.code) if fmt.zero == "int" else zeros

    def arguments(self) -> dict[str, Any]:
        """What `pack` takes to make this weight again, by name, the format included."""
        codes, scales, zeros = self.unpack()
        return {
            "codes": codes,
            "scales": scales,
            "zeros": zeros,
            "fmt": self.format,
            "table": self._given_table(),
            "outer": self._given_outer(self.outer),
            "outer_zeros": self._given_outer(self.outer_zeros),
            "permutation": self.permutation,
        }

    def _given(self, stored: Array) -> Array:
        """(N, G, ...) from [G, ceil(N/16), 8, 2, ...]; (1, 1, ...) for "tensor"."""
        rows, groups = self.format.scales_shape(*self.shape)
        return _by_group(stored, rows, self.out_features, groups)

    def _given_table(self) -> Array | None:
        return self._given(self.table) if self.format.table == "group" and self.table is not None else self.table

    def _given_outer(self, outer: Array | None) -> Array | None:
        if outer is None or self.format.outer == "tensor":
            return outer
        rows, blocks = self.format.outer_shape(*self.shape)
        return _by_group(outer, rows, self.out_features, blocks)

    def dequantize(self) -> Array:
        """The weights (N, K), in float32 where that is exact, else in float64.

        float32: zero None or "int" without `outer`, where 24 bits hold the product of v - z and the scale, and the
        exponents of float32 reach: never with f32 scales, and not for weights with bf16 or e8m0 scales so large that
        2**128 could be reached.
        float64: exact for zero None and "int". "float" is v * s - z * s and "offset" v * s + m. There both products
        are exact (at most 48 bits) and the one addition rounds once, so the result is the float64 nearest to the exact
        weight: that weight itself for f16 scales and wherever 53 bits hold it.
        """
        fmt, (out_features, in_features) = self.format, self.shape
        scales = self._given(self.scales)
        wide = dtypes.f32 if _exact_in_f32(fmt, scales) else dtypes.f64
        rows, groups = scales.shape
        v = self._stored_values(wide).reshape(out_features, groups, fmt.group_size(in_features))
        s = self._second_level(arrays.cast(scales, wide), self.outer).reshape(rows, groups, 1)
        if self.zeros is None:
            weights = v * s
        else:
            z = self._second_level(arrays.cast(self._given(self.zeros), wide), self.outer_zeros).reshape(
                rows, groups, 1
            )
            if fmt.zero == "int":
                weights = (v - z) * s
            elif fmt.zero == "float":
                weights = v * s - z * s
            else:
                weights = v * s + z
        return restored(weights.reshape(self.shape), self.permutation)

    def values(self) -> Array:
        """The value of each code (N, K) in float64, without scales and zero points."""
        return restored(self._stored_values(dtypes.f64), self.permutation)

    def _stored_values(self, wide: DType) -> Array:
        """The value of each code (N, K), in the stored order of the columns."""
        fmt, (out_features, in_features) = self.format, self.shape
        stored = unpack_patterns(self.words, self.shape, fmt.code)
        table = self._given_table()
        if table is None:
            assert fmt.code.values is not None
            values = dtypes.as_tensor(fmt.code.values, stored) if dtypes.is_tensor(stored) else fmt.code.values
            return arrays.gather(arrays.cast(values, wide), stored)
        flat = arrays.cast(table, wide).reshape(-1)
        if fmt.table == "tensor":
            return arrays.gather(flat, stored)
        if fmt.table == "block":
            rows, groups, which = out_features, 1, arrays.numbers(stored, out_features) // TILE_N
        else:
            rows, groups = fmt.scales_shape(out_features, in_features)
            which = arrays.numbers(stored, rows * groups)
        members = arrays.cast(stored, dtypes.i64).reshape(out_features, groups, in_features // max(1, groups))
        return flat[members + which.reshape(rows, groups, 1) * (1 << fmt.bits)].reshape(self.shape)

    def _second_level(self, inner: Array, outer: Array | None) -> Array:
        """Scales or offsets (N or 1, G) times their second level, exact in float64 (24 + 7 bits)."""
        given = self._given_outer(outer)
        if given is None:
            return inner
        (rows, groups), blocks = inner.shape, given.shape[1]
        by_block = inner.reshape(rows, blocks, groups // max(1, blocks))
        return (by_block * arrays.cast(given, dtypes.f64)[:, :, None]).reshape(rows, groups)

    def to(self, device: Any) -> "PackedWeight":
        """The same weight on another torch device. Raises DEVICE_UNAVAILABLE for a CUDA device that is not there and
        DEVICE_MISMATCH for a numpy weight, which has no device."""
        return replace(self, **arrays.moved(self.arrays, device))


def pack(
    codes: Array,
    scales: Array,
    zeros: Array | None,
    fmt: Format | str,
    *,
    table: Array | None = None,
    outer: Array | None = None,
    outer_zeros: Array | None = None,
    permutation: Array | None = None,
    input_scale: Array | None = None,
) -> PackedWeight | PackedDigits:
    """Brings a quantised weight into the stored order. Bit-exact: `PackedWeight.arguments` gives the arguments back.

    Weights that are multiplied with integers, of formats with `act`, become what `pack_weights` returns.

    codes: integers (N, K) = (out_features, in_features), of any integer dtype: the values of an integer code type
        (odd numbers for a bipolar one), the bit patterns of a float or a codebook.
    scales: fmt.scale values, (N, G) with G groups along K, (N, 1) for "channel", (1, 1) for "tensor". Non-finite values
        are kept and give non-finite weights; e4m3 has NaN alone, which is refused.
    zeros: the same shape; integers in the range of the codes for zero="int", fmt.scale values for "float" and "offset",
        None for zero=None.
    table: f16, fmt.table_shape(N, K), for the dtypes "c1".."c8". outer, and outer_zeros for zero="offset": f32,
        fmt.outer_shape(N, K), for formats with a second level.
    permutation: integers (K). Groups, scales and zeros then count along codes[:, permutation]; GPTQ's g_idx is
        permutation = argsort(g_idx), stable. Codes keep their own order here.
    input_scale: floats (K); the weight is to multiply x * input_scale. Only what is exact is folded into scales and
        offsets here: one value for each group, with products that the scale's dtype has. `quantize` folds any.

    All are numpy arrays or torch tensors on one device; the result's arrays are of the same kind and place.
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, CODES_OUT_OF_RANGE, GROUP_INDIVISIBLE, ARGUMENT_INVALID (a part missing or
    not wanted, no permutation, an input_scale that cannot be folded, a NaN in e4m3) and DEVICE_MISMATCH.
    """
    fmt = as_format(fmt)
    optional = {"zeros": zeros, "table": table, "outer": outer, "outer_zeros": outer_zeros, "permutation": permutation}
    if fmt.has_digits:
        _refuse_given({**optional, "zeros": None, "input_scale": input_scale}, fmt)
        return pack_weights(codes, fmt, scales, zeros)
    _check_wanted(optional, fmt)
    parts = {"codes": codes, "scales": scales, **optional, "input_scale": input_scale}
    given = {name: array for name, array in parts.items() if array is not None or name in ("codes", "scales")}
    arrays.check_readable(given)
    given = {name: arrays.detached(array) for name, array in given.items()}
    _check_integer("codes", codes)
    if codes.ndim != 2:
        refuse_shape("codes", codes, "(out_features, in_features)", "as torch.nn.Linear has them")
    out_features, in_features = shape = (int(codes.shape[0]), int(codes.shape[1]))
    for name, wanted in _given_shapes(fmt, *shape).items():
        if name in given:
            _check_part(name, given[name], fmt)
            _check_shape(name, given[name], wanted, f"for {fmt} with codes {shape}")
    if fmt.scale == "e4m3":
        _check_e4m3(given["scales"])
    if fmt.zero == "int":
        check_codes("zeros", given["zeros"], fmt.code, 1)
        given["zeros"] = arrays.cast(given["zeros"], dtypes.f16)
    if permutation is not None:
        check_permutation(given["permutation"], in_features)
        given["permutation"] = arrays.cast(given["permutation"], dtypes.i32)
        given["codes"] = arrays.columns(given["codes"], given["permutation"])
    if input_scale is not None:
        given |= _folded(given, fmt)
    by_feature = ("scales", "zeros") + (("table",) * (fmt.table == "group"))
    by_feature += ("outer", "outer_zeros") * (fmt.outer != "tensor")
    stored = {
        name: _by_feature(array, out_features) if name in by_feature else arrays.contiguous(array)
        for name, array in given.items()
        if name in OPTIONAL_PARTS or name == "scales"
    }
    words = pack_codes(given["codes"], fmt.code)
    return PackedWeight(
        words, stored.pop("scales"), stored.pop("zeros", None), fmt, out_features, in_features, **stored
    )


def _refuse_given(parts: dict[str, Array | None], fmt: Format) -> None:
    """Raises for parts that weights in digits do not have."""
    given = [name for name, array in parts.items() if array is not None]
    if given:
        raise LowbitvmError("ARGUMENT_INVALID", f"{' and '.join(given)} with {fmt}", "leave it out")


def as_format(fmt: Format | str) -> Format:
    """A Format as it is, or as text spells it."""
    if isinstance(fmt, str):
        return Format.parse(fmt)
    if not isinstance(fmt, Format):
        raise LowbitvmError("FORMAT_INVALID", f"the format is a {type(fmt).__name__}", "pass a Format, or its text")
    return fmt


def _given_shapes(fmt: Format, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parts of a weight as `pack` takes them."""
    shape = (out_features, in_features)
    outer = fmt.outer_shape(*shape)
    scales = fmt.scales_shape(*shape)
    return {
        "scales": scales,
        "zeros": scales,
        "table": fmt.table_shape(*shape),
        "outer": outer,
        "outer_zeros": outer,
        "permutation": (in_features,),
        "input_scale": (in_features,),
    }


def _stored_shapes(fmt: Format, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a PackedWeight."""
    given = _given_shapes(fmt, out_features, in_features)
    features = (-(-out_features // TILE_N), 8, 2)
    scales = (fmt.groups(in_features), *features)
    outer = given["outer"] if fmt.outer == "tensor" else (given["outer"][1], *features)
    return {
        "words": words_shape(out_features, in_features, fmt.bits),
        "scales": scales,
        "zeros": scales,
        "table": (*scales, 1 << fmt.bits) if fmt.table == "group" else given["table"],
        "outer": outer,
        "outer_zeros": outer,
        "permutation": (in_features,),
    }


def stored_bytes(fmt: Format, out_features: int, in_features: int) -> dict[str, int]:
    """Bytes of each stored array of a weight, padding included, by name. Raises GROUP_INDIVISIBLE."""
    shapes = _stored_shapes(fmt, out_features, in_features)
    return {part: math.prod(shapes[part]) * _part_dtype(part, fmt).bits // 8 for part in fmt.parts}


def _part_dtype(name: str, fmt: Format) -> DType:
    """The dtype of a stored part."""
    return {
        "words": dtypes.i32,
        "scales": fmt.scale_dtype,
        "zeros": fmt.zero_dtype or fmt.scale_dtype,
        "table": dtypes.f16,
        "outer": dtypes.f32,
        "outer_zeros": dtypes.f32,
        "permutation": dtypes.i32,
    }[name]


def _check_part(name: str, array: Array, fmt: Format) -> None:
    """Raises DTYPE_MISMATCH unless a part is of the dtype that `pack` takes."""
    if name == "permutation" or (name == "zeros" and fmt.zero == "int"):
        _check_integer(name, array)
    elif name == "input_scale":
        if dtypes.of(array) not in (dtypes.f16, dtypes.bf16, dtypes.f32):
            raise LowbitvmError("DTYPE_MISMATCH", f"input_scale is {dtypes.of(array)}", "convert it to f32")
    else:
        _check_dtype(name, array, _part_dtype(name, fmt))


def _check_e4m3(scales: Array) -> None:
    """Raises ARGUMENT_INVALID for a NaN, which the kernels' arithmetic on the bits would read as 480."""
    at = arrays.first((arrays.bits(scales) & E4M3_NAN) == E4M3_NAN)
    if at is not None:
        problem = f"scales[{', '.join(map(str, at))}] is NaN, e4m3 scales are numbers up to 448"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "quantise again, or use scale='f16'")


def check_permutation(permutation: Array, size: int) -> None:
    """Raises ARGUMENT_INVALID, SHAPE_MISMATCH or DTYPE_MISMATCH unless it has each of 0 .. size - 1 once."""
    _check_integer("permutation", permutation)
    _check_shape("permutation", permutation, (size,), "for as many in_features")
    ordered = permutation.sort().values if dtypes.is_tensor(permutation) else np.sort(permutation)
    if not bool((ordered == arrays.numbers(permutation, size)).all()):
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"the permutation does not have each of 0 .. {size - 1} once",
            "pass one, such as argsort(g_idx)",
        )


def _folded(given: dict[str, Array], fmt: Format) -> dict[str, Array]:
    """Scales, and offsets, times the input_scale of their group. Raises ARGUMENT_INVALID where that is not exact."""
    factors = arrays.cast(given["input_scale"], dtypes.f64)
    if "permutation" in given:
        factors = factors[arrays.cast(given["permutation"], dtypes.i64)]
    groups = given["scales"].shape[1]
    by_group = factors.reshape(groups, factors.shape[0] // max(1, groups))
    if not bool((by_group == by_group[:, :1]).all()):
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"input_scale differs within a group of {fmt}, and codes cannot take it up",
            "quantize(weight, fmt, input_scale=...) folds it before rounding, or multiply x by it",
        )
    if not factors.shape[0]:
        return {}
    folded = {}
    for name in ("scales", "zeros") if fmt.zero == "offset" else ("scales",):
        exact = arrays.cast(given[name], dtypes.f64) * by_group[:, 0]  # 24 + 24 bits at most
        with np.errstate(all="ignore"):
            folded[name] = arrays.cast(arrays.cast(exact, dtypes.f32), dtypes.of(given[name]))
        if not bool((arrays.cast(folded[name], dtypes.f64) == exact).all()):
            raise LowbitvmError(
                "ARGUMENT_INVALID",
                f"input_scale times {name} is not exact in {dtypes.of(given[name])}",
                "use powers of two, a wider scale, or quantize(weight, fmt, input_scale=...)",
            )
    return folded


def _by_feature(given: Array, out_features: int) -> Array:
    """[G, ceil(N/16), 8, 2, ...] from (N, G, ...), or from (1, G, ...) repeated for every feature; moves bits only."""
    tiles_n, (_, groups, *rest) = -(-out_features // TILE_N), given.shape
    bits = arrays.bits(given)
    padded = arrays.zeros(bits, (tiles_n * TILE_N, groups, *rest), dtypes.of(bits))
    padded[:out_features] = bits
    stored = arrays.zeros(bits, (groups, tiles_n, 8, 2, *rest), dtypes.of(bits))
    stored[...] = arrays.permute(padded.reshape(tiles_n, 2, 8, groups, *rest), 3, 0, 2, 1, *range(4, 4 + len(rest)))
    return stored.view(given.dtype)


def _by_group(stored: Array, rows: int, out_features: int, groups: int) -> Array:
    """(rows, G, ...) from [G, ceil(N/16), 8, 2, ...]; the inverse of `_by_feature`."""
    bits = arrays.bits(stored)
    rest = stored.shape[4:]
    moved = arrays.permute(bits, 1, 3, 2, 0, *range(4, 4 + len(rest)))
    features = moved.reshape(stored.shape[1] * TILE_N, groups, *rest)
    given = arrays.zeros(bits, (rows, groups, *rest), dtypes.of(bits))
    kept = min(rows, out_features)
    given[:kept] = features[:kept]
    return given.view(stored.dtype)


def _exact_in_f32(fmt: Format, scales: Array) -> bool:
    """Whether a value, or the difference of two integer ones, times a scale is exact in float32 for all of a weight."""
    code = fmt.code
    if fmt.zero not in (None, "int") or fmt.outer is not None:
        return False
    if code.is_linear:
        top, bits, smallest = float(code.high - code.low), (code.high - code.low).bit_length(), 0
    elif code.kind == "float":
        top, bits, smallest = code.largest, code.mantissa + 1, 2 - (1 << (code.exponent - 1)) - code.mantissa
    else:
        top, bits, smallest = 65504.0, 11, -24  # f16
    scale_bits, scale_smallest = SCALE_PRECISION[fmt.scale]
    if bits + scale_bits > 24 or smallest + scale_smallest < -149:
        return False
    return bool((abs(arrays.cast(scales, dtypes.f32)) <= 2.0 ** min(127, 128 - math.frexp(top)[1])).all())


def restored(columns: Array, permutation: Array | None) -> Array:
    """Columns in the order of the in_features."""
    if permutation is None:
        return columns
    return arrays.columns(columns, permutation.argsort())


def _check_wanted(optional: dict[str, Array | None], fmt: Format) -> None:
    wanted = {
        "zeros": fmt.zero is not None,
        "table": fmt.table is not None,
        "outer": fmt.outer is not None,
        "outer_zeros": fmt.outer is not None and fmt.zero == "offset",
    }
    for name, is_wanted in wanted.items():
        if is_wanted != (optional[name] is not None):
            problem = f"{name} are None, {fmt} has them" if is_wanted else f"{name} were given, {fmt} has none"
            raise LowbitvmError(
                "ARGUMENT_INVALID", problem, f"pass {name}" if is_wanted else f"pass {name}=None, or change the format"
            )


def _check_integer(name: str, array: Array) -> None:
    if not dtypes.of(array).is_integer:
        raise LowbitvmError("DTYPE_MISMATCH", f"{name} are {dtypes.of(array)}, not integers", "convert them to i32")


def _check_dtype(name: str, array: Array, dtype: DType) -> None:
    if dtypes.of(array) != dtype:
        raise LowbitvmError(
            "DTYPE_MISMATCH",
            f"{name} are {dtypes.of(array)}, the format takes {dtype}",
            f"convert them to {dtype}, or choose the format to match",
        )


def _check_shape(name: str, array: Array, shape: tuple[int, ...], why: str) -> None:
    if tuple(array.shape) != shape:
        refuse_shape(name, array, str(shape), why)


def refuse_shape(name: str, array: Array, shape: str, why: str) -> NoReturn:
    raise LowbitvmError(
        "SHAPE_MISMATCH", f"{name} has shape {tuple(array.shape)}, not {shape} {why}", f"reshape {name} to {shape}"
    )


def _check_contiguous(name: str, array: Array) -> None:
    if not (array.is_contiguous() if dtypes.is_tensor(array) else array.flags.c_contiguous):
        raise LowbitvmError(
            "TENSOR_NOT_CONTIGUOUS", f"{name} has strides that are not row-major", "make it contiguous first"
        )
