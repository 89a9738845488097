"""The nearest codes of groups of weights, and the scales and zero points with the least error.

The rules are those of `lowbitvm.quantize`. Everything here works through array methods, alike for numpy arrays and for
torch tensors on any device. A group is one row of a matrix here: (groups of all output features, codes of a group).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowbitvm import arrays, dtypes
from lowbitvm.dtypes import CODE_TYPES, Array, CodeType, DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format

# Scales that "mse" tries, relative to that of "rtn": first these, then those around the best of them.
COARSE = tuple(2.0 ** (-i / 4) for i in range(17))
FINE = tuple(2.0 ** (i / 16) for i in (-2, -1, 1, 2))
E8M0_COARSE = (1.0, 2.0, 0.5, 0.25, 0.125)
LARGEST_SCALE = {"e4m3": 448.0, "i8": 127.0}
E4M3_LIMIT = 464.0  # from here on e4m3 would need a number above its largest
WHOLE = 1.5 * 2**23  # f32 from 2**23 to 2**24 are the whole numbers, so that adding this rounds to one, ties to even


@dataclass(frozen=True)
class Grid:
    """The values that the codes of each group can have."""

    code: CodeType
    bottom: Array  # the least and the largest value, float64 (groups)
    top: Array
    table: Array | None = None  # (tables, E) float64 where the values are data
    rows: Array | None = None  # i64, the table of each row of `matrix_rows`; None: the first table for all

    def nearest(self, places: Array, zeros: Array | None = None) -> Array:
        """Patterns u8 of the values nearest to places + zeros: (groups, size) f32 or f64, which are lost, and f64."""
        code = self.code
        if places.itemsize == 4 and code.step == 1 and code.is_linear:
            places += WHOLE if zeros is None else arrays.cast(zeros, dtypes.f32)[:, None] + WHOLE  # rounds once
            whole = arrays.bits(places.clip(WHOLE + code.low, WHOLE + code.high))
            return arrays.cast(whole, dtypes.u8) + code.bias  # both wrap modulo 256, the pattern fits
        if zeros is not None:
            places += zeros[:, None]
        if self.table is None or self.rows is None:
            return code.nearest(places, None if self.table is None else self.table[0])
        by_row = places.reshape(self.rows.shape[0], places.shape[0] * places.shape[1] // max(1, self.rows.shape[0]))
        return _nearest_in_rows(by_row, self.table[self.rows]).reshape(places.shape)

    def values(self, patterns: Array) -> Array:
        """float64 values of patterns (groups, size)."""
        if self.table is None:
            if self.code.is_linear:
                return self.code.codes(arrays.cast(patterns, dtypes.f64))
            return self.code.decode(patterns)
        if self.rows is None:
            return arrays.gather(self.table[0], patterns)
        wide = arrays.cast(patterns, dtypes.i64)
        by_row = wide.reshape(self.rows.shape[0], wide.shape[0] * wide.shape[1] // max(1, self.rows.shape[0]))
        return self.table.reshape(-1)[by_row + self.rows[:, None] * self.table.shape[1]].reshape(patterns.shape)

    def of(self, groups: Array) -> "Grid":
        """That of some of the groups, which no table has only a part of."""
        rows = self.rows
        if rows is not None:
            rows = rows[groups * rows.shape[0] // self.bottom.shape[0]]
        return replace(self, bottom=self.bottom[groups], top=self.top[groups], rows=rows)


@dataclass(frozen=True)
class Line:
    """What stands for the codes of each group: v * s + m, or (v - z) * s. One number for each group."""

    scales: Array  # as stored
    zeros: Array | None
    s: Array  # float64
    z: Array | None  # float64, for "int" and "float"
    m: Array | None  # float64; -z * s for "int" and "float"


@dataclass(frozen=True)
class Fit:
    """Every group rounded: arrays with one row, or one number, for each group."""

    patterns: Array  # u8 (groups, size)
    scales: Array  # as stored
    zeros: Array | None
    shrink: Array | None = None  # float64: the scale, relative to that of "rtn"
    error: Array | None = None  # float64: sum of squares
    grid: Array | None = None  # which of several


@dataclass(frozen=True)
class Groups:
    """Groups of weights."""

    fmt: Format
    members: Array  # (groups, size), f32 or f64
    lo: Array  # the smallest and the largest of each group, float64
    hi: Array
    levels: Sequence[Array | None]  # the second level of the scale and of the offset of each group

    def line(self, grid: Grid, shrink: Array | float) -> Line:
        """Rounds scales, then zero points, for the ends of the groups drawn together."""
        fmt, (lo, hi) = self.fmt, with_zero(self.fmt, self.lo, self.hi)
        middle = (lo + hi) / 2 if fmt.zero == "offset" else 0.0
        lo, hi = middle + (lo - middle) * shrink, middle + (hi - middle) * shrink
        scales = _scales(lo, hi, fmt, grid, self.levels[0])
        s = _widened(scales, self.levels[0])
        if fmt.zero is None:
            return Line(scales, None, s, None, None)
        if fmt.zero == "offset":
            zeros = _narrowed("offset", lo - grid.bottom * s, fmt, self.levels[1])
            return Line(scales, zeros, s, None, _widened(zeros, self.levels[1]))
        exact = grid.bottom - lo / (s + (s == 0))
        if fmt.zero == "int":
            z = exact.round().clip(fmt.code.low, fmt.code.high)
            return Line(scales, arrays.cast(z, fmt.code), s, z, -z * s)
        zeros = rounded_to("zero point", exact, fmt.scale_dtype)
        z = arrays.cast(zeros, dtypes.f64)
        return Line(scales, zeros, s, z, -z * s)

    def patterns(self, grid: Grid, line: Line) -> Array:
        """The codes nearest to the members."""
        members = self.members if line.m is None or line.z is not None else self.members - line.m[:, None]
        divisors = line.s + (line.s == 0)  # 1 where the scale is 0
        return grid.nearest(members / arrays.cast(divisors, dtypes.of(members))[:, None], line.z)

    def error(self, grid: Grid, line: Line, patterns: Array) -> Array:
        """The sum of the squared errors of each group."""
        off = grid.values(patterns) * line.s[:, None]
        off -= self.members
        if line.m is not None:
            off += line.m[:, None]
        off *= off
        return off.sum(1)

    def least(self, grid: Grid, line: Line) -> Array:
        """What the error of each group cannot be below: that of its ends, where they are beyond the line's."""
        m = 0.0 if line.m is None else line.m
        above = (self.hi - (grid.top * line.s + m)).clip(min=0)
        below = (grid.bottom * line.s + m - self.lo).clip(min=0)
        return (above * above).clip(min=below * below) * (1 - 2.0**-40)  # each of the numbers was rounded

    def of(self, groups: Array) -> "Groups":
        """Some of the groups."""
        levels = [None if level is None else level[groups] for level in self.levels]
        return replace(self, members=self.members[groups], lo=self.lo[groups], hi=self.hi[groups], levels=levels)


def best_fit(groups: Groups, grids: list[Grid], method: str) -> Fit:
    """The rounding with the least error for each group."""
    fmt = groups.fmt
    chosen = len(grids) > 1 or (fmt.table == "group" and grids[0].rows is None)
    best: Fit | None = None
    for which, grid in enumerate(grids):
        line = groups.line(grid, 1.0)
        found = Fit(groups.patterns(grid, line), line.scales, line.zeros)
        ones = line.s * 0.0 + 1.0
        if method == "mse" or chosen:
            error = groups.error(grid, line, found.patterns)
            found = replace(found, shrink=ones + 0.0, error=error, grid=ones * which)
        if method == "mse":
            found = _searched(found, groups, grid, ones)
        best = found if best is None else _better(best, found)
    assert best is not None
    return best if chosen else replace(best, grid=None)


def _searched(found: Fit, groups: Groups, grid: Grid, ones: Array) -> Fit:
    """The best of the scales that "mse" tries, given that of "rtn"."""
    for shrink in (E8M0_COARSE if groups.fmt.scale == "e8m0" else COARSE)[1:]:
        found = _improved(found, groups, grid, ones * shrink)
    assert found.shrink is not None
    coarse = found.shrink * ones  # a copy: what is found is changed in place
    for factor in () if groups.fmt.scale == "e8m0" else FINE:
        found = _improved(found, groups, grid, (coarse * factor).clip(max=1.0))
    return found


def _improved(best: Fit, groups: Groups, grid: Grid, shrink: Array) -> Fit:
    """`best`, changed where the groups have a smaller error with scales of `shrink`."""
    assert best.error is not None and best.shrink is not None
    line = groups.line(grid, shrink)
    open_to = _true(groups.least(grid, line) < best.error)
    if not open_to.shape[0]:
        return best
    if open_to.shape[0] < best.error.shape[0]:
        groups, grid, shrink = groups.of(open_to), grid.of(open_to), shrink[open_to]
        line = groups.line(grid, shrink)
    patterns = groups.patterns(grid, line)
    tried = Fit(patterns, line.scales, line.zeros, shrink, groups.error(grid, line, patterns))
    return _better(best, tried, open_to)


def _better(a: Fit, b: Fit, groups: Array | None = None) -> Fit:
    """For each group the rounding with the smaller error, `a` of equals; its arrays are those of `a`, changed.

    groups: those that `b` has.
    """
    assert a.error is not None and b.error is not None
    better = b.error < (a.error if groups is None else a.error[groups])
    places = better if groups is None else groups[better]
    for name, theirs in vars(b).items():
        if theirs is not None:
            arrays.bits(vars(a)[name])[places] = arrays.bits(theirs)[better]
    return a


def _true(mask: Array) -> Array:
    """The indices at which a vector is true."""
    return mask.nonzero()[:, 0] if dtypes.is_tensor(mask) else mask.nonzero()[0]


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
    middles = arrays.cast(middles, dtypes.of(places))
    count = arrays.zeros(places, tuple(places.shape), dtypes.u8)
    for i in range(last):
        count += places >= middles[:, i : i + 1]
    patterns = arrays.cast(last - index, dtypes.u8).reshape(-1)
    first = arrays.numbers(tables, tables.shape[0]) * (last + 1)
    return patterns[arrays.cast(count, dtypes.i64) + first[:, None]]


def ends_of(members: Array) -> tuple[Array, Array]:
    """Smallest and largest of each row in float64, 0 for rows without members."""
    groups, size = members.shape
    if not size:
        empty = arrays.zeros(members, (groups,), dtypes.f64)
        return empty, empty
    if dtypes.is_tensor(members):
        lo, hi = members.aminmax(dim=1)
    else:  # short rows take numpy longer along an axis
        flat, starts = members.reshape(groups * size), np.arange(0, groups * size, size)
        lo, hi = np.minimum.reduceat(flat, starts), np.maximum.reduceat(flat, starts)
    return arrays.cast(lo, dtypes.f64), arrays.cast(hi, dtypes.f64)


def with_zero(fmt: Format, lo: Array, hi: Array) -> tuple[Array, Array]:
    """Ends of groups, with 0 counted as a member but for "offset"."""
    return (lo, hi) if fmt.zero == "offset" else (lo.clip(max=0), hi.clip(min=0))


def reach_of(lo: Array, hi: Array, fmt: Format, grid: Grid) -> Array:
    """The scales before rounding."""
    if fmt.zero is not None:
        return (hi - lo) / arrays.where(grid.top > grid.bottom, grid.top - grid.bottom, math.inf)
    up = hi / arrays.where(grid.top > 0, grid.top, math.inf)  # an end that the values do not have counts for nothing
    return up.clip(min=abs(lo) / arrays.where(grid.bottom < 0, -grid.bottom, math.inf))


def _scales(lo: Array, hi: Array, fmt: Format, grid: Grid, level: Array | None) -> Array:
    """The stored scales."""
    if fmt.scale != "e8m0":
        return _narrowed("scale", reach_of(lo, hi, fmt, grid), fmt, level)
    if fmt.zero is None:
        largest = hi.clip(min=-lo)
        exponent = arrays.frexp(largest)[1] - arrays.frexp(grid.top)[1]
    else:
        largest = reach_of(lo, hi, fmt, grid)
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
        return rounded_to(name, values, fmt.scale_dtype)
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


def rounded_to(name: str, values: Array, dtype: DType) -> Array:
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
