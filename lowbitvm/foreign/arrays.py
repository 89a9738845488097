"""What numpy arrays and torch tensors do alike, as far as bits and words are concerned: see also lowbitvm.arrays."""

import sys
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.arrays import native, zeros
from lowbitvm.dtypes import Array, DType

Shape = tuple[int, ...]

# bits -> dtype of words in numpy and in torch, which shifts signed ones only
_WORDS = {8: (dtypes.u8, dtypes.u8), 16: (dtypes.u16, dtypes.i16), 32: (dtypes.u32, dtypes.i32)}


def cast_like(array: Array, other: Array) -> Array:
    """The array's values in the dtype of another array of the same library."""
    return array.to(other.dtype) if dtypes.is_tensor(array) else array.astype(other.dtype, copy=False)


def dtype_named(name: str) -> DType:
    """The dtype of arrays called `name`."""
    return {**dtypes.SCALE_TYPES, **dtypes.ARRAY_TYPES}[name]


def reinterpret(array: Array, dtype: DType) -> Array:
    """The bytes of an array as elements of another dtype; the last dimension changes with the width."""
    return contiguous(array).view(native(array, dtype))


def word_zeros(like: Array, shape: Shape, unit: int) -> Array:
    """Zero words of `unit` bits."""
    return zeros(like, shape, _WORDS[unit][dtypes.is_tensor(like)])


def words_of(array: Array, unit: int) -> Array:
    """A tensor of integers of `unit` bits as the words that shifts work on, sharing memory where it can."""
    return reinterpret(array, _WORDS[unit][dtypes.is_tensor(array)])


def contiguous(array: Array) -> Array:
    """The array in row-major order."""
    if dtypes.is_tensor(array):
        return array.detach().contiguous()
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)  # which would give scalars a dimension


def filled_up(array: Array, shape: Shape) -> Array:
    """The array with zeros behind the end of each dimension that is shorter than `shape` has it."""
    if tuple(array.shape) == shape:
        return array
    result = array.new_zeros(shape) if dtypes.is_tensor(array) else np.zeros(shape, array.dtype)
    result[tuple(slice(0, size) for size in array.shape)] = array
    return result


def equal(left: Array, right: Array) -> bool:
    """Same shape and the same values; a NaN equals a NaN."""
    if tuple(left.shape) != tuple(right.shape):
        return False
    return bool(((left == right) | ((left != left) & (right != right))).all())


def concatenated(arrays: list[Array], axis: int) -> Array:
    """The arrays joined along one dimension."""
    if dtypes.is_tensor(arrays[0]):
        return sys.modules["torch"].cat(arrays, dim=axis)
    return np.concatenate(arrays, axis=axis)


def consecutive(like: Array, in_features: int, groups: int) -> Array:
    """The group of each feature in G runs of K / G consecutive ones: i32 (K)."""
    return from_numpy(like, np.repeat(np.arange(groups, dtype=np.int32), in_features // max(groups, 1)))


def argsort(array: Array) -> Array:
    """The stable order that sorts a vector."""
    return array.argsort(stable=True) if dtypes.is_tensor(array) else np.argsort(array, kind="stable")


def from_numpy(like: Array, array: Any) -> Array:
    """A numpy array in the library and on the device of `like`."""
    return sys.modules["torch"].from_numpy(array).to(like.device) if dtypes.is_tensor(like) else array


def shape_of(array: Array) -> Shape:
    """The shape as a tuple of integers."""
    return tuple(int(size) for size in array.shape)
