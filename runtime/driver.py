"""Cubins on a GPU: a thin layer over the CUDA driver API (cuda.bindings), which it loads at the first call.

It takes pointers, a device index and a stream, and knows no tensors. Source: CUDA Driver API, chapters "Context
Management", "Module Management" and "Execution Control".
"""

import ctypes
import functools
import importlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lowbitvm import targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.targets import Target

Dim3 = tuple[int, int, int]

_FIXES = {
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "compile the kernel for this GPU's target, see device_target",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the GPU driver, or install the nvidia-nvjitlink of its CUDA version",
    "CUDA_ERROR_INVALID_IMAGE": "update the GPU driver, or install the nvidia-nvjitlink of its CUDA version",
    "CUDA_ERROR_NOT_FOUND": "name an entry of the cubin",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "use a smaller tile or fewer stages",
    "CUDA_ERROR_OUT_OF_MEMORY": "free GPU memory",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "run the same launch on the emulator, which names the instruction and the thread",
    "CUDA_ERROR_MISALIGNED_ADDRESS": "run the same launch on the emulator, which names the instruction and the thread",
}


@dataclass(frozen=True, eq=False)
class Function:
    """A kernel loaded into a context of a device. `shared` is its dynamic shared memory in bytes per block."""

    entry: str
    device_index: int
    shared: int
    context: Any  # CUcontext
    handle: Any  # CUfunction


def device_count() -> int:
    """Number of GPUs, at least 1. Raises DEVICE_UNAVAILABLE, with the reason, where there is no driver or no GPU."""
    return int(_call("counting GPUs", "cuDeviceGetCount"))


@functools.cache
def device_target(index: int) -> str:
    """Name of a GPU's target, such as "sm_80" or "sm_90a". Raises DEVICE_UNAVAILABLE and TARGET_UNKNOWN."""
    device = _device(index)
    attributes = _driver().CUdevice_attribute
    major, minor = (
        _call("reading the compute capability", "cuDeviceGetAttribute", attribute, device)
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return targets.for_capability(major, minor).name


def load(cubin: bytes, entry: str, device_index: int, shared: int = 0) -> Function:
    """The entry of a cubin on a device, to be launched with `shared` bytes of dynamic shared memory.

    Uses the calling thread's current context if it belongs to the device, else the device's primary context, which is
    torch's. The same arguments give the same Function; modules stay loaded until the process ends.
    Raises DEVICE_UNAVAILABLE, and LAUNCH_FAILED if the driver refuses the cubin or the shared memory.
    """
    context = _context(device_index)
    key = (int(context), cubin, entry, shared)  # the bytes themselves: their hash is computed once per object
    with _loading:
        if key not in _functions:
            with _current(context):
                handle = _load(cubin, entry, f"loading {entry} on GPU {device_index}", shared)
            _functions[key] = Function(entry, device_index, shared, context, handle)
        return _functions[key]


def launch(function: Function, grid: Dim3, block: Dim3, stream: int, args: Sequence[tuple[Any, Any]]) -> None:
    """Launch asynchronously on a stream (CUstream as an integer, 0 is the default stream).

    args: (value, ctypes type) in the order of the kernel's parameters; pointers as ctypes.c_void_p.
    A grid with a zero launches nothing. Raises GRID_TOO_LARGE and LAUNCH_FAILED.
    """
    if any(size > limit for size, limit in zip(grid, Target.max_grid, strict=True)):
        raise LowbitvmError(
            "GRID_TOO_LARGE",
            f"{function.entry} was launched with grid {grid}, the hardware takes {Target.max_grid}",
            "split the problem, or let each block do more",
        )
    if 0 in grid:
        return
    values = [kind(value) for value, kind in args]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    sizes = (*grid, *block, function.shared)
    driver = _driver()
    with _current(function.context):
        (status,) = driver.cuLaunchKernel(function.handle, *sizes, stream, ctypes.addressof(pointers), 0)
    if status != driver.CUresult.CUDA_SUCCESS:
        doing = f"launching {function.entry} on GPU {function.device_index}"
        doing += f" with grid {grid}, block {block}, {function.shared} bytes of dynamic shared memory"
        raise _failure(doing, "cuLaunchKernel", status)


_functions: dict[tuple[int, bytes, str, int], Function] = {}
_loading = threading.Lock()


@functools.cache
def _driver() -> Any:
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        status = driver.cuInit(0)[0]
    except (ImportError, OSError, RuntimeError) as error:  # cuda-pathfinder raises RuntimeErrors
        raise _unavailable(f"the CUDA driver cannot be loaded ({type(error).__name__}: {error})") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise _unavailable(f"the CUDA driver found no usable GPU ({_describe(driver, status)})")
    return driver


def _call(doing: str, name: str, *args: Any) -> Any:
    """The value a driver function returns beside its status; LAUNCH_FAILED if the status is not success."""
    driver = _driver()
    status, *values = getattr(driver, name)(*args)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise _failure(doing, name, status)
    return values[0] if values else None


def _failure(doing: str, name: str, status: Any) -> LowbitvmError:
    message = _describe(_driver(), status)
    fix = _FIXES.get(message.split(":")[0], "look the error up in the CUDA Driver API's table of results")
    return LowbitvmError("LAUNCH_FAILED", f"{doing}: {name} gave {message}", fix)


def _describe(driver: Any, status: Any) -> str:
    name, text = (get(status)[1] for get in (driver.cuGetErrorName, driver.cuGetErrorString))
    return f"{name.decode()}: {text.decode()}" if name and text else f"unknown CUDA error {int(status)}"


def _unavailable(problem: str) -> LowbitvmError:
    return LowbitvmError("DEVICE_UNAVAILABLE", problem, "use the emulator: LOWBITVM_DEVICE=emulator:sm_80")


def _device(index: int) -> Any:
    count = device_count()
    if not 0 <= index < count:
        raise LowbitvmError("DEVICE_UNAVAILABLE", f"GPU {index} does not exist", f"choose one of 0 to {count - 1}")
    return _call(f"opening GPU {index}", "cuDeviceGet", index)


def _context(device_index: int) -> Any:
    current = _call("asking for the current context", "cuCtxGetCurrent")
    if int(current) and int(_call("asking for the current device", "cuCtxGetDevice")) == device_index:
        return current
    return _primary_context(device_index)


@functools.cache
def _primary_context(device_index: int) -> Any:
    """Retained once and until the process ends, as torch does."""
    return _call(f"opening GPU {device_index}", "cuDevicePrimaryCtxRetain", _device(device_index))


@contextmanager
def _current(context: Any) -> Iterator[None]:
    """Makes a context the thread's current one and puts the previous one back."""
    if int(_call("asking for the current context", "cuCtxGetCurrent")) == int(context):
        yield
        return
    _call("changing the context", "cuCtxPushCurrent", context)
    try:
        yield
    finally:
        _call("changing the context", "cuCtxPopCurrent")


def _load(cubin: bytes, entry: str, doing: str, shared: int) -> Any:
    handle = _call(doing, "cuModuleGetFunction", _call(doing, "cuModuleLoadData", cubin), entry.encode())
    attributes = _driver().CUfunction_attribute
    static = _call(doing, "cuFuncGetAttribute", attributes.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle)
    if static + shared > Target.shared_without_opt_in:
        opt_in = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _call(f"{doing} with {shared} bytes of dynamic shared memory", "cuFuncSetAttribute", handle, opt_in, shared)
    return handle
