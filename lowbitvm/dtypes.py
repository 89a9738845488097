"""Number formats of single values: the dtypes of arrays, tiles and registers, and the code types of packed weights."""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from lowbitvm.errors import LowbitvmError

Array = Any  # a numpy array or a torch tensor; torch is never imported here, so it has no common static type


@dataclass(frozen=True)
class DType:
    """A number format of `bits` bits; two DTypes are equal when name, bits and kind are."""

    name: str
    bits: int
    kind: Literal["float", "int", "uint", "bool"]

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

        Raises TOOL_MISSING unless the caller has imported torch: this package imports it only with `lowbitvm.ops`.
        """
        module = sys.modules.get("torch")
        if module is None:
            raise LowbitvmError(
                "TOOL_MISSING", f"a torch dtype for {self} was asked for, torch is not imported", "import torch first"
            )
        return getattr(module, self.numpy.name)


@dataclass(frozen=True)
class CodeType(DType):
    """The integer code q of a packed weight: low <= q <= high, stored as the unsigned `bits`-bit number q + bias."""

    bias: int

    @property
    def low(self) -> int:
        return -self.bias

    @property
    def high(self) -> int:
        return (1 << self.bits) - 1 - self.bias

    def encode(self, code: Array) -> Array:
        """Stored bits, 0 .. 2**bits - 1, of a code; one number or an array of a dtype that holds both."""
        return code + self.bias

    def decode(self, stored: Array) -> Array:
        """The code of stored bits; one number or an array of a signed dtype. Inverse of `encode`."""
        return stored - self.bias


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

u4 = CodeType("u4", 4, "uint", bias=0)
i4 = CodeType("i4", 4, "int", bias=8)

CODE_TYPES: dict[str, CodeType] = {dtype.name: dtype for dtype in (u4, i4)}
ARRAY_TYPES: dict[str, DType] = {
    dtype.name: dtype for dtype in (f16, bf16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, boolean)
}
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
    "u4": np.dtype(np.uint8),
    "i4": np.dtype(np.int8),
}
_OF_NUMPY = {_NUMPY[name]: dtype for name, dtype in ARRAY_TYPES.items()}
_OF_TORCH_NAME = {f"torch.{_NUMPY[name].name}": dtype for name, dtype in ARRAY_TYPES.items()}


def get(name: str) -> DType:
    """The DType called `name` ("f16", "u4", ...). Raises DTYPE_MISMATCH for a name that is none."""
    dtype = ARRAY_TYPES.get(name) or CODE_TYPES.get(name)
    if dtype is None:
        raise LowbitvmError(
            "DTYPE_MISMATCH",
            f"there is no dtype called {name!r}",
            f"use one of {', '.join([*ARRAY_TYPES, *CODE_TYPES])}",
        )
    return dtype


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
    elif isinstance(array, np.ndarray):
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
