"""Launching a compiled kernel: numpy arrays and CPU tensors on the emulator, CUDA tensors on their GPU."""

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.arrays import host
from lowbitvm.errors import LowbitvmError
from lowbitvm.integers import PackedDigits
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import driver
from lowbitvm.runtime.compiled import CompiledKernel
from lowbitvm.targets import Target, get

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

ALIGNMENT = 16  # bytes: what whole vector accesses need of an array's address


def launch(
    kernel: CompiledKernel, grid: Sequence[int], arguments: Mapping[str, Any], **options: Any
) -> "Report | None":
    """Runs a kernel on a grid of up to three dimensions; arrays that it stores to are changed in place.

    `arguments` has a contiguous numpy array, torch tensor or PackedWeight per array of the kernel; what is stored to
    may overlap nothing else. CPU arrays run on the emulator, which takes `options` (checks, on_finding, seed) and
    returns its report; CUDA tensors on their GPU, on torch's current stream. A grid with a zero launches nothing.
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, TENSOR_NOT_CONTIGUOUS, DEVICE_MISMATCH, GRID_TOO_LARGE, LAUNCH_FAILED.
    """
    blocks = _grid(kernel, grid)
    values = kernel.parameters(arguments)
    arrays = [value for value in values if not isinstance(value, int)]
    _check_arrays(kernel, arguments)
    if 0 in blocks:
        return None
    block = (kernel.code.threads, 1, 1)
    device = _device(arrays)
    if device == "cpu":
        buffers = [value if isinstance(value, int) else _as_numpy(value) for value in values]
        return kernel.emulated.launch(
            kernel.code.entry,
            grid=blocks,
            block=block,
            args=buffers,
            shared=kernel.code.shared,
            arch=kernel.target,
            **options,
        )
    index = int(device.removeprefix("cuda:"))
    function = driver.load(kernel.cubin, kernel.code.entry, index, kernel.code.shared)
    pairs = [
        (value, ctypes.c_int32) if isinstance(value, int) else (value.data_ptr(), ctypes.c_void_p) for value in values
    ]
    driver.launch(function, blocks, block, _torch().cuda.current_stream(index).cuda_stream, pairs)
    return None


def emulated_target() -> str | None:
    """The target that CPU arrays are emulated on. Raises DEVICE_UNAVAILABLE for another LOWBITVM_DEVICE."""
    device = os.environ.get("LOWBITVM_DEVICE", "")
    if not device:
        return None
    if not device.startswith("emulator:"):
        raise LowbitvmError(
            "DEVICE_UNAVAILABLE", f"LOWBITVM_DEVICE is {device!r}", "set it to emulator:sm_80 or unset it"
        )
    return get(device.removeprefix("emulator:")).name


def _grid(kernel: CompiledKernel, grid: Sequence[int]) -> tuple[int, int, int]:
    sizes = grid if isinstance(grid, tuple | list) else ()
    if not 1 <= len(sizes) <= 3 or not all(type(size) is int and size >= 0 for size in sizes):
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"{kernel.code.entry} with grid {grid!r}", "give one to three ints, none below 0"
        )
    x, y, z = (*grid, 1, 1)[:3]
    if any(size > limit for size, limit in zip((x, y, z), Target.max_grid, strict=True)):
        raise LowbitvmError(
            "GRID_TOO_LARGE",
            f"{kernel.code.entry} with grid {tuple(grid)}, the hardware takes {Target.max_grid}",
            "use larger tiles, or split the problem",
        )
    return x, y, z


def _check_arrays(kernel: CompiledKernel, arguments: Mapping[str, Any]) -> None:
    for array in kernel.program.arrays:
        value = arguments[array.name]
        if isinstance(value, PackedWeight | PackedDigits):  # contiguous by construction
            parts = list(value.arrays.values())
        else:
            _check_contiguous(array.name, value)
            parts = [value] if kernel.program.divisor(array.dims[-1]) > 1 else []
        for part in parts:
            if address(part) % ALIGNMENT:
                raise LowbitvmError(
                    "ARGUMENT_INVALID",
                    f"{array.name} is at address {address(part):#x}, no multiple of {ALIGNMENT}",
                    "copy it, or compile the kernel without divisible",
                )


def _check_contiguous(name: str, value: Any) -> None:
    contiguous = value.is_contiguous() if dtypes.is_tensor(value) else value.flags.c_contiguous
    if not contiguous:
        raise LowbitvmError(
            "TENSOR_NOT_CONTIGUOUS", f"{name} of shape {tuple(value.shape)} has gaps", "call .contiguous()"
        )


def address(value: Any) -> int:
    """The address of an array's first element."""
    return int(value.data_ptr() if dtypes.is_tensor(value) else value.ctypes.data)


def _device(arrays: Sequence[Any]) -> str:
    """The one device of all arrays: "cpu", or "cuda:0" and so on."""
    devices = {str(value.device) if dtypes.is_tensor(value) else "cpu" for value in arrays}
    if len(devices) > 1:
        raise LowbitvmError(
            "DEVICE_MISMATCH", f"arrays on {sorted(devices)}", "move all to one device with .to(device)"
        )
    return devices.pop()


def _as_numpy(value: Any) -> np.ndarray[Any, Any]:
    """A numpy view of a CPU array's memory; the emulator takes bf16 as its 16-bit patterns."""
    array: np.ndarray[Any, Any] = host(value)
    return array.view(np.uint16) if array.dtype == dtypes.bf16.numpy else array


def _torch() -> Any:
    return sys.modules["torch"]
