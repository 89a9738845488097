"""Launching a compiled kernel: CPU arrays on the emulator or on a GPU that shares their memory, others on their GPU."""

import functools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowbitvm import arrays, dtypes
from lowbitvm.arrays import host
from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import copying, driver
from lowbitvm.runtime.arguments import KINDS, LEGACY_STREAM, DeviceArray, address, adopt, device_of, is_contiguous
from lowbitvm.runtime.compiled import CompiledKernel
from lowbitvm.targets import Target, get

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

ALIGNMENT = 16  # bytes: what whole vector accesses need of an array's address
CLUSTER_CAPABILITY, MOST_TOGETHER = (9, 0), 8  # of GPUs with clusters; blocks of one
KEPT = 1024  # signatures of a kernel whose launches are kept ready
Grid = tuple[int, int, int]


def launch(
    kernel: CompiledKernel,
    grid: Sequence[int],
    arguments: Mapping[str, Any],
    *,
    stream: int | None = None,
    cluster: Sequence[int] | None = None,
    **options: Any,
) -> "Report | None":
    """Runs a kernel on a grid of up to three dimensions; arrays that it stores to are changed in place.

    `arguments` has a contiguous array or packed weight per array of the kernel; what is stored to may overlap nothing
    else. CPU arrays (numpy's and torch's) run on the emulator, which takes `options` (checks, on_finding, seed) and
    returns its report, or with LOWBITVM_DEVICE=cuda:0 on a GPU that can use the memory of the CPU, to the end, or with
    LOWBITVM_DEVICE=copy:0 on any GPU, to whose memory they are copied and back. CUDA tensors run on their GPU, on
    torch's current stream; arrays of other libraries (`__cuda_array_interface__`, DLPack) on the stream that they name.
    `stream` (a CUstream as an integer) takes the place of these. A grid with a zero launches nothing. `cluster`: blocks
    of a cluster, which run at the same time on neighbouring SMs, for each dimension of the grid, on sm_90 and later. A
    kernel that was compiled with `dependent` starts while the one before it on the stream still runs.
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, TENSOR_NOT_CONTIGUOUS, DEVICE_MISMATCH, GRID_TOO_LARGE, CLUSTER_INVALID,
    LAUNCH_FAILED, CONTEXT_LOST.
    """
    given = {n: value if type(value) in KINDS else adopt(value, stream) for n, value in arguments.items()}
    ready = prepare(kernel, grid, given, cluster)
    if ready is not None:
        ready.run(given, stream)
        record = _record.get()
        if record is not None:
            record.append(Launched(ready, given))
        return None
    if cluster is not None:
        options["cluster"] = tuple(cluster)
    blocks, index = _grid(kernel, grid), copying_gpu()
    if 0 in blocks:
        return None
    if index is not None:
        values = kernel.parameters(given)
        together = None if cluster is None else _cluster(kernel, blocks, cluster)
        ready = Ready(kernel, blocks, values, Place(index, "copied"), together)
        copying.run(ready, [_as_numpy(value) for value in values if not isinstance(value, int)])
        return None
    return emulate(kernel, blocks, kernel.parameters(given), options)


class Launched(NamedTuple):
    """A launch that was made, and its arguments."""

    ready: "Ready"
    given: Mapping[str, Any]


_record: ContextVar[list[Launched] | None] = ContextVar("_record", default=None)


@contextmanager
def recorded() -> Iterator[list[Launched]]:
    """The launches on GPUs that the thread makes in the block, in order; their arrays stay alive until it ends."""
    launched: list[Launched] = []
    token = _record.set(launched)
    try:
        yield launched
    finally:
        _record.reset(token)


def recording() -> bool:
    """Whether the thread's launches are recorded."""
    return _record.get() is not None


def prepare(
    kernel: CompiledKernel, grid: Sequence[int], given: Mapping[str, Any], cluster: Sequence[int] | None = None
) -> "Ready | None":
    """The launch of a kernel on a GPU with arguments such as these; None where it is the emulator's, or no block's.

    It is kept, and found again by the grid and all of the arguments but their addresses. Raises as `launch` does.
    """
    signatures = [KINDS[type(value)].signature(value) for value in given.values()]
    key = (tuple(grid) if isinstance(grid, list) else grid, cluster and tuple(cluster), *given, *signatures)
    ready: Ready | None = kernel.ready.get(key)
    if ready is None or not ready.usable():
        blocks, values = _grid(kernel, grid), kernel.parameters(given)
        together = None if cluster is None else _cluster(kernel, blocks, cluster)
        _check_arrays(kernel, given)
        place = place_of([value for value in values if not isinstance(value, int)])
        if place is None or 0 in blocks:
            return None
        if len(kernel.ready) >= KEPT:
            kernel.ready.clear()
        ready = kernel.ready[key] = Ready(kernel, blocks, values, place, together)
    return ready


def emulate(
    kernel: CompiledKernel, blocks: Grid, values: Sequence[Any], options: Mapping[str, Any] | None = None
) -> "Report":
    """Runs a kernel in the emulator, with the parameters of `CompiledKernel.parameters` on the CPU."""
    return kernel.emulated.launch(
        kernel.code.entry,
        grid=blocks,
        block=(kernel.code.threads, 1, 1),
        args=[value if isinstance(value, int) else _as_numpy(value) for value in values],
        shared=kernel.code.shared,
        arch=kernel.target,
        **(options or {}),
    )


@dataclass(frozen=True)
class Place:
    """A GPU to launch on. `arrays`: whose they are, "torch", "host" for memory of the CPU, "copied", or "other"."""

    index: int
    arrays: str

    @property
    def context(self) -> int:
        """The context that it launches in."""
        return driver.current_context(self.index) if self.arrays == "other" else driver.primary_context(self.index)


def place_of(arrays: Sequence[Any]) -> Place | None:
    """Where arrays are computed with; None: on the emulator. Raises DEVICE_MISMATCH and DEVICE_UNAVAILABLE."""
    devices = {device_of(value) for value in arrays}
    if len(devices) > 1:
        raise LowbitvmError(
            "DEVICE_MISMATCH", f"arrays on {sorted(devices)}", "move all to one device with .to(device)"
        )
    device = devices.pop()
    if device != "cpu":
        tensors = any(dtypes.is_tensor(value) for value in arrays)
        return Place(int(device.removeprefix("cuda:")), "torch" if tensors else "other")
    index = _host_gpu()
    return None if index is None else Place(index, "host")


class Ready:
    """A kernel with a grid and arguments of known shapes, dtypes and device: what is left is to fill in addresses."""

    def __init__(
        self, kernel: CompiledKernel, blocks: Grid, values: Sequence[Any], place: Place, cluster: Grid | None
    ) -> None:
        code, primary = kernel.code, place.arrays != "other"
        function = driver.load(kernel.cubin, code.entry, place.index, code.shared, primary=primary)
        whole, self._parts = _vectorised(kernel), list(kernel.array_parts())
        self._sizes = [value for value in values if isinstance(value, int)]
        kinds = "".join("A" if name in whole else "Q" for name, _ in self._parts) + "i" * len(self._sizes)
        self.kernel, self.place, self.function = kernel, place, function
        threads = (code.threads, 1, 1)
        self._launch = driver.Launch(function, blocks, threads, kinds, cluster=cluster, dependent=code.dependent)

    def usable(self) -> bool:
        """Whether the arguments would be launched at this place now, and its context still exists."""
        place, context = self.place, self.function.context
        if place.arrays == "host" and _host_gpu() != place.index:
            return False
        if place.arrays == "other" and not driver.is_current(context):
            return driver.current_context(place.index) == context and self.function.alive
        return self.function.alive

    def run(self, given: Mapping[str, Any], stream: int | None = None) -> None:
        """Launches with arguments of the same signatures. Raises ARGUMENT_INVALID for addresses out of line."""
        values = []
        for name, part in self._parts:
            array = given[name] if part is None else getattr(given[name], part)
            values.append(KINDS[type(array)].address(array))
        if self.place.arrays == "other":
            stream = self._ordered(given, stream)
        if not self.launch(values, stream):
            _check_arrays(self.kernel, given)

    def launch(self, addresses: list[int], stream: int | None = None) -> bool:
        """Launches with the addresses of all parts; waits for it if they lie in memory of the CPU.

        Returns False, with nothing launched, where one is not aligned.
        """
        arrays = self.place.arrays
        if stream is None:
            stream = torch_stream(self.place.index) if arrays == "torch" else 0
        if not self._launch(addresses + self._sizes, stream):
            return False
        if arrays == "host" and not driver.is_capturing(stream, self.function.context):
            self._launch.wait(stream)
        return True

    def _ordered(self, given: Mapping[str, Any], stream: int | None) -> int:
        """The stream to launch on, after what other libraries do to their arrays on streams of their own."""
        named = [value.stream for value in given.values() if type(value) is DeviceArray and value.stream is not None]
        if not named:
            return stream or 0
        streams = {0 if other == LEGACY_STREAM else int(other) for other in named}
        chosen = min(streams) if stream is None else stream
        for other in streams - {chosen}:
            driver.order(chosen, other, self.function.context)
        return chosen


def device_target_of(array: Array) -> str | None:
    """The target of an array's GPU; of CPU arrays what `emulated_target` says."""
    on_gpu = arrays.device(array).startswith("cuda")
    return driver.device_target(array.device.index) if on_gpu else emulated_target()


def emulated_target() -> str | None:
    """The target that CPU arrays are computed with, None for none. Raises DEVICE_UNAVAILABLE, TARGET_UNKNOWN."""
    device = os.environ.get("LOWBITVM_DEVICE", "")
    if not device:
        return None
    if device.startswith("emulator:"):
        return get(device.removeprefix("emulator:")).name
    copied_to = copying_gpu()
    index = _host_gpu() if copied_to is None else copied_to
    assert index is not None
    return driver.device_target(index)


def _host_gpu() -> int | None:
    """The GPU that CPU arrays go to as they are, None for none."""
    device = os.environ.get("LOWBITVM_DEVICE", "")
    return None if not device or device.startswith(("emulator:", "copy:")) else _sharing_gpu(device)


def copying_gpu() -> int | None:
    """The GPU that CPU arrays are copied to for each launch, None for none."""
    device = os.environ.get("LOWBITVM_DEVICE", "")
    return _gpu_number(device, "copy:") if device.startswith("copy:") else None


@functools.cache
def _sharing_gpu(device: str) -> int:
    number = _gpu_number(device, "cuda:")
    if not driver.reads_host_memory(number):
        raise LowbitvmError(
            "DEVICE_UNAVAILABLE",
            f"LOWBITVM_DEVICE is {device!r}, a GPU that cannot use memory of the CPU",
            "move the arrays to the GPU, or have them copied for each launch by LOWBITVM_DEVICE=copy:0",
        )
    return number


def _gpu_number(device: str, prefix: str) -> int:
    number = device.removeprefix(prefix)
    if not number.isdecimal() or not device.startswith(prefix):
        raise LowbitvmError(
            "DEVICE_UNAVAILABLE",
            f"LOWBITVM_DEVICE is {device!r}",
            "set it to emulator:sm_80, cuda:0 or copy:0, or unset it",
        )
    return int(number)


def torch_stream(index: int) -> int:
    """torch's current stream on a GPU, as an integer."""
    torch = sys.modules["torch"]
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # without the object that the public function makes
    return int(torch.cuda.current_stream(index).cuda_stream if raw is None else raw(index))


def _grid(kernel: CompiledKernel, grid: Sequence[int]) -> Grid:
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


def _cluster(kernel: CompiledKernel, grid: Grid, cluster: Sequence[int]) -> Grid:
    """Source: CUDA Programming Guide, "Thread Block Clusters": up to 8 blocks on every GPU that has clusters."""
    sizes = (*cluster, 1, 1)[: max(3, len(cluster))]
    problem = ""
    if get(kernel.target).capability < CLUSTER_CAPABILITY:
        problem, fix = f"a cluster of {cluster} on {kernel.target}", "leave it out, or compile for sm_90 and later"
    elif len(sizes) > 3 or not all(type(size) is int and size > 0 for size in sizes):
        problem, fix = f"a cluster of {cluster!r}", "give one to three ints above 0"
    elif math.prod(sizes) > MOST_TOGETHER:
        problem, fix = f"a cluster of {math.prod(sizes)} blocks", f"use at most {MOST_TOGETHER}"
    elif any(count % size for count, size in zip(grid, sizes, strict=True)):
        problem, fix = f"a grid of {grid} in clusters of {tuple(sizes)}", "make each a divisor of the grid's"
    if problem:
        raise LowbitvmError("CLUSTER_INVALID", f"{kernel.code.entry}: {problem}", fix)
    x, y, z = sizes
    return x, y, z


def _vectorised(kernel: CompiledKernel) -> set[str]:
    """The arrays that the kernel takes in whole vectors."""
    program = kernel.program
    return {a.name for a in program.arrays if isinstance(a.element, Format) or program.divisor(a.dims[-1]) > 1}


def _check_arrays(kernel: CompiledKernel, arguments: Mapping[str, Any]) -> None:
    whole = _vectorised(kernel)
    for name, value in arguments.items():
        parts = [value]
        if isinstance(value, PackedWeight | PackedDigits):  # contiguous by construction
            parts = [getattr(value, part) for part in value.format.parts]
        elif not is_contiguous(value):
            raise LowbitvmError(
                "TENSOR_NOT_CONTIGUOUS", f"{name} of shape {tuple(value.shape)} has gaps", "call .contiguous()"
            )
        for part in parts if name in whole else ():
            if address(part) % ALIGNMENT:
                raise LowbitvmError(
                    "ARGUMENT_INVALID",
                    f"{name} is at address {address(part):#x}, no multiple of {ALIGNMENT}",
                    "copy it, or compile the kernel without divisible",
                )


def _as_numpy(value: Any) -> np.ndarray[Any, Any]:
    """A numpy view of a CPU array's memory; the emulator takes bf16 as its 16-bit patterns."""
    array: np.ndarray[Any, Any] = host(value)
    return array.view(np.uint16) if array.dtype == dtypes.bf16.numpy else array
