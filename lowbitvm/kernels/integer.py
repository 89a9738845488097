"""The exact product of two matrices of integer codes."""

from lowbitvm import dsl
from lowbitvm.dsl import Packed, Tensor, kernel, packed
from lowbitvm.dtypes import i32


@kernel(a=packed("m k"), w=packed("n k"), y=("m n", i32), a_sums=("m", i32), w_sums=("n", i32))
def matmul(
    a: Packed,
    w: Packed,
    y: Tensor,
    a_sums: Tensor | None = None,
    w_sums: Tensor | None = None,
    *,
    bm: int,
    bn: int,
    bk: int,
    stages: int,
) -> None:
    """y (m, n) = a (m, k) w (n, k)^T modulo 2^32, of integer codes in digits; a block makes a (bm, bn) tile.

    `dot` leaves out the offset of either side's values; a_sums, the sums over k of a's values without their offset, are
    given where w has an offset, and w_sums where a has one.
    """
    i, j = dsl.program_id(0) * bm, dsl.program_id(1) * bn
    total = dsl.zeros((bm, bn), i32)
    for k in dsl.record_range(0, a.shape[1], bk, stages=stages):
        total += dsl.dot(dsl.load(a, (i, k), (bm, bk)), dsl.load(w, (j, k), (bn, bk)).T)
    if a_sums is not None:
        total += dsl.expand_dims(dsl.load(a_sums, (i,), (bm,)), 1) * w.offset
    if w_sums is not None:
        total += dsl.load(w_sums, (j,), (bn,)) * a.offset
    if a.offset * w.offset:
        total += a.shape[1] * (a.offset * w.offset)
    dsl.store(y, (i, j), total)
