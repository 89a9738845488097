"""Trying kernels out on somebody's arguments, of which nothing is changed: whether they are right, and how fast.

A trial works on copies. Where the arguments are a GPU's it launches there, on buffers of its own; else it runs in the
emulator, a few blocks where there are many, and `lowbitvm.runtime.model` says how long the whole grid would take.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm import arrays, dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.integers import PackedDigits
from lowbitvm.interpret import Argument, NumpyArray, decoded, interpret
from lowbitvm.ir import Program, walk
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import driver, model, timing
from lowbitvm.runtime.arguments import KINDS, DeviceArray
from lowbitvm.runtime.compiled import CompiledKernel
from lowbitvm.runtime.launch import Place, Ready, emulate
from lowbitvm.targets import Gpu

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

Arguments = Mapping[str, Any]
STORES = ("store", "atomic_add")
SAMPLED = 8  # blocks that are run in the emulator, or interpreted, of a larger grid
ALLOCATED = 256  # bytes: what cuMemAlloc aligns to


@dataclass(frozen=True)
class Sample:
    """The grid that is launched to look at a kernel's results, and those of its blocks that are interpreted."""

    grid: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]

    @property
    def is_whole(self) -> bool:
        """Whether all blocks of the launch are interpreted."""
        return len(self.blocks) == math.prod(self.grid)

    @classmethod
    def of(cls, program: Program, grid: Sequence[int], everywhere: bool) -> "Sample":
        """everywhere: the whole grid can be launched. Its corners are interpreted then: inner tiles and edges.

        Sums of atomics are those of all blocks, so that kernels with them are launched on a smaller grid instead.
        """
        full, small = tuple(grid), leading(grid)
        if not everywhere or named(program, "atomic_add") or math.prod(full) <= SAMPLED:
            return cls(small, tuple(product(*map(range, small))))
        corners = dict.fromkeys(product(*({0: 0, size - 1: 0} for size in full)))
        return cls(full, tuple(islice(corners, SAMPLED)))


def leading(grid: Sequence[int]) -> tuple[int, ...]:
    """The first blocks of a grid along its axes, SAMPLED at most."""
    taken: list[int] = []
    for size in grid:
        taken.append(min(size, SAMPLED // math.prod(taken)))
    return tuple(taken)


# Beside one rounding of the output: a million roundings of f32 in a row come to 2^-14 of the sum's scale if they are
# independent, and sums of what cancels are below that scale.
TOLERANCE = 2.0**-10


class Trial:
    """Arguments of a launch on which kernels are tried out; to be closed, which frees what it has on a GPU.

    place: the GPU that the arguments belong to, None for the emulator. streams: on which they may still be written.
    reference: gives the outputs by name, on the CPU, from the arguments and the names of what is stored to; None: the
    interpreter computes them, of each kernel's own program. tolerance: how far a float may be from them beside one
    rounding of its dtype, relative to the largest number of its array.
    """

    def __init__(
        self,
        given: Arguments,
        place: Place | None,
        *,
        streams: Sequence[int] = (),
        reference: Callable[[Arguments, Sequence[str]], Mapping[str, Any]] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.place, self.tolerance = place, tolerance
        self.context = None if place is None else place.context
        if self.context is not None:
            for stream in streams:
                driver.synchronize(stream, self.context)
        self.given = on_host(given, self.context)
        self._reference = reference
        self._expected: Mapping[str, Any] | None = None
        self._buffers: Buffers | None = None

    @functools.cached_property
    def _weights(self) -> dict[str, NumpyArray]:
        return decoded(self.given)

    def close(self) -> None:
        if self._buffers is not None:
            self._buffers.free()

    def modelled(self, kernel: CompiledKernel, grid: Sequence[int], gpu: Gpu) -> float:
        """Microseconds on a GPU by the model, of a kernel whose results are right.

        Raises WrongResult, EmulatorError, and TOOL_MISSING without the extra `sass`.
        """
        sample = Sample.of(kernel.program, grid, everywhere=False)
        outputs = self._outputs(kernel.program)
        report = emulate(kernel, _three(sample.grid), kernel.parameters({**self.given, **outputs}))
        self._check(kernel.program, sample, outputs, grid)
        return scaled_time(report, math.prod(grid) / math.prod(sample.grid), gpu)

    def reserve(self, kernel: CompiledKernel) -> None:
        """Takes the memory of the GPU that trials of this kernel and its likes need. Raises LAUNCH_FAILED."""
        assert self.place is not None and self.context is not None
        parts = [value for value in kernel.parameters(self.given) if not isinstance(value, int)]
        self._buffers = Buffers(parts, self.place.index, self.context)

    def verify(self, kernel: CompiledKernel, grid: Sequence[int]) -> None:
        """Runs a kernel once on the GPU. Raises WrongResult, LAUNCH_FAILED and CONTEXT_LOST."""
        assert self.context is not None
        sample = Sample.of(kernel.program, grid, everywhere=True)
        outputs = self._outputs(kernel.program)
        ready, buffers = self._ready(kernel, sample.grid, outputs, 1)
        with driver.new_stream(self.context) as stream:
            ready.launch(buffers.sets[0], stream)
            driver.synchronize(stream, self.context)
        buffers.read([part for value in outputs.values() for part in _parts(value)])
        self._check(kernel.program, sample, outputs, grid)

    def measured(self, kernel: CompiledKernel, grid: Sequence[int], budget_s: float) -> timing.Timing:
        """How long a launch takes on the GPU. Raises LAUNCH_FAILED and CONTEXT_LOST."""
        assert self.context is not None
        ready, buffers = self._ready(kernel, grid, {}, timing.MOST_SETS)
        sets = buffers.sets
        return timing.measure(
            lambda which, stream: ready.launch(sets[which], stream),
            self.context,
            rotate=len(sets),
            budget_s=budget_s,
        )

    def _ready(
        self, kernel: CompiledKernel, grid: Sequence[int], outputs: Arguments, count: int
    ) -> "tuple[Ready, Buffers]":
        """The launch of a kernel on a grid, and the sets of buffers, of which the first `count` hold the arguments."""
        assert self.place is not None and self._buffers is not None, "reserve comes first"
        values = kernel.parameters({**self.given, **outputs})
        self._buffers.fill(count, [value for value in values if not isinstance(value, int)])
        return Ready(kernel, _three(grid), values, _resident(self.place), None), self._buffers

    def _outputs(self, program: Program) -> dict[str, Any]:
        """Copies of the arguments that a kernel changes; with other numbers where it does not read them, so that what
        an earlier call has stored there is not taken for what this one stores."""
        return {name: _copied(name, self.given[name], named(program, "load")) for name in named(program, *STORES)}

    def _check(self, program: Program, sample: Sample, got: Arguments, grid: Sequence[int]) -> None:
        """Raises WrongResult unless the outputs are right, as far as they were computed."""
        start, whole = self._outputs(program), sample.is_whole
        interpreted: dict[str, Any] | None = None
        if self._reference is not None:
            if self._expected is None:
                self._expected = self._reference({**self.given, **self._outputs(program)}, list(start))
            whole = sample.grid == tuple(grid)
        if self._reference is None or not whole:  # which also says what the blocks of a sample store to
            interpreted = self._outputs(program)
            arguments: dict[str, Argument] = {**self.given, **interpreted}
            interpret(program, sample.grid, arguments, blocks=sample.blocks, weights=self._weights)
        expected = interpreted if self._expected is None else self._expected
        assert expected is not None
        for name, value in got.items():
            stored = _parts(expected[name] if interpreted is None else interpreted[name])
            parts = zip(_parts(value), _parts(expected[name]), _parts(start[name]), stored, strict=True)
            for ours, theirs, before, after in parts:
                problem = mismatch(ours, theirs, None if whole else differ(before, after), self.tolerance)
                if problem is not None:
                    raise WrongResult(f"{name} is wrong: {problem}")


class WrongResult(Exception):
    """A kernel computed something else than its reference."""


def named(program: Program, *kinds: str) -> list[str]:
    """The names of the arrays that a program's ops of some kinds are about, in order."""
    found = (op.array.name for op in walk(program.body) if op.kind in kinds and op.array is not None)
    return list(dict.fromkeys(found))


def differ(a: NumpyArray, b: NumpyArray) -> NumpyArray:
    """Where the bits of two arrays are not the same."""
    bits = f"u{a.dtype.itemsize}"
    return np.asarray(a.view(bits) != b.view(bits))


def mismatch(got: NumpyArray, wanted: NumpyArray, looked: NumpyArray | None, tolerance: float) -> str | None:
    """What is wrong with an array, where `looked` is true; None if nothing is."""
    if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
        return f"it is {got.dtype.name} {got.shape}, the reference {wanted.dtype.name} {wanted.shape}"
    wrong = differ(got, wanted)
    if looked is not None:
        wrong &= looked
    dtype = dtypes.of_numpy(got.dtype)
    if wrong.any() and dtype.is_float:
        ours, theirs = got[wrong].astype(np.float64), wanted[wrong].astype(np.float64)
        finite = wanted.astype(np.float64)[np.isfinite(wanted)]
        largest = float(np.abs(finite).max(initial=0))
        epsilon = float(np.spacing(np.ones((), got.dtype)))
        with np.errstate(invalid="ignore"):
            close = np.abs(ours - theirs) <= tolerance * largest + epsilon * np.abs(theirs)
        wrong[wrong] = ~np.where(np.isfinite(theirs), close, ~np.isfinite(ours))  # an infinity may become NaN
    place = arrays.first(wrong)
    if place is None:
        return None
    return f"{got[place]} at {place}, the reference has {wanted[place]}; {int(wrong.sum())} of {wrong.size} so"


def scaled_time(report: "Report", factor: float, gpu: Gpu) -> float:
    """Microseconds by the model of a launch of which a part was emulated, for one with `factor` times the blocks."""
    work = model.count(report)
    traffic = sum(
        min(array.size, factor * array.distinct_read) + min(array.size, factor * array.distinct_written)
        for array in report.counters.arrays.values()
    )
    whole = replace(
        work,
        blocks=round(factor * work.blocks),
        instructions=Counter({name: factor * times for name, times in work.instructions.items()}),
        waits=factor * work.waits,
        wavefronts=round(factor * work.wavefronts),
        sectors=round(factor * work.sectors),
        traffic=round(traffic),
    )
    return model.predict(whole, gpu).time


# -- copies ------------------------------------------------------------------------------------------------------------


def on_host(given: Arguments, context: int | None) -> dict[str, Any]:
    """The arguments as numpy arrays and packed matrices of such; the same array twice is the same array again."""
    made: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if id(value) not in made:
            made[id(value)] = _on_host(value, context, copied)
        return made[id(value)]

    return {name: copied(value) for name, value in given.items()}


def _on_host(value: Any, context: int | None, copied: Callable[[Any], Any]) -> Any:
    if value is None or isinstance(value, np.ndarray):
        return value
    if isinstance(value, PackedWeight | PackedDigits):
        parts = {name: copied(array) for name, array in value.arrays.items()}
        return replace(value, **{**parts, "words": parts["words"].view(np.uint32)})
    if not isinstance(value, DeviceArray) and value.device.type == "cpu":
        return arrays.host(value)
    assert context is not None
    host = np.empty(tuple(value.shape), dtypes.of(value).numpy)
    if host.size:
        driver.copy_out(host.ctypes.data, KINDS[type(value)].address(value), host.nbytes, context)
    return host


def _copied(name: str, value: Any, read: Sequence[str]) -> Any:
    if not isinstance(value, np.ndarray):
        return replace(value, **{part: array.copy() for part, array in value.arrays.items()})
    return value.copy() if name in read else (~value.view(f"u{value.dtype.itemsize}")).view(value.dtype)


def _parts(value: Any) -> list[NumpyArray]:
    return [value] if isinstance(value, np.ndarray) else list(value.arrays.values())


# -- on a GPU ----------------------------------------------------------------------------------------------------------


class Buffers:
    """Sets of copies of arrays in the memory of a GPU, as many as are beyond its L2 cache together."""

    def __init__(self, parts: Sequence[NumpyArray], index: int, context: int) -> None:
        sizes = [-(-max(part.nbytes, 1) // ALLOCATED) * ALLOCATED for part in parts]
        self.context, count = context, timing.sets(sum(sizes), index)
        self._address = driver.allocate(count * sum(sizes), context)
        offsets = [sum(sizes[:at]) for at in range(len(sizes))]
        self.sets = [[self._address + which * sum(sizes) + at for at in offsets] for which in range(count)]
        self._held: list[list[NumpyArray | None]] = [[None] * len(parts) for _ in self.sets]

    def fill(self, count: int, parts: Sequence[NumpyArray]) -> None:
        """Copies `parts` to the first `count` sets, but for those parts that a set has been given last."""
        for addresses, held in islice(zip(self.sets, self._held, strict=True), count):
            for number, part in enumerate(parts):
                if held[number] is not part and part.nbytes:
                    driver.copy_in(addresses[number], part.ctypes.data, part.nbytes, self.context)
                held[number] = part

    def read(self, wanted: Sequence[NumpyArray]) -> None:
        """Copies the first set's copies of some parts back to them."""
        for part, address in zip(self._held[0], self.sets[0], strict=True):
            if part is not None and part.nbytes and any(part is one for one in wanted):
                driver.copy_out(part.ctypes.data, address, part.nbytes, self.context)

    def free(self) -> None:
        """Gives the memory back; that of a lost context is gone."""
        with suppress(LowbitvmError):
            driver.free(self._address, self.context)


def _resident(place: Place) -> Place:
    """The place of buffers in the GPU's own memory, in the same context."""
    return Place(place.index, "other" if place.arrays == "other" else "torch")


def _three(grid: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*grid, 1, 1)[:3]
    return x, y, z
