"""Rounding of float weights to the codes, scales and zero points of a format.

Everything here works through array methods, alike for numpy arrays and for torch tensors on any device, in float64, or
in float32 where that gives the same codes (`_in_single`).
A group is one row of a matrix here: (groups of all output features, codes of a group).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowbitvm import arrays, dtypes
from lowbitvm.digitplan import digits_for
from lowbitvm.dtypes import Array, CodeType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import BLOCK, Format
from lowbitvm.integers import PackedDigits, pack_weights
from lowbitvm.pack import (
    SCALE_PRECISION,
    PackedWeight,
    as_format,
    check_permutation,
    pack,
    refuse_shape,
    restored,
)
from lowbitvm.rounding import LARGEST_SCALE, Grid, Groups, best_fit, ends_of, reach_of, rounded_to, with_zero

METHODS = ("rtn", "mse")
BLOCK_WEIGHTS = 1 << 16  # rounded at a time on a CPU: what their arrays take stays in a core's cache


@dataclass(frozen=True)
class _Rounded:
    """Some rows of a weight, rounded, as `pack` takes them."""

    codes: Array
    scales: Array
    zeros: Array | None
    table: Array | None
    outer: Array | None
    outer_zeros: Array | None


def quantize(
    weight: Array,
    fmt: Format | str,
    *,
    method: str = "rtn",
    table: Array | None = None,
    input_scale: Array | None = None,
    permutation: Array | None = None,
    m: int | None = None,
    target: str | None = None,
) -> PackedWeight | PackedDigits:
    """Rounds a float weight (N, K) to the nearest codes of a format. f16, bf16, f32 or f64, numpy or torch.

    With lo and hi the smallest and largest weight of a group, and low .. high the values of the codes:
    zero=None:  s = max(hi / high, lo / low), the least scale whose grid reaches both ends (i4: -8 s .. 7 s).
    "int":      s = (hi - lo) / (high - low) after lo and hi are extended to include 0, z = round(low - lo / s).
    "float":    the same with z = low - lo / s; with 0 in the range, z stays in the range of the values.
    "offset":   s = (hi - lo) / (high - low), m = lo - low * s.
    scale="e8m0": with zero=None s = 2**(floor(log2(max |w|)) - floor(log2(high))), as OCP's Microscaling Formats 1.0
        (6.3) has it, which saturates what lies above; else the least power of two that is no less than s above.
    outer:      the second level is the largest s (or |m|) of its groups over the largest number of the scale's dtype,
        for NVFP4 max |w| / 6 / 448, in f32; s (or m) is divided by it and rounded to the nearest of the dtype.
    s, and a float z or m, are rounded to float32, then to the format's dtype, before the codes are computed from them.
    With s', z' and m' before rounding, |w - dequantized w| <= step / 2 + (high - low) * |s - s'|, for "float"
    + s * |z - z'|, for "offset" + |m - m'|, with the step from one code to the next at w: what follows step / 2 is how
    far the grid can end short of lo or hi. A group whose scale rounds to 0 (all zero, constant for "offset", or below
    the scale dtype's smallest number) gets s = 0. Ties are as in `CodeType.encode`.

    method: "rtn" as above, or "mse": for each group the scale with the least sum of squared errors of 17 from s to
        s / 16 and then of 4 between its neighbours (for "offset" around the middle); with e8m0 of 2 s, s, ..., s / 8.
    table: for the dtypes "c1".."c8", floats that are rounded to f16: the tables as `pack` takes them, or one of E
        numbers for table="tensor", or (T, E) for table="group", of which each group takes the one with the least error.
    input_scale: floats (K). What is rounded is the weight that multiplies x as this one multiplies x * input_scale.
    permutation: as `pack` takes it; weight keeps its own order.
    A format with `act` gives integers in digits; `lb.linear` and `lb.matmul` multiply them with integers. Where it does
    not say which digits, they are s8, as those of activations, which every GPU has; for a target the plan chooses them,
    as for `lb.best_digits`, for m rows of activations (None: those that lose least at any number of rows).

    Raises ARGUMENT_INVALID for non-finite weights, negative ones with unsigned codes and zero=None, ranges that
    overflow the scale dtype, an unknown method, and a table missing or not wanted; SHAPE_MISMATCH, DTYPE_MISMATCH,
    DEVICE_MISMATCH and GROUP_INDIVISIBLE as `pack`; TARGET_UNKNOWN.
    """
    fmt = as_format(fmt)
    shape = tuple(getattr(weight, "shape", ()))
    if fmt.act is not None and fmt.digits is None and len(shape) == 2 and 0 not in shape:
        n, k = map(int, shape)
        fmt = digits_for(fmt, m, n, k, target)
    parts = _parts(weight, fmt, method, table, input_scale, permutation)
    return pack(**parts, fmt=fmt, permutation=permutation)


def quantize_weights(weight: Array, fmt: Format | str) -> PackedDigits:
    """Rounds a float weight (out_features, in_features) to integers for `lb.matmul`, one scale per output feature.

    fmt: a Format with `act` and group="channel", such as Format("i4", "channel", act="i8"); zero=None or "int". The
    rule is that of `quantize`. Raises what `quantize` and `pack_weights` do.
    """
    fmt = as_format(fmt)
    return pack_weights(fmt=fmt, **_parts(weight, fmt))


def _parts(
    weight: Array,
    fmt: Format,
    method: str = "rtn",
    table: Array | None = None,
    input_scale: Array | None = None,
    permutation: Array | None = None,
) -> dict[str, Array | None]:
    """What `pack` takes for a matrix, rounded as `quantize` says."""
    if method not in METHODS:
        raise LowbitvmError("ARGUMENT_INVALID", f"the method is {method!r}", f"use one of {', '.join(METHODS)}")
    given = {"weight": weight, "table": table, "input_scale": input_scale, "permutation": permutation}
    arrays.check_readable({name: array for name, array in given.items() if array is not None or name == "weight"})
    _check_weight(weight, input_scale)
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    fmt.scales_shape(*shape), fmt.outer_shape(*shape)  # raise where groups do not divide in_features
    if permutation is not None:
        check_permutation(permutation, shape[1])
    tables = _tables(table, fmt, shape)
    # the tensors of a CPU are rounded as numpy arrays, block by block
    job = _Job(fmt, method, *(arrays.host(array) for array in (weight, tables, input_scale, permutation)))
    parts = {name: array for name, array in vars(job.run()).items() if array is not None}
    if dtypes.is_tensor(weight) and not dtypes.is_tensor(parts["codes"]):
        parts = {name: arrays.tensor(array) for name, array in parts.items()}
    return {"zeros": None, **parts}


def _check_weight(weight: Array, input_scale: Array | None) -> None:
    if not dtypes.of(weight).is_float:
        raise LowbitvmError(
            "DTYPE_MISMATCH", f"the weight is {dtypes.of(weight)}, quantize takes floats", "use pack for integer codes"
        )
    if weight.ndim != 2:
        refuse_shape("weight", weight, "(out_features, in_features)", "as torch.nn.Linear has it")
    if input_scale is not None:
        if not dtypes.of(input_scale).is_float:
            raise LowbitvmError("DTYPE_MISMATCH", f"input_scale is {dtypes.of(input_scale)}", "convert it to f32")
        if tuple(input_scale.shape) != (weight.shape[1],):
            refuse_shape("input_scale", input_scale, f"({weight.shape[1]},)", "for as many in_features")


@dataclass(frozen=True)
class _Job:
    """One call of `quantize`; rows that share nothing are rounded block by block."""

    fmt: Format
    method: str
    weight: Array
    tables: Array | None
    input_scale: Array | None
    permutation: Array | None

    @functools.cached_property
    def in_single(self) -> bool:
        return _in_single(self.fmt, self.weight, self.tables, self.input_scale)

    def run(self) -> _Rounded:
        out_features, in_features = self.weight.shape
        limit = max(1, BLOCK_WEIGHTS // max(1, in_features)) if self.fmt.group != "tensor" else out_features
        if self.fmt.table == "block":
            limit = -(-limit // BLOCK) * BLOCK
        levels: tuple[Array | None, Array | None] | None = None
        if self.fmt.outer == "tensor":
            ends = self._in_blocks(limit, self._second_level)
            outer, outer_zeros = (_joined([end[i] for end in ends]) for i in range(2))
            if outer is not None and outer_zeros is not None:
                levels = outer.max().reshape(1, 1), outer_zeros.max().reshape(1, 1)
        done = self._in_blocks(limit, lambda rows: self._round(rows, levels))
        if not done:
            return self._round(slice(0, out_features), levels)
        whole = {name: _joined([getattr(part, name) for part in done]) for name in vars(done[0])}
        if self.fmt.outer == "tensor":
            whole["outer"], whole["outer_zeros"] = done[0].outer, done[0].outer_zeros
        if self.fmt.table == "tensor":
            whole["table"] = self.tables
        return _Rounded(**whole)

    def _in_blocks(self, limit: int, work: Callable[[slice], Any]) -> list[Any]:
        """What `work` returns for each slice of rows, in their order."""
        done: dict[int, Any] = {}

        @np.errstate(over="ignore")  # what overflows becomes infinite and is refused by rounded_to
        def one(block: tuple[slice, slice]) -> None:
            done[block[0].start] = work(block[0])

        arrays.for_each_block(self.weight, (self.weight.shape[0], 1), limit, one)
        return [done[start] for start in sorted(done)]

    def _groups(self, rows: slice) -> tuple[Groups, list[Grid], tuple[int, int]]:
        """The groups of some rows, what their codes can stand for, and the rows' shape."""
        fmt = self.fmt
        numbers = self._numbers(rows)
        shape = int(numbers.shape[0]), int(numbers.shape[1])
        if self.permutation is not None:
            numbers = arrays.columns(numbers, self.permutation)
        groups = math.prod(fmt.scales_shape(*shape))
        members = numbers.reshape(groups, fmt.group_size(shape[1]) * (shape[0] if fmt.group == "tensor" else 1))
        lo, hi = ends_of(members)
        self._check(rows, lo, hi)
        tables = self.tables
        if tables is not None and fmt.table == "block":
            tables = tables[rows.start // BLOCK : -(-rows.stop // BLOCK)]
        elif tables is not None and tables.ndim == 3 and fmt.group != "tensor":
            tables = tables[rows]
        return Groups(fmt, members, lo, hi, (None, None)), _grids(fmt, shape, tables, members), shape

    def _numbers(self, rows: slice) -> Array:
        """Weights, times the input_scale: f32 where that will do, else f64."""
        weight = arrays.row_major(arrays.detached(self.weight)[rows])
        numbers = arrays.cast(weight, dtypes.f64) if dtypes.of(weight) == dtypes.f64 else arrays.single(weight)
        if not self.in_single:
            numbers = arrays.cast(numbers, dtypes.f64)
        if self.input_scale is not None:
            numbers = numbers * arrays.cast(arrays.detached(self.input_scale), dtypes.f64)
        return numbers + 0.0  # -0.0 + 0.0 is 0.0: minima differ

    def _check(self, rows: slice, lo: Array, hi: Array) -> None:
        """Raises for weights that cannot be rounded, given the ends of their groups."""
        beyond = 65536.0 if dtypes.of(self.weight) == dtypes.f16 and self.input_scale is None else math.inf
        unsigned = self.fmt.zero is None and self.fmt.code.kind == "uint"
        if bool((lo > -beyond).all()) and bool((hi < beyond).all()) and not (unsigned and bool((lo < 0).any())):
            return
        exact = arrays.cast(arrays.detached(self.weight)[rows], dtypes.f64)
        if self.input_scale is not None:
            exact = exact * arrays.cast(arrays.detached(self.input_scale), dtypes.f64)
        _refuse_weights(rows.start, exact, ~(abs(exact) < math.inf), "is not finite", "remove NaN and infinity first")
        fix = f'use "{"i" if self.fmt.bits > 1 else "bp"}{self.fmt.bits}" or a zero kind'
        _refuse_weights(rows.start, exact, exact < 0, f"is negative and {self.fmt} has no zero point", fix)

    def _second_level(self, rows: slice) -> tuple[Array | None, Array | None]:
        groups, grids, shape = self._groups(rows)
        return _second_level(self.fmt, shape, grids[0], *with_zero(self.fmt, groups.lo, groups.hi))

    def _round(self, rows: slice, levels: tuple[Array | None, Array | None] | None) -> _Rounded:
        fmt = self.fmt
        groups, grids, shape = self._groups(rows)
        ends = with_zero(fmt, groups.lo, groups.hi)
        outer, outer_zeros = levels or _second_level(fmt, shape, grids[0], *ends)
        scales_shape = fmt.scales_shape(*shape)
        by_scale = [_by_scale(level, scales_shape) for level in (outer, outer_zeros)]
        best = best_fit(replace(groups, levels=by_scale), grids, self.method)
        table = self.tables
        if table is not None and best.grid is not None:
            table = table[arrays.cast(best.grid, dtypes.i64)].reshape(*scales_shape, -1)
        elif table is not None and fmt.table == "block":
            table = table[rows.start // BLOCK : -(-rows.stop // BLOCK)]
        elif table is not None and fmt.table == "group" and fmt.group != "tensor":
            table = table[rows]
        zeros = None if best.zeros is None else best.zeros.reshape(scales_shape)
        return _Rounded(
            restored(_codes(fmt.code, best.patterns).reshape(shape), self.permutation),
            best.scales.reshape(scales_shape),
            zeros,
            table,
            outer,
            outer_zeros if fmt.zero == "offset" else None,
        )


def _codes(code: CodeType, patterns: Array) -> Array:
    """The codes of patterns u8, in the smallest dtype that holds them."""
    if code.step == 1 and code.is_linear:
        return (patterns - code.bias).view(arrays.native(patterns, dtypes.of_numpy(code.numpy)))  # modulo 256
    return arrays.cast(code.codes(arrays.cast(patterns, dtypes.i16)), code)


def _in_single(fmt: Format, weight: Array, tables: Array | None, input_scale: Array | None) -> bool:
    """Whether f32 quotients of weights and scales give the codes that exact ones give.

    Rounding keeps the order of numbers, so a quotient that is above (below) the middle of two values does not come to
    be below (above) it, but could come to be the middle. With weights w of 24 bits or fewer and b * s of 24 bits or
    fewer, for the middle b and the scale s, w and b * s differ by more than 2**-24 of b * s where they do, which is
    more than rounding w / s to the nearest f32 changes. Where b is 0, w / s must not vanish: f16 weights are no less
    than 2**-24, and no scale is above 2**65.
    """
    code = fmt.code
    if dtypes.of(weight) == dtypes.f64 or input_scale is not None or fmt.outer is not None:
        return False
    room = 24 - SCALE_PRECISION[fmt.scale][0]
    if fmt.zero == "int":
        return code.step == 1 and room >= 9
    if fmt.zero is not None:
        return False
    if code.kind == "float":
        return room >= code.mantissa + 2
    if code.is_linear:
        return room >= 9 and (code.step == 1 or dtypes.of(weight) == dtypes.f16)
    values: Array = code.values if tables is None else arrays.cast(tables, dtypes.f64)
    values = values.reshape(-1, 1 << fmt.bits)
    ordered = values.sort(dim=1).values if dtypes.is_tensor(values) else np.sort(values, axis=1)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    odd = arrays.frexp(middles)[0] * 2.0 ** max(0, room)  # a whole number where the bits of the significand suffice
    return dtypes.of(weight) == dtypes.f16 and bool((odd == odd.round()).all())


def _joined(parts: Sequence[Array | None]) -> Array | None:
    """Rows of blocks, one below the other."""
    there = [part for part in parts if part is not None]
    return None if not there else there[0] if len(there) == 1 else np.concatenate(there)  # tensors come in one block


def _refuse_weights(first_row: int, weights: Array, bad: Array, problem: str, fix: str) -> None:
    at = arrays.first(bad)
    if at is not None:
        where = [at[0] + first_row, at[1]]
        raise LowbitvmError("ARGUMENT_INVALID", f"weight{where} = {float(weights[at])} {problem}", fix)


def _tables(table: Array | None, fmt: Format, shape: tuple[int, int]) -> Array | None:
    """The given tables in f16, one tensor table as (1, E). Raises where they are missing, not wanted or of no size."""
    if (table is None) != (fmt.table is None):
        problem = f"table is None, {fmt} has tables" if table is None else f"a table was given, {fmt} has none"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "pass what the format has, or change it")
    if table is None:
        return None
    if not dtypes.of(table).is_float:
        raise LowbitvmError("DTYPE_MISMATCH", f"the table is {dtypes.of(table)}", "pass floats")
    rounded = arrays.cast(arrays.detached(table), dtypes.f16)
    entries = 1 << fmt.bits
    if fmt.table == "tensor" and tuple(table.shape) == (entries,):
        rounded = rounded.reshape(1, entries)
    choice = fmt.table == "group" and table.ndim == 2 and table.shape[0] > 0 and table.shape[1] == entries
    if not choice and tuple(rounded.shape) != fmt.table_shape(*shape):
        refuse_shape("table", table, str(fmt.table_shape(*shape)), f"for {fmt} with shape {shape}")
    if not bool((abs(rounded) < math.inf).all()):
        raise LowbitvmError("ARGUMENT_INVALID", "the table has entries that f16 has not", "scale them down")
    return rounded


def _grids(fmt: Format, shape: tuple[int, int], tables: Array | None, members: Array) -> list[Grid]:
    """The values of every group's codes; several grids are a choice for each group."""
    total = members.shape[0]
    ones = arrays.zeros(members, (total,), dtypes.f64) + 1.0
    if tables is None:
        assert fmt.code.values is not None
        values = fmt.code.values[: fmt.code.used]
        finite = values[np.isfinite(values)]
        return [Grid(fmt.code, ones * float(finite.min()), ones * float(finite.max()))]
    wide = arrays.cast(tables, dtypes.f64).reshape(-1, 1 << fmt.bits)
    if fmt.table == "tensor" or (fmt.table == "group" and tables.ndim == 2):
        return [Grid(fmt.code, ones * float(one.min()), ones * float(one.max()), one[None]) for one in wide]
    bottom, top = (wide.amin(1), wide.amax(1)) if dtypes.is_tensor(wide) else (wide.min(axis=1), wide.max(axis=1))
    if fmt.table == "group":
        return [Grid(fmt.code, bottom, top, wide, arrays.numbers(wide, total))]
    rows = arrays.numbers(wide, shape[0]) // BLOCK
    if fmt.group == "tensor":  # one scale for all tables: it must let every one of them reach both ends
        return [Grid(fmt.code, ones * bottom.max(), ones * top.min(), wide, rows)] if shape[0] else []
    which = arrays.numbers(wide, total) // max(1, total // max(1, shape[0])) // BLOCK
    return [Grid(fmt.code, bottom[which], top[which], wide, rows)]


def _second_level(
    fmt: Format, shape: tuple[int, int], grid: Grid, lo: Array, hi: Array
) -> tuple[Array | None, Array | None]:
    """The second level of scales and of offsets, f32 of the format's outer_shape."""
    if fmt.outer is None:
        return None, None
    reach = reach_of(lo, hi, fmt, grid)
    rows, blocks = fmt.outer_shape(*shape)

    def level(values: Array) -> Array:
        by_block = values.reshape(rows, blocks, values.shape[0] // max(1, rows * blocks))
        _, largest = ends_of(by_block.reshape(rows * blocks, by_block.shape[2]))
        return rounded_to("second level", largest.clip(min=0) / LARGEST_SCALE[fmt.scale], dtypes.f32).reshape(
            rows, blocks
        )

    return level(reach), level(abs(lo - grid.bottom * reach))


def _by_scale(level: Array | None, scales_shape: tuple[int, int]) -> Array | None:
    """A second level in float64, one for each group; None without one."""
    if level is None:
        return None
    rows, groups = scales_shape
    each = arrays.zeros(level, (rows, level.shape[1], groups // max(1, level.shape[1])), dtypes.f64)
    each[...] = arrays.cast(level, dtypes.f64)[:, :, None]
    return each.reshape(rows * groups)
