"""Rounding of float weights to the codes, scales and zero points of a format.

Everything here works through array methods, alike for numpy arrays and for torch tensors on any device, in float64.
A group is one row of a matrix here: (groups of all output features, codes of a group).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowbitvm import arrays, dtypes
from lowbitvm.digitplan import digits_for
from lowbitvm.dtypes import CODE_TYPES, Array, CodeType, DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import BLOCK, Format
from lowbitvm.integers import PackedDigits, pack_weights
from lowbitvm.pack import PackedWeight, as_format, check_permutation, pack, refuse_shape, restored

METHODS = ("rtn", "mse")
# Scales that "mse" tries, relative to that of "rtn": first these, then those around the best of them.
COARSE = tuple(2.0 ** (-i / 4) for i in range(17))
FINE = tuple(2.0 ** (i / 16) for i in (-2, -1, 1, 2))
E8M0_COARSE = (1.0, 2.0, 0.5, 0.25, 0.125)
LARGEST_SCALE = {"e4m3": 448.0, "i8": 127.0}
E4M3_LIMIT = 464.0  # from here on e4m3 would need a number above its largest
BLOCK_WEIGHTS = 12 << 10  # rounded at a time on a CPU: float64 arrays below 128 KB, which malloc keeps and reuses


@dataclass(frozen=True)
class _Grid:
    """The values that the codes of each group can have."""

    code: CodeType
    bottom: Array  # the least and the largest value, float64 (groups)
    top: Array
    table: Array | None = None  # (tables, E) float64 where the values are data
    rows: Array | None = None  # i64, the table of each row of `matrix_rows`; None: the first table for all

    def nearest(self, places: Array) -> Array:
        """Patterns u8 of the values nearest to places (groups, size)."""
        if self.table is None or self.rows is None:
            return self.code.encode(places, None if self.table is None else self.table[0])
        by_row = places.reshape(self.rows.shape[0], places.shape[0] * places.shape[1] // max(1, self.rows.shape[0]))
        return _nearest_in_rows(by_row, self.table[self.rows]).reshape(places.shape)

    def values(self, patterns: Array) -> Array:
        """float64 values of patterns (groups, size)."""
        if self.table is None:
            return self.code.decode(patterns)
        if self.rows is None:
            return arrays.gather(self.table[0], patterns)
        wide = arrays.cast(patterns, dtypes.i64)
        by_row = wide.reshape(self.rows.shape[0], wide.shape[0] * wide.shape[1] // max(1, self.rows.shape[0]))
        return self.table.reshape(-1)[by_row + self.rows[:, None] * self.table.shape[1]].reshape(patterns.shape)


@dataclass(frozen=True)
class _Fit:
    """Every group rounded: arrays with one row, or one number, for each group."""

    patterns: Array  # u8 (groups, size)
    scales: Array  # as stored
    zeros: Array | None
    shrink: Array | float  # the scale, relative to that of "rtn"
    error: Array | None  # sum of squares
    grid: Array | None = None  # which of several


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
    not say which digits, the plan chooses them, as for `lb.best_digits`, for m rows of activations (None: those that
    lose least at any number of rows) on a target (None: the GPU that the weight is on, or LOWBITVM_DEVICE's; without
    one the digits that every GPU has).

    Raises ARGUMENT_INVALID for non-finite weights, negative ones with unsigned codes and zero=None, ranges that
    overflow the scale dtype, an unknown method, and a table missing or not wanted; SHAPE_MISMATCH, DTYPE_MISMATCH,
    DEVICE_MISMATCH and GROUP_INDIVISIBLE as `pack`; TARGET_UNKNOWN.
    """
    fmt = as_format(fmt)
    shape = tuple(getattr(weight, "shape", ()))
    if fmt.act is not None and fmt.digits is None and len(shape) == 2 and 0 not in shape:
        n, k = map(int, shape)
        fmt = digits_for(fmt, m, n, k, _device_target(weight) if target is None else target)
    parts = _parts(weight, fmt, method, table, input_scale, permutation)
    return pack(**parts, fmt=fmt, permutation=permutation)


def _device_target(weight: Array) -> str | None:
    # Weights are rounded below the runtime, and planned for where it would run them.
    from lowbitvm.runtime.launch import device_target_of

    return device_target_of(weight)


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

        @np.errstate(over="ignore")  # what overflows becomes infinite and is refused by _rounded
        def one(block: tuple[slice, slice]) -> None:
            done[block[0].start] = work(block[0])

        arrays.for_each_block(self.weight, (self.weight.shape[0], 1), limit, one)
        return [done[start] for start in sorted(done)]

    def _members(self, rows: slice) -> tuple[Array, list[_Grid], tuple[int, int]]:
        """(groups, size) weights of some rows, what their codes can stand for, and the rows' shape."""
        fmt = self.fmt
        exact = self._exact(rows)
        shape = int(exact.shape[0]), int(exact.shape[1])
        if self.permutation is not None:
            exact = exact[:, arrays.cast(self.permutation, dtypes.i64)]
        groups = math.prod(fmt.scales_shape(*shape))
        members = exact.reshape(groups, fmt.group_size(shape[1]) * (shape[0] if fmt.group == "tensor" else 1))
        tables = self.tables
        if tables is not None and fmt.table == "block":
            tables = tables[rows.start // BLOCK : -(-rows.stop // BLOCK)]
        elif tables is not None and tables.ndim == 3 and fmt.group != "tensor":
            tables = tables[rows]
        return members, _grids(fmt, shape, tables, members), shape

    def _exact(self, rows: slice) -> Array:
        """Weights in float64, times the input_scale. Raises for those that cannot be rounded."""
        exact = arrays.cast(arrays.detached(self.weight)[rows], dtypes.f64) + 0.0  # -0.0 + 0.0 is 0.0: minima differ
        if self.input_scale is not None:
            exact = exact * arrays.cast(arrays.detached(self.input_scale), dtypes.f64) + 0.0
        _refuse_weights(rows.start, exact, ~(abs(exact) < math.inf), "is not finite", "remove NaN and infinity first")
        if self.fmt.zero is None and self.fmt.code.kind == "uint":
            fix = f'use "{"i" if self.fmt.bits > 1 else "bp"}{self.fmt.bits}" or a zero kind'
            _refuse_weights(rows.start, exact, exact < 0, f"is negative and {self.fmt} has no zero point", fix)
        return exact

    def _second_level(self, rows: slice) -> tuple[Array | None, Array | None]:
        members, grids, shape = self._members(rows)
        return _second_level(self.fmt, shape, grids[0], *_ends(members, include_zero=self.fmt.zero != "offset"))

    def _round(self, rows: slice, levels: tuple[Array | None, Array | None] | None) -> _Rounded:
        fmt = self.fmt
        members, grids, shape = self._members(rows)
        lo, hi = _ends(members, include_zero=fmt.zero != "offset")
        outer, outer_zeros = levels or _second_level(fmt, shape, grids[0], lo, hi)
        scales_shape = fmt.scales_shape(*shape)
        by_scale = [_by_scale(level, scales_shape) for level in (outer, outer_zeros)]
        best = _best(members, lo, hi, fmt, grids, by_scale, self.method)
        table = self.tables
        if table is not None and best.grid is not None:
            table = table[best.grid].reshape(*scales_shape, -1)
        elif table is not None and fmt.table == "block":
            table = table[rows.start // BLOCK : -(-rows.stop // BLOCK)]
        elif table is not None and fmt.table == "group" and fmt.group != "tensor":
            table = table[rows]
        codes = arrays.cast(fmt.code.codes(arrays.cast(best.patterns, dtypes.i16)), fmt.code).reshape(shape)
        zeros = None if best.zeros is None else best.zeros.reshape(scales_shape)
        return _Rounded(
            restored(codes, self.permutation),
            best.scales.reshape(scales_shape),
            zeros,
            table,
            outer,
            outer_zeros if fmt.zero == "offset" else None,
        )


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


def _grids(fmt: Format, shape: tuple[int, int], tables: Array | None, members: Array) -> list[_Grid]:
    """The values of every group's codes; several grids are a choice for each group."""
    total = members.shape[0]
    ones = arrays.zeros(members, (total,), dtypes.f64) + 1
    if tables is None:
        assert fmt.code.values is not None
        values = fmt.code.values[: fmt.code.used]
        finite = values[np.isfinite(values)]
        return [_Grid(fmt.code, ones * float(finite.min()), ones * float(finite.max()))]
    wide = arrays.cast(tables, dtypes.f64).reshape(-1, 1 << fmt.bits)
    if fmt.table == "tensor" or (fmt.table == "group" and tables.ndim == 2):
        return [_Grid(fmt.code, ones * float(one.min()), ones * float(one.max()), one[None]) for one in wide]
    bottom, top = (wide.amin(1), wide.amax(1)) if dtypes.is_tensor(wide) else (wide.min(axis=1), wide.max(axis=1))
    if fmt.table == "group":
        return [_Grid(fmt.code, bottom, top, wide, arrays.numbers(wide, total))]
    rows = arrays.numbers(wide, shape[0]) // BLOCK
    if fmt.group == "tensor":  # one scale for all tables: it must let every one of them reach both ends
        return [_Grid(fmt.code, ones * bottom.max(), ones * top.min(), wide, rows)] if shape[0] else []
    which = arrays.numbers(wide, total) // max(1, total // max(1, shape[0])) // BLOCK
    return [_Grid(fmt.code, bottom[which], top[which], wide, rows)]


def _nearest_in_rows(places: Array, tables: Array) -> Array:
    """Patterns u8 of the entries of its own row's table nearest to each place; ties go to the larger entry."""
    last = tables.shape[1] - 1
    backwards = last - arrays.numbers(tables, last + 1)  # so that the first of equal patterns is sorted last
    flipped = tables[:, backwards]
    if dtypes.is_tensor(tables):
        ordered, index = flipped.sort(dim=1, stable=True)
    else:
        index = flipped.argsort(axis=1, kind="stable")
        ordered = np.take_along_axis(flipped, index, axis=1)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    count = arrays.zeros(places, tuple(places.shape), dtypes.i64)
    for i in range(last):
        count += places >= middles[:, i : i + 1]
    patterns = arrays.cast(last - index, dtypes.u8).reshape(-1)
    return patterns[count + (arrays.numbers(tables, tables.shape[0]) * (last + 1))[:, None]]


def _ends(members: Array, include_zero: bool) -> tuple[Array, Array]:
    """Smallest and largest of each row, 0 for rows without members; with 0 counted as a member if `include_zero`."""
    if not members.shape[1]:
        empty = arrays.zeros(members, (members.shape[0],), dtypes.f64)
        return empty, empty
    if dtypes.is_tensor(members):
        lo, hi = members.aminmax(dim=1)
    else:
        lo, hi = members.min(axis=1), members.max(axis=1)
    return (lo.clip(max=0), hi.clip(min=0)) if include_zero else (lo, hi)


def _reach(lo: Array, hi: Array, fmt: Format, grid: _Grid) -> Array:
    """The scales before rounding."""
    if fmt.zero is not None:
        return (hi - lo) / arrays.where(grid.top > grid.bottom, grid.top - grid.bottom, math.inf)
    up = hi / arrays.where(grid.top > 0, grid.top, math.inf)  # an end that the values do not have counts for nothing
    return up.clip(min=abs(lo) / arrays.where(grid.bottom < 0, -grid.bottom, math.inf))


def _second_level(
    fmt: Format, shape: tuple[int, int], grid: _Grid, lo: Array, hi: Array
) -> tuple[Array | None, Array | None]:
    """The second level of scales and of offsets, f32 of the format's outer_shape."""
    if fmt.outer is None:
        return None, None
    reach = _reach(lo, hi, fmt, grid)
    rows, blocks = fmt.outer_shape(*shape)

    def level(values: Array) -> Array:
        by_block = values.reshape(rows, blocks, values.shape[0] // max(1, rows * blocks))
        _, largest = _ends(by_block.reshape(rows * blocks, by_block.shape[2]), include_zero=True)
        return _rounded("second level", largest / LARGEST_SCALE[fmt.scale], dtypes.f32).reshape(rows, blocks)

    return level(reach), level(abs(lo - grid.bottom * reach))


def _by_scale(level: Array | None, scales_shape: tuple[int, int]) -> Array | None:
    """A second level in float64, one for each group; None without one."""
    if level is None:
        return None
    rows, groups = scales_shape
    each = arrays.zeros(level, (rows, level.shape[1], groups // max(1, level.shape[1])), dtypes.f64)
    each[...] = arrays.cast(level, dtypes.f64)[:, :, None]
    return each.reshape(rows * groups)


def _best(
    members: Array, lo: Array, hi: Array, fmt: Format, grids: list[_Grid], levels: list[Array | None], method: str
) -> _Fit:
    """The rounding with the least error for each group."""
    chosen = len(grids) > 1 or (fmt.table == "group" and grids[0].rows is None)
    compare = method == "mse" or chosen
    middle = (lo + hi) / 2 if fmt.zero == "offset" else 0.0

    def fit(grid: _Grid, shrink: Array | float) -> _Fit:
        ends = middle + (lo - middle) * shrink, middle + (hi - middle) * shrink
        return _fit(members, *ends, fmt, grid, levels, shrink, compare)

    best: _Fit | None = None
    for which, grid in enumerate(grids):
        found = fit(grid, 1.0)
        if method == "mse":
            for shrink in (E8M0_COARSE if fmt.scale == "e8m0" else COARSE)[1:]:
                found = _better(found, fit(grid, shrink))
            coarse = found.shrink
            for factor in () if fmt.scale == "e8m0" else FINE:
                found = _better(found, fit(grid, (coarse * factor).clip(max=1.0)))
        if chosen:
            found = replace(found, grid=arrays.numbers(lo, lo.shape[0]) * 0 + which)
        best = found if best is None else _better(best, found)
    assert best is not None
    return best


def _better(a: _Fit, b: _Fit) -> _Fit:
    """For each group the rounding with the smaller error, `a` of equals; its arrays are those of `a`, changed."""
    assert a.error is not None and b.error is not None
    better = b.error < a.error
    shrink = arrays.where(better, b.shrink, a.shrink)
    for ours, theirs in ((a.patterns, b.patterns), (a.scales, b.scales), (a.zeros, b.zeros), (a.error, b.error)):
        if ours is not None and theirs is not None:
            arrays.bits(ours)[better] = arrays.bits(theirs)[better]
    if a.grid is not None and b.grid is not None:
        a.grid[better] = b.grid[better]
    return replace(a, shrink=shrink)


def _fit(
    members: Array,
    lo: Array,
    hi: Array,
    fmt: Format,
    grid: _Grid,
    levels: list[Array | None],
    shrink: Array | float,
    compare: bool,
) -> _Fit:
    """Rounds scales, then zero points, then weights, for the ends lo and hi of the groups."""
    scales = _scales(lo, hi, fmt, grid, levels[0])
    s = _widened(scales, levels[0])
    steps = s + (s == 0)  # a divisor: 1 where the scale is 0
    zeros: Array | None = None
    places = members / steps[:, None]
    if fmt.zero == "int":
        zeros = (grid.bottom - lo / steps).round().clip(fmt.code.low, fmt.code.high)
        places = places + zeros[:, None]
        zeros = arrays.cast(zeros, fmt.code)
    elif fmt.zero == "float":
        zeros = _rounded("zero point", grid.bottom - lo / steps, fmt.scale_dtype)
        places = places + arrays.cast(zeros, dtypes.f64)[:, None]
    elif fmt.zero == "offset":
        zeros = _narrowed("offset", lo - grid.bottom * s, fmt, levels[1])
        places = (members - _widened(zeros, levels[1])[:, None]) / steps[:, None]
    patterns = grid.nearest(places)
    error = None
    if compare:
        off = grid.values(patterns) * s[:, None] - members
        if fmt.zero is not None and zeros is not None:
            z = _widened(zeros, levels[1] if fmt.zero == "offset" else None)
            off = off + (z if fmt.zero == "offset" else -z * s)[:, None]
        error = (off * off).sum(1)
    return _Fit(patterns, scales, zeros, shrink, error)


def _scales(lo: Array, hi: Array, fmt: Format, grid: _Grid, level: Array | None) -> Array:
    """The stored scales."""
    if fmt.scale != "e8m0":
        return _narrowed("scale", _reach(lo, hi, fmt, grid), fmt, level)
    if fmt.zero is None:
        largest = hi.clip(min=-lo)
        exponent = arrays.frexp(largest)[1] - arrays.frexp(grid.top)[1]
    else:
        largest = _reach(lo, hi, fmt, grid)
        mantissa, exponent = arrays.frexp(largest)
        exponent = exponent - 1 * (mantissa == 0.5)
    exponent = arrays.where(largest > 0, exponent, -127)
    at = arrays.first(exponent > 127)
    if at is not None:
        _refuse_overflow("scale", 2.0 ** float(exponent[at]), dtypes.e8m0)
    patterns = arrays.cast(exponent.clip(min=-127) + 127, dtypes.u8)
    return patterns.view(arrays.native(patterns, dtypes.e8m0))


def _narrowed(name: str, values: Array, fmt: Format, level: Array | None) -> Array:
    """Scales or offsets over their second level, in the scale's dtype: the nearest, no more than the largest."""
    if fmt.scale not in LARGEST_SCALE:
        return _rounded(name, values, fmt.scale_dtype)
    inner = values if level is None else values / (level + (level == 0))
    if fmt.scale == "i8":
        return arrays.cast(inner.round().clip(-127, 127), dtypes.i8)
    at = arrays.first(abs(inner) >= E4M3_LIMIT) if level is None else None
    if at is not None:
        _refuse_overflow(name, float(values[at]), fmt.scale_dtype)
    patterns = CODE_TYPES["e4m3"].encode(inner)
    return patterns.view(arrays.native(patterns, fmt.scale_dtype))


def _widened(stored: Array, level: Array | None) -> Array:
    """Stored scales or offsets in float64, times their second level; exact."""
    wide = arrays.cast(arrays.cast(stored, dtypes.f32), dtypes.f64)
    return wide if level is None else wide * level


def _rounded(name: str, values: Array, dtype: DType) -> Array:
    """`values` in `dtype`, through float32, as torch converts. Raises ARGUMENT_INVALID where they overflow it."""
    rounded = arrays.cast(arrays.cast(values, dtypes.f32), dtype)
    at = arrays.first(~(abs(arrays.cast(rounded, dtypes.f32)) < math.inf))
    if at is not None:
        _refuse_overflow(name, float(values[at]), dtype)
    return rounded


def _refuse_overflow(name: str, value: float, dtype: DType) -> None:
    raise LowbitvmError(
        "ARGUMENT_INVALID",
        f"the weights need a {name} of {value:.6g}, beyond {dtype}",
        'use scale="f32", or scale the weights down',
    )
