"""TileLang in the static table: compiled without a GPU, by nvcc to PTX, which our assembler makes machine code of."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tilelang
from tilelang import tvm
from tilelang.contrib import nvcc

from lowbitvm.bench import tilelang_kernels
from lowbitvm.bench.measure import EMULATED_K, Kernel, Row, emulated_conflicts, measure
from lowbitvm.runtime.assemble import assemble, disassemble

TOOL = "TileLang"
FOUR_BIT = {"16x128x64": (4, 4), "64x128x64": (4, 4), "128x128x64": (8, 3)}  # tile -> warps, stages
GROUP = 128


def rows(target: str, weights: Sequence[str], acts: Sequence[str], tiles: Sequence[str]) -> list[Row]:
    """u4 with integer zero points and f16 activations, for each of `tiles`; no `weights` stand for these."""
    if "f16" not in acts or (weights and "u4" not in weights):
        return []
    return [measure(build(name, target)) for name in FOUR_BIT if name in tiles]


def build(name: str, target: str) -> Kernel:
    """What the kernel of a tile costs on a target."""
    warps, stages = FOUR_BIT[name]
    tile = (*map(int, name.split("x")),)
    made, ptx = compile_tile(name, target)
    assembly = assemble(ptx, target)
    threads, shared = resources(made)
    return Kernel(
        TOOL,
        "u4",
        "f16",
        GROUP,
        "int",
        target,
        tile,
        threads // 32,  # on Hopper TileLang adds warps that load
        stages,
        (stages - 1) * tile[2],
        4,
        disassemble(assembly.cubin),
        assembly.registers,
        assembly.spills,
        shared,
        _conflicts(made, ptx, tile, target),
        threads // 32 - warps,
    )


def compile_tile(name: str, target: str) -> tuple[Any, str]:
    """(what TileLang made, its PTX) of the kernel of a tile."""
    warps, stages = FOUR_BIT[name]
    bm, bn, bk = map(int, name.split("x"))
    with tvm.target.Target({"kind": "cuda", "arch": target}) as context:
        program = tilelang_kernels.four_bit(bm, bn, bk, 32 * warps, stages, GROUP)
        made = tilelang.lower(program, target=context)
    ptx = nvcc.compile_cuda(made.kernel_source, "ptx", target, nvcc.default_compile_options())
    return made, bytes(ptx).decode()


def resources(made: Any) -> tuple[int, int]:
    """(threads, bytes of shared memory) of a block."""
    (function,) = made.device_mod.functions.values()
    return int(function.attrs["thread_extent"]["threadIdx.x"]), int(function.attrs["dyn_shared_memory_buf"])


def parameters(made: Any) -> list[str]:
    """The names of the kernel's parameters in their order."""
    found = re.search(r"main_kernel\((.*?)\)", made.kernel_source)
    assert found is not None
    return [parameter.split()[-1] for parameter in found[1].split(",")]


def _conflicts(made: Any, ptx: str, tile: tuple[int, ...], target: str) -> int | None:
    """Bank conflicts of the first block over EMULATED_K, rounded down; None for kernels that load by tensor maps."""
    groups = (tilelang_kernels.K // GROUP, tilelang_kernels.N)
    shapes = {
        "x": (tile[0], tilelang_kernels.K),
        "codes": (tile[1], tilelang_kernels.K // 2),
        "scales": groups,
        "zeros": groups,
        "y": (tile[0], tilelang_kernels.N),
    }
    names = parameters(made)
    if not set(names) <= set(shapes):
        return None
    args = [np.zeros(shapes[name], np.uint8 if name == "codes" else np.float16) for name in names]
    threads, shared = resources(made)
    found = emulated_conflicts(ptx, "main_kernel", threads, args, shared, target)
    return None if found is None else found * EMULATED_K // tilelang_kernels.K
