"""The product of two matrices of integer codes, exact or scaled."""

from lowbitvm import dsl
from lowbitvm.dsl import Packed, Tensor, Value, kernel, packed
from lowbitvm.dtypes import f32, i32


@kernel(
    a=packed("m k"), w=packed("n k"), y=("m n", None), a_sums=("m", i32), w_sums=("n", i32), a_zeros=("m", i32),
    w_zeros=("n", i32), a_scales=("m", f32), w_scales=("n", f32),
)  # fmt: skip
def matmul(
    a: Packed,
    w: Packed,
    y: Tensor,
    a_sums: Tensor | None = None,
    w_sums: Tensor | None = None,
    a_zeros: Tensor | None = None,
    w_zeros: Tensor | None = None,
    a_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    *,
    bm: int,
    bn: int,
    bk: int,
    stages: int,
    folded: bool = False,
) -> None:
    """y (m, n) = (a - a_zeros) (m, k) (w - w_zeros) (n, k)^T modulo 2^32, times the scales of rows and columns.

    a, w are integer codes in digits; a block makes a (bm, bn) tile. `dot` leaves out the offset of either side's
    values; a_sums, the sums over k of a's values without their offset, are given where w has an offset or zeros, and
    w_sums where a has.
    """
    i, j = dsl.program_id(0) * bm, dsl.program_id(1) * bn
    total = dsl.zeros((bm, bn), i32)
    for k in dsl.record_range(0, a.shape[1], bk, stages=stages, folded=folded):
        total += dsl.dot(dsl.load(a, (i, k), (bm, bk)), dsl.load(w, (j, k), (bn, bk)).T)

    def row(values: Tensor) -> Value:
        return dsl.expand_dims(dsl.load(values, (i,), (bm,)), 1)

    def column(values: Tensor) -> Value:
        return dsl.load(values, (j,), (bn,))

    of_a: Value | int = a.offset if a_zeros is None else a.offset - row(a_zeros)
    of_w: Value | int = w.offset if w_zeros is None else w.offset - column(w_zeros)
    if a_sums is not None:
        total += row(a_sums) * of_w
    if w_sums is not None:
        total += column(w_sums) * of_a
    if a_sums is not None and w_sums is not None:
        total += a.shape[1] * of_a * of_w
    result = total
    if a_scales is not None or w_scales is not None:
        result = total.to(f32)
    if a_scales is not None:
        result = result * row(a_scales)
    if w_scales is not None:
        result = result * column(w_scales)
    dsl.store(y, (i, j), result.to(y.dtype))
