"""Products of integer codes, and what may follow them, by numpy: in the kernel's order of operations.

So the results have the kernel's bits, but for silu and gelu: here they are rounded once, the kernel computes them in
f32 (`lowbitvm.kernels.epilogue`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm import arrays
from lowbitvm.dtypes import CODE_TYPES, Array, CodeType
from lowbitvm.errors import LowbitvmError
from lowbitvm.integers import PackedDigits

MOST_SHIFT = 62
NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Requantize:
    """How a product becomes codes of a type (m, out_features), u1..u8, i2..i8, bp1..bp7 or ternary, for the next layer.

    scale: of floats, a number or f32 (out_features): code = rint(y / scale) + zero in f32, halves to even; NaN is zero.
        Bipolar codes, which have no zero: code = 2 rint((y / scale - low) / 2) + low; NaN is low, the least of them.
    multipliers, shifts: i32 (out_features), of exact integers: code = floor(y * multiplier / 2^shift + 1/2) + zero, the
        product in 64 bits, shifts from 0 to 62 (HAWQ-V3, Yao et al., ICML 2021). `dyadic` makes them of real numbers.
        Bipolar codes: code = 2 floor(y * multiplier / 2^shift / 2) + 1, the nearest odd number.
    Codes saturate. Raises ARGUMENT_INVALID.
    """

    dtype: str
    scale: float | Array | None = None
    zero: int = 0
    multipliers: Array | None = None
    shifts: Array | None = None

    def __post_init__(self) -> None:
        code = CODE_TYPES.get(self.dtype)
        if code is None or not code.is_linear or code.high - code.low > 255:
            raise LowbitvmError(
                "ARGUMENT_INVALID", f"codes of {self.dtype!r} of a product", "use u1..u8, i2..i8, bp1..bp7"
            )
        if code.step > 1 and self.zero:
            raise LowbitvmError("ARGUMENT_INVALID", f"a zero of {self.zero} for codes of {self.dtype}", "leave it out")
        if not code.low <= self.zero <= code.high:
            raise LowbitvmError("ARGUMENT_INVALID", f"the zero {self.zero} is no {self.dtype}", "use one of the codes")
        given = [part is not None for part in (self.scale, self.multipliers, self.shifts)]
        if given not in ([True, False, False], [False, True, True]):
            raise LowbitvmError(
                "ARGUMENT_INVALID", "a scale and a multiplier, or neither", "give scale, or multipliers and shifts"
            )

    @classmethod
    def dyadic(cls, dtype: str, ratios: NumpyArray, zero: int = 0) -> "Requantize":
        """That of exact integers by the numbers multiplier / 2^shift nearest to ratios (out_features), of 31 bits."""
        mantissas, exponents = np.frexp(np.asarray(ratios, np.float64))
        shifts = 30 - exponents.astype(np.int64)
        if not ((shifts >= 0) & (shifts <= MOST_SHIFT) & np.isfinite(ratios)).all():
            problem = f"ratios from {np.min(ratios)} to {np.max(ratios)}"
            raise LowbitvmError("ARGUMENT_INVALID", problem, "use numbers from 2^-33 to 2^29")
        return cls(dtype, None, zero, np.rint(mantissas * 2.0**30).astype(np.int32), shifts.astype(np.int32))

    @property
    def code(self) -> CodeType:
        """The type of the codes."""
        return CODE_TYPES[self.dtype]

    @property
    def arrays(self) -> dict[str, Array]:
        """The arrays by their names in the kernel."""
        parts = {"y_scales": self.scale, "multipliers": self.multipliers, "shifts": self.shifts}
        return {name: part for name, part in parts.items() if part is not None}

    def of(self, result: NumpyArray) -> NumpyArray:
        """The codes of a product, by numpy."""
        code: CodeType = self.code
        if self.scale is not None:
            scale = np.asarray(arrays.host(self.scale) if np.ndim(self.scale) else self.scale, np.float32)
            real = result / scale
            real = real if code.step == 1 else (real - np.float32(code.low)) * np.float32(0.5)
            whole = np.nan_to_num(np.rint(real), nan=0.0, posinf=2.0**31, neginf=-(2.0**31))
        else:
            halved = code.step > 1  # the nearest odd number is 1 more than twice half of it
            dyadic = arrays.host(self.multipliers), arrays.host(self.shifts) + int(halved)
            whole = arrays.mul_shift(result.astype(np.int32), *dyadic, nearest=not halved)
            whole = whole - np.int64(code.low // 2 if halved else 0)
        if code.step > 1:
            odd: NumpyArray = 2 * np.clip(whole, 0, (code.high - code.low) // 2) + code.low
            return odd.astype(code.numpy)
        codes: NumpyArray = np.clip(whole, code.low - self.zero, code.high - self.zero) + self.zero
        return codes.astype(code.numpy)


@dataclass(frozen=True, eq=False)
class After:
    """What follows a product in its kernel; see `lowbitvm.runtime.integer.matmul`."""

    bias: Array | None = None
    gate: PackedDigits | None = None
    activation: str | None = None
    residual: Array | None = None
    requantize: Requantize | None = None


NOTHING = After()


def numpy_product(a: PackedDigits, w: PackedDigits, after: After = NOTHING) -> NumpyArray:
    """The product with what follows it, before the output is rounded: f32, i64 without scales, or codes."""
    with np.errstate(all="ignore"):  # scales of rows that were not finite are infinite
        result = _followed(a, w, after)
        return result if after.requantize is None else after.requantize.of(result)


def _followed(a: PackedDigits, w: PackedDigits, after: After) -> NumpyArray:
    result, *gates = (scaled_product(a, weight) for weight in (w, after.gate) if weight is not None)
    if after.bias is not None:
        result = result + arrays.host(after.bias).astype(result.dtype)
    function = ACTIVATIONS[after.activation]
    result = result * function(gates[0]) if gates else function(result)
    if after.residual is not None:
        result = result + arrays.host(after.residual).astype(result.dtype)
    return result


def scaled_product(a: PackedDigits, w: PackedDigits) -> NumpyArray:
    """The exact integers, or their f32 times the scales of rows, then columns."""
    groups = [side.group for side in (a, w) if side.group is not None]
    product = _grouped(a, w, min(groups)) if groups else _integers(numbers_of(a), numbers_of(w))
    for side, axis in ((a, 1), (w, 0)):
        if side.scales is not None and side.group is None:
            product = np.float32(product) * np.expand_dims(arrays.host(side.scales), axis)
    return product


def _grouped(a: PackedDigits, w: PackedDigits, group: int) -> NumpyArray:
    """The integers of each group of k, times the scales of groups, added up in f32 by `fma` in the order of k."""
    left, right, total = numbers_of(a), numbers_of(w), np.zeros((a.rows, w.rows), np.float32)
    for first in range(0, a.columns, group):
        part = slice(first, first + group)
        value: NumpyArray = _integers(left[:, part], right[:, part]).astype(np.float32)
        scales = [
            np.expand_dims(_by_group(side, side.scales)[:, first // side.group], axis).astype(np.float32)
            for side, axis in ((a, 1), (w, 0))
            if side.group is not None
        ]
        for scale in scales[:-1]:
            value = value * scale
        total = arrays.fma(value, scales[-1], total)
    return total


def _integers(a: NumpyArray, w: NumpyArray) -> NumpyArray:
    """The exact product of integers whose sums are below 2^53, through f64."""
    product: NumpyArray = a @ w.T
    return product.astype(np.int64)


def numbers_of(side: PackedDigits) -> NumpyArray:
    """The codes, less their zeros."""
    codes = np.asarray(arrays.host(side.unpack()), np.float64)
    if side.zeros is None:
        return codes
    zeros = _by_group(side, side.zeros)
    return side.factor * codes - (zeros if side.group is None else np.repeat(zeros, side.group, axis=1))


def _by_group(side: PackedDigits, numbers: Array) -> NumpyArray:
    """Numbers of rows, or of each group of them, as (rows, groups)."""
    host: NumpyArray = arrays.host(numbers)
    return host.reshape(side.rows, 1) if host.ndim == 1 else host


# -- activation functions ----------------------------------------------------------------------------------------------


def _relu(value: NumpyArray) -> NumpyArray:
    return (value + np.abs(value)) * np.float32(0.5)


def _once(function: Callable[[float], float]) -> Callable[[NumpyArray], NumpyArray]:
    """A function of every number, rounded once."""

    def apply(value: NumpyArray) -> NumpyArray:
        wide = value.astype(np.float64)
        return np.asarray(wide * np.vectorize(function, otypes=[np.float64])(wide), np.float32)

    return apply


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


ACTIVATIONS: dict[str | None, Callable[[NumpyArray], NumpyArray]] = {
    None: lambda value: value,
    "relu": _relu,
    "silu": _once(_logistic),
    "gelu": _once(lambda value: math.erfc(-value / math.sqrt(2)) / 2),
}
