"""The product of two matrices of integer codes, exact or scaled, with what may follow it in the same kernel."""

from collections.abc import Sequence
from dataclasses import dataclass

from lowbitvm import dsl
from lowbitvm.dsl import Packed, Tensor, Value, kernel, packed
from lowbitvm.dtypes import f32, i32
from lowbitvm.kernels.epilogue import finish


@dataclass(frozen=True)
class Side:
    """A matrix of a product and its numbers for each row, as the block that begins at the row `first` reads them.

    sums are over k, of the values without their offset: they are given where the other side has an offset or zeros.
    """

    codes: Packed
    first: Value
    rows: int
    sums: Tensor | None
    zeros: Tensor | None
    scales: Tensor | None

    def column(self, array: Tensor, at: Value | int) -> Value:
        """The numbers of the block's rows in column `at`: (rows, 1) of activations, (1, rows) of weights."""
        tile = dsl.load(array, (self.first, at), (self.rows, 1))
        return tile if self.codes.format.act is None else tile.T

    def offset(self, at: Value | int = 0) -> Value | int:
        """What every value of a row still has to grow by: `dot` leaves out its offset, and its zero is taken off."""
        return self.codes.offset if self.zeros is None else self.codes.offset - self.column(self.zeros, at)


@kernel(
    a=packed("m k"), w=packed("n k"), y=("m n", None), gate=packed("n k"), bias=("n", None), residual=("m n", None),
    a_sums=("m a_parts", i32), w_sums=("n w_parts", i32), gate_sums=("n w_parts", i32), a_zeros=("m a_groups", i32),
    w_zeros=("n w_groups", i32), gate_zeros=("n w_groups", i32), a_scales=("m a_groups", None),
    w_scales=("n w_groups", None), gate_scales=("n w_groups", None),
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
    *,
    bm: int,
    bn: int,
    bk: int,
    stages: int,
    activation: str | None = None,
) -> None:
    """y (m, n) = (a - a_zeros) (m, k) (w - w_zeros) (n, k)^T modulo 2^32, times the scales of rows and columns.

    a, w are integer codes in digits; a block makes a (bm, bn) tile. With bias, residual, gate and activation it is what
    `lowbitvm.kernels.linear` makes of it.
    """
    i, j = dsl.program_id(0) * bm, dsl.program_id(1) * bn
    left = Side(a, i, bm, a_sums, a_zeros, a_scales)
    weights = [Side(w, j, bn, w_sums, w_zeros, w_scales)]
    if gate is not None:
        weights.append(Side(gate, j, bn, gate_sums, gate_zeros, gate_scales))
    totals = _totals(left, weights, bk, stages)
    results = [
        _scaled(_corrected(total, left, w, a.shape[1]), left, w) for total, w in zip(totals, weights, strict=True)
    ]
    finish(results, bias, residual, y, (i, j), activation)


def _totals(a: Side, weights: Sequence[Side], bk: int, stages: int) -> list[Value]:
    """The sums over all of k of the products of digits, one (bm, bn) tile for each of the weights."""
    totals = [dsl.zeros((a.rows, w.rows), i32) for w in weights]
    for k in dsl.record_range(0, a.codes.shape[1], bk, stages=stages):
        activations = dsl.load(a.codes, (a.first, k), (a.rows, bk))
        for total, w in zip(totals, weights, strict=True):
            total += dsl.dot(activations, dsl.load(w.codes, (w.first, k), (w.rows, bk)).T)
    return totals


def _corrected(total: Value, a: Side, w: Side, k: Value | int) -> Value:
    """The sums of products over k of the values, less their zeros, from those without the offsets."""
    if a.sums is not None:
        total = total + a.column(a.sums, 0) * w.offset()
    if w.sums is not None:
        total = total + w.column(w.sums, 0) * a.offset()
    if a.sums is not None and w.sums is not None:
        total = total + k * a.offset() * w.offset()
    return total


def _scaled(total: Value, a: Side, w: Side) -> Value:
    """The integers in f32, times the scales of the rows, then those of the columns; as they are without scales."""
    for side in (a, w):
        if side.scales is not None:
            total = total.to(f32) * side.column(side.scales, 0).to(f32)
    return total
