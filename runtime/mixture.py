"""Products with mixed weights, and of complex ones: compiled once per variant, launched on arrays of any kind."""

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm import arrays, dsl, dtypes, targets
from lowbitvm.dtypes import Array, DType, bf16, f16, f32, i32
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integer_plan import DigitTile, MixtureTile, digit_tile, mixture_tile, shared_tile
from lowbitvm.integers import PackedDigits, format_digits
from lowbitvm.ir import Program
from lowbitvm.kernels import mixture as kernels
from lowbitvm.kernels.shares import shared_mixture
from lowbitvm.mixtures import ComplexWeight, MixedWeight
from lowbitvm.runtime import driver
from lowbitvm.runtime.cache import Cache
from lowbitvm.runtime.compiled import CompiledKernel, compile_program, launch_grid
from lowbitvm.runtime.integer import check_sides, longest_k, smallest_group, sums_for
from lowbitvm.runtime.launch import emulated_target, launch
from lowbitvm.runtime.linear import disk_cache
from lowbitvm.runtime.reference import numbers_of, scaled_product
from lowbitvm.runtime.workspace import workspace
from lowbitvm.shares import Shares, share_out, step_costs
from lowbitvm.targets import Gpu

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

Coded = tuple[Format, str | None]  # a matrix of codes, and the dtype of its scales
NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Variant:
    """Everything that the code of a product with a mixed weight depends on but the target.

    weights: [part of n][part of k][term]. dense: the dtype of a branch, or None; gathers: it takes columns of x.
    divisors: of the sizes along k, and of the branch's, what is promised.
    """

    activations: tuple[Coded, ...]
    weights: tuple[tuple[tuple[Coded, ...], ...], ...]
    scattered: bool
    dense: str | None
    gathers: bool
    out: str
    divisors: tuple[tuple[str, int], ...]
    tile: MixtureTile
    shares: tuple[tuple[int, ...], int] | None = None  # costs of steps, and workers, that share them out

    def program(self) -> Program:
        """The kernel as tile IR."""
        tile = self.tile
        specs, elements = self._parameters()
        terms: tuple[Any, ...] = tuple(tuple(len(block) for block in part) for part in self.weights)
        made: Any = kernels.mixture
        if self.shares is not None:
            terms, made = terms[0], shared_mixture
            elements["costs"], elements["workers"] = self.shares
            specs |= {"partials": ("rows columns", i32), "arrivals": ("tiles", i32)}
        return dsl.kernel(y=("m n", None), **specs)(made).trace(
            y=dtypes.get(self.out), terms=terms, bm=tile.bm, bn=tile.bn, bk=tile.bk, stages=tile.stages,
            divisible=dict(self.divisors), **elements,
        )  # fmt: skip

    def _parameters(self) -> tuple[dict[str, tuple[str, DType | None] | dsl.Spec], dict[str, Any]]:
        """The kernel's parameters after y, and the formats of those that are packed."""
        specs: dict[str, tuple[str, DType | None] | dsl.Spec] = {}
        elements: dict[str, Any] = {}

        def add(name: str, coded: Coded, rows: str, k: str, opposite: Sequence[Coded]) -> None:
            fmt, scale = coded
            specs[name] = dsl.packed(f"{rows} {k}")
            elements[name] = fmt
            if any(_shifts(other) for other in opposite):
                specs[f"{name}_sums"] = (f"{rows} {name}_parts", i32)
            if scale is not None and fmt.zero is not None:
                specs[f"{name}_zeros"] = (f"{rows} {name}_groups", i32)
            if scale is not None:
                specs[f"{name}_scales"] = (f"{rows} {name}_groups", dtypes.get(scale))

        for block, left in enumerate(self.activations):
            others = [coded for part in self.weights for coded in part[block]]
            add(f"a{block}", left, "m", f"k{block}", others)
        for part, blocks in enumerate(self.weights):
            rows = f"n{part}" if self.scattered else "n"
            for block, codes in enumerate(blocks):
                for term, coded in enumerate(codes):
                    add(f"w{part}_{block}_{term}", coded, rows, f"k{block}", self.activations[block : block + 1])
            if self.scattered:
                specs[f"rows{part}"] = (rows, i32)
            if self.dense is not None:
                specs[f"v{part}"] = (f"{rows} r", dtypes.get(self.dense))
        if self.dense is not None:
            specs["x"] = ("m kx" if self.gathers else "m r", dtypes.get(self.dense))
        if self.gathers:
            specs["columns"] = ("r", i32)
        return specs, elements


def _shifts(coded: Coded) -> bool:
    """Whether a dot leaves out something of the codes' values."""
    fmt, scale = coded
    return format_digits(fmt).offset != 0 or (scale is not None and fmt.zero is not None)


@functools.cache
def _compiled(variant: Variant, target: str, cache: Cache | None) -> CompiledKernel:
    return compile_program(variant.program(), target, variant.tile.warps, time.perf_counter(), cache)


def mixed_matmul(
    a: PackedDigits | Sequence[PackedDigits], w: MixedWeight, dtype: Any = None, *, x: Array | None = None
) -> Array:
    """The product (m, out_features) with a mixed weight, in one launch: i32 and exact without scales and branch.

    a: activations (m, in_features), or one matrix for each part of the in_features. x: for a branch, dense activations
    of its dtype, (m, r), or (m, anything) for one that takes columns of it. With scales or a branch every product of
    integers is exact, rounded to f32 and multiplied with both scales in f32; the products are added in f32, in order,
    and the branch's at last; the result is `dtype`, f16 by default, bf16 or f32.

    Raises SHAPE_MISMATCH, ARGUMENT_INVALID, FORMAT_UNSUPPORTED, DTYPE_MISMATCH, KERNEL_UNSUPPORTED, DEVICE_MISMATCH.
    """
    sides = [a] if isinstance(a, PackedDigits) else list(a)
    _check(sides, w, x)
    target = _target(*(side.words for side in (*sides, *w.weights)), *(w.rows or ()), *(w.branch or ()), x, w.columns)
    y = arrays.zeros(sides[0].words, (sides[0].rows, w.shape[0]), _output(_is_scaled(sides, w), dtype))
    if target is not None:
        run_mixed(sides, w, y, target, x=x)
        return y
    product = reference(sides, w, x).astype(dtypes.of(y).numpy)
    return arrays.tensor(product) if dtypes.is_tensor(y) else product


def _is_scaled(sides: Sequence[PackedDigits], w: MixedWeight) -> bool:
    return w.branch is not None or any(side.scales is not None for side in (*sides, *w.weights))


def reference(sides: Sequence[PackedDigits], w: MixedWeight, x: Array | None) -> NumpyArray:
    """The product by numpy, with the kernel's roundings but for those inside a branch; i64 where there are none."""
    floating = _is_scaled(sides, w)
    found = np.zeros((sides[0].rows, w.shape[0]), np.float32 if floating else np.int64)
    for part, blocks in enumerate(w.parts):
        total: Any = None
        for side, block in zip(sides, blocks, strict=True):
            for weight in block:
                product = scaled_product(side, weight)
                product = product.astype(np.float32) if floating else product
                total = product if total is None else total + product
        if w.branch is not None:
            columns = slice(None) if w.columns is None else arrays.host(w.columns)
            dense = np.asarray(arrays.host(x), np.float64)[:, columns]
            total = total + np.float32(dense @ np.asarray(arrays.host(w.branch[part]), np.float64).T)
        found[:, slice(None) if w.rows is None else arrays.host(w.rows[part])] = total
    return found


def _output(floating: bool, dtype: Any) -> DType:
    """The dtype of a product."""
    known = {dtype.name: dtype for dtype in ((f16, bf16, f32) if floating else (i32,))}
    known |= {dtype.numpy.name: dtype for dtype in known.values()}
    name = next(iter(known)) if dtype is None else str(dtype).removeprefix("torch.")
    if name not in known:
        raise LowbitvmError("DTYPE_MISMATCH", f"a product in {dtype}", f"use one of {', '.join(known)}")
    return known[name]


def _target(*found: Array | None) -> str | None:
    """The target that a product of these arrays runs on, None for numpy's own."""
    places = {arrays.device(array): array for array in found if array is not None}
    if len(places) > 1:
        raise LowbitvmError("DEVICE_MISMATCH", f"arrays on {sorted(places)}", "move all to one device with .to(device)")
    place, array = places.popitem()
    return driver.device_target(array.device.index) if place.startswith("cuda") else emulated_target()


def run_mixed(
    sides: Sequence[PackedDigits],
    w: MixedWeight,
    y: Array,
    target: str,
    *,
    x: Array | None = None,
    tile: MixtureTile | None = None,
    shares: Shares | None = None,
    **options: Any,
) -> "Report | None":
    """y (m, out_features) = the product on `target`; see `launch` for devices, options and errors."""
    variant = _variant(sides, w, dtypes.of(y).name, target, tile)
    given = {**_arguments(sides, w, x), "y": y}
    shares = _shares(sides, w, variant.tile, targets.get(target).gpu) if shares is None else shares
    if shares is not None:
        tile = shared_tile(variant.tile, len(w.weights))
        variant = replace(variant, tile=tile, shares=(shares.costs, shares.workers))
    tile = variant.tile
    kernel = _compiled(variant, target, disk_cache())
    taken = {array.name: given.get(array.name) for array in kernel.program.arrays}
    if shares is None:
        columns = sum(-(-part[0][0].rows // tile.bn) for part in w.parts)
        return launch(kernel, (-(-sides[0].rows // tile.bm), columns), taken, **options)
    rows = 2 * shares.workers * len(w.weights) * tile.bm
    with workspace(y, (rows, tile.bn), shares.tiles) as (partials, arrivals):
        whole = partials.view(sys.modules["torch"].int32) if dtypes.is_tensor(partials) else partials.view(np.int32)
        return launch(kernel, (shares.workers,), {**taken, "partials": whole, "arrivals": arrivals}, **options)


def _shares(sides: Sequence[PackedDigits], w: MixedWeight, tile: MixtureTile, gpu: Gpu) -> Shares | None:
    """How blocks share out the steps of parts of k; None where they make whole tiles."""
    grouped = any(matrix.group is not None for matrix in (*sides, *w.weights))
    if len(sides) == 1 or w.rows is not None or w.branch is not None or grouped or tile.bn < 16 * tile.warps:
        return None
    tile = shared_tile(tile, len(w.weights))
    tiles = -(-sides[0].rows // tile.bm) * -(-w.shape[0] // tile.bn)
    steps = tuple(-(-side.columns // bk) for side, bk in zip(sides, tile.bk, strict=True))
    formats = [[weight.format for weight in block] for block in w.parts[0]]
    costs = step_costs([side.format for side in sides], formats, tile.bk, gpu)
    return share_out(tiles, steps, costs, gpu)


def _variant(sides: Sequence[PackedDigits], w: MixedWeight, out: str, target: str, tile: MixtureTile | None) -> Variant:
    weights = tuple(
        tuple(tuple((weight.format, _scale(weight)) for weight in block) for block in part) for part in w.parts
    )
    if tile is None:
        formats = [[[fmt for fmt, _ in block] for block in part] for part in weights]
        shapes = [(side.format, side.columns) for side in sides]
        groups = [group or 0 for group in _longest_groups(sides, w)]
        tile = mixture_tile(sides[0].rows, shapes, formats, groups, w.branch is not None, targets.get(target))
    parts = [(f"k{block}", tile.part(block), side.columns) for block, side in enumerate(sides)]
    divisors = {name: part for name, part, columns in parts if columns % part == 0}
    dense = None if w.branch is None else dtypes.of(w.branch[0]).name
    if w.branch is not None:
        rank = w.branch[0].shape[1]
        aligned = next((size for size in (kernels.DENSE_K, 8) if rank and rank % size == 0), 1)
        divisors |= {"r": aligned} if aligned > 1 else {}
    return Variant(
        tuple((side.format, _scale(side)) for side in sides), weights, w.rows is not None, dense,
        w.columns is not None, out, tuple(divisors.items()), tile,
    )  # fmt: skip


def _groups(sides: Sequence[PackedDigits], w: MixedWeight) -> list[int | None]:
    """For each part of k the in_features that one sum of integers is for. Raises FORMAT_UNSUPPORTED for several."""
    found = []
    for block, side in enumerate(sides):
        groups = {smallest_group(side, weight) for part in w.parts for weight in part[block]}
        if len(groups) > 1:
            raise LowbitvmError(
                "FORMAT_UNSUPPORTED",
                f"scales of groups of {sorted(map(str, groups))} beside the same activations",
                "use one group, or a scale for each output feature",
            )
        found.append(groups.pop())
    return found


def _longest_groups(sides: Sequence[PackedDigits], w: MixedWeight) -> list[int | None]:
    """For each part of k the longest group that has scales, of which a step is a multiple."""
    found = []
    for block, side in enumerate(sides):
        groups = [side.group, *(weight.group for part in w.parts for weight in part[block])]
        found.append(max((group for group in groups if group is not None), default=None))
    return found


def _scale(matrix: PackedDigits) -> str | None:
    return None if matrix.scales is None else dtypes.of(matrix.scales).name


def _arguments(sides: Sequence[PackedDigits], w: MixedWeight, x: Array | None) -> dict[str, Any]:
    """All arrays that a kernel may take, by name."""
    found: dict[str, Any] = {}

    def add(name: str, matrix: PackedDigits, group: int | None) -> None:
        found[name] = matrix
        found[f"{name}_sums"] = sums_for(matrix, group)
        for part, array in (("zeros", matrix.zeros), ("scales", matrix.scales)):
            if array is not None:
                found[f"{name}_{part}"] = array[:, None] if array.ndim == 1 else array

    groups = _groups(sides, w)
    for block, side in enumerate(sides):
        add(f"a{block}", side, groups[block])
    for part, blocks in enumerate(w.parts):
        for block, codes in enumerate(blocks):
            for term, weight in enumerate(codes):
                add(f"w{part}_{block}_{term}", weight, groups[block])
        found[f"rows{part}"] = None if w.rows is None else w.rows[part]
        found[f"v{part}"] = None if w.branch is None else w.branch[part]
    return {**found, "x": x, "columns": w.columns}


def _check(sides: Sequence[PackedDigits], w: MixedWeight, x: Array | None) -> None:
    """Raises where activations do not fit a mixed weight."""
    if not isinstance(w, MixedWeight):
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"w is a {type(w).__name__}", "pass what lb.mix_terms and its like return"
        )
    if len(sides) != len(w.blocks):
        raise LowbitvmError(
            "SHAPE_MISMATCH",
            f"{len(sides)} matrices of activations for {len(w.blocks)} parts of the in_features",
            "pass one for each",
        )
    _groups(sides, w)
    longest = Fraction(0)
    for block, side in enumerate(sides):
        own = Fraction(0)
        for part in w.parts:
            terms = Fraction(0)
            for weight in part[block]:
                check_sides(side, weight)
                group = smallest_group(side, weight)
                terms += 0 if group else Fraction(side.columns, _longest(side, weight))
            own = max(own, terms)
        if side.rows != sides[0].rows:
            raise LowbitvmError("SHAPE_MISMATCH", f"activations of {sides[0].rows} and {side.rows} rows", "match them")
        longest += own
    if longest > 1 and not _is_scaled(sides, w):
        raise LowbitvmError(
            "ARGUMENT_INVALID", "a sum of products that may overflow s32", "give scales, or multiply the parts apart"
        )
    _check_dense(sides[0], w, x)


def _longest(a: PackedDigits, w: PackedDigits) -> int:
    return longest_k(a.format, w.format, (a.zeros is not None, w.zeros is not None))


def _check_dense(side: PackedDigits, w: MixedWeight, x: Array | None) -> None:
    if (x is None) != (w.branch is None):
        problem = "dense activations for a weight without a branch" if w.branch is None else "a branch without x"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "give x with a branch, and only there")
    if x is None or w.branch is None:
        return
    if dtypes.of(x) != dtypes.of(w.branch[0]):
        raise LowbitvmError("DTYPE_MISMATCH", f"x of {dtypes.of(x)}, the branch {dtypes.of(w.branch[0])}", "cast one")
    rank = int(w.branch[0].shape[1])
    least = rank if w.columns is None else int(w.columns.max()) + 1 if rank else 0
    fits = x.ndim == 2 and x.shape[0] == side.rows and (x.shape[1] >= least if w.columns is not None else True)
    if not fits or (w.columns is None and x.shape[1] != rank):
        raise LowbitvmError(
            "SHAPE_MISMATCH",
            f"x of shape {tuple(x.shape)} for {side.rows} rows and a branch of {rank}",
            f"pass ({side.rows}, {least}{' or more' if w.columns is not None else ''})",
        )


# -- complex numbers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComplexVariant:
    """Everything that the code of a complex product depends on but the target."""

    activations: Format
    weights: Format
    tile: DigitTile
    aligned: bool

    def program(self) -> Program:
        """The kernel as tile IR."""
        tile = self.tile
        return kernels.complex_matmul.trace(
            a_re=self.activations, a_im=self.activations, plus=self.weights, minus=self.weights, bm=tile.bm, bn=tile.bn,
            bk=tile.bk, stages=tile.stages, divisible={"k": tile.part} if self.aligned else {},
            **dict.fromkeys(self.rank_one, i32),
        )  # fmt: skip

    @property
    def rank_one(self) -> tuple[str, ...]:
        """The sums that the kernel takes."""
        of_weights, of_activations = (format_digits(fmt).offset != 0 for fmt in (self.activations, self.weights))
        names = (("re_sums", of_activations), ("im_sums", of_activations), ("plus_sums", of_weights))
        return tuple(name for name, holds in (*names, ("minus_sums", of_weights)) if holds)


@functools.cache
def _compiled_complex(variant: ComplexVariant, target: str, cache: Cache | None) -> CompiledKernel:
    return compile_program(variant.program(), target, variant.tile.warps, time.perf_counter(), cache)


def complex_matmul(re: PackedDigits, im: PackedDigits, w: ComplexWeight) -> tuple[Array, Array]:
    """The real and imaginary part (m, out_features) of (re + i im) w^T, i32 and exact, in one launch.

    re, im: activations (m, in_features) of one format; w: what `lb.pack_complex` returns. The transposed weight is not
    conjugated. Raises what `lb.matmul` does, and ARGUMENT_INVALID for parts of different formats.
    """
    if re.format != im.format or re.shape != im.shape:
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"parts of {re.format} {re.shape} and {im.format} {im.shape}", "pack both alike"
        )
    check_sides(re, w.plus)
    most = _longest(re, w.plus) // 2
    if re.columns > most:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"in_features {re.columns} of complex {re.format.dtype} may overflow s32",
            f"multiply at most {most} of them at a time, and add",
        )
    target = _target(*(side.words for side in (re, im, w.plus, w.minus)))
    outputs = tuple(arrays.zeros(re.words, (re.rows, w.shape[0]), i32) for _ in range(2))
    if target is not None:
        run_complex(re, im, w, outputs, target)
        return outputs[0], outputs[1]
    plus, minus = (numbers_of(part) for part in (w.plus, w.minus))
    codes = numbers_of(re) + 1j * numbers_of(im)
    product = codes @ ((plus + minus) / 2 + 1j * (plus - minus) / 2).T
    found = [part.astype(np.int32) for part in (product.real, product.imag)]
    real, imaginary = (arrays.tensor(part) if dtypes.is_tensor(re.words) else part for part in found)
    return real, imaginary


def run_complex(
    re: PackedDigits, im: PackedDigits, w: ComplexWeight, outputs: Sequence[Array], target: str, **options: Any
) -> "Report | None":
    """Both outputs = the product's real and imaginary part on `target`; see `launch`."""
    (m, k), n, fmt = re.shape, w.shape[0], w.plus.format
    tile = complex_tile(digit_tile(m, k, re.format, fmt, targets.get(target)))
    variant = ComplexVariant(re.format, fmt, tile, k % tile.part == 0)
    arguments: Mapping[str, Any] = {"a_re": re, "a_im": im, "plus": w.plus, "minus": w.minus}
    sums = {"re_sums": re, "im_sums": im, "plus_sums": w.plus, "minus_sums": w.minus}
    taken = {name: sums_for(sums[name], None) for name in variant.rank_one}
    arguments = {**arguments, "re": outputs[0], "im": outputs[1], **taken}
    kernel = _compiled_complex(variant, target, disk_cache())
    return launch(kernel, launch_grid((m, n), (tile.bm, tile.bn)), arguments, **options)


def complex_tile(tile: DigitTile) -> DigitTile:
    """The tile for four products at once: half as many rows of either side, where there are as many."""
    if tile.bn >= 32 * tile.warps:
        tile = replace(tile, bn=tile.bn // 2)
    return replace(tile, bm=max(8, tile.bm // 2) if tile.bm > 8 else tile.bm)
