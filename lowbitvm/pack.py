"""Codes, scales and zero points to and from the stored order, and rounding of float weights to codes.

Everything here works through array methods, alike for numpy arrays and for torch tensors on any device.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from lowbitvm import dtypes
from lowbitvm.dtypes import Array, DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format

TILE_N, TILE_K = 16, 64  # one packed tile: 32 lanes x 4 words of 8 codes, 512 bytes


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix (N = out_features, K = in_features) in the stored order that every kernel reads.

    words: u32[ceil(N/16), ceil(K/64), 32 lanes, 4] (numpy) or i32 (torch). One (16 n x 64 k) tile is 32 lanes x 4
        words, a lane's words one 16-byte load; word s serves k16 step s. With g = lane >> 2 and q = lane & 3, the 4
        bits from bit 4p, with half = p // 4 and r = p % 4, hold the code of
            n = 16 * tile_n + g + 8 * (r & 1),   k = 64 * tile_k + 16 * s + 2 * q + half + 8 * (r >> 1),
        so the two halves at r are register r of the m16n8k16 A fragment (PTX ISA, "Matrix fragments for mma.m16n8k16").
        A code is stored as the unsigned number code + format.bias; padding (n >= N or k >= K) is stored as 0 bits.
    scales: scale dtype [G, ceil(N/16), 8, 2]: feature 16 * t + g + 8 * h is at [group, t, g, h]. "tensor" is repeated
        for every feature. Padding is 0.
    zeros: the same shape; f16 integers for zero="int", scale dtype for "float" and "offset"; None without zeros.

    The arrays are contiguous. Compares by identity. Raises SHAPE_MISMATCH, DTYPE_MISMATCH, TENSOR_NOT_CONTIGUOUS,
    DEVICE_MISMATCH or GROUP_INDIVISIBLE when they do not fit `format` and the shape.
    """

    words: Array
    scales: Array
    zeros: Array | None
    format: Format
    out_features: int
    in_features: int

    def __post_init__(self) -> None:
        tiles_n, tiles_k = -(-self.out_features // TILE_N), -(-self.in_features // TILE_K)
        scales_shape = (self.format.groups(self.in_features), tiles_n, 8, 2)
        _check_zeros_given(self.zeros, self.format)
        _check_one_device({"words": self.words, "scales": self.scales, "zeros": self.zeros})
        word_dtype = dtypes.i32 if dtypes.is_tensor(self.words) else dtypes.u32
        for name, array, shape, dtype in (
            ("stored words", self.words, (tiles_n, tiles_k, 32, 4), word_dtype),
            ("stored scales", self.scales, scales_shape, self.format.scale_dtype),
            ("stored zeros", self.zeros, scales_shape, self.format.zero_dtype),
        ):
            if array is not None and dtype is not None:
                _check_dtype(name, array, dtype)
                _check_shape(name, array, shape, f"for {self.format} with shape {self.shape}")
                _check_contiguous(name, array)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return (self.out_features, self.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored arrays, padding included."""
        return sum(int(array.nbytes) for array in (self.words, self.scales, self.zeros) if array is not None)

    def __repr__(self) -> str:
        return f"PackedWeight({str(self.format)!r}, shape={self.shape}, {_device(self.words)}, {self.nbytes} bytes)"

    def unpack(self) -> tuple[Array, Array, Array | None]:
        """(codes, scales, zeros) as `pack` took them: codes, and zeros for zero="int", as u8 (u4) or i8 (i4).

        A "tensor" scale of a weight without output features is stored nowhere and comes back as 0.
        """
        fmt = self.format
        tiles_n, tiles_k = self.words.shape[:2]
        # bytes[tile n, tile k, g, q, step, half, r >> 1]: codes of rows g (low 4 bits) and g + 8 (high 4 bits)
        pairs = self.words.view(_native(self.words, dtypes.u8)).reshape(tiles_n, tiles_k, 8, 4, 4, 2, 2)
        pairs = _permute(pairs, 0, 2, 1, 4, 6, 3, 5).reshape(tiles_n, 8, tiles_k * TILE_K)
        stored = _zeros(self.words, (tiles_n, 2, 8, tiles_k * TILE_K), dtypes.u8)
        stored[:, 0], stored[:, 1] = pairs & 15, pairs >> 4
        stored = stored.reshape(tiles_n * TILE_N, tiles_k * TILE_K)[: self.out_features, : self.in_features]
        codes = _cast(fmt.code.codes(_cast(stored, dtypes.i8)), fmt.code)
        zeros = None if self.zeros is None else self._unpack_scales(self.zeros)
        return codes, self._unpack_scales(self.scales), _cast(zeros, fmt.code) if fmt.zero == "int" else zeros

    def _unpack_scales(self, stored: Array) -> Array:
        rows, groups = self.format.scales_shape(*self.shape)
        features = _permute(stored, 1, 3, 2, 0).reshape(stored.shape[1] * TILE_N, groups)
        given = _zeros(stored, (rows, groups), dtypes.of(stored))
        kept = min(rows, self.out_features)
        given[:kept] = features[:kept]
        return given

    def dequantize(self) -> Array:
        """The weights (N, K), in float32 where that is exact, else in float64.

        float32: zero None or "int" with f16 or bf16 scales. |q - z| <= 15 has 4 bits and a scale at most 11, so the
        product has at most 15 of float32's 24, and it is a multiple of the scale's smallest subnormal (2**-24 or
        2**-133), which float32 has (2**-149). 15 * 65504 is in range; bf16 scales above 2**124 could overflow, and a
        weight that has one comes in float64.
        float64: f32 scales, exact with 4 + 24 bits; "float" as q * s - z * s and "offset" as q * s + m. There both
        products are exact (at most 24 + 24 bits) and the one addition rounds once, so the result is the float64
        nearest to the exact weight: that weight itself for f16 scales (at most 51 bits) and wherever 53 bits hold it.
        """
        codes, scales, zeros = self.unpack()
        fmt = self.format
        exact_in_f32 = (
            fmt.zero in (None, "int")
            and fmt.scale != "f32"
            and bool((abs(_cast(scales, dtypes.f32)) <= 2.0**124).all())
        )
        wide = dtypes.f32 if exact_in_f32 else dtypes.f64
        rows, groups = scales.shape
        q = _cast(codes, wide).reshape(self.out_features, groups, fmt.group_size(self.in_features))
        s = _cast(scales, wide).reshape(rows, groups, 1)
        z = None if zeros is None else _cast(zeros, wide).reshape(rows, groups, 1)
        if z is None:
            weights = q * s
        elif fmt.zero == "int":
            weights = (q - z) * s
        elif fmt.zero == "float":
            weights = q * s - z * s
        else:
            weights = q * s + z
        return weights.reshape(self.shape)

    def to(self, device: Any) -> "PackedWeight":
        """The same weight on another torch device. Raises DEVICE_UNAVAILABLE for a CUDA device that is not there and
        DEVICE_MISMATCH for a numpy weight, which has no device."""
        if not dtypes.is_tensor(self.words):
            raise LowbitvmError(
                "DEVICE_MISMATCH",
                f"a numpy weight cannot move to {device}",
                "pack torch tensors, for example from torch.from_numpy",
            )
        torch = sys.modules["torch"]
        try:
            target = torch.device(device)
        except RuntimeError as error:
            raise LowbitvmError("DEVICE_UNAVAILABLE", f"there is no device {device!r}", "name cpu or cuda:0") from error
        if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
            raise LowbitvmError(
                "DEVICE_UNAVAILABLE",
                f"device {device} was asked for, torch sees {torch.cuda.device_count()} CUDA devices",
                "use a device that torch.cuda lists",
            )
        zeros = None if self.zeros is None else self.zeros.to(target)
        return PackedWeight(self.words.to(target), self.scales.to(target), zeros, self.format, *self.shape)


def pack(codes: Array, scales: Array, zeros: Array | None, fmt: Format | str) -> PackedWeight:
    """Brings a quantised weight into the stored order. Bit-exact: `PackedWeight.unpack` gives the arguments back.

    codes: integers (N, K) = (out_features, in_features) in the range of `fmt.dtype`, of any integer dtype.
    scales: fmt.scale values, (N, G) with G groups along K, (N, 1) for "channel", (1, 1) for "tensor". Non-finite values
        are kept and give non-finite weights.
    zeros: the same shape; integers in the range of the codes for zero="int", fmt.scale values for "float" and "offset",
        None for zero=None.

    All three are numpy arrays or torch tensors on one device; the result's arrays are of the same kind and place.
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, CODES_OUT_OF_RANGE, GROUP_INDIVISIBLE, ARGUMENT_INVALID (zeros missing or not
    wanted) and DEVICE_MISMATCH.
    """
    fmt = _format(fmt)
    _check_zeros_given(zeros, fmt)
    _check_one_device({"codes": codes, "scales": scales, "zeros": zeros})
    _check_integer("codes", codes)
    if codes.ndim != 2:
        _refuse_shape("codes", codes, "(out_features, in_features)", "as torch.nn.Linear has them")
    out_features, in_features = (int(size) for size in codes.shape)
    shape = fmt.scales_shape(out_features, in_features)
    why = f"for {fmt} with codes {(out_features, in_features)}"
    _check_dtype("scales", scales, fmt.scale_dtype)
    _check_shape("scales", scales, shape, why)
    if zeros is not None:
        if fmt.zero == "int":
            _check_integer("zeros", zeros)
        else:
            _check_dtype("zeros", zeros, fmt.scale_dtype)
        _check_shape("zeros", zeros, shape, why)
    codes = _narrow("codes", codes, fmt)
    if zeros is not None and fmt.zero == "int":
        zeros = _cast(_narrow("zeros", zeros, fmt), dtypes.f16)
    return PackedWeight(
        words=_pack_words(_cast(fmt.code.stored(codes), dtypes.u8)),
        scales=_pack_scales(_detached(scales), out_features),
        zeros=None if zeros is None else _pack_scales(_detached(zeros), out_features),
        format=fmt,
        out_features=out_features,
        in_features=in_features,
    )


def _pack_words(stored: Array) -> Array:
    """The words of PackedWeight from the stored form of the codes, u8 (N, K) with values 0 .. 15."""
    out_features, in_features = stored.shape
    tiles_n, tiles_k = -(-out_features // TILE_N), -(-in_features // TILE_K)
    padded = _zeros(stored, (tiles_n * TILE_N, tiles_k * TILE_K), dtypes.u8)
    padded[:out_features, :in_features] = stored
    # k = 64 * tile + 16 * step + 8 * (r >> 1) + 2 * q + half, and rows g and g + 8 share a byte (r & 1)
    rows = padded.reshape(tiles_n, 2, 8, tiles_k, 4, 2, 4, 2)
    pairs = rows[:, 0] | rows[:, 1] << 4
    words = _zeros(stored, (tiles_n, tiles_k, 32, 4), dtypes.i32 if dtypes.is_tensor(stored) else dtypes.u32)
    # a little-endian word's bytes are, from the lowest, (half, r >> 1) = (0, 0), (0, 1), (1, 0), (1, 1)
    word_bytes = words.view(_native(words, dtypes.u8)).reshape(tiles_n, tiles_k, 8, 4, 4, 2, 2)
    word_bytes[...] = _permute(pairs, 0, 2, 1, 5, 3, 6, 4)
    return words


def _pack_scales(given: Array, out_features: int) -> Array:
    """Stored scales or zeros [G, ceil(N/16), 8, 2] from (N, G), or from (1, 1) repeated for every feature."""
    tiles_n, groups = -(-out_features // TILE_N), given.shape[1]
    padded = _zeros(given, (tiles_n * TILE_N, groups), dtypes.of(given))
    padded[:out_features] = given
    stored = _zeros(given, (groups, tiles_n, 8, 2), dtypes.of(given))
    stored[...] = _permute(padded.reshape(tiles_n, 2, 8, groups), 3, 0, 2, 1)
    return stored


def _format(fmt: Format | str) -> Format:
    """A Format as it is, or as text spells it."""
    if isinstance(fmt, str):
        return Format.parse(fmt)
    if not isinstance(fmt, Format):
        raise LowbitvmError("FORMAT_INVALID", f"the format is a {type(fmt).__name__}", "pass a Format, or its text")
    return fmt


@np.errstate(over="ignore")  # what overflows becomes infinite and is refused by _rounded
def quantize(weight: Array, fmt: Format | str) -> PackedWeight:
    """Rounds a float weight (N, K) to the nearest codes, ties to even. f16, bf16, f32 or f64, numpy or torch.

    With lo and hi the smallest and largest weight of a group, and low .. high the codes (levels = high - low = 15):
    zero=None:  s = max(hi / high, lo / low), the least scale whose grid reaches both ends (i4: -8 s .. 7 s).
    "int":      s = (hi - lo) / levels after lo and hi are extended to include 0, z = round(low - lo / s).
    "float":    the same with z = low - lo / s; with 0 in the range, z stays in the range of the codes.
    "offset":   s = (hi - lo) / levels, m = lo - low * s.
    s, and a float z or m, are rounded to float32, then to the format's dtype, before the codes are computed from them.
    With s', z' and m' before rounding, |w - dequantized w| <= s / 2 + levels * |s - s'|, for "float" + s * |z - z'|,
    for "offset" + |m - m'|: what follows s / 2 is how far the grid can end short of lo or hi. A group whose scale
    rounds to 0 (all zero, constant for "offset", or below the scale dtype's smallest number) gets s = 0.

    Raises ARGUMENT_INVALID for non-finite weights, negative ones with u4 and zero=None, and ranges that overflow the
    scale dtype; SHAPE_MISMATCH, DTYPE_MISMATCH and GROUP_INDIVISIBLE as `pack`.
    """
    fmt = _format(fmt)
    if not dtypes.of(weight).is_float:
        raise LowbitvmError(
            "DTYPE_MISMATCH", f"the weight is {dtypes.of(weight)}, quantize takes floats", "use pack for integer codes"
        )
    if weight.ndim != 2:
        _refuse_shape("weight", weight, "(out_features, in_features)", "as torch.nn.Linear has it")
    out_features, in_features = (int(size) for size in weight.shape)
    rows, groups = fmt.scales_shape(out_features, in_features)
    exact = _cast(_detached(weight), dtypes.f64) + 0.0  # -0.0 becomes 0.0: minima of both would differ by library
    _refuse_weights(exact, ~(abs(exact) < math.inf), "is not finite", "remove NaN and infinity first")
    low, high = fmt.code.low, fmt.code.high
    if fmt.zero is None and low == 0:
        _refuse_weights(exact, exact < 0, f"is negative and {fmt} has no zero point", 'use "i4" or a zero kind')
    # one row for each scale
    members = exact.reshape(rows * groups, fmt.group_size(in_features) * (out_features if fmt.group == "tensor" else 1))
    lo, hi = _ends(members, include_zero=fmt.zero != "offset")
    reach = (hi / high).clip(min=abs(lo) / max(-low, 1))  # where low is 0, so is lo
    scales = _rounded("scale", reach if fmt.zero is None else (hi - lo) / (high - low), fmt.scale_dtype)
    s = _cast(scales, dtypes.f64)
    steps = s + (s == 0)  # a divisor: 1 where the scale is 0
    zeros: Array | None = None
    if fmt.zero == "int":
        zeros = (low - lo / steps).round().clip(low, high)
    elif fmt.zero == "float":
        zeros = _rounded("zero point", low - lo / steps, fmt.scale_dtype)
    elif fmt.zero == "offset":
        zeros = _rounded("offset", lo - low * s, fmt.scale_dtype)
    codes = _cast(_places(members, steps, zeros, fmt).round().clip(low, high), dtypes.i8)
    if zeros is not None:
        zeros = _cast(zeros, fmt.code if fmt.zero == "int" else fmt.scale_dtype).reshape(rows, groups)
    return pack(codes.reshape(out_features, in_features), scales.reshape(rows, groups), zeros, fmt)


def _ends(members: Array, include_zero: bool) -> tuple[Array, Array]:
    """Smallest and largest of each row, 0 for rows without members; with 0 counted as a member if `include_zero`."""
    if not members.shape[1]:
        empty = _zeros(members, (members.shape[0],), dtypes.f64)
        return empty, empty
    if dtypes.is_tensor(members):
        lo, hi = members.aminmax(dim=1)
    else:
        lo, hi = members.min(axis=1), members.max(axis=1)
    return (lo.clip(max=0), hi.clip(min=0)) if include_zero else (lo, hi)


def _places(members: Array, steps: Array, zeros: Array | None, fmt: Format) -> Array:
    """Where each weight lies on the grid of the codes, before rounding: the inverse of `PackedWeight.dequantize`."""
    steps = steps[:, None]
    if zeros is None:
        return members / steps
    z = _cast(zeros, dtypes.f64)[:, None]
    return (members - z) / steps if fmt.zero == "offset" else members / steps + z


def _rounded(name: str, values: Array, dtype: DType) -> Array:
    """`values` in `dtype`, through float32, as torch converts. Raises ARGUMENT_INVALID where they overflow it."""
    rounded = _cast(_cast(values, dtypes.f32), dtype)
    at = _first(~(abs(_cast(rounded, dtypes.f32)) < math.inf))
    if at is not None:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"the weights need a {name} of {float(values[at]):.6g}, beyond {dtype}",
            'use scale="f32", or scale the weights down',
        )
    return rounded


def _narrow(name: str, values: Array, fmt: Format) -> Array:
    """Integers of any width as i8. Raises CODES_OUT_OF_RANGE for the first one that `fmt.dtype` does not have."""
    dtype = dtypes.of(values)
    low, high = fmt.code.low, fmt.code.high
    wide = values
    if dtype.kind == "uint":  # torch compares no unsigned integers but u8; u64 beyond i64 wraps to negative numbers
        wide, low = _cast(values, dtypes.i64), max(low, 0)
    at = _first((wide < low) | (wide > high))
    if at is not None:
        raise LowbitvmError(
            "CODES_OUT_OF_RANGE",
            f"{name}{list(at)} is {values[at].item()}, {fmt.dtype} has {fmt.code.low} .. {fmt.code.high}",
            f"quantise to the range of {fmt.dtype} first",
        )
    return _cast(wide, dtypes.i8)


def _first(mask: Array) -> tuple[int, ...] | None:
    """Index of the first true element in row-major order, None where all are false."""
    flat = mask.reshape(-1)
    if not bool(flat.any()):
        return None
    return tuple(int(i) for i in np.unravel_index(int((flat * 1).argmax()), tuple(mask.shape)))


def _refuse_weights(weights: Array, bad: Array, problem: str, fix: str) -> None:
    at = _first(bad)
    if at is not None:
        raise LowbitvmError("ARGUMENT_INVALID", f"weight{list(at)} = {float(weights[at])} {problem}", fix)


def _check_zeros_given(zeros: Array | None, fmt: Format) -> None:
    if zeros is None and fmt.zero is not None:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"zeros are None, {fmt} has zero={fmt.zero!r}",
            "pass zeros shaped like the scales, or use zero=None",
        )
    if zeros is not None and fmt.zero is None:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"zeros were given, {fmt} has zero=None",
            'pass zeros=None, or use zero="int", "float" or "offset"',
        )


def _check_one_device(arrays: dict[str, Array | None]) -> None:
    places = {name: _device(array) for name, array in arrays.items() if array is not None}
    if len(set(places.values())) > 1:
        where = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise LowbitvmError(
            "DEVICE_MISMATCH",
            f"the arrays of one weight lie apart: {where}",
            "bring all of them to one torch device, or all to numpy",
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
        _refuse_shape(name, array, str(shape), why)


def _refuse_shape(name: str, array: Array, shape: str, why: str) -> NoReturn:
    raise LowbitvmError(
        "SHAPE_MISMATCH", f"{name} has shape {tuple(array.shape)}, not {shape} {why}", f"reshape {name} to {shape}"
    )


def _check_contiguous(name: str, array: Array) -> None:
    if not (array.is_contiguous() if dtypes.is_tensor(array) else array.flags.c_contiguous):
        raise LowbitvmError(
            "TENSOR_NOT_CONTIGUOUS", f"{name} has strides that are not row-major", "make it contiguous first"
        )


def _device(array: Array) -> str:
    dtypes.of(array)  # refuses what is no array
    return str(array.device) if dtypes.is_tensor(array) else "numpy"


def _detached(array: Array) -> Array:
    """The array without its autograd history: packing has no gradient."""
    return array.detach() if dtypes.is_tensor(array) else array


def _native(array: Array, dtype: DType) -> Any:
    """`dtype` as the library of `array` names it."""
    return dtype.torch() if dtypes.is_tensor(array) else dtype.numpy


def _cast(array: Array, dtype: DType) -> Array:
    return array.to(dtype.torch()) if dtypes.is_tensor(array) else array.astype(dtype.numpy, copy=False)


def _permute(array: Array, *axes: int) -> Array:
    return array.permute(axes) if dtypes.is_tensor(array) else array.transpose(axes)


def _zeros(like: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """Zeros of the same library and device as `like`: contiguous, and 16-byte aligned as malloc and torch allocate."""
    if dtypes.is_tensor(like):
        return like.new_zeros(shape, dtype=dtype.torch())
    return np.zeros(shape, dtype.numpy)
