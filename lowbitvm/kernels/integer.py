"""The product of two matrices of integer codes, exact or scaled, with what may follow it in the same kernel."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lowbitvm import dsl
from lowbitvm.dsl import Packed, Tensor, Value, kernel, packed
from lowbitvm.dtypes import f32, i32
from lowbitvm.kernels.epilogue import finish
from lowbitvm.kernels.split import last_of, part_of_k

PATTERN = 0x4B400000  # of 1.5 * 2^23 in f32


@dataclass(frozen=True)
class Numbers:
    """What corrects and scales the rows of a side: columns (rows, 1) of activations, (1, rows) of weights.

    factor: what the values count beside their zeros, `Packed.factor`. offset: what that still has to grow by, as `dot`
    leaves out the values' offset, and their zero is taken off. sums: over k, of the values without their offset; they
    are there where the other side has an offset or zeros.
    """

    factor: int
    offset: Value | int
    sums: Value | None
    scale: Value | None


@dataclass(frozen=True)
class Side:
    """A matrix of a product and its arrays of numbers, as the block that begins at the row `first` reads them."""

    codes: Packed
    first: Value
    rows: int
    sums: Tensor | None
    zeros: Tensor | None
    scales: Tensor | None

    @property
    def group(self) -> int | None:
        """in_features that share a scale, where these are not all."""
        group = self.codes.format.group
        return group if self.scales is not None and isinstance(group, int) else None

    @property
    def largest(self) -> int:
        """The largest magnitude of a value, less its zero."""
        code = self.codes.format.code
        return code.high - code.low if self.zeros is not None else max(abs(code.low), abs(code.high))

    def numbers(self, at: Value | int = 0, of_sums: Value | int = 0) -> Numbers:
        """Those in column `at` of scales and zeros, and `of_sums` of sums."""
        return Numbers(self.factor, self.offset(at), self.sum(of_sums), self.scale(at))

    @property
    def factor(self) -> int:
        return 1 if self.zeros is None else self.codes.factor

    def offset(self, at: Value | int = 0) -> Value | int:
        known = self.factor * self.codes.offset
        return known if self.zeros is None else known - self._column(self.zeros, at)

    def sum(self, at: Value | int = 0) -> Value | None:
        return None if self.sums is None else self._column(self.sums, at)

    def scale(self, at: Value | int = 0) -> Value | None:
        return None if self.scales is None else self._column(self.scales, at).to(f32)

    def _column(self, array: Tensor, at: Value | int) -> Value:
        tile = dsl.load(array, (self.first, at), (self.rows, 1))
        return tile if self.codes.format.act is None else tile.T


@kernel(
    a=packed("m k"), w=packed("n k"), y=("m n", None), gate=packed("n k"), bias=("n", None), residual=("m n", None),
    a_sums=("m a_parts", i32), w_sums=("n w_parts", i32), gate_sums=("n w_parts", i32), a_zeros=("m a_groups", i32),
    w_zeros=("n w_groups", i32), gate_zeros=("n w_groups", i32), a_scales=("m a_groups", None),
    w_scales=("n w_groups", None), gate_scales=("n w_groups", None), y_scales=("n", f32), multipliers=("n", i32),
    shifts=("n", i32), partials=("rows columns", i32), arrivals=("tiles", i32),
)  # fmt: skip
def matmul(
    a: Packed,
    w: Packed,
    y: Tensor,
    gate: Packed | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    a_sums: Tensor | None = None,
    w_sums: Tensor | None = None,
    gate_sums: Tensor | None = None,
    a_zeros: Tensor | None = None,
    w_zeros: Tensor | None = None,
    gate_zeros: Tensor | None = None,
    a_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    gate_scales: Tensor | None = None,
    y_scales: Tensor | None = None,
    multipliers: Tensor | None = None,
    shifts: Tensor | None = None,
    partials: Tensor | None = None,
    arrivals: Tensor | None = None,
    *,
    bm: int,
    bn: int,
    bk: int,
    stages: int,
    splits: int = 1,
    folded: bool = False,
    activation: str | None = None,
    codes: tuple[int, int, int] = (0, 0, 0),
    bipolar: bool = False,
) -> None:
    """y (m, n) = (a - a_zeros) (m, k) (w.factor w - w_zeros) (n, k)^T modulo 2^32, times the scales of both.

    a, w are integer codes in digits; a block makes a (bm, bn) tile. Zeros and scales may belong to groups of k: bk is
    then a multiple of them, and sums are of the smaller groups. bias, residual, gate and activation follow as in
    `lowbitvm.kernels.linear`. With y_scales, or with multipliers and shifts, y is codes: (lowest, highest, zero),
    the odd ones of these where they are bipolar.
    Without such groups `splits` blocks may share out the k of a tile: see `last_of`. folded: see
    `lowbitvm.integer_plan.DigitTile`.
    """
    block = dsl.program_id(0), dsl.program_id(1)
    i, j = block[0] * bm, block[1] * bn
    left = Side(a, i, bm, a_sums, a_zeros, a_scales)
    weights = [Side(w, j, bn, w_sums, w_zeros, w_scales)]
    if gate is not None:
        weights.append(Side(gate, j, bn, gate_sums, gate_zeros, gate_scales))

    def rounded(result: Value) -> Value:
        """The result as codes, where it is to be such."""
        lowest, highest, zero = codes
        if y_scales is not None:
            real = result / dsl.load(y_scales, (j,), (bn,))
            if bipolar:
                whole = dsl.rint((real - float(lowest)) * 0.5)
                return dsl.minimum(dsl.maximum(whole, 0), (highest - lowest) // 2) * 2 + lowest
            result = dsl.rint(real)
        elif multipliers is not None and shifts is not None:
            dyadic = dsl.load(multipliers, (j,), (bn,)), dsl.load(shifts, (j,), (bn,))
            if bipolar:  # the nearest odd number is 1 more than twice half of it
                whole = dsl.mul_shift(result, dyadic[0], dyadic[1] + 1, nearest=False)
                return dsl.minimum(dsl.maximum(whole, lowest // 2), highest // 2) * 2 + 1
            result = dsl.mul_shift(result, *dyadic)
        else:
            return result
        return dsl.minimum(dsl.maximum(result, lowest - zero), highest - zero) + zero

    def finished(results: list[Value]) -> None:
        finish(results, bias, residual, y, (i, j), activation, rounded)

    if any(side.group for side in (left, *weights)):
        finished(grouped(left, weights, bk, stages))
        return
    sums = _sums(left, weights, bk, stages, splits, folded)
    if partials is None or arrivals is None:
        finished(_whole(sums, left, weights))
        return
    with last_of(sums, partials, arrivals, y, block, splits) as totals:
        finished(_whole(totals, left, weights))


def _sums(a: Side, weights: Sequence[Side], bk: int, stages: int, splits: int, folded: bool) -> list[Value]:
    """The block's sums of products of digits with each of the weights, over its part of k."""
    totals = [dsl.zeros((a.rows, w.rows), i32) for w in weights]
    start, stop = part_of_k(a.codes.shape[1], splits, bk)
    for k in dsl.record_range(start, stop, bk, stages=stages, folded=folded):
        activations = dsl.load(a.codes, (a.first, k), (a.rows, bk))
        for total, w in zip(totals, weights, strict=True):
            total += dsl.dot(activations, dsl.load(w.codes, (w.first, k), (w.rows, bk)).T)
    return totals


def whole(a: Side, weights: Sequence[Side], bk: int, stages: int) -> list[Value]:
    """The products with each of the weights over all of k, as exact integers where no side has scales."""
    return _whole(_sums(a, weights, bk, stages, splits=1, folded=False), a, weights)


def _whole(totals: Sequence[Value], a: Side, weights: Sequence[Side]) -> list[Value]:
    """The products with each of the weights from their sums, as exact integers where no side has scales."""
    of_a, found = a.numbers(), []
    for total, w in zip(totals, weights, strict=True):
        of_w = w.numbers()
        exact = corrected(total, of_a, of_w, a.codes.shape[1])
        scales = (of_a.scale, of_w.scale)
        found.append(exact if not any(side.scales for side in (a, w)) else _scaled(exact.to(f32), scales))
    return found


def grouped(a: Side, weights: Sequence[Side], bk: int, stages: int) -> list[Value]:
    """The products with each of the weights, where scales belong to groups of k.

    The integers of a group, exact, are rounded to f32, multiplied with the scale of the activations' group if that has
    one too, and then with one scale added by one `fma`, in the order of k; scales of all k come last.
    """
    sides = (a, *weights)
    group = min(side.group for side in sides if side.group is not None)
    fixed = [0 if side.group else side.offset() for side in sides]

    def numbers(k: Value, part: int, side: Side, offset: Value | int) -> Numbers:
        """What the group `part` after k is corrected and scaled by; k is a multiple of every group."""
        of_sums = k // group + part // group
        if side.group is None:
            return Numbers(side.factor, offset, side.sum(of_sums), None)
        return side.numbers(k // side.group + part // side.group, of_sums)

    totals, most = [dsl.zeros((a.rows, w.rows)) for w in weights], math.prod(side.largest for side in (a, weights[0]))
    for k in dsl.record_range(0, a.codes.shape[1], bk, stages=stages):
        tiles = [dsl.load(side.codes, (side.first, k), (side.rows, bk)) for side in sides]
        places = range(0, bk, group)
        of_parts = [[numbers(k, part, *side) for side in zip(sides, fixed, strict=True)] for part in places]
        for part, (of_a, *others) in zip(places, of_parts, strict=True):
            for total, of_w, codes in zip(totals, others, tiles[1:], strict=True):
                product = dsl.dot(tiles[0], codes.T, k=(part, group))
                exact = _to_float(product, of_a, of_w, group, group * most)
                *before, last = (scale for scale in (of_a.scale, of_w.scale) if scale is not None)
                total.set(dsl.fma(_scaled(exact, before), last, total))
    left = [side.scale() if side.group is None else None for side in sides]
    return [_scaled(total, [left[0], scale]) for total, scale in zip(totals, left[1:], strict=True)]


def corrected(total: Value, a: Numbers, w: Numbers, k: Value | int) -> Value:
    """The sums of products over k of the values, less their zeros, from those without the offsets.

    Term by term, each of which needs the registers of only one more row of numbers.
    """
    return sum(_corrections(a, w, k), _times(total, w.factor))


def _corrections(a: Numbers, w: Numbers, k: Value | int) -> Iterator[Value]:
    """What sums over k of products without the offsets lack of those of the values, less their zeros."""
    if a.sums is not None:
        yield a.sums * w.offset
    if w.sums is not None:
        of_w = _times(w.sums, w.factor)
        yield (of_w if a.sums is None else of_w + k * w.offset) * a.offset


def _times(value: Value, factor: int) -> Value:
    return value * factor if factor > 1 else value


def _to_float(product: Value, a: Numbers, w: Numbers, k: int, most: int) -> Value:
    """`corrected` in f32, for integers up to `most`: where that is below 2^22, by two additions.

    Integers from -2^22 on are added to the pattern of 1.5 * 2^23, whose last bit is 1: the pattern of their sum.
    What is added does not wait for the product.
    """
    correction = sum(_corrections(a, w, k))
    if most >= 1 << 22 or w.factor > 1:
        return (_times(product, w.factor) + correction).to(f32)
    start = dsl.full(product.shape, PATTERN, i32) + correction
    return dsl.bitcast(start + product, f32) - 1.5 * 2**23


def _scaled(value: Value, scales: Sequence[Value | None]) -> Value:
    """f32 numbers times the scales that there are, one after the other."""
    for scale in scales:
        value = value if scale is None else value * scale
    return value
