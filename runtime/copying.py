"""Arrays of the CPU on any GPU: copied to its memory, launched on, and copied back. LOWBITVM_DEVICE=copy:0."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import walk
from lowbitvm.runtime import driver

if TYPE_CHECKING:
    from lowbitvm.runtime.launch import Ready

GUARD = 512  # bytes that are left between arrays, and what their starts are multiples of
FILL = 0xA5
STORES = ("store", "atomic_add")


def run(ready: "Ready", arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    """Launches once with the arrays of all of the kernel's pointers, contiguous ones of numpy's, and waits for it.

    Raises LAUNCH_FAILED where a byte has changed that the kernel does not store to, and what a launch raises.
    """
    kernel, context = ready.kernel, ready.function.context
    starts, end = [], GUARD
    for array in arrays:
        starts.append(end)
        end += (-(-array.nbytes // GUARD) + 1) * GUARD
    image = np.full(end, FILL, np.uint8)
    for start, array in zip(starts, arrays, strict=True):
        image[start : start + array.nbytes] = _bytes(array)
    before, memory = image.copy(), driver.allocate(end, context)
    held = Held(ready, [memory + start for start in starts], memory)
    with contextlib.ExitStack() as owner:
        if _keepers:
            _keepers[-1].held.append(held)
        (_keepers[-1] if _keepers else owner).callback(held.free)
        driver.copy_in(memory, image.ctypes.data, end, context)
        held(0)
        driver.synchronize(0, context)
        driver.copy_out(image.ctypes.data, memory, end, context)
    stored = {op.array.name for op in walk(kernel.program.body) if op.kind in STORES and op.array is not None}
    for start, array, (name, _) in zip(starts, arrays, kernel.array_parts(), strict=True):
        if name in stored:
            _bytes(array)[...] = image[start : start + array.nbytes]
            before[start : start + array.nbytes] = image[start : start + array.nbytes]
    if (image != before).any():
        place = int((image != before).argmax())
        raise LowbitvmError(
            "LAUNCH_FAILED",
            f"{kernel.code.entry} changed byte {place} of {end}, outside what it stores to; arrays begin at {starts}",
            "run the same launch on the emulator, which names the instruction and the thread",
        )


@dataclass(frozen=True)
class Held:
    """A launch whose arrays are in a GPU's memory, to be repeated as often as one likes."""

    ready: "Ready"
    addresses: list[int]
    memory: int

    def __call__(self, stream: int) -> None:
        """Launches on a stream, without waiting."""
        self.ready.launch(self.addresses, stream)

    def free(self) -> None:
        """Gives the memory back; of a context that is lost it is gone already."""
        with contextlib.suppress(LowbitvmError):
            driver.free(self.memory, self.ready.function.context)


class Keeper(contextlib.ExitStack):
    """While it is open, launches with LOWBITVM_DEVICE=copy:0 keep their memory, and stand in `held` to be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []

    def __enter__(self) -> "Keeper":
        _keepers.append(self)
        self.callback(_keepers.remove, self)
        return self


_keepers: list[Keeper] = []


def _bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8)
