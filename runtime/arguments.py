"""What a launch is given: numpy arrays, torch tensors, packed weights, and any library's arrays on a GPU.

Arrays of other libraries (CuPy, PyCUDA, numba, JAX) come through `__cuda_array_interface__`, version 3, or DLPack.
"""

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.integers import PackedDigits
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import driver

LEGACY_STREAM = 1  # what both protocols call the default stream, which the driver also knows as 0
_CPU, _CUDA, _MANAGED = 1, 2, 13  # DLDeviceType
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}  # DLDataTypeCode


@dataclass(slots=True)
class DeviceArray:
    """An array of another library on a GPU. `stream`: on which it may still be written, None for no matter."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pointer: int
    device: int
    contiguous: bool
    stream: int | None
    owner: Any  # keeps the memory


class _Tensor(ctypes.Structure):
    """DLTensor of DLPack's dlpack.h, with which DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def adopt(value: Any, stream: int | None = None) -> Any:
    """The array as `launch` knows it: those of other libraries as DeviceArray, or as numpy's if they lie in CPU memory.

    stream: on which it will be used, for libraries that want to know. Anything that is no array stays what it is.
    """
    kind = type(value)
    if kind in _INTERFACES:
        return _from_interface(value, value.__cuda_array_interface__)
    if kind in KINDS or dtypes.is_tensor(value):
        return value
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        _INTERFACES.add(kind)
        return _from_interface(value, interface)
    if hasattr(value, "__dlpack_device__"):
        kind, device = value.__dlpack_device__()
        if int(kind) in (_CUDA, _MANAGED):
            return _from_dlpack(value.__dlpack__(stream=stream or LEGACY_STREAM), device)
        if int(kind) == _CPU:
            return np.from_dlpack(value)
    return value


def _from_interface(owner: Any, interface: Mapping[str, Any]) -> DeviceArray:
    pointer, _ = interface["data"]
    shape, dtype, strides = interface["shape"], _dtype(interface["typestr"]), interface.get("strides")
    contiguous = strides is None or _contiguous(shape, [step // dtype.itemsize for step in strides])
    device = driver.pointer_device(pointer) if pointer else 0
    return DeviceArray(shape, dtype, pointer, device, contiguous, interface.get("stream"), owner)


_INTERFACES: set[type] = set()  # whose objects have `__cuda_array_interface__`
_dtype = functools.cache(np.dtype)


def _from_dlpack(capsule: Any, device: int) -> DeviceArray:
    tensor = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.rank])
    contiguous = not tensor.strides or _contiguous(shape, tensor.strides[: tensor.rank])
    name = f"{_CODES.get(tensor.code, 'other')}{tensor.bits}"
    dtype = dtypes.bf16.numpy if name == "bfloat16" else np.dtype(name if tensor.code in (0, 1, 2) else "V1")
    pointer = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(shape, dtype, pointer, device, contiguous, None, capsule)


def _contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    wanted = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return 0 in shape or all(
        size == 1 or step == right for size, step, right in zip(shape, strides, wanted, strict=True)
    )


def device_of(value: Any) -> str:
    """ "cpu", or "cuda:0" and so on."""
    if isinstance(value, DeviceArray):
        return f"cuda:{value.device}"
    return str(value.device) if dtypes.is_tensor(value) else "cpu"


def is_contiguous(value: Any) -> bool:
    """Whether an array's elements stand in row-major order without gaps."""
    if isinstance(value, DeviceArray):
        return value.contiguous
    return bool(value.is_contiguous() if dtypes.is_tensor(value) else value.flags.c_contiguous)


def address(value: Any) -> int:
    """The address of an array's first element."""
    return KINDS[type(value)].address(value)


@dataclass(frozen=True)
class _Kind:
    """What is asked of an array in every launch: `signature` says all that may not change but the address."""

    signature: Callable[[Any], object]
    address: Callable[[Any], int]


class _Kinds(dict[type, _Kind]):
    """By type, as looking at a value's type is the fastest of tests."""

    def __missing__(self, kind: Any) -> _Kind:
        torch = sys.modules.get("torch")
        if torch is None or not issubclass(kind, torch.Tensor):
            raise LowbitvmError("DTYPE_MISMATCH", f"an argument is a {kind.__name__}", "pass an array or a tensor")
        self[kind] = _Kind(lambda v: (v.shape, v.dtype, v.device, v.is_contiguous()), kind.data_ptr)
        return self[kind]


_numbered: dict[object, int] = {}


def _packed_signature(value: Any) -> int:
    """A number for what a packed matrix is, worked out once for each object: it cannot change."""
    known = value.__dict__.get("_signature")
    if known is None:
        parts = tuple((name, array.dtype, device_of(array)) for name, array in value.arrays.items())
        known = _numbered.setdefault((type(value), value.format, value.shape, parts), len(_numbered))
        value.__dict__["_signature"] = known
    return int(known)


# Asking for the kind of a type that is no array raises DTYPE_MISMATCH.
KINDS = _Kinds(
    {
        np.ndarray: _Kind(lambda v: (v.shape, v.dtype, v.flags.c_contiguous), lambda v: int(v.ctypes.data)),
        DeviceArray: _Kind(lambda v: (v.shape, v.dtype, v.device, v.contiguous, "device"), lambda v: v.pointer),
        PackedWeight: _Kind(_packed_signature, lambda v: 0),
        PackedDigits: _Kind(_packed_signature, lambda v: 0),
        type(None): _Kind(lambda v: None, lambda v: 0),  # an argument that is left out
    }
)
