"""Cubins on a GPU: a thin layer over the CUDA driver API (cuda.bindings), which it loads at the first call.

It takes pointers, a device index and a stream, and knows no tensors. Source: CUDA Driver API, chapters "Context
Management", "Module Management" and "Execution Control".
"""

import ctypes
import functools
import importlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from lowbitvm import targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.targets import Target

Dim3 = tuple[int, int, int]

_RESTART = "start a new process: CUDA cannot repair a context"
_FIND = "run the same launch on the emulator, which names the instruction and the thread, then start a new process"
# What these leave behind is a context in which nothing runs any more (CUDA Driver API, "CUresult").
_LOST = {
    "CUDA_ERROR_ILLEGAL_ADDRESS": _FIND,
    "CUDA_ERROR_MISALIGNED_ADDRESS": _FIND,
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": _FIND,
    "CUDA_ERROR_INVALID_ADDRESS_SPACE": _FIND,
    "CUDA_ERROR_INVALID_PC": _FIND,
    "CUDA_ERROR_HARDWARE_STACK_ERROR": _FIND,
    "CUDA_ERROR_ASSERT": _FIND,
    "CUDA_ERROR_LAUNCH_FAILED": _FIND,
    "CUDA_ERROR_LAUNCH_TIMEOUT": "split the problem, or use a GPU without a display; then start a new process",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "start a new process; if it comes back, the memory of the GPU is faulty",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "make the arrays anew in a context that exists",
    "CUDA_ERROR_UNKNOWN": _RESTART,
}
_FIXES = {
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "compile the kernel for this GPU's target, see device_target",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the GPU driver, or install the nvidia-nvjitlink of its CUDA version",
    "CUDA_ERROR_INVALID_IMAGE": "update the GPU driver, or install the nvidia-nvjitlink of its CUDA version",
    "CUDA_ERROR_NOT_FOUND": "name an entry of the cubin",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "use a smaller tile or fewer stages",
    "CUDA_ERROR_OUT_OF_MEMORY": "free GPU memory",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "see nvidia-smi for what else uses the GPU",
    "CUDA_ERROR_INVALID_CONTEXT": "call again with a stream and arrays of one context; kernels are loaded anew",
    "CUDA_ERROR_INVALID_HANDLE": "call again with a stream and arrays of one context; kernels are loaded anew",
    "CUDA_ERROR_INVALID_CLUSTER_SIZE": "use a smaller cluster, or a kernel with less shared memory and registers",
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": "end the capture, and look for the call that spoiled it",
    "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT": "launch on the stream that is captured, or make that a non-blocking one",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "call it once before the capture",
}
_STALE = ("CUDA_ERROR_INVALID_CONTEXT", "CUDA_ERROR_INVALID_HANDLE")  # of functions whose context is gone
_CLUSTER, _DEPENDENT = 4, 6  # CUlaunchAttributeID
_ATTRIBUTES = {_CLUSTER: "clusters of", _DEPENDENT: "programmatic stream serialization"}
_ATTRIBUTE = struct.Struct("=I4x64s")  # CUlaunchAttribute
_RECORD = struct.Struct("=6Q10I")  # what runtime/launcher.c reads
_OTHER_CONTEXT = -1
_COMPILED = ("cuLaunchKernel", "cuLaunchKernelEx", "cuCtxGetCurrent", "cuStreamSynchronize", "cuPointerGetAttribute")
_SINCE = 12000  # of which version the calls are that the launcher makes: the least that cuda.bindings knows
_WIDTHS = {ctypes.c_void_p: "Q", ctypes.c_uint64: "Q", ctypes.c_int32: "i", ctypes.c_uint32: "I", ctypes.c_float: "f"}


@dataclass(eq=False)
class Function:
    """A kernel loaded into a context of a device. `shared` is its dynamic shared memory in bytes per block."""

    entry: str
    device_index: int
    shared: int
    context: int  # CUcontext
    handle: Any  # CUfunction
    alive: bool = True  # False once its context was found to be unusable: load it again


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


@functools.cache
def device_name(index: int) -> str:
    """What the driver calls a GPU, such as "NVIDIA A100-SXM4-80GB". Raises DEVICE_UNAVAILABLE."""
    name: bytes = _call("asking for the name of a GPU", "cuDeviceGetName", 256, _device(index))
    return name.split(b"\0")[0].decode()  # what stands behind the zero is left over


@functools.cache
def version() -> int:
    """The newest CUDA that the driver knows: 13000 is 13.0. Raises DEVICE_UNAVAILABLE."""
    return int(_call("asking for the driver's version", "cuDriverGetVersion"))


def load(cubin: bytes, entry: str, device_index: int, shared: int = 0, *, primary: bool = False) -> Function:
    """The entry of a cubin on a device, to be launched with `shared` bytes of dynamic shared memory.

    Uses the calling thread's current context if it belongs to the device, else the device's primary context; with
    `primary` always that, which is torch's. The same arguments give the same Function; modules stay loaded until the
    process ends. It is no part of a CUDA graph that is being captured.
    Raises DEVICE_UNAVAILABLE, CONTEXT_LOST, and LAUNCH_FAILED if the driver refuses the cubin or the shared memory.
    """
    context = primary_context(device_index) if primary else current_context(device_index)
    key = (context, cubin, entry, shared)  # the bytes themselves: their hash is computed once per object
    with _loading:
        if key not in _functions:
            with _current(context), _outside_capture():
                handle = _load(cubin, entry, f"loading {entry} on GPU {device_index}", shared)
            _functions[key] = Function(entry, device_index, shared, context, handle)
        return _functions[key]


class Launch:
    """A kernel with its grid and the kinds of its parameters, packed once to be launched many times.

    cluster: blocks of a cluster along each axis, on GPUs of capability 9.0 and more. dependent: blocks may start while
    those of the kernel before it on the stream still run, which the kernel waits for itself (`griddepcontrol.wait`).
    """

    def __init__(
        self,
        function: Function,
        grid: Dim3,
        block: Dim3,
        kinds: str,
        *,
        cluster: Dim3 | None = None,
        dependent: bool = False,
    ) -> None:
        """kinds: a letter for each of the kernel's parameters, as of the struct module: "Q" for an address, "A" for one
        that is a multiple of 16, "i", "I" or "f".

        Raises GRID_TOO_LARGE.
        """
        if any(size > limit for size, limit in zip(grid, Target.max_grid, strict=True)):
            raise LowbitvmError(
                "GRID_TOO_LARGE",
                f"{function.entry} was launched with grid {grid}, the hardware takes {Target.max_grid}",
                "split the problem, or let each block do more",
            )
        self.function, self.grid, self.block = function, grid, block
        self._attributes = {
            name: value for name, value in ((_CLUSTER, cluster), (_DEPENDENT, (1,) if dependent else None)) if value
        }
        attributes = [_ATTRIBUTE.pack(number, struct.pack(f"={len(v)}I", *v)) for number, v in self._attributes.items()]
        launcher, calls = _launcher()
        sizes = (*grid, *block, function.shared, len(kinds), len(attributes), 0)
        handles = (int(function.handle), function.context)
        record = _RECORD.pack(*calls[:4], *handles, *sizes) + b"".join(attributes) + kinds.encode()
        self._run, self._wait = functools.partial(launcher.run, record), functools.partial(launcher.wait, record)
        self._empty = 0 in grid

    def __call__(self, values: list[Any], stream: int) -> bool:
        """Launches asynchronously on a stream (CUstream as an integer, 0 is the default stream).

        A grid with a zero launches nothing. Returns False, with nothing launched, where an address is no multiple of 16
        that must be one. Raises LAUNCH_FAILED and CONTEXT_LOST.
        """
        if self._empty:
            return True
        status = self._run(values, stream)
        if status == _OTHER_CONTEXT:
            with _current(self.function.context):
                status = self._run(values, stream)
        if status > 0:
            function, block = self.function, self.block
            doing = f"launching {function.entry} on GPU {function.device_index}"
            doing += f" with grid {self.grid}, block {block}, {function.shared} bytes of dynamic shared memory"
            doing += "".join(f", {_ATTRIBUTES[number]} {value}" for number, value in self._attributes.items())
            name = "cuLaunchKernelEx" if self._attributes else "cuLaunchKernel"
            raise _failure(doing, name, _driver().CUresult(status), function.context)
        return bool(status == 0)

    def wait(self, stream: int) -> None:
        """Waits for what was launched on a stream. Raises CONTEXT_LOST where a kernel failed."""
        status = self._wait(stream)
        if status == _OTHER_CONTEXT:
            with _current(self.function.context):
                status = self._wait(stream)
        if status:
            result = _driver().CUresult(status)
            raise _failure("waiting for a stream", "cuStreamSynchronize", result, self.function.context)


def launch(function: Function, grid: Dim3, block: Dim3, stream: int, args: Sequence[tuple[Any, Any]]) -> None:
    """Launches once; args: (value, ctypes type) in the order of the kernel's parameters. See Launch."""
    kinds = "".join(_WIDTHS[kind] for _, kind in args)
    Launch(function, grid, block, kinds)([value for value, _ in args], stream)


def synchronize(stream: int, context: int) -> None:
    """Waits for what was launched on a stream of a context. Raises CONTEXT_LOST where a kernel failed."""
    with _current(context):
        _call("waiting for a stream", "cuStreamSynchronize", stream, context=context)


def is_capturing(stream: int, context: int | None = None) -> bool:
    """Whether launches on a stream become nodes of a CUDA graph; in the current context where none is given."""
    if stream == 0:
        return False  # the default stream cannot be captured
    with _current(context):
        status = _call("asking for a capture", "cuStreamIsCapturing", stream, context=context)
    return int(status) != 0


def clear(address: int, count: int, stream: int, context: int) -> None:
    """Sets `count` bytes of device memory to 0 on a stream."""
    with _current(context):
        _call("clearing memory", "cuMemsetD8Async", address, 0, count, stream, context=context)


def allocate(size: int, context: int | None = None) -> int:
    """The address of `size` bytes of new memory in a context, by default the current one."""
    with _current(context):
        return int(_call(f"allocating {size} bytes", "cuMemAlloc", size, context=context))


def free(address: int, context: int) -> None:
    """Gives back what `allocate` returned, once the GPU has done with it."""
    with _current(context):
        _call("freeing memory", "cuMemFree", address, context=context)


def copy_in(address: int, source: int, count: int, context: int) -> None:
    """Copies `count` bytes from an address of the CPU to one of device memory."""
    with _current(context):
        _call("copying to the GPU", "cuMemcpyHtoD", address, source, count, context=context)


def copy_out(target: int, address: int, count: int, context: int) -> None:
    """Copies `count` bytes of device memory to an address of the CPU, after what runs on the default stream."""
    with _current(context):
        _call("copying from the GPU", "cuMemcpyDtoH", target, address, count, context=context)


def order(stream: int, after: int, context: int) -> None:
    """What is launched on `stream` from now on waits for what was launched on `after`."""
    flags = _driver().CUevent_flags.CU_EVENT_DISABLE_TIMING
    with _current(context):
        event = _call("ordering two streams", "cuEventCreate", flags, context=context)
        try:
            _call("ordering two streams", "cuEventRecord", event, after, context=context)
            _call("ordering two streams", "cuStreamWaitEvent", stream, event, 0, context=context)
        finally:
            _call("ordering two streams", "cuEventDestroy", event, context=context)


def l2_bytes(index: int) -> int:
    """The size of a GPU's L2 cache."""
    attribute = _driver().CUdevice_attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
    return int(_call("asking for the size of the L2 cache", "cuDeviceGetAttribute", attribute, _device(index)))


@contextmanager
def new_stream(context: int) -> Iterator[int]:
    """A stream of a context that waits for no other, while it is used."""
    with _current(context):
        stream = int(_call("making a stream", "cuStreamCreate", 1, context=context))
    try:
        yield stream
    finally:
        _dispose(context, "cuStreamDestroy", stream)


@contextmanager
def timer(stream: int, context: int) -> Iterator[Callable[[Callable[[], object]], float]]:
    """A function that gives the microseconds on the GPU of what a call of another puts on a stream."""
    doing = "timing a launch"
    events: list[Any] = []

    def timed(work: Callable[[], object]) -> float:
        with _current(context):
            _call(doing, "cuEventRecord", events[0], stream, context=context)
            work()
            _call(doing, "cuEventRecord", events[1], stream, context=context)
            _call(doing, "cuEventSynchronize", events[1], context=context)
            return 1e3 * float(_call(doing, "cuEventElapsedTime", *events, context=context))

    try:
        with _current(context):
            for _ in range(2):
                events.append(_call(doing, "cuEventCreate", 0, context=context))
        yield timed
    finally:
        for event in events:
            _dispose(context, "cuEventDestroy", event)


@contextmanager
def recorded(work: Callable[[], object], stream: int, context: int) -> Iterator[Callable[[], None]]:
    """A function that puts what `work` launches on a stream there again, as one CUDA graph. Nothing runs before."""
    doing = "recording a CUDA graph"
    mode = _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    with _current(context):
        _call(doing, "cuStreamBeginCapture", stream, mode, context=context)
        try:
            work()
        except BaseException:
            _dispose(context, "cuStreamEndCapture", stream)
            raise
        graph = _call(doing, "cuStreamEndCapture", stream, context=context)
    runs = None
    try:
        with _current(context):
            runs = _call(doing, "cuGraphInstantiate", graph, 0, context=context)
        yield functools.partial(_run_graph, runs, stream, context)
    finally:
        if runs is not None:
            _dispose(context, "cuGraphExecDestroy", runs)
        _dispose(context, "cuGraphDestroy", graph)


def _run_graph(graph: Any, stream: int, context: int) -> None:
    with _current(context):
        _call("launching a CUDA graph", "cuGraphLaunch", graph, stream, context=context)


def _dispose(context: int, name: str, handle: Any) -> None:
    """Gives back what is no longer needed; in a context that is lost it is gone already."""
    with suppress(LowbitvmError), _current(context):
        getattr(_driver(), name)(handle)


def pointer_device(address: int) -> int:
    """Index of the GPU that an address of device memory lies on. Raises LAUNCH_FAILED for any other address."""
    launcher, calls = _launcher()
    found = int(launcher.device(calls[-1], address))  # it is asked for every array of every launch
    if found < 0:
        status = _driver().CUresult(-found)
        raise _failure(f"asking for the GPU of address {address:#x}", "cuPointerGetAttribute", status)
    return found


def is_current(context: int) -> bool:
    """Whether a context is the calling thread's."""
    return int(_driver().cuCtxGetCurrent()[1] or 0) == context


def reads_host_memory(index: int) -> bool:
    """Whether a GPU can use any memory of the process, as those do that share it with the CPU (Grace Hopper, HMM)."""
    attribute = _driver().CUdevice_attribute.CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS
    return bool(_call("asking for access to host memory", "cuDeviceGetAttribute", attribute, _device(index)))


def current_context(device_index: int) -> int:
    """The calling thread's context if it belongs to the device, else the device's primary one."""
    current = int(_call("asking for the current context", "cuCtxGetCurrent"))
    if current and int(_call("asking for the current device", "cuCtxGetDevice")) == device_index:
        return current
    return primary_context(device_index)


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


@functools.cache
def _launcher() -> tuple[Any, list[int]]:
    """The compiled launcher, and the addresses of the calls that it makes. Raises DEVICE_UNAVAILABLE."""
    driver = _driver()
    try:
        module = importlib.import_module("lowbitvm.runtime._launcher")
    except ImportError as error:
        raise _unavailable(f"the launcher was not compiled when the package was installed ({error})") from error
    found = [driver.cuGetProcAddress(name.encode(), _SINCE, 0)[:2] for name in _COMPILED]
    missing = [name for name, (status, address) in zip(_COMPILED, found, strict=True) if int(status) or not address]
    if missing:
        raise _unavailable(f"the CUDA driver has no {', '.join(missing)}, of CUDA {_SINCE // 1000}")
    return module, [int(address) for _, address in found]


def _call(doing: str, name: str, *args: Any, context: int | None = None) -> Any:
    """The value a driver function returns beside its status; `_failure` of the context if the status is not success."""
    driver = _driver()
    status, *values = getattr(driver, name)(*args)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise _failure(doing, name, status, context)
    return values[0] if values else None


def _failure(doing: str, name: str, status: Any, context: int | None = None) -> LowbitvmError:
    """CONTEXT_LOST or LAUNCH_FAILED; forgets the functions of a context that is gone."""
    message = _describe(_driver(), status)
    result = message.split(":")[0]
    if result in _LOST or result in _STALE:
        _forget(context)
    if result in _LOST:
        problem = f"{doing}: {name} gave {message}, from it or from a kernel before it"
        return LowbitvmError("CONTEXT_LOST", problem, _LOST[result])
    fix = _FIXES.get(result, "look the error up in the CUDA Driver API's table of results")
    return LowbitvmError("LAUNCH_FAILED", f"{doing}: {name} gave {message}", fix)


def _forget(context: int | None) -> None:
    """Nothing that was loaded into a context can be used any more; None: whichever is the current one."""
    if context is None:
        context = int(_driver().cuCtxGetCurrent()[1] or 0)
    for key in [key for key in _functions if key[0] == context]:
        _functions.pop(key).alive = False


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


@functools.cache
def primary_context(device_index: int) -> int:
    """Retained once and until the process ends, as torch does."""
    return int(_call(f"opening GPU {device_index}", "cuDevicePrimaryCtxRetain", _device(device_index)))


@contextmanager
def _current(context: int | None) -> Iterator[None]:
    """Makes a context the thread's current one, and then puts the previous one back; None leaves what there is.

    A thread that has none keeps it, as one that calls the CUDA runtime does.
    """
    before = 0 if context is None else int(_call("asking for the current context", "cuCtxGetCurrent"))
    if context is None or before == context:
        yield
        return
    if not before:
        _call("changing the context", "cuCtxSetCurrent", context)
        yield
        return
    _call("changing the context", "cuCtxPushCurrent", context)
    try:
        yield
    finally:
        _call("changing the context", "cuCtxPopCurrent")


@contextmanager
def _outside_capture() -> Iterator[None]:
    """Allows what a capture of this thread or another forbids; nothing of it becomes part of a graph."""
    relaxed = _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = _call("leaving a capture", "cuThreadExchangeStreamCaptureMode", relaxed)
    try:
        yield
    finally:
        _call("returning to a capture", "cuThreadExchangeStreamCaptureMode", before)


def _load(cubin: bytes, entry: str, doing: str, shared: int) -> Any:
    handle = _call(doing, "cuModuleGetFunction", _call(doing, "cuModuleLoadData", cubin), entry.encode())
    attributes = _driver().CUfunction_attribute
    static = _call(doing, "cuFuncGetAttribute", attributes.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle)
    if static + shared > Target.shared_without_opt_in:
        opt_in = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _call(f"{doing} with {shared} bytes of dynamic shared memory", "cuFuncSetAttribute", handle, opt_in, shared)
    return handle
