"""The prebuilt quantiser of activations: compiled once per variant, launched on arrays of any kind."""

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm import activations, arrays, digits, dtypes
from lowbitvm.digits import ACTIVATION_WORDS, COLUMNS
from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import GROUPS, Format
from lowbitvm.integers import LANES, PackedDigits, pack_activations, row_tiles, tile_k
from lowbitvm.ir import Program
from lowbitvm.kernels.quantise import quantise as kernel
from lowbitvm.pack import as_format
from lowbitvm.runtime.arguments import address
from lowbitvm.runtime.cache import Cache
from lowbitvm.runtime.compiled import CompiledKernel, compile_program, launch_grid, wants_dependent
from lowbitvm.runtime.launch import ALIGNMENT, device_target_of, launch
from lowbitvm.runtime.linear import VECTOR, disk_cache
from lowbitvm.runtime.repeat import Calls, all_tensors, signature

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

INPUTS = ("f16", "bf16", "f32")
TAKEN = {  # dtypes
    "x": ("f16", "bf16", "f64", "f32"),
    "norm": INPUTS,
    "smoothing": ("f32",),
    "scale": ("f32",),
    "zero": ("i32",),
}
BLOCK = 4096  # activations that a block takes at least, where rows are short
EACH = 32  # activations of a thread, but for very long rows
MOST_WARPS = 16


@dataclass(frozen=True)
class Variant:
    """Everything that the code of a quantiser depends on but the target."""

    format: Format
    x: str
    k: int  # in_features of a block at a time
    whole: bool  # they are all that there are
    divisor: int  # of in_features: 1, VECTOR or a stored tile's
    part: int | None = None  # in_features of a sum; None: all of a row
    norm: str | None = None
    eps: float = 0.0
    smoothing: bool = False
    rotation: int | None = None

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return min(COLUMNS, max(1, BLOCK // self.k))

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return min(MOST_WARPS, max(1, self.rows * self.k // (32 * EACH)))

    def program(self) -> Program:
        """The kernel as tile IR."""
        static, zero = self.format.group == "tensor", self.format.zero is not None
        return kernel.trace(
            x=dtypes.get(self.x),
            a=self.format,
            zeros=dtypes.i32 if zero else None,
            norm=dtypes.get(self.norm) if self.norm else None,
            smoothing=dtypes.f32 if self.smoothing else None,
            scale=dtypes.f32 if static else None,
            zero=dtypes.i32 if static and zero else None,
            bm=self.rows,
            bk=self.k,
            whole=self.whole,
            part=self.part,
            eps=self.eps,
            rotation=self.rotation,
            divisible={"k": self.divisor} if self.divisor > 1 else {},
        )


@functools.cache
def _compiled(variant: Variant, target: str, cache: Cache | None, dependent: bool = False) -> CompiledKernel:
    started = time.perf_counter()
    return compile_program(variant.program(), target, variant.warps, started, cache, dependent=dependent)


@dataclass(frozen=True)
class Steps:
    """What is done to activations before they are rounded, and given scales; see `quantize_activations`."""

    norm: Array | None = None
    eps: float = 1e-6
    smoothing: Array | None = None
    rotation: int | None = None
    scale: float | Array | None = None
    zero: int | Array | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """Those of one number for each of in_features."""
        return {name: array for name in ("norm", "smoothing") if (array := getattr(self, name)) is not None}


def quantize_activations(
    x: Array,
    fmt: Format | str,
    *,
    scale: float | Array | None = None,
    zero: int | Array | None = None,
    sums: int | None = None,
    norm: Array | None = None,
    eps: float = 1e-6,
    smoothing: Array | None = None,
    rotation: int | None = None,
) -> PackedDigits:
    """Rounds float activations (m, in_features) to integers for `lb.matmul`, by `lowbitvm.activations`' rule.

    fmt: a Format without `act`, in digits="s8" unless told otherwise, and zero=None or "int". group="channel": a scale
    for each token; 16 to 256: for each token and so many in_features; "tensor": `scale` and, with zero="int", `zero`
    are given, numbers or f32 and i32 arrays of one on x's device, and copied to every row. scales, zeros and sums are
    (m), or (m, groups) for a group of in_features.
    sums: in_features, a divisor of the group, of each of the sums (m, in_features / sums) then: a weight whose scales
    are of so many in_features, and which has zero points or an offset, needs them.
    norm (in_features), f16, bf16 or f32: x is first normalised, RMSNorm with this weight and eps. smoothing
    (in_features), f32: multiplied then. rotation: then each so many in_features, a power of two, are rotated by a
    Hadamard matrix.
    CUDA tensors are rounded on their GPU by one kernel; CPU arrays by numpy, or with LOWBITVM_DEVICE=emulator:sm_80 (or
    another target) by the kernel's PTX: all give the same bits. Other floats than f16, bf16 and f32 go through f32.
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH, FORMAT_UNSUPPORTED, GROUP_INDIVISIBLE, ARGUMENT_INVALID, DEVICE_MISMATCH.
    """
    fmt, tensors = _activation_format(fmt), (x, norm, smoothing)
    if scale is not None or zero is not None or not all_tensors(tensors):
        return _quantised(x, fmt, sums, Steps(norm, eps, smoothing, rotation, scale, zero))
    key = (fmt, sums, eps, rotation, *signature(tensors))
    found = _calls.again(key, tensors)
    if found is not None:
        words, own, scales, zeros = (*found, None)[:4]
        return PackedDigits(words, own, fmt, int(x.shape[0]), int(x.shape[1]), scales, zeros)
    call = functools.partial(_quantised, x, fmt, sums, Steps(norm, eps, smoothing, rotation))
    made: PackedDigits = _calls.first(key, tensors, call, lambda made: list(made.arrays.values()))
    return made


_calls = Calls()


@functools.cache
def _activation_format(given: Format | str) -> Format:
    return as_format(given).in_digits


def _quantised(x: Array, fmt: Format, sums: int | None, steps: Steps) -> PackedDigits:
    """The activations that `quantize_activations` returns, of anything."""
    norm, smoothing = (
        part if part is None else arrays.contiguous(arrays.detached(part)) for part in (steps.norm, steps.smoothing)
    )
    steps = replace(steps, norm=norm, smoothing=smoothing)
    _check(x, fmt, steps)
    _check_sums(fmt, int(x.shape[1]), sums)
    x = arrays.contiguous(arrays.detached(x))
    x = x if dtypes.of(x).name in INPUTS else arrays.cast(x, dtypes.f32)
    target = device_target_of(x)
    if target is None:
        return _by_rule(x, fmt, steps, sums)
    made = empty_activations(x, fmt, sums)
    run_quantise(x, made, target, steps)
    return made


def empty_activations(x: Array, fmt: Format, sums: int | None = None) -> PackedDigits:
    """Activations in the shape of x (m, in_features), for a kernel to fill, with sums of so many in_features."""
    rows, columns = map(int, x.shape)
    k_tiles = -(-columns // tile_k(fmt))
    shape = (rows,) if isinstance(fmt.group, str) else (rows, fmt.groups(columns))
    return PackedDigits(
        arrays.empty(x, (row_tiles(fmt, rows), k_tiles, LANES * ACTIVATION_WORDS), dtypes.i32, unsigned=True),
        arrays.empty(x, _sums_shape(rows, columns, fmt, sums), dtypes.i32),
        fmt,
        rows,
        columns,
        arrays.empty(x, shape, dtypes.f32),
        None if fmt.zero is None else arrays.empty(x, shape, dtypes.i32),
    )


def _sums_shape(rows: int, columns: int, fmt: Format, sums: int | None) -> tuple[int, ...]:
    part = sums or (fmt.group if isinstance(fmt.group, int) else None)
    return (rows,) if part is None else (rows, columns // part)


def variant_of(x: Array, made: PackedDigits, steps: Steps) -> Variant:
    """The kernel's variant for activations x, to be stored in `made`."""
    fmt = made.format
    columns = int(x.shape[1])
    k = max(tile_k(fmt), min(activations.ROW, 1 << max(0, columns - 1).bit_length()))
    divisor = next(d for d in (tile_k(fmt), VECTOR, 1) if columns % d == 0)
    return Variant(
        fmt,
        dtypes.of(x).name,
        k,
        whole=columns <= k,
        divisor=1 if any(address(array) % ALIGNMENT for array in (x, *steps.arrays.values())) else divisor,
        part=None if made.sums.ndim == 1 else columns // max(1, int(made.sums.shape[1])) or None,
        norm=None if steps.norm is None else dtypes.of(steps.norm).name,
        eps=0.0 if steps.norm is None else steps.eps,
        smoothing=steps.smoothing is not None,
        rotation=steps.rotation,
    )


def run_quantise(
    x: Array, made: PackedDigits, target: str, steps: Steps | None = None, **options: Any
) -> "Report | None":
    """Fills `made`, what `empty_activations` returns, on `target`; see `launch` for devices and options."""
    steps = steps or Steps()
    variant = variant_of(x, made, steps)
    each = digits.columns_per_row(made.format.code, made.format.digits or "")
    padded = int(made.words.shape[0]) * COLUMNS // each  # padding of the rows is stored too
    grid = launch_grid((padded,), (variant.rows,))
    compiled = _compiled(variant, target, disk_cache(), wants_dependent(target))
    return launch(compiled, grid, quantiser_arguments(x, made, steps), **options)


def quantiser_arguments(x: Array, made: PackedDigits, steps: Steps) -> dict[str, Any]:
    """The kernel's arguments by name."""
    found: dict[str, Any] = {"x": x, "a": made, **steps.arrays}
    for name, array in made.arrays.items():
        if name != "words":
            found[name] = array.reshape((made.rows, math.prod(array.shape[1:])))
    for name, number, dtype in (("scale", steps.scale, dtypes.f32), ("zero", steps.zero, dtypes.i32)):
        if number is not None:
            found[name] = number.reshape(1) if hasattr(number, "reshape") else _one(x, number, dtype)
    return found


def _one(like: Array, number: float, dtype: dtypes.DType) -> Array:
    made = arrays.zeros(like, (1,), dtype)
    made[0] = number
    return made


def _by_rule(x: Array, fmt: Format, steps: Steps, sums: int | None) -> PackedDigits:
    """The rule itself, on a CPU."""
    norm, smoothing = (None if part is None else arrays.host(part) for part in (steps.norm, steps.smoothing))
    prepared = activations.prepare(arrays.host(x), norm, steps.eps, smoothing, steps.rotation)
    sums_shape = _sums_shape(len(x), int(x.shape[1]), fmt, sums)
    scale, zero = arrays.host(steps.scale), arrays.host(steps.zero)
    rounded = activations.round_to_codes(prepared, fmt, scale, zero, math.prod(sums_shape[1:]))

    def own(array: np.ndarray[Any, Any]) -> Array:
        return arrays.tensor(array) if dtypes.is_tensor(x) else array

    shape = (len(x),) if isinstance(fmt.group, str) else rounded.scales.shape
    return replace(
        pack_activations(own(rounded.codes), fmt),
        sums=own(rounded.sums.reshape(sums_shape)),
        scales=own(rounded.scales.reshape(shape)),
        zeros=None if rounded.zeros is None else own(rounded.zeros.reshape(shape)),
    )


def _check(x: Array, fmt: Format, steps: Steps) -> None:
    """Raises where x, its format and the steps before it do not fit."""
    if fmt.act is not None:
        raise LowbitvmError(
            "FORMAT_INVALID", f"activations of {fmt}, which is a weight's", f"use Format({fmt.act!r}, digits=...)"
        )
    if fmt.zero not in (None, "int") or fmt.scale not in ("f16", "bf16", "f32"):
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED", f"activations of {fmt}", "use a scale of f16, bf16 or f32, and zero=None or 'int'"
        )
    given = {"x": x, **steps.arrays}
    given |= {name: one for name in ("scale", "zero") if hasattr(one := getattr(steps, name), "reshape")}
    for name, array in given.items():
        if dtypes.of(array).name not in TAKEN[name]:
            raise LowbitvmError("DTYPE_MISMATCH", f"{name} is {dtypes.of(array)}", f"cast it to {TAKEN[name][-1]}")
    if x.ndim != 2:
        raise LowbitvmError("SHAPE_MISMATCH", f"x has shape {tuple(x.shape)}", "pass (m, in_features)")
    columns = int(x.shape[1])
    fmt.groups(columns)  # raises where groups do not divide in_features
    for name, array in list(given.items())[1:]:
        wanted = (columns,) if name in steps.arrays else (1,)
        if math.prod(array.shape) != wanted[0] or array.ndim > 1:
            raise LowbitvmError(
                "SHAPE_MISMATCH", f"{name} has shape {tuple(array.shape)}, x {tuple(x.shape)}", f"pass {wanted}"
            )
    places = {arrays.device(array) for array in given.values()}
    if len(places) > 1:
        raise LowbitvmError("DEVICE_MISMATCH", f"arrays on {sorted(places)}", "move all to one device with .to(device)")
    _check_numbers(fmt, columns, steps)


def _check_sums(fmt: Format, columns: int, sums: int | None) -> None:
    size = fmt.group_size(columns)
    if sums is not None and (sums not in GROUPS or size % sums):
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"sums of {sums} in_features in groups of {size}",
            "use 16, 32, 64, 128 or 256, a divisor of the group, and of in_features",
        )


def _check_numbers(fmt: Format, columns: int, steps: Steps) -> None:
    static, scale, zero = fmt.group == "tensor", steps.scale, steps.zero
    if (scale is not None) != static or (zero is not None) != (static and fmt.zero is not None):
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"scale={scale} and zero={zero} for {fmt}",
            "give both, or the scale for zero=None, with group='tensor', and only there",
        )
    if isinstance(scale, int | float) and not 0 < scale < math.inf:
        raise LowbitvmError("ARGUMENT_INVALID", f"scale={scale}", "use a number above 0")
    if isinstance(zero, int) and not fmt.code.low <= zero <= fmt.code.high:
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"zero={zero} for {fmt.dtype}", f"use one of {fmt.code.low} to {fmt.code.high}"
        )
    block = steps.rotation
    if block is not None and (block not in [1 << i for i in range(1, 15)] or columns % block):
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"rotation={block} of {columns} in_features",
            f"use a power of two up to {activations.ROW} that divides them",
        )
