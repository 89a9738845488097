"""The prebuilt product of integer codes: compiled once per variant, launched on arrays of any kind."""

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm import arrays, dtypes, targets
from lowbitvm.digits import BASES
from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits, format_digits
from lowbitvm.ir import Program
from lowbitvm.kernels.integer import matmul as kernel
from lowbitvm.plan import DigitTile, digit_tile
from lowbitvm.runtime import driver
from lowbitvm.runtime.cache import Cache
from lowbitvm.runtime.compiled import CompiledKernel, compile_program, launch_grid
from lowbitvm.runtime.launch import emulated_target, launch
from lowbitvm.runtime.linear import disk_cache

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

S32 = 2**31 - 1


@dataclass(frozen=True)
class Variant:
    """Everything that the code of a matmul of integer codes depends on but the target."""

    activations: Format
    weights: Format
    tile: DigitTile
    aligned: bool  # k is a multiple of the tile's

    def program(self) -> Program:
        """The kernel as tile IR."""
        tile = self.tile
        return kernel.trace(
            a=self.activations,
            w=self.weights,
            bm=tile.bm,
            bn=tile.bn,
            bk=tile.bk,
            stages=tile.stages,
            divisible={"k": tile.bk} if self.aligned else {},
            **dict.fromkeys(self.sums, "i32"),
        )

    @property
    def sums(self) -> tuple[str, ...]:
        """The sums that the kernel takes: of the side whose counterpart has an offset."""
        offsets = {"a_sums": format_digits(self.weights).offset, "w_sums": format_digits(self.activations).offset}
        return tuple(name for name, offset in offsets.items() if offset)


def longest_k(activations: Format, weights: Format) -> int:
    """The largest k whose product of any codes stays below 2^31; what is added up on the way may wrap."""
    return S32 // math.prod(max(abs(code.low), abs(code.high)) for code in (activations.code, weights.code))


@functools.cache
def _compiled(variant: Variant, target: str, cache: Cache | None) -> CompiledKernel:
    return compile_program(variant.program(), target, variant.tile.warps, time.perf_counter(), cache)


def compile_matmul(
    weights: Format | str, *, target: str = "sm_80", m: int = 16, k: int = 4096, cache: bool = True, **parts: int
) -> CompiledKernel:
    """The kernel of `lb.matmul` for a weight format with `act`, and activations of that type; needs no GPU.

    m, k: rows of activations, and in_features, that the tile is chosen for; `parts` of the tile (see
    `lowbitvm.plan.DigitTile`) replace the chosen ones.
    Raises FORMAT_INVALID, TARGET_UNKNOWN, KERNEL_UNSUPPORTED, TILE_INVALID, SHARED_MEMORY_EXCEEDED.
    """
    fmt = Format.parse(weights) if isinstance(weights, str) else weights
    if fmt.act is None:
        raise LowbitvmError("FORMAT_INVALID", f"{fmt} does not say what it is multiplied with", 'add act, as "i8"')
    activations = Format(fmt.act, digits=fmt.digits)
    tile = replace(digit_tile(m, k, activations, fmt, targets.get(target)), **parts)
    return _compiled(Variant(activations, fmt, tile, aligned=True), target, disk_cache() if cache else None)


def matmul(a: PackedDigits, w: PackedDigits) -> Array:
    """The exact product a w^T of integer matrices, i32 (m, out_features).

    a: what `lb.pack_activations` returns, (m, in_features); w: what `lb.pack_weights` returns, (out_features,
    in_features), in the same digits. CUDA tensors run on their GPU, on the current stream. On a CPU the product is made
    by numpy; with LOWBITVM_DEVICE=emulator:sm_80 (or another target) it goes through PTX and the emulator instead.
    Raises SHAPE_MISMATCH, ARGUMENT_INVALID where in_features is so large that s32 may overflow, FORMAT_UNSUPPORTED for
    sides in other digits, KERNEL_UNSUPPORTED for digits that the GPU does not have, DEVICE_MISMATCH.
    """
    target = _device_target(a, w)
    check_sides(a, w)
    y = arrays.zeros(a.words, (a.rows, w.rows), dtypes.i32)
    if target is not None:
        run_matmul(a, w, y, target)
        return y
    exact = [np.asarray(arrays.host(side.unpack()), np.float64) for side in (a, w)]
    product = (exact[0] @ exact[1].T).astype(np.int32)  # below 2^53, and as checked below 2^31
    return arrays.tensor(product) if dtypes.is_tensor(y) else product


def _device_target(a: PackedDigits, w: PackedDigits) -> str | None:
    """The target that a product runs on, None for numpy's own."""
    places = {arrays.device(side.words) for side in (a, w) if isinstance(side, PackedDigits)}
    if len(places) > 1:
        raise LowbitvmError(
            "DEVICE_MISMATCH", f"matrices on {sorted(places)}", "move all to one device with .to(device)"
        )
    on_gpu = any(place.startswith("cuda") for place in places)
    return driver.device_target(a.words.device.index) if on_gpu else emulated_target()


def run_matmul(
    a: PackedDigits, w: PackedDigits, y: Array, target: str, *, tile: DigitTile | None = None, **options: Any
) -> "Report | None":
    """y (m, out_features) i32 = a w^T on `target`, exactly; see `launch` for devices, options and errors.

    Raises SHAPE_MISMATCH, FORMAT_UNSUPPORTED for sides in other digits, ARGUMENT_INVALID where k is so long that s32
    may overflow, KERNEL_UNSUPPORTED for digits that are not native to the target.
    """
    check_sides(a, w)
    (m, k), n = a.shape, w.rows
    tile = digit_tile(m, k, a.format, w.format, targets.get(target)) if tile is None else tile
    variant = Variant(a.format, w.format, tile, k % tile.bk == 0)
    sums = {"a_sums": a.sums, "w_sums": w.sums}
    arguments = {"a": a, "w": w, "y": y, **{name: sums[name] for name in variant.sums}}
    grid = launch_grid((m, n), (tile.bm, tile.bn))
    return launch(_compiled(variant, target, disk_cache()), grid, arguments, **options)


def check_sides(a: PackedDigits, w: PackedDigits) -> None:
    """Raises where two matrices cannot be multiplied exactly."""
    for name, side, wanted in (("a", a, False), ("w", w, True)):
        if not isinstance(side, PackedDigits) or side.is_weight != wanted:
            what = repr(side) if isinstance(side, PackedDigits) else f"a {type(side).__name__}"
            made = "pack_weights" if wanted else "pack_activations"
            raise LowbitvmError("ARGUMENT_INVALID", f"{name} is {what}", f"pass what lb.{made} returns")
    if a.format.digits != w.format.digits:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"activations in digits of {a.format.digits} and a weight in {w.format.digits}",
            f"pack both in one of {', '.join(BASES)}",
        )
    if a.columns != w.columns:
        raise LowbitvmError("SHAPE_MISMATCH", f"a has {a.columns} in_features, w has {w.columns}", "make them equal")
    longest = longest_k(a.format, w.format)
    if a.columns > longest:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"in_features {a.columns} of {a.format.dtype} x {w.format.dtype} may overflow s32",
            f"multiply at most {longest} of them at a time, and add",
        )
