"""The prebuilt product of integer codes: compiled once per variant, launched on arrays of any kind."""

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm import arrays, dtypes, targets
from lowbitvm.digits import BASES
from lowbitvm.dtypes import Array, DType, bf16, f16, f32, i32
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
    aligned: bool  # k is a multiple of what a warp takes at a time
    scaled: tuple[bool, bool] = (False, False)  # activations, weights: their format's scales and zeros are there
    out: str = "i32"

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
            folded=tile.folded,
            y=dtypes.get(self.out),
            divisible={"k": tile.part} if self.aligned else {},
            **{name: "f32" if name.endswith("scales") else "i32" for name in self.rank_one},
        )

    @property
    def rank_one(self) -> tuple[str, ...]:
        """The arrays of one number for each row or column that the kernel takes."""
        zeros = [f.zero is not None and s for f, s in zip((self.activations, self.weights), self.scaled, strict=True)]
        offsets = [format_digits(fmt).offset != 0 for fmt in (self.activations, self.weights)]
        taken = {
            "a_sums": offsets[1] or zeros[1],
            "w_sums": offsets[0] or zeros[0],
            "a_zeros": zeros[0],
            "w_zeros": zeros[1],
            "a_scales": self.scaled[0],
            "w_scales": self.scaled[1],
        }
        return tuple(name for name, holds in taken.items() if holds)


def longest_k(activations: Format, weights: Format, zeros: tuple[bool, bool] = (False, False)) -> int:
    """The largest k whose product of any codes stays below 2^31; what is added up on the way may wrap.

    zeros: whether the two sides have some, which may be any code.
    """
    sides = zip((activations.code, weights.code), zeros, strict=True)
    return S32 // math.prod(c.high - c.low if zero else max(abs(c.low), abs(c.high)) for c, zero in sides)


@functools.cache
def _compiled(variant: Variant, target: str, cache: Cache | None) -> CompiledKernel:
    return compile_program(variant.program(), target, variant.tile.warps, time.perf_counter(), cache)


def compile_matmul(
    weights: Format | str, *, target: str = "sm_80", m: int = 16, k: int = 4096, cache: bool = True, **parts: Any
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


def matmul(a: PackedDigits, w: PackedDigits, dtype: Any = None) -> Array:
    """The product a w^T of integer matrices (m, out_features): i32 and exact without scales on either side.

    With scales it is the exact integer product, rounded to f32 and multiplied with both scales in f32, in `dtype`:
    f16 (by default), bf16 or f32, by name or torch's dtype.

    a: what `lb.pack_activations` returns, (m, in_features); w: what `lb.pack_weights` returns, (out_features,
    in_features), in the same digits. CUDA tensors run on their GPU, on the current stream. On a CPU the product is made
    by numpy; with LOWBITVM_DEVICE=emulator:sm_80 (or another target) it goes through PTX and the emulator instead.
    Raises SHAPE_MISMATCH, ARGUMENT_INVALID where in_features is so large that s32 may overflow, FORMAT_UNSUPPORTED for
    sides in other digits, KERNEL_UNSUPPORTED for digits that the GPU does not have, DEVICE_MISMATCH.
    """
    target = _device_target(a, w)
    check_sides(a, w)
    y = arrays.zeros(a.words, (a.rows, w.rows), _output(a, w, dtype))
    if target is not None:
        run_matmul(a, w, y, target)
        return y
    product = _numbers(a) @ _numbers(w).T  # integers below 2^53
    for side, axis in ((a, 1), (w, 0)):
        if side.scales is not None:
            product = np.float32(product) * np.expand_dims(arrays.host(side.scales), axis)
    product = product.astype(dtypes.of(y).numpy)
    return arrays.tensor(product) if dtypes.is_tensor(y) else product


def _numbers(side: PackedDigits) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The codes, less their zeros."""
    codes = np.asarray(arrays.host(side.unpack()), np.float64)
    return codes if side.zeros is None else codes - arrays.host(side.zeros)[:, None]


def _output(a: PackedDigits, w: PackedDigits, dtype: Any) -> DType:
    """The dtype of a product."""
    known = {dtype.numpy.name: dtype for dtype in ((f16, bf16, f32) if any(scaled(a, w)) else (i32,))}
    known |= {dtype.name: dtype for dtype in known.values()}
    name = next(iter(known)) if dtype is None else str(dtype).removeprefix("torch.")
    if name not in known:
        raise LowbitvmError("DTYPE_MISMATCH", f"a product in {dtype}", f"use one of {', '.join(known)}")
    return known[name]


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
    variant = Variant(a.format, w.format, tile, k % tile.part == 0, scaled(a, w), dtypes.of(y).name)
    arguments = {"a": a, "w": w, "y": y, **{name: rank_one(a, w)[name] for name in variant.rank_one}}
    grid = launch_grid((m, n), (tile.bm, tile.bn))
    return launch(_compiled(variant, target, disk_cache()), grid, arguments, **options)


def scaled(a: PackedDigits, w: PackedDigits) -> tuple[bool, bool]:
    """Which sides have scales."""
    return a.scales is not None, w.scales is not None


def rank_one(a: PackedDigits, w: PackedDigits) -> dict[str, Array | None]:
    """The kernel's arguments of one number for each row of either side."""
    sides = {"a": a, "w": w}
    return {f"{x}_{part}": getattr(side, part) for x, side in sides.items() for part in ("sums", "zeros", "scales")}


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
    longest = longest_k(a.format, w.format, (a.zeros is not None, w.zeros is not None))
    if a.columns > longest:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"in_features {a.columns} of {a.format.dtype} x {w.format.dtype} may overflow s32",
            f"multiply at most {longest} of them at a time, and add",
        )
