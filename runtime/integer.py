"""The prebuilt product of integer codes: compiled once per variant, launched on arrays of any kind."""

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm import arrays, dtypes, targets
from lowbitvm.digitplan import token_format
from lowbitvm.digits import BASES
from lowbitvm.dtypes import Array, DType, bf16, f16, f32, i32
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integer_plan import DigitTile, digit_plan, digit_tile, grouped_tile
from lowbitvm.integers import PackedDigits, check_group, format_digits
from lowbitvm.ir import Program
from lowbitvm.kernels.epilogue import ACTIVATIONS
from lowbitvm.kernels.integer import matmul as kernel
from lowbitvm.runtime import driver
from lowbitvm.runtime.arguments import address
from lowbitvm.runtime.cache import Cache
from lowbitvm.runtime.compiled import CompiledKernel, compile_program, launch_grid, wants_dependent
from lowbitvm.runtime.launch import ALIGNMENT, emulated_target, launch
from lowbitvm.runtime.linear import disk_cache
from lowbitvm.runtime.reference import NOTHING, After, Requantize, numpy_product
from lowbitvm.runtime.repeat import Calls, all_tensors, signature
from lowbitvm.runtime.workspace import workspace
from lowbitvm.targets import Target

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

S32 = 2**31 - 1
VECTOR = 8  # out_features, of which stores take as many at a time as fit
MANY = 1 << 20  # out_features of more blocks than a GPU has SMs


@dataclass(frozen=True)
class Variant:
    """Everything that the code of a matmul of integer codes depends on but the target."""

    activations: Format
    weights: Format
    tile: DigitTile
    aligned: bool  # k is a multiple of what a warp takes at a time
    scales: tuple[str | None, str | None] = (
        None,
        None,
    )  # activations, weights: the dtype of scales, and zeros are there
    out: str = "i32"
    gate: bool = False
    bias: str | None = None
    residual: str | None = None
    activation: str | None = None
    codes: tuple[int, int, int] | None = None  # the lowest, the highest and the zero of an output of codes
    dyadic: bool = False  # codes are made of integers
    bipolar: bool = False  # codes are the odd ones of these
    whole: bool = False  # n is a multiple of 8, and what has n columns is 16-byte aligned: stores are fewer

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
            splits=tile.splits,
            partials=dtypes.i32 if tile.splits > 1 else None,
            arrivals=dtypes.i32 if tile.splits > 1 else None,
            y=dtypes.get(self.out),
            gate=self.weights if self.gate else None,
            bias=dtypes.get(self.bias) if self.bias else None,
            residual=dtypes.get(self.residual) if self.residual else None,
            activation=self.activation,
            codes=self.codes or (0, 0, 0),
            bipolar=self.bipolar,
            y_scales=None if self.codes is None or self.dyadic else f32,
            multipliers=i32 if self.dyadic else None,
            shifts=i32 if self.dyadic else None,
            divisible=self._divisible(),
            **self.rank_one,
        )

    def _divisible(self) -> dict[str, int]:
        """Divisors of the sizes: of k what is multiplied at a time, and of the groups those that lie in it."""
        of_n = {"n": VECTOR} if self.whole else {}
        if not self.aligned:
            return of_n
        groups = [fmt.group for fmt in (self.activations, self.weights)]
        own = [g if s is not None and isinstance(g, int) else None for g, s in zip(groups, self.scales, strict=True)]
        least = min((group for group in own if group is not None), default=None)
        sizes = {"a_sums": least, "w_sums": least, "a_scales": own[0], "w_scales": own[1]}
        dims = {"sums": "parts", "scales": "groups"}
        found = {name: size for name, size in sizes.items() if size is not None and name in self.rank_one}
        taken = self.tile.bk if found else self.tile.part
        return of_n | {"k": taken} | {f"{n[:2]}{dims[n[2:]]}": self.tile.bk // size for n, size in found.items()}

    @property
    def rank_one(self) -> dict[str, str]:
        """The arrays of numbers for each row of a side that the kernel takes, with their dtypes."""
        of_a, of_w = self.scales
        zeros = [f.zero is not None and s for f, s in zip((self.activations, self.weights), self.scales, strict=True)]
        offsets = [format_digits(fmt).offset != 0 for fmt in (self.activations, self.weights)]
        taken = {
            "a_sums": "i32" if offsets[1] or zeros[1] else None,
            "w_sums": "i32" if offsets[0] or zeros[0] else None,
            "a_zeros": "i32" if zeros[0] else None,
            "w_zeros": "i32" if zeros[1] else None,
            "a_scales": of_a,
            "w_scales": of_w,
        }
        taken |= {name.replace("w_", "gate_"): kind for name, kind in taken.items() if name[0] == "w" and self.gate}
        return {name: kind for name, kind in taken.items() if kind is not None}


def longest_k(activations: Format, weights: Format, zeros: tuple[bool, bool] = (False, False)) -> int:
    """The largest k whose product of any codes stays below 2^31; what is added up on the way may wrap.

    zeros: whether the two sides have some, which may be any code.
    """
    sides = zip((activations.code, weights.code), zeros, strict=True)
    largest = [c.high - c.low if zero else max(abs(c.low), abs(c.high)) for c, zero in sides]
    if zeros[1] and weights.planes is not None:  # twice the differences of the whole codes
        largest[1] = 2 * ((1 << weights.planes) - 1)
    return S32 // math.prod(largest)


@functools.cache
def _compiled(variant: Variant, target: str, cache: Cache | None, dependent: bool = False) -> CompiledKernel:
    started = time.perf_counter()
    return compile_program(variant.program(), target, variant.tile.warps, started, cache, dependent=dependent)


def compile_matmul(
    weights: Format | str,
    *,
    target: str = "sm_80",
    m: int = 16,
    n: int | None = None,
    k: int = 4096,
    cache: bool = True,
    scaled: bool = False,
    activations: Format | None = None,
    dependent: bool = False,
    **parts: Any,
) -> CompiledKernel:
    """The kernel of `lb.matmul` for a weight format with `act`, and activations of that type; needs no GPU.

    m, k: rows of activations, and in_features, that the tile is chosen for; n: out_features, for which blocks share out
    k where there are too few of them (None: they do not); `parts` of the tile (see
    `lowbitvm.plan.DigitTile`) replace the chosen ones. scaled: both sides have scales, and the output is in f16.
    activations: their format, by default that of `lb.linear`, or one without scales where not scaled.
    dependent: launches start while the kernel before them still runs, on sm_90 and later; see `Kernel.compile`.
    Raises FORMAT_INVALID, TARGET_UNKNOWN, KERNEL_UNSUPPORTED, TILE_INVALID, SHARED_MEMORY_EXCEEDED.
    """
    fmt = Format.parse(weights) if isinstance(weights, str) else weights
    act = fmt.act
    if act is None:
        raise LowbitvmError("FORMAT_INVALID", f"{fmt} does not say what it is multiplied with", 'add act, as "i8"')
    fmt = fmt.in_digits
    sides = (activations or (token_format(fmt) if scaled else Format(act, digits=fmt.digits)), fmt)
    groups = tuple(side.group for side in sides if scaled and isinstance(side.group, int))
    tile = replace(tile_for((m, n, k), sides, targets.get(target), groups), **parts)
    variant = Variant(
        *sides, tile, True, ("f32", "f32") if scaled else (None, None), "f16" if scaled else "i32", whole=True
    )
    return _compiled(variant, target, disk_cache() if cache else None, dependent)


def tile_for(
    sizes: tuple[int, int | None, int],
    sides: tuple[Format, Format],
    target: Target,
    groups: tuple[int, ...],
    products: int = 1,
) -> DigitTile:
    """The tile of a product of activations and weights, with the groups of k that have scales; n None: of one block."""
    m, n, k = sizes
    if groups:
        return grouped_tile(m, MANY if n is None else n, k, *sides, target, groups, products)
    if n is None:
        return digit_tile(m, k, *sides, target, products)
    return digit_plan(m, n, k, *sides, target, products)


def matmul(
    a: PackedDigits,
    w: PackedDigits,
    dtype: Any = None,
    *,
    bias: Array | None = None,
    gate: PackedDigits | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    requantize: Requantize | None = None,
) -> Array:
    """The product a w^T of integer matrices (m, out_features): i32 and exact without scales on either side.

    With scales it is the exact integer product, rounded to f32 and multiplied with both scales in f32, in `dtype`:
    f16 (by default), bf16 or f32, by name or torch's dtype. With scales of groups of k the integers of each group are
    rounded to f32 and, in the order of k, total = fma(f32(integers), scale, total); where both sides have groups they
    are multiplied with a's scale before. Scales of all k come last.

    a: what `lb.pack_activations` returns, (m, in_features); w: what `lb.pack_weights` returns, (out_features,
    in_features), in the same digits. bias: (out_features), i32 for an exact product, else f16, bf16 or f32. With scales
    the result is f(a w^T + bias) + residual, or f(a gate^T) * (a w^T + bias) + residual, each operation in f32 and in
    this order; activation: f, "relu", "silu", "gelu" or None. gate: a weight of w's format and shape; residual: (m,
    out_features), f16, bf16 or f32. requantize: the result is codes, i8 or u8 (m, out_features), for the next layer:
    see `lb.Requantize`.

    CUDA tensors run on their GPU, on the current stream. On a CPU the product is made by numpy, with the same bits but
    for silu and gelu; with LOWBITVM_DEVICE=emulator:sm_80 (or another target) it goes through PTX and the emulator.
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, ARGUMENT_INVALID where in_features is so large that s32 may overflow,
    FORMAT_UNSUPPORTED for sides in other digits, KERNEL_UNSUPPORTED for digits that the GPU does not have,
    DEVICE_MISMATCH.
    """
    after = After(bias, gate, activation, residual, requantize)
    sides = [a, w] if gate is None else [a, w, gate]
    if requantize is not None or not all(type(side) is PackedDigits for side in sides):
        return _matmul(a, w, dtype, after)
    tensors = [part for side in sides for part in (side.words, side.sums, side.scales, side.zeros)]
    tensors += [bias, residual]
    if not all_tensors(tensors):
        return _matmul(a, w, dtype, after)
    key = (dtype, activation, *[(side.format, side.shape) for side in sides], *signature(tensors))
    found = _calls.again(key, tensors)
    return _calls.first(key, tensors, lambda: _matmul(a, w, dtype, after), lambda y: [y]) if found is None else found[0]


_calls = Calls()


def _matmul(a: PackedDigits, w: PackedDigits, dtype: Any, after: After) -> Array:
    """The product that `matmul` says, of anything."""
    check_sides(a, w)
    check_after(a, w, after)
    target = _device_target(a, w, after)
    y = arrays.zeros(a.words, (a.rows, w.rows), _output(a, w, dtype, after.requantize))
    if target is not None:
        run_matmul(a, w, y, target, after=after)
        return y
    product = numpy_product(a, w, after).astype(dtypes.of(y).numpy)
    return arrays.tensor(product) if dtypes.is_tensor(y) else product


def _output(a: PackedDigits, w: PackedDigits, dtype: Any, requantize: Requantize | None) -> DType:
    """The dtype of a product."""
    if requantize is not None:
        if dtype is not None:
            raise LowbitvmError("ARGUMENT_INVALID", f"codes in {dtype}", "leave out dtype or requantize")
        return dtypes.i8 if requantize.code.low < 0 else dtypes.u8
    known = {
        dtype.numpy.name: dtype
        for dtype in ((f16, bf16, f32) if a.scales is not None or w.scales is not None else (i32,))
    }
    known |= {dtype.name: dtype for dtype in known.values()}
    name = next(iter(known)) if dtype is None else str(dtype).removeprefix("torch.")
    if name not in known:
        raise LowbitvmError("DTYPE_MISMATCH", f"a product in {dtype}", f"use one of {', '.join(known)}")
    return known[name]


def _device_target(a: PackedDigits, w: PackedDigits, after: After) -> str | None:
    """The target that a product runs on, None for numpy's own."""
    sides = [side.words for side in (a, w, after.gate) if side is not None]
    wanted = () if after.requantize is None else after.requantize.arrays.values()
    more = (after.bias, after.residual, *(part for part in wanted if np.ndim(part)))
    places = {arrays.device(array) for array in (*sides, *more) if array is not None}
    if len(places) > 1:
        raise LowbitvmError("DEVICE_MISMATCH", f"arrays on {sorted(places)}", "move all to one device with .to(device)")
    on_gpu = any(place.startswith("cuda") for place in places)
    return driver.device_target(a.words.device.index) if on_gpu else emulated_target()


def run_matmul(
    a: PackedDigits,
    w: PackedDigits,
    y: Array,
    target: str,
    *,
    after: After = NOTHING,
    tile: DigitTile | None = None,
    **options: Any,
) -> "Report | None":
    """y (m, out_features) = what `matmul` returns, on `target`; see `launch` for devices, options and errors.

    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, FORMAT_UNSUPPORTED for sides in other digits, ARGUMENT_INVALID where k is so
    long that s32 may overflow, KERNEL_UNSUPPORTED for digits that are not native to the target.
    """
    check_sides(a, w)
    check_after(a, w, after)
    (m, k), n = a.shape, w.rows
    groups = tuple(side.group for side in (a, w) if side.group is not None)
    if tile is None:
        tile = tile_for((m, n, k), (a.format, w.format), targets.get(target), groups, 1 + (after.gate is not None))
    wanted, numbers = after.requantize, rank_one(a, w, after.gate)
    unaligned = groups and any(address(array) % ALIGNMENT for array in numbers.values())
    aligned = k % (tile.bk if groups else tile.part) == 0 and not unaligned
    parts = () if wanted is None else wanted.arrays.values()
    followers = [part for part in (y, after.bias, after.residual, *parts) if np.ndim(part)]
    variant = Variant(
        a.format,
        w.format,
        tile,
        aligned,
        (_scale_dtype(a), _scale_dtype(w)),
        dtypes.of(y).name,
        after.gate is not None,
        None if after.bias is None else dtypes.of(after.bias).name,
        None if after.residual is None else dtypes.of(after.residual).name,
        after.activation,
        None if wanted is None else (wanted.code.low, wanted.code.high, wanted.zero),
        wanted is not None and wanted.scale is None,
        wanted is not None and wanted.code.step > 1,
        n % VECTOR == 0 and not any(address(part) % ALIGNMENT for part in followers),
    )
    given = {"a": a, "w": w, "y": y, "gate": after.gate, "bias": after.bias, "residual": after.residual}
    arguments = {name: value for name, value in given.items() if value is not None}
    if wanted is not None:
        arguments |= {name: _by_feature(part, y, n) for name, part in wanted.arrays.items()}
    arguments |= {name: numbers[name] for name in variant.rank_one}
    compiled = _compiled(variant, target, disk_cache(), wants_dependent(target))
    tiles_m, tiles_n = launch_grid((m, n), (tile.bm, tile.bn))
    if tile.splits == 1:
        return launch(compiled, (tiles_m, tiles_n), arguments, **options)
    rows = tile.splits * (1 + variant.gate) * tiles_m * tile.bm
    with workspace(y, (rows, tiles_n * tile.bn), tiles_m * tiles_n) as (partials, arrivals):
        arguments |= {"partials": arrays.bits(partials), "arrivals": arrivals}
        return launch(compiled, (tiles_m, tiles_n, tile.splits), arguments, **options)


def _by_feature(part: float | Array, like: Array, n: int) -> Array:
    """An array with a number for each output feature."""
    if np.ndim(part):
        return part
    made = arrays.zeros(like, (n,), f32)
    made += part
    return made


def _scale_dtype(side: PackedDigits) -> str | None:
    return None if side.scales is None else dtypes.of(side.scales).name


def rank_one(a: PackedDigits, w: PackedDigits, gate: PackedDigits | None = None) -> dict[str, Array]:
    """The kernel's arguments of numbers for each row of a matrix, (rows, groups), and sums of the smallest group."""
    group = smallest_group(a, w)
    sides = {"a": a, "w": w} | ({} if gate is None else {"gate": gate})
    whole = {name: side for name, side in sides.items() if group is None or group % max(1, side.summed) == 0}
    found = {f"{name}_sums": sums_for(side, group) for name, side in whole.items()}  # of others none are needed
    for name, side in sides.items():
        for part, array in (("zeros", side.zeros), ("scales", side.scales)):
            if array is not None:
                found[f"{name}_{part}"] = array[:, None] if array.ndim == 1 else array
    return found


def smallest_group(a: PackedDigits, w: PackedDigits) -> int | None:
    """in_features that one sum of integers is for; None: all."""
    return min((side.group for side in (a, w) if side.group is not None), default=None)


def sums_for(side: PackedDigits, group: int | None) -> Array:
    """The sums of each group of k, (rows, groups), from those of parts of it."""
    rows, k = side.shape
    if group is None or group == k or side.sums.ndim == 1:
        return (side.sums if side.sums.ndim == 1 else arrays.cast(side.sums.sum(1), i32))[:, None]
    return arrays.cast(side.sums.reshape(rows, k // group, -1).sum(2), i32) if side.summed != group else side.sums


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
    for side in (a, w):
        if side.group is not None:
            check_group(side.format)
    longest = longest_k(a.format, w.format, (a.zeros is not None, w.zeros is not None))
    group = smallest_group(a, w)
    if group is None and a.columns > longest:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"in_features {a.columns} of {a.format.dtype} x {w.format.dtype} may overflow s32",
            f"multiply at most {longest} of them at a time, and add",
        )
    for side, other in ((a, w), (w, a)):
        if group is None or (other.zeros is None and other.decomposition.offset == 0):
            continue
        if group % max(1, side.summed):
            raise LowbitvmError(
                "ARGUMENT_INVALID",
                f"sums of {side.summed} in_features of {side.format}, and scales of groups of {group}",
                f"pack or quantise it with sums={group}",
            )


def check_after(a: PackedDigits, w: PackedDigits, after: After) -> None:
    """Raises where what is to follow a product does not fit it."""
    gate, floats = after.gate, a.scales is not None or w.scales is not None
    if gate is not None and (not isinstance(gate, PackedDigits) or (gate.format, gate.shape) != (w.format, w.shape)):
        raise LowbitvmError("SHAPE_MISMATCH", f"the gate is {gate!r}, the weight {w!r}", "pack both alike")
    if gate is not None and (gate.scales is None) != (w.scales is None):
        raise LowbitvmError(
            "ARGUMENT_INVALID", "one of gate and weight has scales", "pack both with scales, or neither"
        )
    if after.activation not in ACTIVATIONS and after.activation is not None:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"there is no activation function {after.activation!r}",
            f"use one of {', '.join(ACTIVATIONS)}, or None",
        )
    if not floats and (gate is not None or after.residual is not None or after.activation is not None):
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            "a gate, a residual or an activation function follows a product without scales",
            "pack a side with scales; only a bias follows exact integers",
        )
    wanted = after.requantize
    if wanted is not None and (wanted.scale is not None) != floats:
        problem = "a scale for codes of exact integers" if not floats else "multipliers for codes of floats"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "exact integers take multipliers and shifts, floats a scale")
    for name, part in () if wanted is None else wanted.arrays.items():
        given = None if not np.ndim(part) else (tuple(part.shape), dtypes.of(part))
        if given not in (None, ((w.rows,), f32 if name == "y_scales" else i32)):
            raise LowbitvmError("SHAPE_MISMATCH", f"{name} are {given}", f"pass one for each of {w.rows} out_features")
    shapes = {"bias": (w.rows,), "residual": (a.rows, w.rows)}
    for name, shape in shapes.items():
        array = getattr(after, name)
        if array is not None and tuple(array.shape) != shape:
            raise LowbitvmError("SHAPE_MISMATCH", f"the {name} has shape {tuple(array.shape)}", f"make it {shape}")
        known = (f16, bf16, f32) if floats else (i32,)
        if array is not None and dtypes.of(array) not in known:
            raise LowbitvmError(
                "DTYPE_MISMATCH", f"the {name} is {dtypes.of(array)}", f"use {' or '.join(map(str, known))}"
            )
