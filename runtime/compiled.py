"""A compiled kernel: its PTX, its cubin, what the assembler says of it, and how it is launched."""

import functools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowbitvm import codegen, targets
from lowbitvm.codegen import Ptx
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.interpret import bind_sizes
from lowbitvm.ir import Program
from lowbitvm.runtime import cache
from lowbitvm.runtime.assemble import Assembly, assemble, assembler_version, disassemble
from lowbitvm.runtime.cache import Cache, Entry

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Module

WARPS = (1, 2, 4, 8, 16, 32)


def without_lines(ptx: str) -> str:
    """The text without .loc and .file: they would make line tables, twice the machine code, and a new cache key after
    every edit above a kernel."""
    return re.sub(r"^\s*\.(?:loc|file)\s.*\n?", "", ptx, flags=re.MULTILINE)


@dataclass(frozen=True, eq=False)
class CompiledKernel:
    """A kernel for one target. It is assembled when its cubin or one of the assembler's numbers is first asked for."""

    program: Program = field(repr=False)
    target: str
    code: Ptx = field(repr=False)
    trace_ms: float  # from the Python function to PTX text
    cache: Cache | None = field(default=None, repr=False)
    ready: dict[Any, Any] = field(default_factory=dict, repr=False)  # launches by signature; see runtime/launch.py

    @property
    def ptx(self) -> str:
        """The PTX text."""
        return self.code.text

    @property
    def _assembled(self) -> tuple[Assembly, float]:
        if "_made" not in self.__dict__:  # not a cached_property: before Python 3.12 one kernel would wait for another
            self.__dict__["_made"] = self._assemble()
        made: tuple[Assembly, float] = self.__dict__["_made"]
        return made

    def _assemble(self) -> tuple[Assembly, float]:
        text = without_lines(self.ptx)
        key = cache.key(text, self.target, assembler_version())
        start = time.perf_counter()
        entry = self.cache.get(key) if self.cache is not None else None
        if entry is not None:
            assembly = Assembly(entry.cubin, log="", **entry.resources)
        else:
            assembly = assemble(text, self.target)
            if self.cache is not None:
                names = ("registers", "spills", "stack", "shared")
                self.cache.put(key, Entry(text, assembly.cubin, {name: getattr(assembly, name) for name in names}))
        return assembly, 1e3 * (time.perf_counter() - start)

    @property
    def cubin(self) -> bytes:
        """The machine code, an ELF file. Raises ASSEMBLER_MISSING where nvJitLink is not installed."""
        return self._assembled[0].cubin

    @property
    def assemble_ms(self) -> float:
        """Milliseconds from PTX text to cubin."""
        return self._assembled[1]

    @property
    def registers(self) -> int:
        """32-bit registers per thread."""
        return self._assembled[0].registers

    @property
    def spills(self) -> int:
        """Bytes of spill stores and loads per thread."""
        return self._assembled[0].spills

    @property
    def shared(self) -> int:
        """Bytes of shared memory per block, all of it dynamic."""
        return self.code.shared

    def sass(self) -> str:
        """The disassembly. Raises TOOL_MISSING without the extra `sass`."""
        return disassemble(self.cubin)

    @functools.cached_property
    def emulated(self) -> "Module":
        """The PTX, loaded into the emulator."""
        from lowbitvm.runtime.emulator import load  # a third of the time that `import lowbitvm` would take

        return load(self.ptx)

    def parameters(self, arguments: Mapping[str, Any]) -> list[Any]:
        """The launch arguments in the order of the PTX parameters: arrays, then sizes as ints.

        Raises SHAPE_MISMATCH, DTYPE_MISMATCH, FORMAT_UNSUPPORTED and ARGUMENT_INVALID where they do not fit.
        """
        sizes = bind_sizes(self.program, arguments)
        values = [
            arguments[name] if part is None else getattr(arguments[name], part) for name, part in self.array_parts()
        ]
        return values + [sizes[dim] for dim in self.program.dims]

    def array_parts(self) -> Iterator[tuple[str, str | None]]:
        """(argument, part of a packed weight or None) of every pointer that the kernel takes, in order."""
        for array in self.program.arrays:
            for part in array.element.parts if isinstance(array.element, Format) else (None,):
                yield array.name, part


_dependent: ContextVar[bool] = ContextVar("_dependent", default=False)


@contextmanager
def dependent_launches() -> Iterator[None]:
    """Within it `lb.linear`, `lb.matmul` and `lb.quantize_activations` launch dependent kernels, on sm_90 and later.

    They start while the kernel before them on the stream still runs; see `Kernel.compile`. No kernel shortly before
    them may write their weights. The setting is that of the thread.
    """
    token = _dependent.set(True)
    try:
        yield
    finally:
        _dependent.reset(token)


def wants_dependent(target: str) -> bool:
    """Whether prebuilt kernels for a target are to be dependent ones now."""
    return _dependent.get() and targets.get(target).capability >= codegen.DEPENDENT_CAPABILITY


def launches_dependent() -> bool:
    """Whether the thread is within `dependent_launches`."""
    return _dependent.get()


def compile_program(
    program: Program,
    target: str,
    warps: int,
    started: float | None = None,
    cache: Cache | None = None,
    *,
    dependent: bool = False,
) -> CompiledKernel:
    """Lowers a program for a target; `warps` per block is one of WARPS. dependent: see `Kernel.compile`.

    `started` is the time.perf_counter() at which recording began, for `trace_ms`.
    """
    if warps not in WARPS:
        raise LowbitvmError("ARGUMENT_INVALID", f"{warps} warps per block", f"use one of {WARPS}")
    started = time.perf_counter() if started is None else started
    code = codegen.compile_kernel(program, target, warps, dependent)
    return CompiledKernel(program, target, code, 1e3 * (time.perf_counter() - started), cache)


def compile_many(kernels: Sequence[CompiledKernel], *, workers: int | None = None, progress: bool = True) -> None:
    """Assembles kernels side by side, `workers` at a time (by default one per core), with a progress bar on stderr.

    The kernels are those of `Kernel.compile`, `compile_linear` and `compile_matmul`, which are assembled when they are
    first used otherwise. The assembler runs outside Python's lock, so that threads are enough. Raises the first error
    of the assembler, after which no other kernel is begun.
    """
    from rich.console import Console  # as long to import as a kernel takes to assemble
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True, disable=not progress)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, bar:
        running = [pool.submit(getattr, kernel, "cubin") for kernel in kernels]
        try:
            for done in bar.track(as_completed(running), total=len(running), description="assembling"):
                done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def launch_grid(sizes: Sequence[int], tile: Sequence[int]) -> tuple[int, ...]:
    """Blocks per axis that cover `sizes` with tiles."""
    return tuple(-(-size // step) for size, step in zip(sizes, tile, strict=True))
