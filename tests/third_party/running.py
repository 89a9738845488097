"""Runs compiled kernels as a test wants them: over several schedules, every check on, a first finding raised."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from lowbitvm.runtime import emulator
from tests.third_party.build import Compiled, CudaSource, TritonKernel

Array = np.ndarray[Any, np.dtype[Any]]
OUTPUT = type(emulator.output(np.zeros(1)))
RUNS = (
    {"seed": 0, "schedule": "random", "copies": "late"},
    {"seed": 1, "schedule": "adversarial", "copies": "early"},
    {"seed": 2, "schedule": "round_robin", "copies": "random"},
)


@cache
def _loaded(text: str) -> tuple[emulator.Module, list[Array]]:
    """Decoding takes longer than most launches; the module's variables are kept to start each launch anew."""
    module = emulator.load(text)
    return module, [array.copy() for array in module.globals]


def empty(*shape: int, dtype: Any = np.float32) -> Any:
    """A buffer that the kernel must write before it reads."""
    return emulator.output(np.zeros(shape, dtype))


def launches(
    compiled: Compiled, entry: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], **options: Any
) -> Iterator[list[Any]]:
    """The arguments as each of several launches left them; the ones given stay as they are."""
    module, variables = _loaded(compiled.ptx)
    options = {"shared": compiled.shared} | options
    for how in RUNS:
        for array, contents in zip(module.globals, variables, strict=True):
            if array.flags.writeable:
                array[:] = contents
        own = [_copied(arg) for arg in args]
        module.launch(entry, grid, block, own, checks="all", **how, **options)
        yield [arg.array if isinstance(arg, OUTPUT) else arg for arg in own]


def triton(kernel: TritonKernel, grid: Sequence[int], *args: Any, **options: Any) -> Iterator[list[Any]]:
    """Triton's kernels take two more pointers, to scratch memory, which these do not use."""
    compiled = kernel.compile()
    block = (compiled.warps * 32,)
    return launches(compiled, compiled.entry, grid, block, [*args, 0, 0], **options)


def cuda(source: CudaSource, entry: str, grid: Sequence[int], block: Sequence[int], *args: Any, **options: Any) -> Any:
    return launches(source.compile(), entry, grid, block, args, **options)


def _copied(arg: Any) -> Any:
    if isinstance(arg, OUTPUT):
        return emulator.output(arg.array.copy())
    return arg.copy() if isinstance(arg, np.ndarray) else arg
