"""What numpy arrays and torch tensors do alike, under one name each."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.dtypes import Array, DType, is_tensor
from lowbitvm.errors import LowbitvmError

# what f16, shifted to where f32 has its fields, keeps, and what it is then to be multiplied with
F16_FIELDS, F16_RAISED = np.int32(-0x70002000), np.float32(2.0**112)

STRIP = 16  # columns of a matrix that is turned


def device(array: Array) -> str:
    """Where an array lies: "numpy", "cpu", "cuda:0", ... Raises DTYPE_MISMATCH for what is no array."""
    dtypes.of(array)
    return str(array.device) if is_tensor(array) else "numpy"


def check_one_device(parts: Mapping[str, Array]) -> None:
    """Raises DEVICE_MISMATCH unless named arrays lie in one place, and DTYPE_MISMATCH for what is no array."""
    places = {name: device(array) for name, array in parts.items()}
    if len(set(places.values())) > 1:
        where = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise LowbitvmError(
            "DEVICE_MISMATCH",
            f"the arrays of one weight lie apart: {where}",
            "bring all of them to one torch device, or all to numpy",
        )


def check_readable(parts: Mapping[str, Array]) -> None:
    """What `check_one_device` checks; raises ARGUMENT_INVALID for tensors without elements in memory."""
    check_one_device(parts)
    for name, array in parts.items():
        kind = str(array.layout)[6:] if is_tensor(array) and array.device.type != "meta" else device(array)
        if kind not in ("strided", "numpy"):
            problem = f"{name} is a {kind} tensor, which has not one element in memory for each index"
            raise LowbitvmError("ARGUMENT_INVALID", problem, "pass a dense tensor with data, as to_dense() makes")


def moved(parts: Mapping[str, Array], to: Any) -> dict[str, Array]:
    """Torch tensors by name on another device. Raises DEVICE_UNAVAILABLE for one that is not there and DEVICE_MISMATCH
    for numpy arrays, which have no device."""
    if not all(map(is_tensor, parts.values())):
        problem = f"a numpy weight cannot move to {to}"
        raise LowbitvmError("DEVICE_MISMATCH", problem, "pack torch tensors, for example from torch.from_numpy")
    torch = dtypes.torch()
    try:
        target = torch.device(to)
    except (RuntimeError, TypeError) as error:
        raise LowbitvmError("DEVICE_UNAVAILABLE", f"there is no device {to!r}", "name cpu or cuda:0") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise LowbitvmError(
            "DEVICE_UNAVAILABLE",
            f"device {to} was asked for, torch sees {torch.cuda.device_count()} CUDA devices",
            "use a device that torch.cuda lists",
        )
    return {name: array.to(target) for name, array in parts.items()}


def detached(array: Array) -> Array:
    """The array without its autograd history: packing has no gradient."""
    return array.detach() if is_tensor(array) else array


def native(array: Array, dtype: DType) -> Any:
    """`dtype` as the library of `array` names it."""
    return dtype.torch() if is_tensor(array) else dtype.numpy


def cast(array: Array, dtype: DType) -> Array:
    return array.to(dtype.torch()) if is_tensor(array) else array.astype(dtype.numpy, copy=False)


def single(array: Array) -> Array:
    """f32 of floats of 8 to 32 bits, in memory of its own; of f16 what is not finite becomes numbers from 65536 on."""
    if is_tensor(array):
        return array.float() if array.dtype.itemsize < 4 else array.clone()
    if array.dtype.itemsize != 2:
        return array.astype(np.float32)
    words: Array = bits(np.ascontiguousarray(array)).astype(np.int32)  # numpy's own casts take several times as long
    if array.dtype != np.float16:
        words <<= 16
        return words.view(np.float32)
    words <<= 13
    words &= F16_FIELDS
    numbers = words.view(np.float32)
    numbers *= F16_RAISED
    return numbers


def permute(array: Array, *axes: int) -> Array:
    return array.permute(axes) if is_tensor(array) else array.transpose(axes)


def contiguous(array: Array) -> Array:
    return array.contiguous() if is_tensor(array) else np.ascontiguousarray(array)


def zeros(like: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """Zeros of the same library and device as `like`: contiguous, and 16-byte aligned as malloc and torch allocate."""
    if is_tensor(like):
        return like.new_zeros(shape, dtype=dtype.torch())
    return np.zeros(shape, dtype.numpy)


def empty(like: Array, shape: tuple[int, ...], dtype: DType, unsigned: bool = False) -> Array:
    """What `zeros` makes, but with any content; unsigned: of i32 in numpy its unsigned kin, which torch has not."""
    if is_tensor(like):
        return like.new_empty(shape, dtype=dtype.torch())
    return np.empty(shape, np.uint32 if unsigned else dtype.numpy)


def numbers(like: Array, count: int) -> Array:
    """0, 1, ..., count - 1 in i64."""
    return dtypes.torch().arange(count, device=like.device) if is_tensor(like) else np.arange(count)


def gather(values: Array, index: Array) -> Array:
    return values[index.long()] if is_tensor(index) else values[index]


def row_major(matrix: Array) -> Array:
    """The matrix; one of numpy with contiguous columns as a copy, made strip by strip, which a cache holds."""
    if is_tensor(matrix) or matrix.shape[0] < STRIP or not 0 < matrix.strides[0] < matrix.strides[1]:
        return matrix
    rows = np.empty(matrix.shape, matrix.dtype)
    for start in range(0, matrix.shape[1], STRIP):
        rows[:, start : start + STRIP] = matrix[:, start : start + STRIP]
    return rows


def columns(matrix: Array, index: Array) -> Array:
    """matrix[:, index]."""
    wide = cast(index, dtypes.i64)
    return matrix[:, wide] if is_tensor(matrix) else np.take(matrix, wide, axis=1)  # numpy's brackets take far longer


def where(mask: Array, a: Any, b: Any) -> Array:
    return dtypes.torch().where(mask, a, b) if is_tensor(mask) else np.where(mask, a, b)


def frexp(array: Array) -> tuple[Array, Array]:
    """Mantissas in [0.5, 1) and exponents."""
    return dtypes.torch().frexp(array) if is_tensor(array) else np.frexp(array)


def bits(array: Array) -> Array:
    """The same bits as signed integers: some float types of 8 bits can do little in either library."""
    integer = {1: dtypes.i8, 2: dtypes.i16, 4: dtypes.i32, 8: dtypes.i64}[array.dtype.itemsize]
    return array.view(native(array, integer))


def fma(a: Any, b: Any, c: Any) -> "np.ndarray[Any, Any]":
    """a * b + c of numpy's f32, rounded once.

    The product is exact in f64. The sum is rounded to odd there, which keeps on which side of every midpoint of f32 it
    lies (Boldo and Melquiond, IEEE TC 2008), from its error as Knuth's two-sum finds it.
    """
    with np.errstate(all="ignore"):
        x, y = np.float64(a) * np.float64(b), np.broadcast_to(np.float64(c), np.broadcast(a, b, c).shape)
        total = np.array(x + y)
        back = total - x
        error = (x - (total - back)) + (y - back)
        even = np.isfinite(total) & (error != 0) & (total.view(np.int64) & 1 == 0)
        toward = np.where((error > 0) == (total > 0), 1, -1)  # the odd neighbour on the side of the exact sum
        odd = np.where(even, (total.view(np.int64) + toward), total.view(np.int64)).view(np.float64)
        return np.asarray(odd, np.float32)


def mul_shift(value: Any, multiplier: Any, shift: Any, nearest: bool = True) -> "np.ndarray[Any, Any]":
    """floor(value * multiplier / 2^shift + 1/2) of numpy's i32, saturated; shifts from 0 to 62.

    nearest=False: without the half, and shifts to 63.
    """
    half = np.int64(1) << np.int64(shift) >> np.int64(1) if nearest else np.int64(0)
    rounded = np.int64(value) * np.int64(multiplier) + half >> np.int64(shift)
    return np.asarray(np.clip(rounded, -(2**31), 2**31 - 1), np.int32)


def first(mask: Array) -> tuple[int, ...] | None:
    """Index of the first true element in row-major order, None where all are false."""
    flat = mask.reshape(-1)
    if not bool(flat.any()):
        return None
    return tuple(int(i) for i in np.unravel_index(int((flat * 1).argmax()), tuple(mask.shape)))


def host(array: Array) -> Array:
    """The numpy array over the memory of a CPU tensor, bit for bit; other arrays as they are."""
    if not is_tensor(array) or array.device.type != "cpu":
        return array
    dtype = dtypes.of(array).numpy
    return bits(detached(array)).numpy().view(dtype) if dtype.kind not in "biu" else array.numpy()


def tensor(array: "np.ndarray[Any, Any]") -> Array:
    """The CPU tensor over the memory of a numpy array, u32 as i32."""
    torch: Any = dtypes.torch()
    signed = array.view(np.int32) if array.dtype == np.uint32 else array
    dtype = dtypes.of(signed)
    if not array.size:
        return torch.zeros(array.shape, dtype=dtype.torch())
    return torch.from_numpy(bits(signed)).view(dtype.torch()) if dtype.is_float else torch.from_numpy(signed)


def for_each_block(
    like: Array, shape: tuple[int, ...], limit: int, work: Callable[[tuple[slice, slice]], None]
) -> None:
    """Calls `work` with slices of each block of about `limit` items of a matrix: in threads, so `work` may be called
    at the same time for several. All at once where `like` is a tensor, whose library has threads of its own."""
    rows, columns = shape
    step_k = max(1, min(columns, limit))
    step_n = max(1, limit // step_k)
    if is_tensor(like):
        step_n, step_k = max(1, rows), max(1, columns)
    blocks = [
        (slice(n, min(n + step_n, rows)), slice(k, min(k + step_k, columns)))
        for n, k in product(range(0, rows, step_n), range(0, columns, step_k))
    ]
    if len(blocks) < 2:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(min(len(blocks), os.cpu_count() or 1, 16)) as pool:
        for _ in pool.map(work, blocks):
            pass
