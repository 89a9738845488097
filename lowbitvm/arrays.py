"""What numpy arrays and torch tensors do alike, under one name each."""

from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.dtypes import Array, DType, is_tensor


def device(array: Array) -> str:
    """Where an array lies: "numpy", "cpu", "cuda:0", ... Raises DTYPE_MISMATCH for what is no array."""
    dtypes.of(array)
    return str(array.device) if is_tensor(array) else "numpy"


def detached(array: Array) -> Array:
    """The array without its autograd history: packing has no gradient."""
    return array.detach() if is_tensor(array) else array


def native(array: Array, dtype: DType) -> Any:
    """`dtype` as the library of `array` names it."""
    return dtype.torch() if is_tensor(array) else dtype.numpy


def cast(array: Array, dtype: DType) -> Array:
    return array.to(dtype.torch()) if is_tensor(array) else array.astype(dtype.numpy, copy=False)


def permute(array: Array, *axes: int) -> Array:
    return array.permute(axes) if is_tensor(array) else array.transpose(axes)


def contiguous(array: Array) -> Array:
    return array.contiguous() if is_tensor(array) else np.ascontiguousarray(array)


def zeros(like: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """Zeros of the same library and device as `like`: contiguous, and 16-byte aligned as malloc and torch allocate."""
    if is_tensor(like):
        return like.new_zeros(shape, dtype=dtype.torch())
    return np.zeros(shape, dtype.numpy)


def numbers(like: Array, count: int) -> Array:
    """0, 1, ..., count - 1 in i64."""
    return dtypes.torch().arange(count, device=like.device) if is_tensor(like) else np.arange(count)


def gather(values: Array, index: Array) -> Array:
    return values[index.long()] if is_tensor(index) else values[index]


def where(mask: Array, a: Any, b: Any) -> Array:
    return dtypes.torch().where(mask, a, b) if is_tensor(mask) else np.where(mask, a, b)


def frexp(array: Array) -> tuple[Array, Array]:
    """Mantissas in [0.5, 1) and exponents."""
    return dtypes.torch().frexp(array) if is_tensor(array) else np.frexp(array)


def bits(array: Array) -> Array:
    """The same bits as signed integers: some float types of 8 bits can do little in either library."""
    integer = {1: dtypes.i8, 2: dtypes.i16, 4: dtypes.i32, 8: dtypes.i64}[array.dtype.itemsize]
    return array.view(native(array, integer))


def first(mask: Array) -> tuple[int, ...] | None:
    """Index of the first true element in row-major order, None where all are false."""
    flat = mask.reshape(-1)
    if not bool(flat.any()):
        return None
    return tuple(int(i) for i in np.unravel_index(int((flat * 1).argmax()), tuple(mask.shape)))
