"""The prebuilt linear kernel: compiled once per variant, launched on arrays of any kind that `launch` takes."""

import functools
import time
from typing import TYPE_CHECKING, Any

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.kernels.linear import linear
from lowbitvm.pack import PackedWeight
from lowbitvm.plan import Tile, chosen_tile, linear_tile
from lowbitvm.runtime.cache import Cache
from lowbitvm.runtime.compiled import CompiledKernel, compile_program, launch_grid
from lowbitvm.runtime.launch import ALIGNMENT, address, launch

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

VECTOR = 8  # activations of one 16-byte access
ACTIVATIONS = ("f16", "bf16")


@functools.cache
def disk_cache() -> Cache:
    """The process's cache of cubins."""
    return Cache()


def compile_linear(
    weights: str | Format,
    *,
    group: int | str = 128,
    zero: str | None = None,
    scale: str = "f16",
    act: str = "f16",
    target: str = "sm_80",
    bm: int | None = None,
    bn: int | None = None,
    bk: int | None = None,
    stages: int | None = None,
    warps: int | None = None,
    bias: bool = False,
    vectorised: bool = True,
    cache: bool = True,
) -> CompiledKernel:
    """The linear kernel y (m, n) = x (m, k) w^T + bias (n) for one weight format; no GPU is needed.

    weights: a Format, or its dtype such as "u4", then with `group`, `zero` and `scale`. act: "f16" or "bf16", the dtype
    of x, bias and y. The tile's parts are optional (see `lowbitvm.plan`). vectorised: x is 16-byte aligned and k a
    multiple of 8. cache: keep the cubin on disk.
    Raises FORMAT_INVALID, FORMAT_UNSUPPORTED, DTYPE_MISMATCH, TARGET_UNKNOWN, TILE_INVALID, SHARED_MEMORY_EXCEEDED.
    """
    fmt = weights if isinstance(weights, Format) else Format(weights, group=group, zero=zero, scale=scale)
    tile = chosen_tile(fmt, bm=bm, bn=bn, bk=bk, stages=stages, warps=warps)
    return _compile(fmt, act, target, tile, bias, vectorised, cache)


def _compile(
    fmt: Format, act: str, target: str, tile: Tile, bias: bool, vectorised: bool, cache: bool
) -> CompiledKernel:
    if act not in ACTIVATIONS:
        raise LowbitvmError("DTYPE_MISMATCH", f"activations of {act}", f"use one of {', '.join(ACTIVATIONS)}")
    started = time.perf_counter()
    dtype = dtypes.get(act)
    program = linear.trace(
        x=dtype,
        w=fmt,
        bias=dtype if bias else None,
        y=dtype,
        bm=tile.bm,
        bn=tile.bn,
        bk=tile.bk,
        stages=tile.stages,
        divisible={"k": VECTOR} if vectorised else {},
    )
    return compile_program(program, target, tile.warps, started, disk_cache() if cache else None)


_compiled = functools.cache(_compile)  # what `run_linear` uses


def run_linear(x: Any, weight: PackedWeight, bias: Any | None, y: Any, target: str, **options: Any) -> "Report | None":
    """y = x w^T + bias on `target`; x (m, in_features), bias (out_features), y (m, out_features), f16 or bf16.

    Chooses the tile by m, and single-element loads where x is not 16-byte aligned or in_features no multiple of 8.
    See `lowbitvm.runtime.launch.launch` for devices, options and errors.
    """
    vectorised = weight.in_features % VECTOR == 0 and address(x) % ALIGNMENT == 0
    tile = linear_tile(x.shape[0], weight.format)
    kernel = _compiled(weight.format, dtypes.of(x).name, target, tile, bias is not None, vectorised, True)
    arguments = {"x": x, "w": weight, **({} if bias is None else {"bias": bias}), "y": y}
    grid = launch_grid((x.shape[0], weight.out_features), (tile.bm, tile.bn))
    return launch(kernel, grid, arguments, **options)
