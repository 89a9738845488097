"""Arrays of the CPU on any GPU: copied to its memory, launched on, and copied back. LOWBITVM_DEVICE=copy:0."""

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import walk
from lowbitvm.runtime import driver
from lowbitvm.runtime.compiled import CompiledKernel

GUARD = 512  # bytes that are left between arrays, and what their starts are multiples of
FILL = 0xA5
STORES = ("store", "atomic_add")


def run(kernel: CompiledKernel, grid: driver.Dim3, values: Sequence[Any], index: int) -> None:
    """Launches a kernel on GPU `index` with its parameters (numpy arrays, contiguous, and ints), and waits for it.

    Raises LAUNCH_FAILED where a byte has changed that the kernel does not store to, and what `driver.Launch` raises.
    """
    code = kernel.code
    function = driver.load(kernel.cubin, code.entry, index, code.shared, primary=True)
    arrays = [value for value in values if not isinstance(value, int)]
    starts, end = [], GUARD
    for array in arrays:
        starts.append(end)
        end += (-(-array.nbytes // GUARD) + 1) * GUARD
    image = np.full(end, FILL, np.uint8)
    for start, array in zip(starts, arrays, strict=True):
        image[start : start + array.nbytes] = _bytes(array)
    before, memory = image.copy(), driver.allocate(end, function.context)
    try:
        driver.copy_in(memory, image.ctypes.data, end, function.context)
        addresses = iter([memory + start for start in starts])
        kinds = [ctypes.c_int32 if isinstance(value, int) else ctypes.c_void_p for value in values]
        given = [value if isinstance(value, int) else next(addresses) for value in values]
        driver.Launch(function, grid, (code.threads, 1, 1), kinds)(given, 0)
        driver.synchronize(0, function.context)
        driver.copy_out(image.ctypes.data, memory, end, function.context)
    finally:
        with contextlib.suppress(LowbitvmError):  # of a context that is lost, which has an error of its own
            driver.free(memory, function.context)
    stored = {op.array.name for op in walk(kernel.program.body) if op.kind in STORES and op.array is not None}
    for start, array, (name, _) in zip(starts, arrays, kernel.array_parts(), strict=True):
        if name in stored:
            _bytes(array)[...] = image[start : start + array.nbytes]
            before[start : start + array.nbytes] = image[start : start + array.nbytes]
    if (image != before).any():
        place = int((image != before).argmax())
        raise LowbitvmError(
            "LAUNCH_FAILED",
            f"{code.entry} changed byte {place} of {end}, outside what it stores to; arrays begin at {starts}",
            "run the same launch on the emulator, which names the instruction and the thread",
        )


def _bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8)
