"""Triton in the static table: compiled without a GPU; its PTX goes through the same assembler as ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lowbitvm import targets
from lowbitvm.bench import triton_kernels
from lowbitvm.bench.measure import EMULATED_K, Kernel, Row, emulated_conflicts, measure
from lowbitvm.runtime.assemble import assemble, disassemble

TOOL = "Triton"
POINTERS = {"f16": "*fp16", "bf16": "*bf16", "i8": "*i8", "u8": "*u8", "i32": "*i32"}
NUMPY = {"f16": "f2", "bf16": "u2", "i8": "i1", "u8": "u1", "i32": "i4"}
FOUR_BIT = {"16x128x64": 4, "64x128x64": 4, "128x128x64": 8}  # tile -> warps
STAGES = (4, 3, 2)  # the first that fits a target's shared memory
INT8 = ((128, 128, 128), (8, 4))  # tile, warps
SCRATCH = (0, 0)  # the last two arguments of all kernels: pointers of Triton's own that these do not use
UNPACKINGS = {"shifted": "i32", "joined": "u8", "halved": "u8"}  # kernel -> type of its codes


@dataclass(frozen=True)
class Job:
    """A kernel to compile: the function, the types of its pointers, and what the row says of it."""

    function: str
    pointers: dict[str, str]
    weights: str
    act: str
    group: int | str
    zero: str | None
    tile: tuple[int, ...]
    warps: int
    bits: int


def rows(target: str, weights: Sequence[str], acts: Sequence[str], tiles: Sequence[str]) -> list[Row]:
    """u4 with integer zero points for each of `acts` and `tiles`, and i8 times i8 beside the largest of them.

    Of the ways to write a kernel, the best for each row. No `weights` stand for both.
    """
    found = []
    for act in acts if not weights or "u4" in weights else ():
        for name, warps in FOUR_BIT.items():
            if name in tiles:
                tile = (*map(int, name.split("x")),)
                found.append([four_bit(way, act, tile, warps) for way in UNPACKINGS])
    if (not weights or "i8" in weights) and list(FOUR_BIT)[-1] in tiles:
        found.append([int8(INT8[0], warps) for warps in INT8[1]])
    return [_best([build(job, target) for job in jobs]) for jobs in found]


def _best(kernels: list[Kernel]) -> Row:
    """The kernel with the most products per instruction of those that do not spill."""
    return max(map(measure, kernels), key=lambda row: (row.spills == 0, row.mac_per_instruction))


def four_bit(name: str, act: str, tile: tuple[int, ...], warps: int) -> Job:
    """u4 with integer zero points in the way `name` of UNPACKINGS."""
    floats = dict.fromkeys(("x", "scales", "zeros", "y"), act)
    return Job(name, floats | {"codes": UNPACKINGS[name]}, "u4", act, 128, "int", tile, warps, 4)


def int8(tile: tuple[int, ...], warps: int) -> Job:
    """i8 times i8."""
    return Job("int8", {"x": "i8", "codes": "i8", "y": "i32"}, "i8", "i8", "tensor", None, tile, warps, 8)


def build(job: Job, target: str) -> Kernel:
    """What a job's kernel costs on a target."""
    stages, made = compile_job(job, target)
    assembly = assemble(made.asm["ptx"], target)
    return Kernel(
        TOOL,
        job.weights,
        job.act,
        job.group,
        job.zero,
        target,
        job.tile,
        job.warps,
        stages,
        (stages - 1) * job.tile[2],
        job.bits,
        disassemble(assembly.cubin),
        assembly.registers,
        assembly.spills,
        made.metadata.shared,
        _conflicts(made, job, target),
    )


def compile_job(job: Job, target: str) -> tuple[int, Any]:
    """(stages, what Triton made) with the first of STAGES that fits the target's shared memory, else with the last.

    Pointers, n and k are multiples of 16, m is not.
    """
    function: Any = getattr(triton_kernels, job.function)
    sizes = dict(zip(("BM", "BN", "BK"), job.tile, strict=True)) | {"GROUP": job.group}
    constants = {name: size for name, size in sizes.items() if name in function.arg_names}
    types = {name: POINTERS[kind] for name, kind in job.pointers.items()} | dict.fromkeys("MNK", "i32")
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    hints = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in types if name != "M"}
    source = ASTSource(function, signature=signature, constexprs=constants, attrs=hints)
    major, minor = targets.get(target).capability
    for stages in STAGES:
        # Triton's default of the last option changes with its next version.
        options = {"num_warps": job.warps, "num_stages": stages, "enable_fp_fusion": True}
        made = triton.compile(source, target=GPUTarget("cuda", 10 * major + minor, 32), options=options)
        if made.metadata.shared <= targets.get(target).shared_per_block:
            break
    return stages, made


def _conflicts(made: Any, job: Job, target: str) -> int | None:
    m, n, _ = job.tile
    elements = {"x": m * EMULATED_K, "y": m * n}  # of the others n * k is enough for any of the ways to pack
    names = [name for name in getattr(triton_kernels, job.function).arg_names if name in job.pointers]
    args = [np.zeros(elements.get(name, n * EMULATED_K), NUMPY[job.pointers[name]]) for name in names]
    metadata = made.metadata
    return emulated_conflicts(
        made.asm["ptx"], metadata.name, 32 * job.warps, [*args, m, n, EMULATED_K, *SCRATCH], metadata.shared, target
    )
