"""Arrays in the memory of stand-in GPUs, as CuPy (an interface), JAX (DLPack) and torch would hand them over."""

import ctypes
from typing import Any

import numpy as np
import torch
from cuda.bindings import driver as cuda
from torch.utils._pytree import tree_map

from lowbitvm.ops import _linear
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import driver
from lowbitvm.runtime.arguments import _capsule_pointer, _Tensor

CUDA = 2  # kDLCUDA


def allocate(size: int, device: int) -> int:
    """The address of new memory in the primary context of a device; as torch's allocator, also during a capture."""
    with driver._current(driver.primary_context(device)), driver._outside_capture():
        return driver.allocate(max(size, 1))


def create_stream(device: int, non_blocking: bool = False) -> int:
    """A stream of the primary context of a device."""
    with driver._current(driver.primary_context(device)):
        return int(cuda.cuStreamCreate(int(non_blocking))[1])


def at(address: int, like: np.ndarray) -> np.ndarray:
    """The numpy view of device memory, of the shape and dtype of another array."""
    buffer = (ctypes.c_uint8 * max(like.nbytes, 1)).from_address(address)
    return np.frombuffer(buffer, np.uint8, like.nbytes).view(like.dtype).reshape(like.shape)


class Interface:
    """An array with `__cuda_array_interface__`."""

    def __init__(self, array: np.ndarray, device: int = 0, stream: int | None = None) -> None:
        self.address = allocate(array.nbytes, device)
        self.array, self.stream = at(self.address, array), stream
        self.array[...] = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        described = self.array.__array_interface__
        parts = {name: described[name] for name in ("shape", "typestr", "strides", "data")}
        return parts | {"version": 3, "stream": self.stream}


class Dlpack:
    """A CPU tensor's values on a device, that only DLPack tells of."""

    def __init__(self, tensor: torch.Tensor, device: int = 0) -> None:
        self.address, self.device = allocate(tensor.nbytes, device), device
        self.patterns = at(self.address, tensor.contiguous().view(torch.uint8).numpy())
        self.patterns[...] = tensor.contiguous().view(torch.uint8).numpy()
        self.tensor, self.asked = tensor, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, *, stream: int) -> Any:
        self.asked.append(stream)
        capsule = self.tensor.__dlpack__()
        described = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
        described.data, described.device_type, described.device = self.address, CUDA, self.device
        return capsule


class GpuTensor(torch.Tensor):
    """A torch tensor on cuda:0 or cuda:1 for a torch without CUDA: what it does runs on the CPU, in device memory."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: int) -> "GpuTensor":
        options = {"strides": held.stride(), "dtype": held.dtype, "device": f"cuda:{device}"}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **options)

    def __init__(self, held: torch.Tensor, device: int) -> None:
        self.held = held

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.lowbitvm.linear.default:
            return _linear(*args, **kwargs)
        device = next(a.device.index for a in args if isinstance(a, GpuTensor))
        own = {a.held.untyped_storage().data_ptr() for a in args if isinstance(a, GpuTensor)}
        plain = tree_map(lambda a: a.held if isinstance(a, GpuTensor) else a, (args, kwargs))
        result = function(*plain[0], **{**plain[1], **({"device": "cpu"} if "device" in kwargs else {})})

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return cls(value, device) if value.untyped_storage().data_ptr() in own else to_gpu(value, device)

        return tree_map(wrap, result)


def to_gpu(tensor: torch.Tensor, device: int = 0) -> GpuTensor:
    """A copy in the memory of a device."""
    address = allocate(tensor.nbytes, device)
    patterns = (ctypes.c_uint8 * max(tensor.nbytes, 1)).from_address(address)
    flat = torch.frombuffer(patterns, dtype=torch.uint8)[: tensor.nbytes]
    held = flat.view(tensor.dtype).view(tensor.shape)
    held.copy_(tensor)
    return GpuTensor(held, device)


def weight_to_gpu(weight: PackedWeight, device: int = 0) -> PackedWeight:
    """A packed weight in the memory of a device."""
    arrays = {name: to_gpu(array, device) for name, array in weight.arrays.items()}
    fixed = arrays.pop("words"), arrays.pop("scales"), arrays.pop("zeros", None)
    return PackedWeight(*fixed, weight.format, *weight.shape, **arrays)
