"""Number formats of single values: the dtypes of arrays, tiles and registers, and the code types of packed weights."""

import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from lowbitvm.errors import LowbitvmError

Array = Any  # a numpy array or a torch tensor; torch is never imported here, so it has no common static type


def torch() -> Any:
    """The torch module. Raises TOOL_MISSING unless the caller has imported it: only `lowbitvm.ops` does here."""
    module = sys.modules.get("torch")
    if module is None:
        raise LowbitvmError("TOOL_MISSING", "torch was asked for and is not imported", "import torch first")
    return module


@dataclass(frozen=True)
class DType:
    """A number format of `bits` bits; two DTypes are equal when name, bits and kind are."""

    name: str
    bits: int
    kind: Literal["float", "int", "uint", "bool", "table"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of a numpy array of such values; bf16 is ml_dtypes.bfloat16, a weight code takes one byte."""
        return _NUMPY[self.name]

    def torch(self) -> Any:
        """The torch.dtype of a tensor of such values.

        Raises TOOL_MISSING unless the caller has imported torch.
        """
        return getattr(torch(), self.numpy.name)


@dataclass(frozen=True)
class CodeType(DType):
    """What the stored bits of a packed weight stand for: 2**bits patterns q = 0, 1, ..., each with a value.

    kind "uint" and "int", the linear types: value = step * q - bias, an integer. A user's code is that integer.
    kind "float": 1 sign, `exponent` and `mantissa` bits with subnormals and the exponent bias 2**(exponent - 1) - 1.
        Every pattern is a finite number but for OCP's two: e4m3 has a NaN, e5m2 NaNs and infinities as IEEE 754 has
        them (OCP 8-bit Floating Point Specification 1.0). A user's code is the pattern.
    kind "table": the values are `table`, or data that comes with the weight where that is None. A user's code is the
        pattern.
    """

    bias: int = 0
    step: int = 1
    used: int | None = None  # patterns that stand for a code, from q = 0; None: all 2**bits
    exponent: int = 0
    mantissa: int = 0
    table: tuple[float, ...] | None = None

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of a numpy array of codes: the smallest integer that holds them."""
        return np.min_scalar_type(self.high if self.low >= 0 else min(self.low, ~self.high))

    @property
    def is_linear(self) -> bool:
        return self.is_integer

    @property
    def low(self) -> int:
        """The smallest code."""
        return -self.bias

    @property
    def high(self) -> int:
        """The largest code."""
        return self.step * ((self.used or 1 << self.bits) - 1) - self.bias

    @property
    def values(self) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """The exact value of each of the 2**bits patterns, NaN and infinities included; None where they are data."""
        return _values(self)

    @property
    def largest(self) -> float:
        """The largest finite magnitude of a value. Only for types whose values are no data."""
        values = self.values
        assert values is not None, f"{self} takes its values from data"
        return float(np.abs(values[: self.used][np.isfinite(values[: self.used])]).max())

    def stored(self, codes: Array) -> Array:
        """The patterns of codes in range; numbers or arrays of a dtype that holds codes, patterns and their sums."""
        return (codes + self.bias) // self.step if self.is_linear else codes

    def codes(self, stored: Array) -> Array:
        """The codes of patterns; one number or an array of a signed dtype that holds both. Inverse of `stored`."""
        return stored * self.step - self.bias if self.is_linear else stored

    def encode(self, values: Array, table: Array | None = None) -> Array:
        """The pattern of the value nearest to each of `values`, u8: floats, numpy or torch, computed in float64.

        Ties go to the even code (of a float, the even pattern), in a table and a bipolar type to the larger value; what
        lies beyond the largest value, or is infinite, to that. -0.0 keeps its sign where the type has it. NaN becomes
        NaN in e4m3 and e5m2, elsewhere the largest value. Of equal values in a table the first pattern is taken.
        `table`: the 2**bits values of a type that takes them from data.
        """
        exact: Array = values.double() if is_tensor(values) else np.asarray(values, np.float64)
        if self.kind == "table":
            return self.nearest(exact, table)
        invalid = exact != exact
        patterns = self.nearest(_filled(exact, invalid, 0.0))
        return _filled(patterns, invalid, NAN_PATTERNS.get(self.name, (self.top,))[-1])

    def nearest(self, values: Array, table: Array | None = None) -> Array:
        """What `encode` says of f32 or f64 without NaN, which are compared with the middles of values as they are."""
        if self.kind == "table":
            return _select(values, *(_nearest(self) if table is None else thresholds(table)))
        return self._encode_integer(values) if self.is_linear else self._encode_float(values)

    @property
    def has_specials(self) -> bool:
        """Whether some patterns are NaN or infinite."""
        return self.name in NAN_PATTERNS

    @functools.cached_property
    def top(self) -> int:
        """The pattern of the largest value of an integer or float type."""
        values = self.values
        assert values is not None
        return int(np.where(np.isfinite(values[: self.used]), values[: self.used], -np.inf).argmax())

    def _encode_integer(self, exact: Array) -> Array:
        clipped = exact.clip(self.low, self.high)
        # of a bipolar type the odd number above an even one; two floors, for half of the least subnormal rounds to 0
        nearest = clipped.round() if self.step == 1 else (_floor(_floor(clipped) / 2) * 2 + 1).clip(max=self.high)
        return _integers((nearest + self.bias) / self.step, u8)

    def _encode_float(self, exact: Array) -> Array:
        """Counts in units of the last place: a carry out of the mantissa is the next exponent's pattern."""
        single = exact.itemsize == 4
        fraction, origin, integer = (23, 127, i32) if single else (52, 1023, i64)
        bits = exact.view(integer.torch() if is_tensor(exact) else integer.numpy)
        magnitude = abs(exact).clip(max=self.largest)
        lowest = 2 - (1 << (self.exponent - 1))  # exponent of the smallest normal number
        exponent = (magnitude.view(bits.dtype) >> fraction).clip(min=lowest + origin)
        unit = ((2 * origin + self.mantissa - exponent) << fraction).view(exact.dtype)
        places = magnitude * unit  # exact: a power of two
        if self.mantissa:
            count = _integers(places.round(), integer)
            patterns = count + ((exponent - (lowest + origin)) << self.mantissa)
        else:  # the pattern's last bit is the exponent's: of 1.5, half-way from 1 to 2, it decides
            exponent = exponent - (lowest + origin)
            up = (places > 1.5) | ((places == 1.5) & (exponent & 1 == 0)) | ((places > 0.5) & (places < 1))
            patterns = exponent + _integers(places >= 1, integer) + _integers(up, integer)
        sign = _integers(bits < 0, integer)
        return _integers(patterns | sign << (self.bits - 1), u8)

    def decode(self, stored: Array) -> Array:
        """The exact float64 values of patterns, an integer numpy array or torch tensor."""
        values = self.values
        assert values is not None, f"{self} takes its values from data"
        return _gather(values, stored)


@functools.cache
def _values(code: CodeType) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    q = np.arange(1 << code.bits)
    if code.is_linear:
        values = (code.step * q - code.bias).astype(np.float64)
    elif code.kind == "float":
        fraction, field = q & ((1 << code.mantissa) - 1), (q >> code.mantissa) & ((1 << code.exponent) - 1)
        significand = fraction + np.where(field > 0, 1 << code.mantissa, 0)
        origin = (1 << (code.exponent - 1)) - 1 + code.mantissa
        values = np.ldexp(significand.astype(np.float64), np.maximum(field, 1) - origin)
        top = q & ((1 << (code.bits - 1)) - 1)
        values = np.where(np.isin(top, NAN_PATTERNS.get(code.name, ())), np.nan, values)
        values = np.where(np.isin(top, INFINITE_PATTERNS.get(code.name, ())), np.inf, values)
        values = np.where(q >> (code.bits - 1) == 1, -values, values)
    elif code.table is not None:
        values = np.array(code.table)
    else:
        return None
    values.flags.writeable = False
    return values


@functools.cache
def _nearest(code: CodeType) -> tuple[Any, Any]:
    """The thresholds of a table that is no data."""
    assert code.values is not None, f"{code} takes its values from data"
    return thresholds(code.values)


def thresholds(values: Array) -> tuple[Any, Any]:
    """(bounds, patterns): the nearest of `values` to x is patterns[number of bounds <= x], the larger of two."""
    exact = np.asarray(values.cpu() if is_tensor(values) else values).astype(np.float64)
    ordered, patterns = np.unique(exact, return_index=True)
    return (ordered[:-1] + ordered[1:]) / 2, patterns.astype(np.uint8)


def _select(exact: Array, bounds: Any, patterns: Any) -> Array:
    """patterns[number of bounds <= x] for every x of an array of floats; a NaN counts as the largest number."""
    if is_tensor(exact):
        index = torch().bucketize(exact, as_tensor(bounds, exact), right=True)
        return as_tensor(patterns, exact)[index.masked_fill(exact.isnan(), len(bounds))]
    if len(bounds) > FEW_BOUNDS:
        return patterns[np.searchsorted(bounds, exact, side="right")]
    count = np.zeros(exact.shape, np.uint8)
    for bound in bounds.tolist():
        count += ~(exact < bound)
    return count if np.array_equal(patterns, np.arange(len(patterns))) else patterns[count]


def _filled(values: Array, mask: Array, value: float) -> Array:
    """`values` with `value` where the mask says so; as they are where it nowhere does."""
    if not bool(mask.any()):
        return values
    return values.masked_fill(mask, value) if is_tensor(values) else np.where(mask, values.dtype.type(value), values)


def _floor(exact: Array) -> Array:
    return exact.floor() if is_tensor(exact) else np.floor(exact)


def _integers(values: Array, dtype: DType) -> Array:
    return values.to(dtype.torch()) if is_tensor(values) else values.astype(dtype.numpy)


def as_tensor(array: Any, like: Array) -> Array:
    """A numpy array as a torch tensor on the device of `like`."""
    return torch().from_numpy(array.copy()).to(like.device)


def _gather(table: Any, index: Array) -> Array:
    if not is_tensor(index):
        return table[index]
    return as_tensor(table, index)[index.long()]


f16 = DType("f16", 16, "float")
bf16 = DType("bf16", 16, "float")
f32 = DType("f32", 32, "float")
f64 = DType("f64", 64, "float")
i8 = DType("i8", 8, "int")
i16 = DType("i16", 16, "int")
i32 = DType("i32", 32, "int")
i64 = DType("i64", 64, "int")
u8 = DType("u8", 8, "uint")
u16 = DType("u16", 16, "uint")
u32 = DType("u32", 32, "uint")
u64 = DType("u64", 64, "uint")
boolean = DType("bool", 1, "bool")  # a predicate; one byte in an array

# The scales of block formats (OCP Microscaling Formats 1.0: e8m0 is 2**(q - 127), 255 is NaN; e4m3 as the code type).
e8m0 = DType("e8m0", 8, "float")
e4m3_scale = DType("e4m3", 8, "float")

# NF4, the quantiles of a normal distribution (Dettmers et al., QLoRA, appendix E), each rounded to f16.
NF4 = """-1.0 -0.6961928 -0.52507305 -0.3949175 -0.28444138 -0.18477343 -0.09105004 0.0 0.0795803 0.1609302 0.2461123
    0.33791524 0.44070983 0.562617 0.72295684 1.0"""
NAN_PATTERNS: dict[str, tuple[int, ...]] = {"e4m3": (0x7F,), "e5m2": (0x7D, 0x7E, 0x7F)}  # without the sign
INFINITE_PATTERNS: dict[str, tuple[int, ...]] = {"e5m2": (0x7C,)}


def _code_types() -> Iterator[CodeType]:
    for bits in range(1, 9):
        yield CodeType(f"u{bits}", bits, "uint")
    for bits in range(2, 9):
        yield CodeType(f"i{bits}", bits, "int", bias=1 << (bits - 1))
    for bits in range(1, 9):  # every bit is +1 or -1, bit b weighs 2**b
        yield CodeType(f"bp{bits}", bits, "int", bias=(1 << bits) - 1, step=2)
    yield CodeType("ternary", 2, "int", bias=1, used=3)
    for bits in range(3, 9):
        for exponent in range(1, bits):
            mantissa = bits - 1 - exponent
            name = f"e{exponent}m{mantissa}"
            yield CodeType(
                name if name in ("e4m3", "e5m2") else f"f{bits}{name}",
                bits,
                "float",
                exponent=exponent,
                mantissa=mantissa,
            )
    yield CodeType("nf4", 4, "table", table=tuple(float(np.float16(value)) for value in NF4.split()))
    for bits in range(1, 9):
        yield CodeType(f"c{bits}", bits, "table")


CODE_TYPES: dict[str, CodeType] = {dtype.name: dtype for dtype in _code_types()}
# other spellings of floats: "e2m1" is f4e2m1
ALIASES = {"f8e4m3": "e4m3", "f8e5m2": "e5m2"} | {name[2:]: name for name in CODE_TYPES if re.match(r"f\de\dm\d", name)}
FEW_BOUNDS = 40  # each of which is compared with every number faster than they are searched
u4, i4 = CODE_TYPES["u4"], CODE_TYPES["i4"]

ARRAY_TYPES: dict[str, DType] = {
    dtype.name: dtype for dtype in (f16, bf16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, boolean)
}
SCALE_TYPES: dict[str, DType] = {dtype.name: dtype for dtype in (f16, bf16, f32, e8m0, e4m3_scale, i8)}
_NUMPY: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
    "e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_OF_NUMPY = {_NUMPY[name]: dtype for name, dtype in {**SCALE_TYPES, **ARRAY_TYPES}.items()}
_OF_TORCH_NAME = {f"torch.{native.name}": dtype for native, dtype in _OF_NUMPY.items()}


def get(name: str) -> DType:
    """The DType called `name` ("f16", "u4", ...); "u8" and "i8" are those of arrays, not the code types.

    Raises DTYPE_MISMATCH for a name that is none.
    """
    dtype = ARRAY_TYPES.get(name) or CODE_TYPES.get(ALIASES.get(name, name))
    if dtype is None:
        raise LowbitvmError(
            "DTYPE_MISMATCH",
            f"there is no dtype called {name!r}",
            f"use one of {', '.join([*ARRAY_TYPES, *CODE_TYPES])}",
        )
    return dtype


def of_numpy(dtype: np.dtype[Any]) -> DType:
    """The DType of numpy arrays of `dtype`, which has one."""
    return _OF_NUMPY[dtype]


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor; torch stays unimported where it was."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def of(array: Array) -> DType:
    """The DType of a numpy array's or a torch tensor's elements.

    Raises DTYPE_MISMATCH for any other object and for dtypes outside ARRAY_TYPES (complex, foreign byte order, ...).
    """
    if is_tensor(array):
        dtype = _OF_TORCH_NAME.get(str(array.dtype))
    elif isinstance(getattr(array, "dtype", None), np.dtype):  # numpy's arrays, and what describes itself by them
        dtype = _OF_NUMPY.get(array.dtype)
    else:
        raise LowbitvmError(
            "DTYPE_MISMATCH",
            f"a {type(array).__name__} is neither a numpy array nor a torch tensor",
            "pass a numpy array or a torch tensor",
        )
    if dtype is None:
        raise LowbitvmError(
            "DTYPE_MISMATCH",
            f"arrays of {array.dtype} are not supported",
            f"convert to one of {', '.join(ARRAY_TYPES)}",
        )
    return dtype
